"""The benchmark of labelling: its patterns and rows are what its page says of them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import labeling_speed
from tunewright.data.labeling._translate import translate


def test_a_tenth_of_the_patterns_is_for_re_and_votes_do_not_differ(tmp_path: Path) -> None:
    import re

    rules = labeling_speed.rules()
    inexact = [rule for rule in rules if not translate(re.compile(rule["pattern"]), ascii_only=True).exact]
    assert len(rules) == labeling_speed.PATTERNS and len(inexact) == len(rules) // 10
    (tmp_path / "rows.jsonl").write_text("".join(labeling_speed.rows(500)))
    (tmp_path / "rules.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in rules))
    beside = labeling_speed.compared(tmp_path / "rows.jsonl")
    assert beside["differ"] == 0 and beside["rows"] == 500 and 80 < beside["characters"] < 95
    found = labeling_speed.labelled(*(str(tmp_path / f"{name}.jsonl") for name in ("rules", "rows", "to")))
    assert found["rows"] == 500 and 0.3 < found["coverage"] < 0.7
    page = "\n".join(labeling_speed.page([found], {**beside, "differ": 3}, "500"))
    assert "| 500 | " in page and "differ on 3 rows" in page
