"""Templates such as `{{ item.answer }}`: texts with places for what a row or an answer holds, as in OpenAI's graders.

    {{ item.answers[0].name }}     a column of the row, and what lies in it; `answers.0` says the same
    {{ sample.output_text }}       the answer
    {{ sample.output_json.city }}  what lies in the answer, read as JSON; empty where it is no JSON, or lacks this

Nothing is computed, and what is filled in is not read again. Texts come as they are, all else as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunewright.errors import DataError
from tunewright.grading.base import Sample, place

PLACE = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
PATH = re.compile(r"[^.\[\]{}]+(\.[^.\[\]{}]+|\[\d+\])*")


def check(template: str) -> str:
    """The template itself. Raises ValueError where a place in it names nothing that there is."""
    for found in PLACE.finditer(template):
        _path(found[1])
    rest = PLACE.sub("", template)
    if "{{" in rest or "}}" in rest:
        raise ValueError(f"{template!r:.80} has {{{{ or }}}} without its other half")
    return template


def filled(template: str, index: int, sample: Sample) -> str:
    """The template with what this sample, the `index`th of its batch, holds.

    Raises DataError where the row lacks what the template asks for, naming the row and its columns.
    """
    try:
        return PLACE.sub(lambda found: _value(_path(found[1]), sample), template)
    except LookupError as error:
        raise DataError(f"{place(index, sample)}: {error.args[0]}") from error


def check_items(templates: Iterable[str], items: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Whether all rows, each with its name, have what the templates ask for: training is not to stop for it midway.

    Raises DataError that names every row that does not.
    """
    paths = dict.fromkeys(tuple(_path(found[1])) for template in templates for found in PLACE.finditer(template))
    asked = [path[1:] for path in paths if path[0] == "item"]
    faults = [f"{name}: {fault}" for name, item in items for path in asked if (fault := _fault(item, path)) is not None]
    if faults:
        raise DataError("The rewards ask for what these rows do not have. Mend the rows, or the rewards:", faults)


def _fault(item: Mapping[str, Any], path: Sequence[str]) -> str | None:
    try:
        _of_item(item, path)
    except LookupError as error:
        return str(error.args[0])
    return None


def _path(inside: str) -> list[str]:
    """`item.answers[0]` → ["item", "answers", "0"]."""
    name = inside.strip()
    parts = [part.strip() for part in name.replace("[", ".").replace("]", "").split(".")]
    known = parts[0] == "item" or parts[:2] in (["sample", "output_text"], ["sample", "output_json"])
    if not PATH.fullmatch(name) or not known or len(parts) < 2 or (parts[1] == "output_text" and len(parts) > 2):
        raise ValueError(
            f"{{{{{inside}}}}} is neither {{{{ item.COLUMN }}}}, {{{{ sample.output_text }}}} nor "
            "{{ sample.output_json.KEY }}"
        )
    return parts


def _value(path: list[str], sample: Sample) -> str:
    if path[0] == "item":
        return _as_text(_of_item(sample.item, path[1:]))
    return sample.text if path[1] == "output_text" else _of_json(sample.text, path[2:])


def _of_item(item: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = item
    for depth, part in enumerate(path):
        if not _has(value, part):
            raise LookupError(f"there is no {'.'.join(['item', *path[: depth + 1]])}; {_known(value)}")
        value = _inside(value, part)
    if value is None:
        raise LookupError(f"{'.'.join(['item', *path])} is null")
    return value


def _known(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"its columns are {', '.join(map(str, value))}" if value else "it has no columns"
    return f"it is a list of {len(value)}" if isinstance(value, list | tuple) else f"it is {value!r:.60}"


def _has(value: Any, part: str) -> bool:
    if isinstance(value, Mapping):
        return part in value
    return isinstance(value, list | tuple) and part.isdecimal() and len(part) < 10 and int(part) < len(value)


def _inside(value: Any, part: str) -> Any:
    return value[part] if isinstance(value, Mapping) else value[int(part)]


def _of_json(text: str, path: Sequence[str]) -> str:
    """A policy may answer anything, so what is not there is empty, not an error."""
    try:
        value = json.loads(text)
        for part in path:
            if not _has(value, part):
                return ""
            value = _inside(value, part)
        return "" if value is None else _as_text(value)
    except (ValueError, RecursionError):
        return ""


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
