"""What every route works with."""

from __future__ import annotations

from typing import Any, cast

from fastapi import Depends, Request

from tunewright.service.auth import Caller
from tunewright.service.bringing import Bringing
from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Engine, ModelRef
from tunewright.service.settings import Limits
from tunewright.service.storage import Storage
from tunewright.service.store import Store


class State:
    """The parts of the service, for one request."""

    def __init__(self, request: Request) -> None:
        found: Any = request.app.state
        self.bringing = cast(Bringing, found.bringing)
        self.store = cast(Store, found.store)
        self.storage = cast(Storage, found.storage)
        self.engine = cast(Engine, found.engine)
        self.limits = cast(Limits, found.settings.limits)
        # the client says itself that it has sent this before
        self.is_retry = request.headers.get("x-stainless-retry-count", "0") not in ("", "0")

    def audit(self, who: Caller, action: str, object: str) -> None:
        self.store.audit(who.tenant, who.key.id, action, object, who.request)

    def model(self, who: Caller, name: str, alpha: float | None = None) -> ModelRef:
        """The model that is to answer, brought to this machine. Raises Refused: 404, or 400 for a base with an α."""
        bases = self.bringing.bases
        if name in bases:
            if alpha is not None:
                raise Refused(400, f"{name} is a base: only tuned models (ft:…) have an α behind @.", param="model")
            return ModelRef(name, str(bases[name]))
        tuned = self.bringing.tuned(who.tenant, name)
        run = str(self.bringing.run(tuned))
        return ModelRef(tuned.base, str(bases[tuned.base]), name, run, 1.0 if alpha is None else alpha)


Parts: Any = Depends(State)
