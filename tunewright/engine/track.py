"""Logging to TensorBoard, Weights & Biases or MLflow, each an optional dependency."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunewright.errors import MissingExtra


def tracker(name: str, folder: Path, document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """A watcher that writes each line's numbers to `name`. Raises MissingExtra where its library is not installed."""
    try:
        return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](folder, document)
    except ImportError as error:
        raise MissingExtra(f"training.track: {name}", "track") from error


def _tensorboard(folder: Path, document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))

    def watch(line: Mapping[str, Any]) -> None:
        for key, value in _numbers(line):
            writer.add_scalar(key, value, line["step"])
        writer.flush()

    return watch


def _wandb(folder: Path, document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    import wandb

    run = wandb.init(dir=str(folder), name=folder.name, config=dict(document), project="tunewright")
    return lambda line: run.log(dict(_numbers(line)), step=line["step"])


def _mlflow(folder: Path, document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    import mlflow

    mlflow.start_run(run_name=folder.name)
    mlflow.log_dict(dict(document), "recipe.json")
    return lambda line: mlflow.log_metrics(dict(_numbers(line)), step=line["step"])


def _numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{key}/")
        elif isinstance(value, int | float) and key not in ("step", "total", "eta"):
            yield f"{prefix}{key}", float(value)
