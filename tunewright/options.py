"""What all parts of a recipe have in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class Options(BaseModel):
    """A part of a recipe. Frozen; an unknown key is a fault, and so is true or false in place of a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any) -> Any:
        """Pydantic would read true as 1 and false as 0; YAML reads `on` and `off` as true and false."""
        if not isinstance(value, dict):
            return value
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: _without_truth_value(given, kinds.get(name)) for name, given in value.items()}


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


def _without_truth_value(value: Any, kind: Any) -> Any:
    """The value, in which what would be taken for a number is a `TruthValue`; itself where there is nothing so."""
    forms = list(branches(kind))
    inner = {get_origin(form): get_args(form) for form in forms}
    if isinstance(value, bool) and bool not in forms and {int, float}.intersection(forms):
        null = ["null"] if type(None) in forms else []
        return TruthValue(value, " or ".join(["a number", *map(str, inner.get(Literal, ())), *null]))
    if isinstance(value, list | tuple) and (of := inner.get(list) or inner.get(tuple)):
        return [_without_truth_value(one, of[0]) for one in value] if _counts(of[0]) else value
    if isinstance(value, dict) and (of := inner.get(dict)):
        return {key: _without_truth_value(one, of[1]) for key, one in value.items()} if _counts(of[1]) else value
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
