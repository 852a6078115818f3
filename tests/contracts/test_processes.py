"""Two processes compute what one does: weights, metrics, and what is kept.

Starting processes costs ten seconds, so each test looks at several things.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tunewright as tw
from tests.runs import recipe
from tests.tiny import completions
from tunewright.errors import TunewrightError


def test_two_processes_equal_one(tiny_base: Any, tmp_path: Path) -> None:
    """A batch of three, so that one has more rows; forward passes of a row or two; a start to be written once."""
    dora = {"type": "lora", "rank": 2, "dora": True}
    before = tw.train(recipe(tiny_base("llama"), tmp_path / "before", method=dora, training={"epochs": 1}))
    one, two = (
        tw.train(
            recipe(
                str(before.folder), tmp_path / str(processes),
                training={"epochs": 1, "micro_batch_tokens": 20, "ema": 0.5, "processes": processes},
            )
        )
        for processes in (1, 2)
    )  # fmt: skip
    assert two.info["status"] == "finished"
    same_metrics(one, two)
    same_weights(one, two)


def test_one_process_goes_on_as_two_of_which_one_has_no_rows(tiny_base: Any, tmp_path: Path) -> None:
    """How many processes there are is no part of a checkpoint; with a batch of one row the second is idle."""
    changes = {
        "task": "text-classification",
        "method": "full",
        "objective": {"class_weights": "balanced"},
        "training": {"batch": 1, "max_steps": 4, "checkpoint_every": 1, "learning_rate": 1e-3},
    }
    one = tw.train(recipe(tiny_base("bert"), tmp_path / "one", **changes))
    two = tw.train(recipe(tiny_base("bert"), tmp_path / "two", **changes))
    (two.folder / "checkpoints" / "step-4" / "state.json").unlink()
    document = two.folder / "recipe.yaml"
    document.write_text(document.read_text().replace("processes: 1", "processes: 2"))
    (two.folder / "run.json").write_text(json.dumps({**two.info, "status": "stopped"}))
    (two.folder / "model" / "model.safetensors").unlink()
    two = tw.resume(two.folder)
    same_metrics(one, two)
    same_weights(one, two)


def test_a_fault_in_the_processes_is_said(tiny_base: Any, tmp_path: Path, capfd: Any) -> None:
    changes = {
        "data": {"train": completions(8), "max_length": 4, "validation": 0},
        "training": {"processes": 2},
    }
    with pytest.raises(TunewrightError, match="2 processes"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run", **changes))
    assert "longer than 4 tokens" in capfd.readouterr().err


def same_metrics(one: Any, two: Any) -> None:
    assert len(one.metrics) == len(two.metrics)
    for mine, other in zip(map(flat, one.metrics), map(flat, two.metrics), strict=True):
        assert other == pytest.approx(mine, rel=2e-6, abs=1e-6)


def flat(line: dict[str, Any]) -> dict[str, float]:
    return {**{k: v for k, v in line.items() if k != "validation"}, **line.get("validation", {})}


def same_weights(one: Any, two: Any) -> None:
    """To 1e-6, but for those that Adam moves by chance, since it divides a gradient of rounding errors by its own size.

    The bias of attention's keys is one such: it moves all scores alike, so its gradient is 0.
    """
    for path in (one.folder / "model").glob("*.safetensors"):
        mine, other = load_file(path), load_file(two.folder / "model" / path.name)
        assert mine.keys() == other.keys()
        kept = [name for name in mine if not name.endswith("key.bias")]
        apart = sum(int(((mine[n] - other[n]).abs() > 1e-6 * (1 + mine[n].abs())).sum()) for n in kept)
        assert apart <= 1e-3 * sum(mine[n].numel() for n in kept)
