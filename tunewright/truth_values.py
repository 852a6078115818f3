"""True and false where a number was meant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin


@dataclass(frozen=True)
class TruthValue:
    """Stands where a number was meant and true or false is given; pydantic refuses it like any other object.

    Attributes:
        choices: what may be given, in words.
    """

    value: bool
    choices: str

    def __repr__(self) -> str:
        return repr(self.value)


def without_truth_value(value: Any, kind: Any) -> Any:
    """The value, in which what would be taken for a number is a `TruthValue`; itself where there is nothing so."""
    forms = list(branches(kind))
    inner = {get_origin(form): get_args(form) for form in forms}
    if isinstance(value, bool) and bool not in forms and {int, float}.intersection(forms):
        null = ["null"] if type(None) in forms else []
        return TruthValue(value, " or ".join(["a number", *map(str, inner.get(Literal, ())), *null]))
    if isinstance(value, list | tuple) and (of := inner.get(list) or inner.get(tuple)):
        return [without_truth_value(one, of[0]) for one in value] if _counts(of[0]) else value
    if isinstance(value, dict) and (of := inner.get(dict)):
        return {key: without_truth_value(one, of[1]) for key, one in value.items()} if _counts(of[1]) else value
    return value


def _counts(kind: Any) -> bool:
    return bool({int, float}.intersection(branches(kind)))


def branches(kind: Any) -> Iterator[Any]:
    """What may stand where this is the annotation: the types of a union, none of which is one itself."""
    if get_origin(kind) is Annotated:
        yield from branches(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from branches(one)
    else:
        yield kind
