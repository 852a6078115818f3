"""Whole runs on tiny bases, in half a second each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.tiny import rows_for
from tunewright.recipe import Recipe, make_recipe

TRAINING: dict[str, Any] = {"epochs": 2, "batch": 3, "learning_rate": 0.01, "micro_batch_tokens": 64}

CONTRARY: dict[str, Any] = {
    "task": "text-classification",
    "data": {
        "train": [{"text": word * (1 + i), "label": word} for i in range(6) for word in ("fox ", "apples ")],
        "validation": [{"text": "fox fox", "label": "apples "}, {"text": "apples apples", "label": "fox "}],
    },
}
"""Validation rows whose loss grows while the training rows are learned."""


def recipe(base: str, output: Path, *, task: str = "text-generation", **changes: Any) -> Recipe:
    """12 training rows, 4 steps an epoch, 5 validation rows; `training` and `data` are added to, the rest replaced."""
    objective = changes.get("objective", "supervised")
    rows = rows_for(task, 17, objective if isinstance(objective, str) else objective.get("type", "supervised"))
    data = {"train": rows[:12], "validation": rows[12:], **changes.pop("data", {})}
    training = {**TRAINING, **changes.pop("training", {})}
    document = {
        "base": base, "task": task, "data": data, "training": training, "output": str(output),
        "method": {"type": "lora", "rank": 4}, "evaluation": {"before": False, "samples": 0, "generate": 0}, **changes,
    }  # fmt: skip
    return make_recipe(document)


def stop_at(step: int, do: Any) -> Any:
    """A watcher that calls `do` when the step's line comes."""

    def watch(line: Mapping[str, Any]) -> None:
        if line.get("step") == step and "loss" in line:
            do()

    return watch


def left_behind(folder: Path) -> dict[str, bytes]:
    """All that must be the same after an interruption: weights, and the lines of the metrics."""
    weights = {path.name: path.read_bytes() for path in (folder / "model").glob("*.safetensors")}
    assert weights
    return {**weights, "metrics": (folder / "metrics.jsonl").read_bytes()}


def apart() -> list[psutil.Process]:
    """The processes of runs that were started by `launch.apart` from this one."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    return [run for server in servers for run in server.children()]
