"""What runs in a fresh process: `python -m benchmarks.child ACTION JOB RESULT`. One thread, one result file."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.workloads import Job


def main(action: str, job_json: str, result: str, module: str = "") -> None:
    """Do it and write what was found as JSON.

    Args:
        action: prepare, train, validate or rate.
        module: the adapter of the system to train with.
    """
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    job = Job.from_json(job_json)
    found = ACTIONS[action](job, module)
    Path(result).write_text(json.dumps(found), encoding="utf-8")


def _prepare(job: Job, _: str) -> dict[str, Any]:
    from benchmarks.prepare import prepare

    prepare(job)
    return {}


def _train(job: Job, module: str) -> dict[str, Any]:
    """Train, and say how long it took: the seconds are those of `Stopwatch`."""
    import torch

    from benchmarks.measure import Stopwatch

    watch = Stopwatch(job.device)
    model = importlib.import_module(module).run(job, watch)
    found = {
        "steps": watch.steps,
        "training_seconds": watch.seconds,
        "step_seconds": [round(s, 4) for s in watch.step_seconds],
        "model": str(model),
    }
    if job.device != "cpu":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def _validate(job: Job, _: str) -> dict[str, Any]:
    from benchmarks.validate import validation_loss

    return dict(validation_loss(job, job.out))


def _rate(job: Job, _: str) -> dict[str, Any]:
    """Operations a second of the matrix products of one step's positions."""
    from benchmarks.limit import Facts
    from benchmarks.measure import matrix_rate

    facts = Facts(**json.loads((job.work / "facts.json").read_text(encoding="utf-8")))
    per_step = facts.positions * job.workload.batch // facts.rows
    return {"flops_per_second": matrix_rate(facts.trunk, per_step, job.device)}


ACTIONS = {"prepare": _prepare, "train": _train, "validate": _validate, "rate": _rate}

if __name__ == "__main__":
    main(*sys.argv[1:])
