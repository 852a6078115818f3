"""A job that is held: its lease is renewed in a thread of its own, so that nothing that takes long lets go of it."""

from __future__ import annotations

import threading
import time

from structlog import get_logger

from tunewright.service.entities import Job, Status
from tunewright.service.errors import Lost
from tunewright.service.store import Store

log = get_logger()


class Lease:
    """Inside, the job is held, unless it is lost.

    Attributes:
        status: as the last heartbeat found it.
        silent: the last heartbeat did not reach the database.
    """

    def __init__(self, store: Store, job: Job, seconds: float, every: float) -> None:
        self.store, self.job, self.seconds, self.every = store, job, seconds, every
        self.status: Status = job.status
        self.silent = False
        self._lost: Lost | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease of {job.id}", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> Status:
        """The status of the job. Raises Lost where it is no longer held."""
        if self._lost:
            raise self._lost
        return self.status

    def wait(self, seconds: float) -> None:
        """Wait, as long as the job is held. Raises Lost."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, self.every))

    def _renew(self) -> None:
        while not self._over.wait(self.every):
            try:
                self.status = self.store.jobs.beat(self.job.id, self.job.fence, self.seconds)
                self.silent = False
            except Lost as lost:
                self._lost = lost
                return
            except Exception as error:
                # the database may be away; whether the job is lost is for it to say, when it is back
                self.silent = True
                log.warning("no heartbeat", job=self.job.id, error=str(error))
