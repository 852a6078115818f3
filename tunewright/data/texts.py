"""Texts as they come from outside: what no tokenizer can read is said here, with which text it is."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from tunewright.errors import DataError, counted, them

HALF = "holds half of a character (a lone surrogate \\ud…)"


def is_whole(value: Any) -> bool:
    """Whether all of it can be written as UTF-8: JSON and Python can spell characters that no text can have."""
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_address(value: Any) -> bool:
    """Whether it is a place on the network, which is never read: `https://…`, `s3://…`."""
    return isinstance(value, str) and re.match(r"[a-z][a-z0-9+.-]+://", value, re.IGNORECASE) is not None


def check_texts(texts: Sequence[Any]) -> None:
    """Raises DataError that names each text that cannot be read; a text may be a pair of texts."""
    faults = [f"texts[{index}] {fault}" for index, text in enumerate(texts) if (fault := _fault(text))]
    if faults:
        cannot = f"{len(faults):,} of {counted(len(texts), 'text')} cannot be read"
        raise DataError(f"{cannot}: mend or remove {them(len(faults))}.", faults)


def _fault(text: Any) -> str | None:
    parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
    if not all(isinstance(part, str) for part in parts):
        return f"is {text!r:.80}: give a string, or two in a tuple"
    return None if is_whole(parts) else HALF
