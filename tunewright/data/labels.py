"""Labels: class names, numbers, several classes, or a probability for each class.

What a number means is for the recipe to say (`data.labels`), or else decided over the whole file, since one row cannot
tell: if any label has a fraction (4.5), all of them are numbers to regress on; if all are whole (0, 1, 2.0), they name
classes, as "0", "1", "2". A CSV file knows only text, so there the same holds for text that reads as a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from tunewright.data.config import Reading
from tunewright.data.kinds import Label
from tunewright.errors import DataError

WHOLE = re.compile(r"-?\d+\.0+")


def check_label(label: Any) -> Any:
    """A label that has one of the five forms; numbers stay numbers until `settle` sees them all.

    Raises:
        DataError: a label of another form, empty, not finite, or probabilities that do not sum to 1.
    """
    if isinstance(label, list):
        return _check_names(label)
    if isinstance(label, dict):
        return _check_probabilities(label)
    if isinstance(label, str):
        return _check_name(label)
    if isinstance(label, int | float) and math.isfinite(label):
        return label
    raise DataError(f"label {label!r} is neither a name, a finite number, a list of names, nor probabilities by name")


def check_number(label: Any) -> None:
    """Raises DataError where a label is no finite number, and so nothing to regress on."""
    if label is not None and _as_number(label) is None:
        raise DataError(f"label {label!r} is no finite number, and labels are read as numbers")


def settle(labels: Sequence[Any], reading: Reading = "auto") -> list[Label]:
    """The labels of one file in their final form: names are strings, and numbers to regress on are floats."""
    if reading == "numbers" or (reading == "auto" and _are_numbers(labels)):
        return [None if label is None else _as_number(label) for label in labels]
    return [_named(label) for label in labels]


def may_be_numbers(names: Iterable[str]) -> bool:
    """Whether class names all read as numbers: more than two of them may be meant as such."""
    distinct = set(names)
    return len(distinct) > 2 and all(_as_number(name) is not None for name in distinct)


def _are_numbers(labels: Sequence[Any]) -> bool:
    known = [label for label in labels if label is not None]
    return all(_as_number(label) is not None for label in known) and any(map(_has_fraction, known))


def form_of(label: Any) -> str:
    """The form of a label in words: those of one file must agree."""
    if isinstance(label, str | int | float):
        return "one class or number"
    return "a list of classes" if isinstance(label, list) else "probabilities"


def _check_name(label: str) -> str:
    if not label.strip():
        raise DataError("label is empty: give the name of the class")
    return label


def _check_names(labels: list[Any]) -> list[str]:
    if not all(isinstance(label, str | int) for label in labels):
        raise DataError(f"label {labels!r} must list the names of the classes that apply")
    names = [name_of(label) for label in labels]
    if len(set(names)) < len(names):
        raise DataError(f"label {labels!r} names a class twice: list the classes that apply, not a 0 or 1 for each")
    return names


def _check_probabilities(label: dict[str, Any]) -> dict[str, float]:
    shares = {name: share for name, share in label.items() if share is not None}  # Parquet fills names with null
    if not shares or not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares.values()):
        raise DataError(f"label {label!r} must give each class a probability between 0 and 1")
    if abs(sum(shares.values()) - 1) > 1e-3:
        raise DataError(f"the probabilities of label {label!r} sum to {sum(shares.values()):g}, not to 1")
    return {name: float(share) for name, share in shares.items()}


def _as_number(label: Any) -> float | None:
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        return None
    try:
        number = float(label)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None  # "nan" and "inf" are names


def _has_fraction(label: Any) -> bool:
    number = _as_number(label)
    return number is not None and not number.is_integer()


def _named(label: Any) -> Any:
    return name_of(label) if isinstance(label, str | int | float) else label


def name_of(label: str | int | float) -> str:
    """A class name as text: 1, 1.0 and "1.0" are the same class "1"."""
    name = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
    return name.partition(".")[0] if WHOLE.fullmatch(name) else name
