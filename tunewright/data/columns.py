"""Columns by their standard names, and what is said where they have others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tunewright.data.formats import FORMATS
from tunewright.data.row import Row, renamed
from tunewright.errors import DataError, nearest

COMMON = ("chat", "prompt_completion", "preference", "classification", "text")
"""Formats that are named where rows fit none."""

OFTEN = {
    "messages": ("conversation", "dialogue", "dialog", "chat"),
    "prompt": ("question", "query", "instruction", "input", "problem", "request"),
    "completion": ("answer", "response", "reply", "output", "target", "solution"),
    "text": ("sentence", "review", "content", "body", "document", "comment", "article", "tweet"),
    "label": ("class", "category", "sentiment", "stars", "rating", "intent", "target", "labels"),
}
"""What columns are often called, by the standard name."""


def columns_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row.values))


def with_standard_columns(rows: list[Row], columns: Mapping[str, str]) -> list[Row]:
    """Rows with standard column names, as `data.columns` says.

    Raises DataError for a column that no row has, and for a name that no format reads: neither would have an effect.
    """
    if not columns:
        return rows
    found, known = columns_of(rows), list(dict.fromkeys(name for format in FORMATS.values() for name in format.columns))
    if unknown := next((name for name in columns if name not in known), None):
        turned = f"{{{columns[unknown]}: {unknown}}}"
        meant = columns[unknown] in known and unknown in found
        said = f"Turn it round: {turned}." if meant else nearest(unknown, known)
        raise DataError(f"data.columns gives {unknown}, which no format reads. {said}")
    if missing := [column for column in columns.values() if column not in found]:
        raise DataError(f"data.columns names {', '.join(missing)}; the columns found are {', '.join(found)}.")
    standard = {column: name for name, column in columns.items()}
    return [renamed(row, standard) for row in rows]


def unfit_columns(found: Sequence[str], wanted: str) -> str:
    """What is said of columns that fit no format, or not the one that is wanted."""
    names = COMMON if wanted == "auto" else (wanted,)
    said = f"the columns found are {', '.join(found) or 'none'}, which fit no format: "
    if guess := next(filter(None, (_guess(found, FORMATS[name].needs) for name in names)), {}):
        return f"{said}say which is which with data.columns: {{{', '.join(f'{k}: {v}' for k, v in guess.items())}}}."
    formats = ", ".join(f"{name} ({' + '.join(FORMATS[name].needs)})" for name in names)
    others = f", or another that data.format can name ({len(FORMATS) - len(COMMON)} more)" if wanted == "auto" else ""
    return f"{said}{formats}{others}. Name them with data.columns, e.g. {{text: review, label: stars}}."


def _guess(found: Sequence[str], needs: Sequence[str]) -> dict[str, str]:
    """Standard name → the column that is likely meant, of those that are not there; empty where one is not known.

    A text alone is guessed only where there is nothing else, which could be its label.
    """
    guess = {need: _called(need, found) for need in needs if need not in found}
    sure = all(guess.values()) and len(set(guess.values())) == len(guess) and (len(needs) > 1 or len(found) == 1)
    return guess if sure else {}


def _called(need: str, found: Sequence[str]) -> str:
    return next((column for name in OFTEN.get(need, ()) for column in found if column.lower() == name), "")
