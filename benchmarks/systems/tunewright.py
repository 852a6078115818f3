"""Tunewright, as its users call it."""

from __future__ import annotations

from pathlib import Path

import tunewright as tw
from benchmarks.measure import Stopwatch
from benchmarks.workloads import Job

SEED = 0


def run(job: Job, watch: Stopwatch) -> Path:
    workload = job.workload
    settings = {
        "max_steps": workload.steps,
        "batch": workload.batch,
        "learning_rate": workload.learning_rate,
        "schedule": "constant",
        "warmup": 0,
        "gradient_clip": 1.0,
        "precision": "fp32" if job.device == "cpu" else "bf16",
        "device": job.device,
        "seed": SEED,
    } | (job.options or {})
    with watch:
        done = tw.train(
            base=str(job.base),
            data=tw.Data(train=str(job.train), validation=0, test=None),
            method=tw.LoRA(rank=workload.rank, alpha=workload.alpha) if workload.rank else tw.Full(),
            training=tw.Training(**settings),
            output=str(job.out / "run"),
        )
    return done.folder / "model"
