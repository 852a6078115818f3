"""The body of a request, checked against a model of it: what is wrong is refused with the name of the field."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tunewright.service.errors import Refused

Read = TypeVar("Read", bound=BaseModel)

BRANCH = re.compile(r"int|float|str|bool|list|dict|constrained-\w+|(literal|list|dict|tuple)\[.*|function-.*|\[key\]")
"""The branch of a union that pydantic tried (batch_size.constrained-int), which is none of the client's words."""
PAIRS, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
"""How much metadata a job may have."""


class Body(BaseModel):
    """A part of a request. A key that is null is one that is not there; an unknown one is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def parsed(kind: type[Read], body: Any, where: str = "") -> Read:
    """A body as its model. Raises Refused (400) that names the first field which is wrong.

    Args:
        where: what the body is called as a part of a larger one.
    """
    if not isinstance(body, dict):
        raise Refused(400, f"{where or 'The body'} must be a JSON object.", param=where or None)
    try:
        return kind.model_validate(body, strict=True)
    except ValidationError as error:
        raise _refused(_first(error.errors()), kind, where) from error


def check_metadata(metadata: Mapping[str, str], where: str = "metadata") -> None:
    """Raises Refused where there is more than the API allows."""
    if len(metadata) > PAIRS:
        raise Refused(400, f"{where}: {len(metadata)} pairs are more than {PAIRS}.", param=where)
    for key, value in metadata.items():
        if len(key) > LONGEST_KEY:
            raise Refused(400, f"{where}: a key of {len(key)} characters is longer than {LONGEST_KEY}.", param=where)
        if len(value) > LONGEST_VALUE:
            raise Refused(
                400, f"{where}.{key:.64}: {len(value)} characters are more than {LONGEST_VALUE}.", param=where
            )


def slug(suffix: str, where: str = "suffix") -> str:
    """A suffix as it stands in a model's name: without what separates the parts of one."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", suffix).strip("-.")
    if not found:
        raise Refused(400, f"{where}: {suffix!r:.80} has no letter or digit.", param=where)
    return found


def split_alpha(name: str) -> tuple[str, float | None]:
    """`ft:…@0.6` → (`ft:…`, 0.6): the name of a model and the α that it is to answer with, None where none is given.

    Raises Refused where it is no number from 0 to 1 with at most two decimals.
    """
    model, found, alpha = name.rpartition("@")
    if not found:
        return name, None
    if not re.fullmatch(r"0(\.\d{1,2})?|1(\.0{1,2})?", alpha):
        raise Refused(
            400, f"model: {alpha!r:.20} is no α: behind @ comes a number from 0 to 1, such as 0.6.", param="model"
        )
    if not model:
        raise Refused(400, "model: there is no name in front of @.", param="model")
    return model, float(alpha)


def _first(faults: Sequence[Any]) -> Any:
    """The first fault. Of a union each branch tells one: then that of a branch whose type what was given has."""
    first = faults[0]["loc"]
    at = next((i for i, part in enumerate(first) if BRANCH.fullmatch(str(part))), None)
    branches = [one for one in faults if at is not None and one["loc"][:at] == first[:at]]
    return next((one for one in branches if not one["type"].endswith("_type")), faults[0])


def _model_at(kind: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """The model of an object within a request; None where it is not known which."""
    for part in path:
        if part.isdigit():
            continue
        inner = _models_in(kind.model_fields[part].annotation) if part in kind.model_fields else []
        if len(inner) != 1:
            return None
        kind = inner[0]
    return kind


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _refused(fault: Any, kind: type[BaseModel], where: str) -> Refused:
    path = [str(part) for part in fault["loc"] if not BRANCH.fullmatch(str(part))]
    param = ".".join(filter(None, (where, *path)))
    if fault["type"] == "extra_forbidden":
        model = _model_at(kind, path[:-1])
        hint = difflib.get_close_matches(path[-1], model.model_fields, n=1) if model else []
        said = f"Unknown field {param:.200}." + (f" Did you mean {hint[0]}?" if hint else "")
    elif fault["type"] == "missing":
        said = f"{param} is missing."
    else:
        said = f"{param or 'The body'}: {fault['msg'].removeprefix('Value error, ')}."
    return Refused(400, said, param=param[:200] or None)
