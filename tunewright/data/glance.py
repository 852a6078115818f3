"""What kind of rows a location holds, by the first of them: nothing is fetched, and of large files no more is read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from tunewright.data.config import DataConfig, Location
from tunewright.data.records import captions_wanted, load_records
from tunewright.data.row import Row
from tunewright.data.stream import stream_rows
from tunewright.errors import DataError

SEVERAL = 3
"""Rows that are looked at: the first may be one that cannot be used."""


def glance(location: Location, config: DataConfig, kinds: Sequence[str] = ()) -> str | None:
    """One of `KINDS`; None where the first rows do not tell, or are not here. What is wrong with them is not said.

    Args:
        kinds: those that are wanted, see `load_records`.
    """
    if isinstance(location, str) and not Path(location.partition(":")[0]).exists() and not Path(location).exists():
        return None
    try:
        found = islice(stream_rows(location, captions_wanted(config, kinds)), SEVERAL)
        rows = [row.values for row in found if isinstance(row, Row)]
        return load_records(rows, config.model_copy(update={"on_bad_rows": "skip"})).kind
    except (DataError, OSError, ValueError):
        return None
