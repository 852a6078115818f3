"""Rows that Python has in hand: a list, a Dataset, a DataFrame, or whatever else yields them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tunewright.data.features import dataset_rows
from tunewright.errors import RecipeError

FORMS = (
    "give a file, a folder, a hub name (owner/name:split), or rows: a list of mappings, a Dataset of datasets, or a "
    "DataFrame of pandas"
)


def as_location(given: Any, name: str = "") -> str | list[dict[str, Any]]:
    """Rows as a list, or a path or name as it is, of whatever Python has.

    Args:
        name: that of the argument, for what is said of it.

    Raises RecipeError for what is neither, and for what yields something else than rows.
    """
    said = f"{name}: " if name else ""
    rows = _rows_of(given)
    if not isinstance(rows, str | list) or not rows:
        raise RecipeError(f"{said}{FORMS}")
    if isinstance(rows, str):
        return rows
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise RecipeError(
                f"{said}a row maps columns to values, and rows[{index}] is a {type(row).__name__}; {FORMS}"
            )
    return rows


def _rows_of(value: Any) -> Any:
    pandas = sys.modules.get("pandas")  # whoever has a DataFrame has imported it
    if pandas and isinstance(value, pandas.DataFrame):
        import pyarrow

        return pyarrow.Table.from_pandas(value, preserve_index=False).to_pylist()  # lists as lists, no NaN for nothing
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str | bytes | Mapping):
        return value
    if hasattr(value, "cast_column"):  # a Dataset or an IterableDataset
        return list(dataset_rows(value))
    return list(value) if isinstance(value, Iterable) else value
