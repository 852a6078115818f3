"""The stages of a chain beside one another: one run each, or several seeds."""

from __future__ import annotations

from typing import Any

from tunewright.evaluation.stages import figures, rows


def measured(value: float) -> dict[str, Any]:
    metric = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 50}
    return {"primary": "accuracy", "metrics": {"accuracy": metric}, "higher_is_better": True}


def test_each_stage_has_a_line_for_each_set() -> None:
    spread = {"before": {"mean": 0.1, "sd": 0.0, "values": [0.1, 0.1]}, "after": {"mean": 0.5, "sd": 0.02}}
    infos = {
        "weak": {"status": "finished", "evaluation": {"test": {"before": measured(0.2), "after": measured(0.6)}}},
        "seeds": {"over_seeds": {"test": {"primary": "accuracy", "metrics": {"accuracy": spread}}}},
        "running": {"status": "running"},
        "before alone": {"evaluation": {"test": {"before": measured(0.2)}}},
    }
    for given in (infos, figures(infos)):
        found = {stage: (name, metric, after) for stage, name, metric, after in rows(given) if stage != "before alone"}
        assert list(found) == ["weak", "seeds"]
        assert found["weak"][:2] == found["seeds"][:2] == ("test", "Accuracy")
        assert found["weak"][2].startswith("60.0") and "[50.0–70.0]" in found["weak"][2]
        assert found["seeds"][2].startswith("50.0") and found["seeds"][2].endswith("± 2.0")
