"""What a user of `objective: preference` sees in a terminal of 80 columns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke, write_jsonl
from tests.tiny import preferences, rated, words

KEYS = ["objective.type=preference", "method=full", "training.max_steps=2", "training.batch=4", "data.validation=0.3"]


def test_a_set_of_which_nothing_fits_is_named(decoder: str, invoke: Invoke, tmp_path: Path) -> None:
    """With what to do: not the option that was given."""
    long = [{"prompt": words(i, 3), "chosen": words(i, 90 + i), "rejected": words(i + 1, 80)} for i in range(5)]
    train = write_jsonl(tmp_path / "train.jsonl", preferences(8))
    validation = write_jsonl(tmp_path / "validation.jsonl", long)
    options = ["objective.type=preference", f"data.validation={validation}", "data.max_length=40"]
    asked = ["train", "--base", decoder, "--data", train, *options, "--output", tmp_path / "run"]
    for policy, hint in (("drop", True), ("truncate_prompt", False)):
        done = invoke(*asked, f"data.overlength={policy}")
        assert done.exit_code == 2 and done.stderr.count("Error") == 1
        assert re.search(r"validation: of 5 rows none fits into 40 tokens; the shortest has \d\d+: ", done.stderr)
        assert ("or set data.overlength to truncate_prompt" in done.stderr) == hint


@pytest.mark.parametrize("make", [preferences, rated])
def test_kto_says_what_it_learns(make: Any, decoder: str, invoke: Invoke, tmp_path: Path) -> None:
    """It draws no answers: z0 is no KL from the start, and what it learns as a reward was given by nobody."""
    data = write_jsonl(tmp_path / "rows.jsonl", make(12))
    asked = ["train", "--base", decoder, "--data", data, *KEYS, "objective.loss=kto"]
    done = invoke(*asked, "--output", tmp_path / "run")
    assert done.exit_code == 0, done.output
    steps = [line for line in done.stderr.splitlines() if line.startswith("Step")]
    assert len(steps) == 2 and all("loss " in line and "tokens/s" in line for line in steps)
    assert re.search(r"Validation after step 2 .*: loss \S+, accuracy .*, z0 .*, implicit reward ", done.stderr)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Reward against KL" not in page and "KL from the start" not in page
    assert "z₀" in page and "Implicit reward" in page
    told = invoke(*asked, "--output", tmp_path / "again", "--json")
    assert told.exit_code == 0 and json.loads(told.stdout)["status"] == "finished", told.output
