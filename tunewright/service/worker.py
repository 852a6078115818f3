"""A worker: a process that takes jobs from the queue and runs them, one at a time, and validates files beside that."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from structlog import get_logger

from tunewright.launch.apart import warm_up
from tunewright.service.attempt import Attempt
from tunewright.service.bringing import Bringing
from tunewright.service.entities import Job, Note, Status
from tunewright.service.errors import Lost, Refused, Unavailable
from tunewright.service.ids import random_text
from tunewright.service.lease import Lease
from tunewright.service.patience import Patience, Waited, lost_as
from tunewright.service.store import Store
from tunewright.service.unpacking import Role
from tunewright.service.validation import faults

log = get_logger()

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_BEATS = 1.0
"""A run learns by a heartbeat that it was cancelled or is to pause."""
SECONDS_BETWEEN_SWEEPS = 60.0
READINGS = 3
"""So often a worker may fall silent over the files of a job before they are thought to be the cause."""


class Worker:
    """Takes jobs until it is told to leave.

    Args:
        scratch: a folder of this machine for what is worked on. It may be lost at any time.
        lease: seconds after which a job is another worker's when nothing is heard of this one.
        device: where models answer, and are looked at before their jobs succeed.
        wandb: a folder for what goes to W&B; None where nothing may.
    """

    def __init__(
        self, bringing: Bringing, scratch: Path, lease: float = 30.0, device: str = "auto", wandb: Path | None = None
    ) -> None:
        self.bringing, self.lease, self.device, self.wandb = bringing, lease, device, wandb
        self.store: Store = bringing.store
        self.name = f"{socket.gethostname()}-{os.getpid()}-{random_text(4)}"
        self.scratch = scratch / self.name
        self.leaving = threading.Event()
        self.lacking: set[str] = set()
        """Jobs whose base is not on this machine."""

    def work(self) -> None:
        """Work until `leaving` is set; a job that is under way is then saved and given back."""
        with own(self.scratch):
            self._work()

    def _work(self) -> None:
        warm_up()
        beside = threading.Thread(target=self._keep_looking, args=(self._validate_next,), daemon=True)
        beside.start()
        threading.Thread(target=self._sweep, daemon=True).start()
        log.info("worker ready", worker=self.name)
        self._keep_looking(self._train_next)
        beside.join(self.lease)

    def _sweep(self) -> None:
        """Now and then: what was deleted may have been brought to a machine that only trains."""
        while not self.leaving.wait(SECONDS_BETWEEN_SWEEPS):
            try:
                self.bringing.forget_deleted()
            except Exception as error:
                log.warning("sweep failed", worker=self.name, error=str(error))

    def _keep_looking(self, take: Callable[[], bool]) -> None:
        while not self.leaving.is_set():
            try:
                found = take()
            except Lost as lost:
                log.info("job lost", worker=self.name, why=str(lost))
                found = True
            except Unavailable as error:
                log.warning("no database", worker=self.name, error=str(error))
                found = False
            except Exception:
                log.exception("worker stumbled", worker=self.name)
                found = False
            if not found:
                self.leaving.wait(SECONDS_BETWEEN_LOOKS)

    def _train_next(self) -> bool:
        job = self.store.jobs.claim(self.name, self.lease, self.lacking)
        if job is None:
            return False
        if not self._has_base_of(job):
            return True
        folder = self.scratch / f"{job.id}-{job.fence}"
        log.info("job claimed", worker=self.name, job=job.id, fence=job.fence)
        try:
            with Lease(self.store, job, self.lease, min(SECONDS_BETWEEN_BEATS, self.lease / 6)) as lease:
                Attempt(job, self.bringing, folder, lease, self.device, self.leaving.is_set, self.wandb).work()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return True

    def _has_base_of(self, job: Job) -> bool:
        """Whether this machine can run it. If not it is given back, for another one."""
        try:
            self.bringing.start(job)
        except Refused as error:
            if error.status != 404:
                raise
            log.warning("no base", worker=self.name, job=job.id, error=str(error))
            self.lacking.add(job.id)
            to = Status.PAUSED if job.status is Status.PAUSING else Status.QUEUED
            said = Note("A worker has no base for this job: it waits for one that has.", "warn")
            self.store.jobs.move(job.id, to, by=job.fence, event=said)
            return False
        return True

    def _validate_next(self) -> bool:
        job = self.store.jobs.claim_validation(self.name, self.lease)
        if job is None:
            return False
        folder = self.scratch / f"{job.id}-files-{job.fence}"

        def tell(message: str) -> None:
            with suppress(Unavailable):
                self.store.jobs.progress(job.id, job.fence, events=[Note(message, "warn")])

        try:
            with Lease(self.store, job, self.lease, self.lease / 6) as lease:
                self._validate(job, folder, Patience(lease, self.bringing.storage, tell, self.leaving.is_set))
        except Waited as error:
            log.warning("files not validated", worker=self.name, job=job.id, error=str(error))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return True

    def _validate(self, job: Job, folder: Path, patiently: Patience) -> None:
        if job.lost >= READINGS:
            said = f"It could not be read: a worker fell silent over it {job.lost} times."
            self.store.jobs.fail(job.id, job.fence, "invalid_training_file", said, "training_file")
            return
        roles: dict[Role, str | None] = {"training": job.spec.training_file, "validation": job.spec.validation_file}
        for role, id in roles.items():
            if id is None:
                continue
            fault = self._fault(job, id, folder, role, patiently)
            result: Any = ("error", fault["message"]) if fault else ("processed", None)
            patiently(partial(self.store.files.mark, id, *result))
            if fault:
                patiently(partial(self.store.jobs.fail, job.id, job.fence, **fault))
                return
        said = "The files are sound; the job is queued."
        patiently(lambda: self.store.jobs.move(job.id, Status.QUEUED, by=job.fence, event=said))

    def _fault(self, job: Job, id: str, folder: Path, role: Role, patiently: Patience) -> dict[str, Any] | None:
        try:
            with lost_as("file", id, f"{role}_file"):
                path = patiently(lambda: self.bringing.file(job, id, folder / role))
        except Refused as error:
            return {"code": error.code or f"invalid_{role}_file", "message": str(error), "param": error.param}
        return faults(path, job.spec, folder / f"{role}-rows", role)


@contextmanager
def own(folder: Path) -> Iterator[None]:
    """Inside, a folder beside those of other workers, of which those that were killed left theirs: these are deleted.

    Who lives holds a lock beside its folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in folder.parent.glob("*.lock"):
        with suppress(OSError), path.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink()
    mine = folder.with_name(f"{folder.name}.lock")
    with mine.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir()
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            mine.unlink(missing_ok=True)


def main() -> None:
    """Work with the settings of the process that started this one."""
    from tunewright.service.children import when_told_to_leave
    from tunewright.service.logs import set_up
    from tunewright.service.serve import inherited_settings, open_parts

    set_up()
    settings = inherited_settings()
    worker = Worker(open_parts(settings), settings.scratch, settings.lease, settings.device, settings.curves)
    when_told_to_leave(worker.leaving.set)
    worker.work()


if __name__ == "__main__":
    main()
