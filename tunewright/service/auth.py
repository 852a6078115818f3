"""Who asks, and whether they may: a key is known by its hash, has a tenant, and scopes of what it may do."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer

from tunewright.service.entities import Key
from tunewright.service.errors import Refused
from tunewright.service.store import Store

log = structlog.get_logger()

BEARER: Any = Security(HTTPBearer(auto_error=False, description="A key of this service: tw-…"))
"""Only so that the OpenAPI document says it."""


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request."""

    tenant: str
    key: Key
    request: str
    """The id of the request."""


class Rates:
    """How many requests each key has left: a bucket that fills evenly (token bucket), with room for a minute's."""

    MOST_KEYS = 10_000

    def __init__(self, per_minute: int, now: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.now = per_minute, now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, key: str) -> None:
        """One request more. Raises Refused (429), with the seconds until there is room for one again."""
        with self._lock:
            now = self.now()
            left, at = self._left.pop(key, (float(self.per_minute), now))
            left = min(self.per_minute, left + (now - at) * self.per_minute / 60)
            self._left[key] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > self.MOST_KEYS:
                self._left.popitem(last=False)
        if left < 1:
            wait = max(1, round((1 - left) * 60 / self.per_minute))
            raise Refused(
                429,
                f"This key has sent {self.per_minute} requests in a minute. Wait {wait} s.",
                "rate_limit_exceeded",
                headers={"Retry-After": str(min(wait, 60))},
            )


def secret_of(request: Request) -> str | None:
    """The key that a request brings, by the header of OpenAI, Azure or Google."""
    kind, _, secret = request.headers.get("authorization", "").partition(" ")
    bearer = secret.strip() if kind.lower() == "bearer" else None
    return bearer or request.headers.get("api-key") or request.headers.get("x-goog-api-key")


def write_down(request: Request, refused: Refused) -> None:
    """A line in the audit log where a key of this service was refused, at most one a minute for each route."""
    key: Key | None = getattr(request.state, "key", None)
    if key is None or refused.status not in (401, 403):
        return
    what = f"{request.method:.20} {getattr(request.scope.get('route'), 'path', 'none')}"
    if request.app.state.refusals.is_new((key.id, refused.code, what)):
        try:
            request.app.state.store.audit(key.tenant, key.id, f"refused.{refused.code}", what, request.state.id)
        except Refused as error:  # it is refused all the same
            log.warning("no line in the audit log", key=key.id, refused=what, error=str(error))


def caller(scope: str) -> Any:
    """Who asks, as a dependency of a route. Raises Refused: 401 without a key that holds, 403 without the scope."""

    def check(request: Request, _: Any = BEARER) -> Caller:
        store: Store = request.app.state.store
        secret = secret_of(request)
        key = request.state.key = store.keys.by_secret(secret) if secret else None
        if key is None:
            request.state.key = store.keys.revoked(secret) if secret else None
            said = "This key is not known, or was revoked." if secret else "Send your key: Authorization: Bearer tw-…"
            raise Refused(401, said, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        request.app.state.rates.take(key.id)
        if scope not in key.scopes:
            raise Refused(403, f"This key may not do that: it lacks the scope {scope}.", "insufficient_scope")
        return Caller(key.tenant, key, request.state.id)

    return Depends(check)
