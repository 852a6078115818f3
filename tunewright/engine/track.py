"""Logging to TensorBoard, Weights & Biases or MLflow, each an optional dependency."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tunewright.errors import MissingExtra

LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def require(names: Sequence[str]) -> None:
    """Raise MissingExtra where the library of one of the trackers is not installed."""
    for name in names:
        try:
            import_module(LIBRARIES[name])
        except ImportError as error:
            raise MissingExtra(f"training.track: {name}", "track") from error


def tracker(name: str, folder: Path, document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """A watcher that writes each line's numbers to `name`, which is installed."""
    return {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[name](folder, document)


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

    own: Any = {"dir": str(folder), "name": folder.name, "config": dict(document), "project": "tunewright"}
    run = wandb.init(**own, mode=wandb_mode(), reinit="create_new")
    return lambda line: run.log(dict(_numbers(line)), step=line["step"])


def wandb_mode() -> Any:
    """Offline where nobody is logged in: the files can be sent later with `wandb sync`."""
    import wandb

    return os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")


def _mlflow(folder: Path, document: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
    """Into the run's own folder where MLFLOW_TRACKING_URI names no server."""
    import mlflow

    uri = os.environ.get("MLFLOW_TRACKING_URI") or (folder / "mlruns").absolute().as_uri()
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(uri)
    run = client.create_run("0", run_name=folder.name).info.run_id
    client.log_dict(run, dict(document), "recipe.json")

    def watch(line: Mapping[str, Any]) -> None:
        now = int(time.time() * 1000)
        client.log_batch(run, [mlflow.entities.Metric(key, value, now, line["step"]) for key, value in _numbers(line)])

    return watch


def _numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{key}/")
        elif isinstance(value, int | float) and key not in ("step", "total", "eta"):
            yield f"{prefix}{key}", float(value)
