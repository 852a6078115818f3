"""What a piece of work costs here: seconds, and the most memory that was held meanwhile; and how much there is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tunewright.engine.log import peak_memory

Result = TypeVar("Result")
CGROUP = Path("/sys/fs/cgroup")
LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Where the two versions of cgroups say how much memory a container may have, and has."""


@dataclass(frozen=True)
class Cost:
    """Of one piece of work.

    Attributes:
        seconds: on the clock.
        cpu_seconds: of this process, over all its threads.
        peak: bytes that the device, or on a CPU this process, held at most meanwhile.
    """

    seconds: float
    cpu_seconds: float
    peak: int


def measured(work: Callable[[], Result], device: Any) -> tuple[Result, Cost]:
    """Do some work and say what it cost."""
    _forget_peak(device)
    _wait(device)
    seconds, cpu = time.perf_counter(), time.process_time()
    result = work()
    _wait(device)
    spent = time.perf_counter() - seconds, time.process_time() - cpu
    return result, Cost(*spent, peak_memory(device))


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _forget_peak(device: Any) -> None:
    """Let the peak begin anew. Where the system does not offer that, it stays the highest so far: never too low."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):  # a container may not allow it
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def available(device: Any) -> int:
    """Bytes that this process may hold on the device in all: what it has, and what is free."""
    import psutil

    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    own = psutil.Process().memory_info().rss
    return own + min(psutil.virtual_memory().available, *_within_container())


def _within_container() -> list[int]:
    """What the container still allows, where it has a limit. Cached files do not count: they give way."""
    for limit, used in LIMITS:
        try:
            most, now = (int((CGROUP / name).read_text(encoding="ascii")) for name in (limit, used))
            stat = (CGROUP / used).with_name("memory.stat").read_text(encoding="ascii").split()
            cached = int(stat[stat.index("inactive_file") + 1])
            return [max(0, most - now + cached)]
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return [sys.maxsize]
