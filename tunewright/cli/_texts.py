"""Texts to predict on: from arguments, a file, or stdin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tunewright.errors import DataError, RecipeError, counted, them


def read_texts(given: Sequence[str], file: str | None, column: str) -> list[str]:
    """The texts that a user named, in order. Raises RecipeError or DataError where there are none."""
    if given and file is not None:
        raise RecipeError("Give texts or --file, not both.")
    if not given and file is None:
        raise RecipeError("There is nothing to predict. Give texts, or --file FILE (- for stdin).")
    found = list(given) if file is None else _from_file(file, column)
    if not found:
        raise DataError(f"{file} holds no texts.")
    return found


def _from_file(file: str, column: str) -> list[str]:
    if file == "-":
        return _lines(sys.stdin.read())
    path = Path(file)
    if not path.is_file():
        raise DataError(f"There is no file {file}.")
    return _lines(_content(path)) if path.suffix.lower() == ".txt" else _from_column(path, column)


def _lines(content: str) -> list[str]:
    return [line for line in content.split("\n") if line.strip()]


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8: {error}") from error


def _from_column(path: Path, column: str) -> list[str]:
    from tunewright.data.rows import read_rows

    read = read_rows(str(path))
    faults = [str(fault) for fault in read.faults]
    faults += [_without(row.source, row.values, column) for row in read.rows if not _is_text(row.values.get(column))]
    if faults:
        rows = counted(len(faults), "row")
        raise DataError(
            f"{rows} of {path} cannot be used. Mend {them(len(faults))}, or name the column of the text (--column):",
            faults,
        )
    return [row.values[column] for row in read.rows]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _without(source: str, values: dict[str, object], column: str) -> str:
    return f"{source}: no text in column {column!r}; columns are {', '.join(values) or 'none'}"
