"""Where a run computes, and in which precision: trained weights fp32, computation bf16 where the device has it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from tunewright.engine.config import TrainingConfig
from tunewright.errors import RecipeError


def pick_device(wanted: str, rank: int = 0) -> Any:
    """A torch device. Raises RecipeError for one that is not there."""
    import torch

    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise RecipeError(f"training.device: {wanted} is no device. Use auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("training.device: cuda was asked for, but torch sees no GPU here. Use device: cpu, or auto.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise RecipeError("training.device: mps was asked for, but torch sees none here. Use device: cpu, or auto.")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise RecipeError(f"training.device: {wanted} was asked for, but torch sees {count} here, from cuda:0 on.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", rank % torch.cuda.device_count())
    return device


def pick_precision(wanted: str, device: Any) -> str:
    """fp32 on a CPU, bf16 on a GPU that has it, else fp16. Raises RecipeError for fp16 on a CPU."""
    import torch

    if wanted == "fp16" and device.type == "cpu":
        raise RecipeError("precision: fp16 needs a GPU. Use fp32 or bf16.")
    if wanted != "auto":
        return wanted
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def computing(precision: str, device: Any) -> AbstractContextManager[Any]:
    """Autocast to the precision; nothing for fp32."""
    import torch

    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if precision == "bf16" else torch.float16)


def micro_batch_tokens(config: TrainingConfig, device: Any) -> int:
    if config.micro_batch_tokens != "auto":
        return config.micro_batch_tokens
    return 2048 if device.type == "cpu" else 16384


def auto_learning_rate(reference: float, hidden_size: int) -> float:
    """The method's rate at hidden size 4096, times sqrt(4096 / hidden size): narrower models take larger steps.

    Made for transformers; a task of other models has `rates` of its own.
    """
    return float(f"{reference * (4096 / hidden_size) ** 0.5:.2g}")


def auto_batch(rows: int, normed: bool = False, least: int = 1) -> int:
    """16 rows, or as few as leave 20 steps an epoch; 8 at the least where batch norms train, which normalize by them.

    With fewer, what they normalize by is mostly noise (Wu & He, arXiv 1803.08494).

    Args:
        least: rows that an objective compares with one another in a step; an epoch is cut evenly where they decide.
    """
    wanted = max(8 if normed else 1, min(16, rows // 20))
    return wanted if least <= wanted else math.ceil(rows / max(1, rows // least))
