"""A method's way through a run, in small: start, three steps, save, load. Each is made once for many tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from tests.contracts.steps import job_of, prepared
from tests.tiny import rows_for
from tunewright.artifacts.load import load
from tunewright.artifacts.save import save
from tunewright.engine.loop import Step
from tunewright.engine.state import TrainState
from tunewright.errors import TunewrightError
from tunewright.methods.base import trained_parameters
from tunewright.tasks.base import Model

TRAINING = {"batch": 4, "epochs": 3, "learning_rate": 0.02}
STEPS = 3


@dataclass
class Journey:
    """What was seen on the way; where the pair was refused there is the refusal, and nothing else."""

    refusal: TunewrightError | None = None
    model: Any = None
    method: Any = None
    folder: Path = Path()
    start: Any = None  # logits before the first step
    end: Any = None  # logits after the last
    loaded: Any = None  # logits of what was saved, loaded again
    moved: frozenset[str] = frozenset()  # names of tensors that changed, buffers too
    trained: frozenset[str] = frozenset()  # names of parameters that may
    losses: tuple[float, ...] = ()

    def again(self) -> Model:
        """The saved model, fresh."""
        return load(self.folder)


def journey(base: str, task: str, method: dict[str, Any], folder: Path, **recipe: Any) -> Journey:
    """Three steps of a method on a base, saved to `folder / "model"`."""
    try:
        ready = prepared(
            base, rows_for(task), start=folder / "start", task=task, method=method, training=TRAINING, **recipe
        )
    except TunewrightError as error:
        return Journey(refusal=error)
    model, chosen = ready.model, ready.recipe.method
    seen = Journey(None, model, chosen, folder / "model", start=logits(model))
    seen.trained = frozenset(trained_parameters(model.module))
    job = job_of(ready)
    step = Step(job, TrainState(model, chosen, job.config, "fp32"))
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
    seen.losses = tuple(step.take()["loss"] for _ in range(STEPS))
    seen.moved = frozenset(name for name, tensor in _tensors(model) if not torch.equal(tensor, before[name]))
    seen.end = logits(model)
    save(model, chosen, seen.folder)
    seen.loaded = logits(seen.again())
    return seen


def logits(model: Model, rows: int = 5) -> torch.Tensor:
    """The logits of the first rows in one padded batch, [B, T, V] with 0 at the padding, or [B, C]."""
    if model.task.name == "image-classification":
        return image_logits(model, rows)
    texts = [row.get("text") or row["prompt"] + row["completion"] for row in rows_for(model.task.name)[:rows]]
    model.processor.padding_side = "right"
    batch = dict(model.processor(texts, padding=True, return_tensors="pt"))
    model.module.eval()
    with torch.no_grad():
        found = model.module(**batch).logits
    if found.ndim < 3:
        return found
    return found[:, -batch["attention_mask"].shape[1] :] * batch["attention_mask"][:, :, None]


def image_logits(model: Model, rows: int) -> torch.Tensor:
    images = [Image.open(BytesIO(row["image"])) for row in rows_for(model.task.name)[:rows]]
    model.module.eval()
    with torch.no_grad():
        return model.task.logits(
            model.module, SimpleNamespace(inputs=dict(model.processor(images, return_tensors="pt")))
        )


@cache
def base_logits(base: str, task: str, seed: int = 0) -> torch.Tensor:
    """Of the base as a run begins it, with its new head, and without a method."""
    ready = prepared(base, rows_for(task), task=task, method={"type": "full"}, training={"seed": seed})
    return logits(ready.model)


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Equal to `tolerance`, measured by the largest logit."""
    scale = max(1.0, float(other.abs().max()))
    return one.shape == other.shape and float((one - other).abs().max()) <= tolerance * scale


def _tensors(model: Model) -> list[tuple[str, torch.Tensor]]:
    return [*model.module.named_parameters(), *model.module.named_buffers()]
