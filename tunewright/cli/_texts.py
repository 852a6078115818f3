"""Texts to predict on: from arguments, a file, or stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.errors import DataError, RecipeError, counted, them


def read_texts(given: Sequence[str], file: str | None, column: str, pair: str | None = None) -> list[Any]:
    """The texts that a user named, in order; with `pair` each (or its messages) beside that of another column.

    Raises RecipeError or DataError where there are none.
    """
    if pair is not None and (file is None or file == "-" or Path(file).suffix.lower() == ".txt"):
        raise RecipeError("--pair names a column: give --file with columns (.jsonl, .json, .csv, .tsv, .parquet).")
    if given and file is not None:
        raise RecipeError("Give texts or --file, not both.")
    if not given and file is None:
        raise RecipeError("There is nothing to predict. Give texts, or --file FILE (- for stdin).")
    found = list(given) if file is None else _from_file(file, column, pair)
    if not found:
        raise DataError(f"{file} holds no texts.")
    return found


def _from_file(file: str, column: str, pair: str | None) -> list[Any]:
    if file == "-":
        return _lines(sys.stdin.read())
    path = Path(file)
    if not path.is_file():
        raise DataError(f"There is no file {file}.")
    return _lines(_content(path)) if path.suffix.lower() == ".txt" else _from_columns(path, column, pair)


def _lines(content: str) -> list[str]:
    return [line for line in content.split("\n") if line.strip()]


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8: {error}") from error


def _from_columns(path: Path, column: str, pair: str | None) -> list[Any]:
    from tunewright.data.rows import read_rows

    read = read_rows(str(path))
    faults = [str(fault) for fault in read.faults]
    for row in read.rows:
        first = row.values.get(column)
        if not (
            _is_text(first) or (pair and isinstance(first, list))
        ):  # messages, of which a reward model reads an answer
            faults.append(_without(row.source, row.values, column))
        elif pair and not _is_text(row.values.get(pair)):
            faults.append(_without(row.source, row.values, pair))
    if faults:
        rows = counted(len(faults), "row")
        raise DataError(
            f"{rows} of {path} cannot be used. Mend {them(len(faults))}, or name the column of the text (--column):",
            faults,
        )
    return [(row.values[column], row.values[pair]) if pair else row.values[column] for row in read.rows]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _without(source: str, values: dict[str, object], column: str) -> str:
    return f"{source}: no text in column {column!r}; columns are {', '.join(values) or 'none'}"
