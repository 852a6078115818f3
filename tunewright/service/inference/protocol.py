"""What the service asks of models and what they answer, in no API's words; and how both travel, a line of JSON each."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from tunewright.errors import TunewrightError
from tunewright.service.errors import Refused

LIKELIEST = 20
"""So many of the likeliest tokens may be told at each place, as in OpenAI's API."""
LOWEST = -9999.0
"""What stands for the logarithm of 0, which JSON cannot say."""


@dataclass(frozen=True)
class ModelRef:
    """The model that is to answer: a base, or a tuned model at a point of its path.

    Attributes:
        base: what clients call the base.
        base_folder: where the base lies on this machine, or its name on the hub.
        name: what clients call the tuned model, without α; None for the base itself. A name always means the same.
        run_folder: where the run (or a PEFT adapter) lies on this machine.
        alpha: the point between the start (0) and the end (1) of the run.
    """

    base: str
    base_folder: str
    name: str | None = None
    run_folder: str | None = None
    alpha: float = 1.0

    def __post_init__(self) -> None:
        assert (self.name is None) == (self.run_folder is None), "a tuned model has a name and a run"
        if not 0 <= self.alpha <= 1:
            raise Refused(400, f"alpha {self.alpha:g} is not between 0 (the start) and 1 (the tuned model).", "alpha")

    @property
    def shown(self) -> str:
        """Its name as clients write it."""
        point = "" if self.alpha == 1 else f"@{self.alpha:g}"
        return (self.name or self.base) + point


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: only the likeliest tokens are drawn whose probabilities first reach it together, of the top_k.
        seed: the same seed and prompt give the same answers, whatever else is asked at the time; None: any.
        max_tokens: of an answer; None, or more than fit: until the context is full.
        stop: texts before which an answer ends.
        n: so many answers.
        logprobs: None, or of how many of the likeliest tokens the probabilities are told beside the drawn one's.
        presence, frequency: taken from the logit of a token that the answer has: once, and for each time.
        bias: added to the logits of tokens, each named once.
        schema: a JSON schema, as text, that an answer has to follow.
        top_k: only so many of the likeliest tokens are drawn, and what is as likely as the last of them; None: all.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    schema: str | None = None
    top_k: int | None = None

    def __post_init__(self) -> None:
        rules: list[tuple[str, bool, str]] = [
            ("temperature", 0 <= self.temperature <= 2, "between 0 and 2"),
            ("top_p", 0 < self.top_p <= 1, "above 0, and at most 1"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1"),
            ("n", 1 <= self.n <= 128, "between 1 and 128"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= LIKELIEST, f"between 0 and {LIKELIEST}"),
            ("stop", all(self.stop), "no empty text"),
        ]
        for name, right, allowed in rules:
            if not right:
                raise Refused(400, f"{name} is {getattr(self, name)!r}: it must be {allowed}.", param=name)


@dataclass(frozen=True)
class Generate:
    """A conversation to answer (`messages`, with the `tools` that the template is given), or a `prompt` to continue.

    A prompt is a text or token ids, and is fed as it stands. `stream`: pieces as they are made, else whole answers.
    `tenant`: who asks, by any name; tenants take turns.
    """

    model: ModelRef
    messages: list[dict[str, Any]] | None = None
    prompt: str | tuple[int, ...] | None = None
    tools: list[dict[str, Any]] | None = None
    sampling: Sampling = Sampling()
    stream: bool = True
    tenant: str = ""

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise Refused(400, "Give messages, or a prompt: one of the two.", param="messages")


@dataclass(frozen=True)
class Token:
    """A token with its log-probability at temperature 1, and `top`, the likeliest in its place."""

    text: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Piece:
    """The next piece of answer `index`. `finish` stands in its last: `stop`, or `length` where it was cut off."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish: str | None = None


@dataclass(frozen=True)
class Usage:
    """How many tokens were read and drawn; the last that is heard of a request."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Embed:
    """Texts, or token ids, of which each becomes a vector: the mean of the last layer over its tokens."""

    model: ModelRef
    inputs: tuple[str | tuple[int, ...], ...]
    tenant: str = ""


@dataclass(frozen=True)
class Embedded:
    vectors: tuple[tuple[float, ...], ...]
    tokens: int


@dataclass(frozen=True)
class Classify:
    """Texts, pairs of texts, or images (their bytes in base64, one way `data:image/…;base64,` in front)."""

    model: ModelRef
    inputs: tuple[str | tuple[str, str], ...]
    tenant: str = ""


@dataclass(frozen=True)
class Draw:
    """An image for each of `n` seeds that begin at `seed`."""

    model: ModelRef
    prompt: str
    n: int = 1
    seed: int = 0
    size: tuple[int, int] | None = None
    steps: int = 30
    guidance: float = 7.5
    negative: str | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 10:
            raise Refused(400, f"n is {self.n}: it must be between 1 and 10.", param="n")


@dataclass(frozen=True)
class Loaded:
    """What lies in memory: a `base`, an `adapter` on one, or a model of its `own`. `used` by so many requests now."""

    name: str
    kind: str
    bytes: int
    used: int


class Effect(StrEnum):
    """What trained weights do where models answer."""

    THERE = "there"
    NONE = "none"
    """The training changed nothing: the run's own code sees no change either."""
    LOST = "lost"
    """The run's own code sees a change, and what answers does not."""
    BROKEN = "broken"
    """The model cannot be loaded."""
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    effect: Effect
    why: str = ""


class Engine(Protocol):
    """What answers. All raise Refused: 400 for what cannot be asked, 404 for a model that is not there, 503 if full."""

    def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        """Pieces of the answers, then the usage. To close the iterator is to go away: drawing stops."""

    async def count(self, asked: Generate) -> int:
        """How many tokens the prompt has that `generate` would feed."""

    async def embed(self, asked: Embed) -> Embedded: ...

    async def classify(self, asked: Classify) -> list[dict[str, Any]]:
        """As `tw.predict` says it, without what was given."""

    async def images(self, asked: Draw) -> list[bytes]:
        """PNG files."""

    async def loaded(self) -> list[Loaded]: ...

    async def healthy(self) -> bool: ...

    async def close(self) -> None: ...


Asked = TypeVar("Asked")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read(kind: type[Asked], body: bytes) -> Asked:
    """What stands in the body of a request. Raises Refused where it is something else."""
    try:
        return _adapter(kind).validate_json(body)  # type: ignore[no-any-return, arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(400, f"{place or 'The body'}: {first['msg']}.", param=place or None) from error


def write(asked: Any) -> bytes:
    return json.dumps(asdict(asked)).encode()


def line(said: Piece | Usage | Refused) -> bytes:
    """A line of an answer, in ASCII: some who read lines see the end of one in U+2028 too."""
    if isinstance(said, Refused):
        found: dict[str, Any] = {"error": error_body(said)}
    elif isinstance(said, Piece):
        found = {**vars(said), "tokens": [asdict(token) for token in said.tokens]}
    else:
        found = vars(said)
    return json.dumps(found).encode() + b"\n"


def read_line(text: str | bytes) -> Piece | Usage:
    """The piece or the usage in a line. Raises the error that is in it."""
    found = json.loads(text)
    if "error" in found:
        raise as_error(found["error"])
    if "index" in found:
        return Piece(found["index"], found["text"], tuple(map(_token, found["tokens"])), found["finish"])
    return Usage(**found)


def _token(found: dict[str, Any]) -> Token:
    return Token(found["text"], tuple(found["bytes"]), found["logprob"], tuple(map(_token, found["top"])))


def error_body(error: Refused) -> dict[str, Any]:
    return {
        "status": error.status, "message": str(error), "code": error.code, "param": error.param,
        "headers": error.headers,
    }  # fmt: skip


def as_error(body: dict[str, Any]) -> Refused:
    return Refused(**body)


def as_refused(error: Exception) -> Refused:
    """What a client is told of an error: all that is not the client's to mend is a 500 without details."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, TunewrightError):
        return Refused(400, str(error))
    return Refused(500, "The model could not answer. The server's log says why.")


def logprob(value: float) -> float:
    """A log-probability that JSON can say."""
    return value if math.isfinite(value) else LOWEST
