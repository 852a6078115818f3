"""What is wrong with a document, in the words of its user: pydantic's faults, each with the path and what to do."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from tunewright.errors import RecipeError, nearest
from tunewright.synonyms import ABSENT, KEYS, NAMES
from tunewright.truth_values import TruthValue, branches

LONGEST_VALUE = 100  # characters that an error repeats

WHOLE = {"Recipe": "recipe", "Chain": "chain"}


def refusal(error: ValidationError, kind: type[BaseModel]) -> RecipeError:
    """Every fault at once."""
    said = "\n".join(f"  {fault}" for fault in explained(error.errors(), kind))
    return RecipeError(f"The {WHOLE.get(kind.__name__, 'options')} cannot be used:\n{said}")


def explained(faults: Sequence[Any], kind: type[BaseModel]) -> list[str]:
    """What is wrong with a document, one line a place and fault, of `ValidationError.errors()`.

    Where several forms may stand, pydantic finds fault with each; if one has its fault further inside, it was meant.
    """
    messages: dict[tuple[str, str], list[str]] = defaultdict(list)
    paths = [tuple(_place(fault["loc"], kind).path) for fault in faults]
    around = {path[:length] for path in paths for length in range(len(path))}
    for fault, path in zip(faults, paths, strict=True):
        if path in around and fault["type"].endswith("_type"):
            continue
        where, message, given = _explain(fault, kind)
        messages[where, given].append(message)
    return [f"{where}{_either(said)}{given}" for (where, given), said in messages.items()]


def _either(messages: Sequence[str]) -> str:
    """`Input should be a valid number` and `Input should be 'auto'` in one."""
    first, *others = dict.fromkeys(messages)
    return " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])


def _explain(fault: Any, kind: type[BaseModel]) -> tuple[str, str, str]:
    """Where a fault is, as a user writes it, what it is, and what was given; or all of it in the first."""
    if fault["type"] == "extra_forbidden":
        *above, key = fault["loc"]
        return _unknown_key(str(key), _place(above, kind), kind), "", ""
    place, given = _place(fault["loc"], kind), fault["input"]
    where = ".".join(place.path)
    if fault["type"] == "missing":
        return f"{where} is missing.", "", ""
    if fault["type"] == "union_tag_invalid":
        tag = fault["ctx"]["tag"]
        return f"{where}: {tag or repr(tag)} is unknown. {_kind_for(tag, place)}", "", ""
    return (f"{where}: " if where else ""), _reason(fault, place), _given(given)


def _reason(fault: Any, place: _Place) -> str:
    given = fault["input"]
    if isinstance(given, TruthValue):
        return f"give {given.choices}; true, false, on and off are none"
    if fault["type"] in ("model_type", "model_attributes_type"):
        names = f"a name ({', '.join(place.kinds)}) or " if place.kinds else ""
        return f"give {names}a mapping of keys"
    return str(fault["msg"]).removeprefix("Value error, ").partition(", unable to parse string")[0]


# a branch of a union that pydantic tried (training.batch.constrained-int), which is none of the user's words
CONTAINER = re.compile(r"(dict|list|tuple|literal)\[.*\]")
SCALAR = re.compile(r"str|int|float|bool|constrained-\w+|function-.*")


@dataclass
class _Place:
    """Where a fault is: the path as a user writes it, the model there, and those of `key` to choose from, by type."""

    path: list[str]
    model: type[BaseModel]
    key: str
    kinds: Mapping[str, type[BaseModel]]


def _place(parts: Sequence[str | int], kind: type[BaseModel]) -> _Place:
    """Follow pydantic's location through the models: it names the type of what was chosen too, which no user wrote."""
    place, in_mapping = _Place([], kind, "", {}), False
    for part in parts:
        if isinstance(part, str) and CONTAINER.fullmatch(part):
            in_mapping = part.startswith("dict")
        elif isinstance(part, int) or in_mapping:  # the place in a list, or a name of the user's
            place.path.append(str(part))
            in_mapping = False
        elif part in place.model.model_fields:
            annotation = place.model.model_fields[part].annotation
            models = _models_in(annotation)
            kinds = {m.model_fields["type"].default: m for m in models if "type" in m.model_fields}
            model = models[0] if models else place.model
            place = _Place([*place.path, part], model, part, kinds if len(models) > 1 else {})
            forms = [one for one in branches(annotation) if one is not type(None)]
            in_mapping = [get_origin(one) for one in forms] == [dict]
        elif part in place.kinds:
            place.model = place.kinds[part]
        elif not SCALAR.fullmatch(part):
            place.path.append(part)
    return place


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that may stand where this is the type, in lists and mappings too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _given(value: Any) -> str:
    """What a user gave, as long as it is short; of anything else its type, and its shape if it has one."""
    if isinstance(value, dict):
        return ""
    said = repr(value)
    if len(said) > LONGEST_VALUE or "\n" in said:
        shape = getattr(value, "shape", None)
        said = f"a {type(value).__name__}{f' of shape {tuple(shape)}' if shape else ''}"
    return f" (given: {said})"


def _unknown_key(key: str, place: _Place, kind: type[BaseModel]) -> str:
    where, fields = ".".join([*place.path, key]), list(place.model.model_fields)
    owners = [name for name, one in place.kinds.items() if key in one.model_fields]
    if owners:
        options, chosen = f"Options: {', '.join(fields)}.", place.model.model_fields["type"].default
        what = place.key.removesuffix("s")  # rewards: a list of them
        return f"{where}: {what} {chosen} has no option {key}; it is one of {', '.join(owners)}. {options}"
    paths = option_paths(kind)
    return f"{where}: unknown key {key}. {known_elsewhere(key, paths) or _nearest_of_all(key, fields, paths)}"


# What is known under another name, or in another place


def known_elsewhere(key: str, paths: Mapping[str, str]) -> str:
    """Where a recipe has what somebody calls `key`, as a sentence; empty where that is not known.

    Args:
        paths: see `option_paths`.
    """
    found = [path for path, names in KEYS.items() if key.lower() in names and path in paths]
    found += [path for path in paths if path.rpartition(".")[2] == key]
    if len(found) == 1:
        return f"It is {found[0]}: {paths[found[0]]}."
    return f"It is {' or '.join(found)}." if found else ""


def option_paths(kind: type[BaseModel]) -> dict[str, str]:
    """What each option is, by its path. It begins anew within what users name themselves, as stages; lists end it."""
    found: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        if name != "type":
            found[name] = (field.description or "").partition(";")[0].rstrip(".")
        for form in branches(field.annotation):
            inside = "" if get_origin(form) is dict else f"{name}."
            for model in () if get_origin(form) is list else _models_in(form):
                found |= {f"{inside}{path}": said for path, said in option_paths(model).items()}
    return found


def _nearest_of_all(key: str, fields: Sequence[str], paths: Mapping[str, str]) -> str:
    """The nearest of the options here, unless one elsewhere is nearer."""
    others = {path.rpartition(".")[2]: path for path in paths}
    others |= {name: path for path, names in KEYS.items() if path in paths for name in names}
    close = difflib.get_close_matches(key, [*fields, *others], n=1, cutoff=0.75)
    if close and close[0] not in fields:
        return f"Did you mean {others[close[0]]}?"
    return nearest(key, fields)


def _kind_for(tag: str, place: _Place) -> str:
    """What somebody may have meant by the unknown name of a method or objective, as a sentence."""
    name = tag.lower().replace("-", "_")
    where = ".".join(place.path)
    for own, others in NAMES.get(place.key, {}).items():
        if name in others:
            return f"Give {where}.type: {own.format(name=name.upper())}."
    for own, model in place.kinds.items():
        for option, field in model.model_fields.items():
            forms = list(branches(field.annotation))
            words = [word for form in forms if get_origin(form) is Literal for word in get_args(form)]
            if option != "type" and (name in words or (name == option and bool in forms)):
                return f"Give {where}.type: {own} and {where}.{option}: {name if name in words else 'true'}."
    return ABSENT.get(name) or nearest(tag, list(place.kinds))
