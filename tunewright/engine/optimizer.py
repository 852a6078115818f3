"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunewright.engine.config import TrainingConfig
from tunewright.errors import MissingExtra
from tunewright.methods.base import Method


def build_optimizer(
    parameters: Mapping[str, Any], config: TrainingConfig, method: Method, shares: Mapping[str, float] | None = None
) -> Any:
    """The optimizer over the trained parameters. Only matrices decay; `rate` scales a group's learning rate.

    Args:
        shares: by a parameter's name, the share of the learning rate that it has where that is not all of it.

    Raises MissingExtra where the optimizer's library is not installed.
    """
    groups: dict[tuple[float, float], list[Any]] = {}
    for name, parameter in parameters.items():
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        rate = method.rate_factor(name) * (shares or {}).get(name, 1.0)
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [{"params": ps, "rate": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
    return _make(config.optimizer, settings, float(config.learning_rate))


def _make(name: str, groups: list[dict[str, Any]], rate: float) -> Any:
    import torch

    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate)
    if name == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise MissingExtra("optimizer: adamw8bit", "bnb") from error
        return AdamW8bit(groups, lr=rate)
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for g in groups for p in g["params"])
    return torch.optim.AdamW(groups, lr=rate, fused=fused)


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """The rate of step 1…total: linear warm-up, then the schedule.

    cosine falls to 0; linear falls to 0; constant stays; wsd (warm-up, stable, decay: arXiv 2405.18392) stays for 80 %
    of the steps and then falls to 0 by 1 − sqrt.
    """
    peak = float(config.learning_rate)
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total
    if step <= warmup:
        return peak * step / warmup
    done = max(0.0, step - warmup - 1) / max(1.0, total - warmup)
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return peak * (1 - done)
    if config.schedule == "wsd":
        return peak * (1 - math.sqrt(max(0.0, (done - 0.8) / 0.2)))
    return peak


def set_rate(optimizer: Any, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
