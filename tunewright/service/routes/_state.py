"""What every route works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import structlog
from fastapi import Depends, Request

from tunewright.service.auth import Caller
from tunewright.service.bringing import Bringing
from tunewright.service.checking import Checks
from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Engine, ModelRef
from tunewright.service.patience import is_lost
from tunewright.service.settings import Limits
from tunewright.service.storage import Storage
from tunewright.service.store import Actor, Store

log = structlog.get_logger()


class State:
    """The parts of the service, for one request."""

    def __init__(self, request: Request) -> None:
        found: Any = request.app.state
        self.bringing = cast(Bringing, found.bringing)
        self.store = cast(Store, found.store)
        self.storage = cast(Storage, found.storage)
        self.engine = cast(Engine, found.engine)
        self.limits = cast(Limits, found.settings.limits)
        self.checks = cast(Checks, found.checks)
        # the client says itself that it has sent this before
        self.is_retry = request.headers.get("x-stainless-retry-count", "0") not in ("", "0")

    @contextmanager
    def wanted(self, what: str) -> Iterator[None]:
        """Inside, the storage is used. Raises Refused: 500 where it has lost what is wanted, 503 where it is away."""
        try:
            yield
        except OSError as error:
            log.error("storage", wanted=what, error=str(error))
            if is_lost(self.storage, error):
                headers = {"x-should-retry": "false"}
                raise Refused(500, f"The service has lost the {what}.", "content_lost", headers=headers) from error
            said, headers = "The storage does not answer just now: ask again.", {"Retry-After": "5"}
            raise Refused(503, said, "storage_unavailable", headers=headers) from error

    def model(self, who: Caller, name: str, alpha: float | None = None) -> ModelRef:
        """The model that is to answer, brought to this machine. Raises Refused: 404, or 400 for a base with an α."""
        bases = self.bringing.bases
        if name in bases:
            if alpha is not None:
                raise Refused(400, f"{name} is a base: only tuned models (ft:…) have an α behind @.", param="model")
            return ModelRef(name, str(bases[name]))
        tuned = self.bringing.tuned(who.tenant, name)
        with self.wanted(f"model {name}"):
            run = str(self.bringing.run(tuned))
        return ModelRef(tuned.base, str(bases[tuned.base]), name, run, 1.0 if alpha is None else alpha)


def actor(who: Caller) -> Actor:
    """As the audit log names who asks."""
    return Actor(who.tenant, who.key.id, who.request)


Parts: Any = Depends(State)
