"""JSON from afar: one meaning, texts that are whole, and neither so deep nor in so many pieces that it stops others."""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate, count
from operator import sub
from typing import Any

from tunewright.data.texts import HALF, is_whole
from tunewright.service.errors import Refused

DEEPEST = 100
"""Levels of objects and lists in one another."""
MOST_MARKS = 1_000_000
"""Commas, quotes and brackets: json holds the interpreter while it reads, some 0.1 s for so many."""
MOST_DIGITS = 100

NO_MARKS = bytes(set(range(256)) - set(b',"[]{}'))
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
STEPS = bytes.maketrans(b"{[}]", bytes((2, 2, 0, 0)))
"""What each bracket adds to the depth, and 1."""
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(raw: bytes) -> Any:
    """What the bytes say; {} where there are none. Raises Refused: 400 for what is no JSON, 413 for too much of it."""
    if not raw.strip():
        return {}
    if len(raw.translate(None, NO_MARKS)) > MOST_MARKS:
        raise Refused(413, f"The request has more than {MOST_MARKS:,} commas, quotes and brackets.", "too_large")
    try:
        if _depth(raw) > DEEPEST:
            raise ValueError(f"it has more than {DEEPEST} levels")
        text = raw.decode("utf-8-sig")
        body = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON: {error}", "invalid_json") from error
    if SURROGATE.search(raw):
        _refuse_halves(body)
    return body


def _depth(raw: bytes) -> int:
    """How deep brackets stand in one another, but for those in strings. Told before json makes anything of them."""
    outside = b"".join(raw.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    return max(map(sub, accumulate(outside.translate(STEPS, NO_BRACKETS)), count(1)), default=0)


def _refuse_halves(body: Any) -> None:
    """A lone surrogate is no character: what is made of the text, or where it is kept, would fail on it."""
    if is_whole(body):
        return
    fields = body.items() if isinstance(body, dict) else ()
    where = next((name[:200] for name, value in fields if is_whole(name) and not is_whole(value)), None)
    raise Refused(400, f"{where or 'The body'}: a text {HALF}.", "invalid_value", where)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON's")


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text:.40} is larger than any number here")
    return int(text)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text:.40} is larger than any number here")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object. Which of two equal keys counts is not the same everywhere, so that what a proxy let through would not
    be what is done here."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!a:.40} stands twice in an object")
        found[name] = value
    return found


DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_int=_whole, parse_float=_finite, object_pairs_hook=_once
)
