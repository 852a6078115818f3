"""Continuous batching: rows join and leave between tokens, and the answer to each is the one that it would get alone.

One thread reads prompts and draws tokens for all models in turn. A row draws with numbers of its own, which its seed
gives, so what else is asked at the time changes an answer at most by how sums are rounded. Where a model keeps more
than keys and values (recurrent states, virtual tokens), rows are answered in groups that nobody joins.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import torch

from tunewright.service.errors import Refused
from tunewright.service.inference.lane import Lane, Limits
from tunewright.service.inference.models import Module
from tunewright.service.inference.protocol import Piece, Usage, as_refused
from tunewright.service.inference.request import Request

log = logging.getLogger(__name__)

Hear = Callable[[list[tuple[Request, Piece | Usage | Refused]]], None]


class Batching:
    """The thread that answers.

    Args:
        hear: called with all that was said in a turn, in this thread. A Usage or an error is a request's last.
        spare: bytes that caches may take, at the time.
    """

    def __init__(self, hear: Hear, spare: Callable[[], int], limits: Limits | None = None) -> None:
        self._hear, self._spare, self._limits = hear, spare, limits or Limits()
        self._change = threading.Condition()
        self._new: deque[Request] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._lanes: dict[Module, Lane] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> None:
        """Answer a request when its turn comes. Raises Refused: 503 where too many wait."""
        with self._change:
            if self._closed:
                raise Refused(503, "The service is shutting down.", headers={"Retry-After": "10"})
            new = sum(other.tenant == request.tenant for other in self._new)
            if (
                new + sum(lane.waiting.of(request.tenant) for lane in list(self._lanes.values()))
                >= self._limits.waiting
            ):
                raise Refused(503, "Too many requests wait already. Ask again later.", headers={"Retry-After": "5"})
            self._new.append(request)
            self._change.notify()

    def call(self, job: Callable[[], None]) -> None:
        """Run something short between tokens, in the thread that alone uses the modules."""
        with self._change:
            self._calls.append(job)
            self._change.notify()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop; who still waits is told."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            if self._calls:
                self._calls.popleft()()
            told: list[tuple[Request, Piece | Usage | Refused]] = []
            for lane in list(self._lanes.values()):
                self._turn(lane, told)
            if told:
                self._hear(told)
        over = Refused(503, "The service is shutting down.", headers={"Retry-After": "10"})
        left = [*self._new, *(request for lane in self._lanes.values() for request in lane.requests())]
        self._hear([(request, over) for request in left if not request.gone])

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._change:
            while not (self._closed or self._new or self._calls or self._lanes):
                self._change.wait()
            while self._new:
                request = self._new.popleft()
                shared = request.ready.shared
                if shared not in self._lanes:
                    self._lanes[shared] = Lane(shared, self._limits)
                self._lanes[shared].waiting.append(request)
            return not self._closed

    def _turn(self, lane: Lane, told: list[tuple[Request, Piece | Usage | Refused]]) -> None:
        try:
            others = sum(other.bytes for other in self._lanes.values() if other is not lane)
            with torch.inference_mode():
                lane.turn(told, self._spare() - others)
        except Exception as error:
            log.exception("a batch has failed")
            told += [(request, as_refused(error)) for request in lane.requests() if not request.gone]
            lane.waiting.clear()
            lane.reading, lane.rows = [], []
        if not lane.busy:
            del self._lanes[lane.shared]
