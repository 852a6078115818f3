"""The lines that a run writes as it goes: metrics.jsonl (deterministic) and timings.jsonl (not)."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunewright.engine.job import Job

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"


class Log:
    """Writes a line a step, from the first process only, and tells the watchers.

    On resume, lines behind the checkpoint are dropped: those steps come again.
    """

    def __init__(self, job: Job, done: int, total: int) -> None:
        self.job, self.done, self.total = job, done, total

    def __enter__(self) -> Log:
        self.first = self.job.processes.first
        if self.first:
            self.files = {name: _reopened(self.job.folder / name, self.done) for name in (METRICS, TIMINGS)}
        self.began = self.last = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.first:
            for file in self.files.values():
                file.close()

    def step(self, line: Mapping[str, Any]) -> None:
        now, step = time.perf_counter(), line["step"]
        seconds, self.last = now - self.last, now
        timing = {
            "step": step,
            "seconds": round(seconds, 6),
            "tokens_per_second": round(line["tokens"] / seconds, 1),
            "rows_per_second": round(line["rows"] / seconds, 3),
            "memory": peak_memory(self.job.device),
        }
        if self.first:
            self._write(METRICS, line)
            self._write(TIMINGS, timing)
            eta = (now - self.began) / (step - self.done) * (self.total - step)
            self._tell({**line, **timing, "total": self.total, "eta": eta})

    def evaluation(self, terms: Mapping[str, float]) -> float:
        """Note an evaluation; its loss."""
        if self.first:
            line = {"step": int(self.job_step), "validation": dict(terms)}
            self._write(METRICS, line)
            self._tell({**line, "total": self.total})
        self.last = time.perf_counter()
        return terms["loss"]

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        if name == METRICS:
            self.job_step = line["step"]
        self.files[name].write(json.dumps(_finite(line)) + "\n")
        self.files[name].flush()

    def _tell(self, line: Mapping[str, Any]) -> None:
        for watcher in self.job.watchers:
            watcher(line)


def peak_memory(device: Any) -> int:
    """Bytes: the most that the device, or this process on a CPU, has held."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # getrusage would count what this process was forked from, too
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reopened(path: Path, done: int) -> Any:
    kept = []
    if done and path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
    draft = path.with_name(f".{path.name}.draft")  # renamed, so that the lines are never gone
    draft.write_text("".join(kept), encoding="utf-8")
    os.replace(draft, path)
    return path.open("a", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
