"""What a client is told when its request cannot be done: a status, and a body in the API's own form."""

from __future__ import annotations

from collections.abc import Mapping

from tunewright.errors import TunewrightError


class Refused(TunewrightError):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP; a permanent error is never 408, 409 or 429, which clients try again.
        code: the API's short name of the error, such as `fine_tune_not_found`.
        param: the field of the request that is wrong.
        headers: sent along, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    @property
    def type(self) -> str:
        """The family of the error in OpenAI's words."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")


class Unavailable(Refused):
    """The database does not answer just now. A client may try again, and so may a worker."""

    def __init__(self, message: str) -> None:
        super().__init__(503, message, "database_unavailable", headers={"Retry-After": "2"})


class Swept(Refused):
    """A reserved place was given up before anything referred to it: the bytes are to be written again, to a new one."""

    def __init__(self, place: str) -> None:
        super().__init__(503, "It took more than a day to write this, and it was swept away: write it again.",
                         "swept", headers={"Retry-After": "2"})  # fmt: skip
        self.place = place


class Lost(Exception):
    """A worker no longer holds the job: it ended, was given back, or another has claimed it. Nothing was written."""


def missing(what: str, name: str, code: str | None = None, param: str | None = None) -> Refused:
    """Something that is not there, or is another tenant's: the two are not told apart."""
    return Refused(404, f"There is no {what} {name}.", code, param)
