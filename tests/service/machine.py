"""Machines of a service that train: workers in threads and in processes, and jobs for them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tunewright.service.bringing import Bringing
from tunewright.service.entities import Hyperparameters, Job, JobSpec, Status, Teaching
from tunewright.service.serve import SETTINGS, open_parts
from tunewright.service.settings import Settings
from tunewright.service.worker import Worker

LEASE = 2.0
WORDS = ["fox", "apples", "river", "stone", "cloud", "lamp"]
ROWS = [
    {"messages": [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": f"{b} {a}"}]}
    for a in WORDS
    for b in WORDS[:2]
]
LONG, MANY = 24, ROWS * 10
"""Epochs of a run that does not end before it is seen to run, on a crowded machine too."""


class Machine:
    """A machine of the service: its own folders and its own copy of the base, one database and storage for all.

    Args:
        storage: its address; none: a folder in `root`.
    """

    def __init__(self, root: Path, name: str, base: str, storage: str | None = None) -> None:
        models = root / name / "models" / "tiny"
        shutil.copytree(base, models)
        self.settings = Settings(
            home=root / name,
            database=f"sqlite:///{root}/service.db",
            storage=storage or f"file://{root}/storage",
            models=(models,),
            lease=LEASE,
            device="cpu",
        )
        self.parts: Bringing = open_parts(self.settings)

    @contextmanager
    def worker(self) -> Iterator[psutil.Process]:
        """A worker in a process of its own. Inside it may be killed; otherwise it is told to leave."""
        environment = {**os.environ, SETTINGS: self.settings.model_dump_json()}
        command = [sys.executable, "-m", "tunewright.service.worker"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
            try:
                yield psutil.Process(process.pid)
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait(60)

    @contextmanager
    def work(self) -> Iterator[Worker]:
        """A worker in a thread of this process."""
        worker = Worker(self.parts, self.settings.scratch, LEASE, self.settings.device)
        thread = threading.Thread(target=worker.work)
        thread.start()
        try:
            yield worker
        finally:
            worker.leaving.set()
            thread.join(60)

    def file(self, rows: list[dict[str, Any]] = ROWS) -> str:
        store, place = self.parts.store, self.parts.store.places.reserve("files")
        size, digest = self.parts.storage.put(place, ["\n".join(map(json.dumps, rows)).encode()])
        return store.files.add("acme", "rows.jsonl", "fine-tune", size, digest, place).id

    def job(self, model: str = "tiny", epochs: int = 2, rows: list[dict[str, Any]] = ROWS, **recipe: Any) -> Job:
        teaching = Teaching(hyperparameters=Hyperparameters(n_epochs=epochs, batch_size=3))
        spec = JobSpec(model=model, training_file=self.file(rows), method=teaching, seed=1, recipe=recipe)
        return self.parts.store.jobs.create("acme", spec)

    def until(self, job: Job, true: Callable[[Job], Any], seconds: float = 300) -> Job:
        end = time.monotonic() + seconds
        while not true(now := self.parts.store.jobs.look(job.id)):
            assert time.monotonic() < end, now
            assert now.status is not Status.FAILED, now.error
            time.sleep(0.02)
        return now

    def ended(self, job: Job) -> Job:
        return self.until(job, lambda now: now.status.ended)

    def broken_off(self) -> tuple[dict[str, bytes], Job]:
        """What a long job makes undisturbed, and one like it whose worker was killed after it had been saved."""
        undisturbed, killed = self.job(epochs=LONG, rows=MANY), self.job(epochs=LONG, rows=MANY)
        with self.work():
            expected = self.weights(self.ended(undisturbed))
        with self.worker() as process:
            self.until(killed, lambda job: job.saved and job.status is Status.RUNNING)
            process.kill()
        return expected, killed

    def weights(self, job: Job) -> dict[str, bytes]:
        """The trained weights and the metrics of a job that has succeeded."""
        assert job.status is Status.SUCCEEDED and job.fine_tuned_model
        run = self.parts.run(self.parts.store.models.get("acme", job.fine_tuned_model))
        found = {path.name: path.read_bytes() for path in (run / "model").glob("*.safetensors")}
        return {**found, "metrics": (run / "metrics.jsonl").read_bytes()}
