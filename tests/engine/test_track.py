"""Tracking to TensorBoard, W&B and MLflow writes files into the run's folder, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.engine.track import require, tracker
from tunewright.errors import MissingExtra

WRITTEN = {
    "tensorboard": "tensorboard/events.*",
    "wandb": "wandb/offline-run-*/*.wandb",
    "mlflow": "mlruns/**/metrics/loss",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_lines_become_files_of_the_tracker(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip({"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}[name])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    watch = tracker(name, tmp_path, {"base": "tiny"})
    watch({"step": 1, "loss": 0.5})
    watch({"step": 2, "loss": 0.25, "validation": {"loss": 0.3}})
    assert list(tmp_path.glob(WRITTEN[name]))


def test_a_missing_tracker_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(MissingExtra, match=r"tunewright\[track\]"):
        require(["wandb"])
