"""The first rows of a location: nothing is fetched, and of large files no more is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from tunewright.data.config import DataConfig, Location
from tunewright.data.records import captions_wanted, load_records
from tunewright.data.row import Fault, Row
from tunewright.data.rows import on_the_hub
from tunewright.data.stream import stream_rows
from tunewright.errors import DataError

SEVERAL = 3
"""Rows that are looked at: the first may be one that cannot be used."""


def first_rows(location: Location, config: DataConfig, kinds: Sequence[str] = ()) -> list[Row | Fault]:
    """A few rows, those that cannot be used as faults; none of what is on the hub.

    Args:
        kinds: those that are wanted, see `load_records`.

    Raises DataError where the location is missing, unreadable, of an unknown kind, or holds nothing.
    """
    if isinstance(location, str) and on_the_hub(location):
        return []
    return list(islice(stream_rows(location, captions_wanted(config, kinds)), SEVERAL))


def glance(found: Sequence[Row | Fault], config: DataConfig) -> str | None:
    """What the first rows are, one of `KINDS`; None where they do not tell. What is wrong with them is not said."""
    try:
        rows = [row.values for row in found if isinstance(row, Row)]
        return load_records(rows, config.model_copy(update={"on_bad_rows": "skip"})).kind
    except (DataError, OSError, ValueError):
        return None
