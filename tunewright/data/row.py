"""A row as it was read, one that cannot be used, and what a location holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row as it was read, and where from: "train.jsonl:17", "train.parquet:row 17", "rows[16]"."""

    values: dict[str, Any]
    source: str


def renamed(row: Row, standard: Mapping[str, str]) -> Row:
    """The row with other names of columns: name in the file -> standard name."""
    return Row({standard.get(key, key): value for key, value in row.values.items()}, row.source)


class Fault(NamedTuple):
    """A row that cannot be used: where it is, why, and what it held."""

    source: str
    reason: str
    raw: Any

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class Rows(NamedTuple):
    """What was read from one location. `doubts` are of what is used all the same, or left out without being a row."""

    rows: list[Row]
    faults: list[Fault]
    doubts: Sequence[str] = ()
