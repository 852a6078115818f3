"""How much a client's recipe may ask for: what one job could take from all others is bounded here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunewright.service.errors import Refused

MOST = {
    "epochs": 50, "max_steps": 100_000, "head_first": 50, "batch": 256, "rank": 512, "alpha": 10_000,
    "bottleneck": 4096, "samples": 64, "max_new_tokens": 4096, "max_length": 131_072, "updates": 16, "resolution": 1024,
}  # fmt: skip
"""The largest values, by the names of fields, wherever in a recipe they stand."""
NAME = r"[A-Za-z0-9_.\-]+"
LONGEST_PATTERN = 500


def refuse_excess(recipe: Any, where: str = "recipe") -> None:
    """Raises Refused (400), naming the field, where a recipe asks for more than a job may have.

    `targets` of a method are names here: a regular expression of a client could keep a worker busy for ever.
    """
    for path, key, value in _leaves(recipe, where):
        if isinstance(value, int | float) and not isinstance(value, bool) and value > MOST.get(key, float("inf")):
            raise Refused(400, f"{path}: {value:g} is more than the {MOST[key]:,} that a job may have.", param=path)
        if key in ("targets", "until") and isinstance(value, str) and not re.fullmatch(NAME, value):
            raise Refused(400, f"{path} may not be a pattern from afar: give names.", param=path)
        if key == "pattern" and isinstance(value, str) and len(value) > LONGEST_PATTERN:
            raise Refused(400, f"{path}: a pattern of more than {LONGEST_PATTERN} characters.", param=path)


def _leaves(document: Any, where: str, key: str = "") -> Iterator[tuple[str, str, Any]]:
    """(path, name of the field, value)"""
    if isinstance(document, Mapping):
        for name, value in document.items():
            yield from _leaves(value, f"{where}.{name}", str(name))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from _leaves(value, f"{where}.{index}", key)
    else:
        yield where, key, document
