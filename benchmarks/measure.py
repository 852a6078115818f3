"""The one ruler for all systems: seconds from first forward pass to last optimizer step, and the matrix rate."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook


def clock_of(device: str) -> Callable[[], float]:
    """A clock in seconds: CPU seconds of this process, all threads; on a GPU wall seconds once its queue is empty."""
    if device == "cpu":
        return time.process_time

    def synchronized() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronized


class Stopwatch:
    """Reads the clock when the first module is called and after each optimizer step, whoever wrote the loop.

    Used as `with Stopwatch(device) as watch: train()`. What comes before the first forward pass (imports, loading,
    tokenizing) and after the last step (saving) is not counted. Any torch optimizer is seen, by a hook of torch's own.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._clock = clock_of(device)
        self._first: float | None = None
        self._stamps: list[float] = []

    def __enter__(self) -> Stopwatch:
        self._on_forward = register_module_forward_pre_hook(self._begin)
        self._on_step = register_optimizer_step_post_hook(self._step)
        return self

    def __exit__(self, *_: object) -> None:
        self._on_forward.remove()
        self._on_step.remove()

    @property
    def steps(self) -> int:
        return len(self._stamps)

    @property
    def seconds(self) -> float:
        """From the first forward pass to the end of the last step."""
        assert self._first is not None and self._stamps, "nothing was trained"
        return self._stamps[-1] - self._first

    @property
    def step_seconds(self) -> list[float]:
        assert self._first is not None
        return [end - start for start, end in zip([self._first, *self._stamps], self._stamps, strict=False)]

    def _begin(self, *_: Any) -> None:
        self._first = self._clock()
        self._on_forward.remove()  # so that no later call pays for it

    def _step(self, *_: Any) -> None:
        self._stamps.append(self._clock())


def matrix_rate(shapes: list[list[int]], positions: int, device: str = "cpu", seconds: float = 0.4) -> float:
    """Operations a second of the model's own matrix products, forward (x·Wᵀ) and backward (g·W).

    Each distinct [out, in] runs for at least `seconds` after a warm-up; the rates are averaged as the model mixes them.

    Args:
        positions: rows of x: the positions of one training step.
    """
    counts = Counter((out, into) for out, into in shapes)
    operations = {shape: 4.0 * positions * shape[0] * shape[1] for shape in counts}
    spent = sum(n * _product_seconds(shape, positions, device, seconds) for shape, n in counts.items())
    return sum(n * operations[shape] for shape, n in counts.items()) / spent


def _product_seconds(shape: tuple[int, int], positions: int, device: str, seconds: float) -> float:
    """Mean seconds of x·Wᵀ and g·W together, for W [out, in]."""
    out, into = shape
    clock = clock_of(device)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    weight = torch.randn(out, into, device=device, dtype=dtype)
    x = torch.randn(positions, into, device=device, dtype=dtype)
    g = torch.randn(positions, out, device=device, dtype=dtype)

    def both() -> None:
        torch.nn.functional.linear(x, weight)
        torch.matmul(g, weight)

    both()
    runs, start = 0, clock()
    while clock() - start < seconds:
        both()
        runs += 1
    return (clock() - start) / runs
