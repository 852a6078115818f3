"""Connections of clients: how many there are at a time, and how long one may take to say what it wants.

uvicorn closes a connection that is quiet after an answer, but waits for ever for the rest of a request's head.
"""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Protocol
else:
    Protocol = AutoHTTPProtocol

HEAD = 20.0
"""Seconds until the head of a request has come whole."""
WANTED_FILES = 65_536
OWN_FILES = 256
"""Open files that are not a client's: the database, the storage, what is being loaded."""
FILES_EACH = 3
"""Open files that a request may need: its connection, one to the process that answers, a file."""


class Patient(Protocol):
    """uvicorn's protocol, with an end to waiting for heads. Beyond `most` connections one that asks nothing goes."""

    most = 1000
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD, self._too_late)
        if len(self.connections) > self.most:
            others = (one for one in self.connections if one is not self and isinstance(one, Patient))
            next((one for one in others if one.idle), self).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._asks_nothing():
            self._stop()
        elif self._timer is None:  # more bytes of a head give it no more time
            self._timer = self.loop.call_later(HEAD, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    @property
    def idle(self) -> bool:
        return self._asks_nothing() and not self.transport.is_closing()

    def _asks_nothing(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _too_late(self) -> None:
        self._timer = None
        self.transport.abort()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def allow_many() -> int:
    """Let this process and its children open as many files as the system permits. Returns how many connections that
    is enough for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    files = WANTED_FILES if soft == resource.RLIM_INFINITY else min(soft, WANTED_FILES)
    return max(16, (files - OWN_FILES) // FILES_EACH)
