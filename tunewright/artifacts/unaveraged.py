"""The weights that a run with a moving average trained, out of the checkpoint that it ended with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.artifacts.load import card_of_adapter, load
from tunewright.artifacts.start import Start, start_of
from tunewright.artifacts.targets.base import merge
from tunewright.engine import checkpoint
from tunewright.methods._lora_file import CONFIG as PEFT_CONFIG
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import Tensor


def load_unaveraged(run: Path, step: int, device: str = "cpu", kind: str = "weight") -> Model | None:
    """A run's model with what it trained in place of the average.

    Args:
        step: the one whose average the run ended with.
        kind: `average` gives back the run's own model.

    Returns:
        None where the checkpoint is gone, or where what trained was rewritten as it was saved (PiSSA).
    """
    folder = run / "checkpoints" / f"step-{step}"
    if not folder.is_dir():
        return None
    tensors, start = checkpoint.read(folder)[0], start_of(run)
    model = _stacked(start) if start.adapter and (start.adapter / PEFT_CONFIG).is_file() else load(run)
    trained = {n.removeprefix(f"{kind}/"): t for n, t in tensors.items() if n.startswith(f"{kind}/")}
    if not _put(model, trained):
        return None
    model.module.to(device).eval()
    return model


def _stacked(start: Start) -> Model:
    """A LoRA over another as the loop had it: the run's file holds both as one."""
    model = start.model()
    merge(model)
    card_of_adapter(start.weights).make_method().attach(model)
    return model


def _put(model: Model, trained: Mapping[str, Tensor]) -> bool:
    """Whether every tensor found its parameter, in its shape."""
    import torch

    here = dict(model.module.named_parameters())
    if any(name not in here or here[name].shape != tensor.shape for name, tensor in trained.items()):
        return False
    with torch.no_grad():
        for name, tensor in trained.items():
            here[name].copy_(tensor)
    return True
