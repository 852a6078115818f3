"""The pages that benchmarks make of their lines: what is averaged, counted and called better."""

from __future__ import annotations

import math
from typing import Any

from benchmarks import feedback, forecast, robustness

VERSIONS = {"tunewright": "0", "torch": "1"}


def change(low: float, value: float, high: float) -> dict[str, float]:
    return {"low": low, "value": value, "high": high}


def walked(seed: int, changes: list[dict[str, float]], metric: str = "accuracy") -> dict[str, Any]:
    """A run whose path has three points; `changes` are those of the middle one on the reference and on the shift."""
    none = change(0.0, 0.0, 0.0)
    curve = {name: {"test": [{"value": v} for v in (0.5, *[0.7] * 4, 0.8, *[0.8] * 4, 0.9)]} for name in ("ref", "far")}
    alphas = [i / 10 for i in range(11)]
    against = {name: [none] * 5 + [one] + [none] * 5 for name, one in zip(("ref", "far"), changes, strict=True)}
    return {"method": "full", "seed": seed, "head_first": True, "alphas": alphas, "metric": metric, "reference": "ref",
            "shifts": ["far"], "oracle": 0.5, "choices": {"balanced": 0.5, "reference": 1.0}, "curve": curve,
            "against_tuned": against, "tuned": {"ref": 0.9, "far": 0.6}, "date": "d", "versions": VERSIONS}  # fmt: skip


def test_changes_are_averaged_and_counted_where_their_interval_excludes_zero() -> None:
    lines = [
        walked(0, [change(-0.03, -0.02, -0.01), change(0.01, 0.02, 0.03)]),
        walked(1, [change(-0.01, 0.00, 0.01), change(-0.01, 0.01, 0.03)]),
    ]
    page = "\n".join(robustness.page_of("sst2", lines))
    assert "| full | balanced | 0.5 | -1.00 (0 of 2, 1 of 2) | +1.50 (1 of 2, 0 of 2) |" in page
    assert "| full | reference | 1 | +0.00 (0 of 2, 0 of 2) | +0.00 (0 of 2, 0 of 2) |" in page
    assert "| full | 0 | 50.0 / 80.0 / 90.0 | 50.0 / 80.0 / 90.0 | balanced | 0.5 | -2.00 [-3.00, -1.00] |" in page
    assert "| full | yes | 0, 1 | 90.00 ± 0.00 | 60.00 ± 0.00 |" in page


def test_a_loss_is_in_bits_and_better_where_it_falls() -> None:
    line = walked(0, [change(0.1, 0.2, 0.3), change(-0.3, -0.2, -0.1)], metric="loss")
    page = "\n".join(robustness.page_of("stories", [line]))
    bits = 0.2 / math.log(2)
    assert f"| full | balanced | 0.5 | {bits:+.2f} (0 of 1, 1 of 1) | {-bits:+.2f} (1 of 1, 0 of 1) |" in page


def test_the_error_of_forecasts() -> None:
    lines = [
        {"recipe": str(i), "memory": {"said": 110.0, "was": 100.0}, "time": {"said": 100.0 - i, "was": 100.0},
         "check_cpu_seconds": 9.0, "date": "d", "versions": VERSIONS}
        for i in range(11)
    ]  # fmt: skip
    page = "\n".join(forecast.page(lines))
    assert "| memory | 11 | 10.0% | 10.0% | 10.0% (9) | 10% |" in page
    assert "| time | 11 | 5.0% | 9.0% | 10.0% (10) | 15% |" in page
    assert "| 3 | 0 | 0 | +10.0% | 97.0 | 100.0 | -3.0% | 9.0 |" in page


def test_how_often_the_model_of_the_rules_is_right() -> None:
    """And what the policies were measured on."""
    found = {"broken": {"right": 33, "rows": 34}, "kept": {"right": 600, "rows": 601}}
    lines = [{"study": "conduct", "name": "No dogs.", "seed": seed, "found": found} for seed in (0, 1)]
    page = "\n".join(feedback.page(lines))
    assert "| No dogs. | 0, 1 | 33 of 34, 33 of 34 | 600 of 601, 600 of 601 |" in page
    assert "the same openings that they are then measured on" in page.replace("\n", " ")


def test_the_model_of_the_rules_sees_each_rule_broken_and_kept() -> None:
    texts = ["a dog", "a park", *["nothing"] * 9]
    for rule, word in zip(feedback.RULES, feedback.BROKEN, strict=True):
        rows = feedback._violations(texts, rule, word)
        assert [row["violated"] for row in rows] == [True, *[False] * 3] and {row["rule"] for row in rows} == {rule}
