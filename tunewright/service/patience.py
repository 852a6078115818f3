"""What cannot be done just now is done again: a database or a storage that is away, a disk that is full."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from structlog import get_logger

from tunewright.service.errors import Refused, Swept, Unavailable
from tunewright.service.lease import Lease
from tunewright.service.storage import Storage

log = get_logger()

LIMIT = 3600.0
"""Seconds over which something is tried again before this worker lets go of the job."""
LEAVING = 10.0
"""The same, for a worker that shuts down and has half a minute."""
TOLD = 5.0
"""Seconds after which the job's owner is told."""
LONGEST_WAIT = 20.0
LOST = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

T = TypeVar("T")


class Waited(Exception):
    """It was tried again for as long as is allowed."""


class Patience:
    """Does things for a job that is held, again and again as long as there is hope.

    Args:
        tell: called with what the job waits for, and with that it goes on.
        leaving: says that this worker shuts down.
    """

    def __init__(
        self, lease: Lease, storage: Storage, tell: Callable[[str], None], leaving: Callable[[], bool]
    ) -> None:
        self.lease, self.storage, self.tell, self.leaving = lease, storage, tell, leaving

    def __call__(self, do: Callable[[], T]) -> T:
        """What it returns.

        Raises:
            FileNotFoundError, IsADirectoryError, NotADirectoryError: the storage is there, and lacks what is wanted.
            Refused, Swept: this is so for good.
            Waited: the time is over. While no heartbeat reaches the database either it does not pass: nobody else
                could do anything.
            Lost: the job is no longer held.
        """
        wait, waited, told = 0.5, 0.0, False
        while True:
            try:
                done = do()
            except (Refused, OSError) as error:
                if self._is_for_good(error):
                    raise
                self._refuse_to_wait(waited, error)
                log.warning("trying again", job=self.lease.job.id, error=str(error), seconds=wait)
                if waited >= TOLD and not told and not isinstance(error, Unavailable):
                    told = True
                    self.tell(f"{reason(error)} The job waits, and goes on by itself.")
            else:
                if told:
                    self.tell("The job goes on.")
                return done
            waited += self._wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _is_for_good(self, error: Refused | OSError) -> bool:
        if isinstance(error, Refused):
            return error.status < 500 or isinstance(error, Swept)
        return is_lost(self.storage, error)

    def _refuse_to_wait(self, waited: float, error: Exception) -> None:
        if waited >= (LEAVING if self.leaving() else LIMIT):
            raise Waited(reason(error)) from error

    def _wait(self, seconds: float) -> float:
        """Wait, or until this worker shuts down. Returns how many seconds count."""
        begun, known = time.monotonic(), self.leaving()
        end = begun + seconds
        while (left := end - time.monotonic()) > 0 and known == self.leaving():
            self.lease.wait(min(left, 1.0))
        return 0.0 if self.lease.silent and not self.leaving() else time.monotonic() - begun


def is_lost(storage: Storage, error: OSError) -> bool:
    """Whether what could not be read is no longer there, and not the storage as a whole."""
    try:
        return isinstance(error, LOST) and storage.is_there()
    except OSError:
        return False


def reason(error: Exception) -> str:
    """What is waited for, in words for the job's owner: without the places of this machine."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "A disk of the service is full."
    if isinstance(error, OSError):
        # not what a store says itself: that may name its host and bucket
        said = os.strerror(error.errno) if error.errno else type(error).__name__
        return f"The storage does not answer: {said}."
    return str(error)


@contextmanager
def lost_as(what: str, name: str, param: str | None = None) -> Iterator[None]:
    """Inside, what the database knows and the storage lacks fails the job, with what its owner can do."""
    try:
        yield
    except LOST as error:
        log.error("lost from the storage", what=what, name=name, error=str(error))
        mend = "Upload the file again" if what == "file" else "Choose another model"
        said = f"The service has lost the bytes of the {what} {name}. {mend}, and create the job again."
        raise Refused(410, said, f"{what}_lost", param or what) from error
