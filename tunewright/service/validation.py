"""What is wrong with a client's file, in the API's words. It is read as the run will read it, by the same readers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.data.config import DataConfig
from tunewright.data.kinds import Prompt, Record
from tunewright.data.pictures import COLUMNS, as_picture
from tunewright.data.records import captions_wanted, make_records
from tunewright.data.row import Fault, Row, Rows
from tunewright.data.rows import folder_of, jsonl_rows, parquet_rows, read_rows
from tunewright.errors import DataError, counted
from tunewright.grading import check_items
from tunewright.objectives import Objective
from tunewright.service.entities import JobSpec
from tunewright.service.recipes import make_recipe_for
from tunewright.service.unpacking import Limits, Role, placed

CHUNK = 1000
SHOWN = 10
FEW = ("captioned_image", "text")
"""Kinds of which a single one is something to learn: a picture of a dog, a book."""


def faults(
    path: Path,
    spec: JobSpec,
    folder: Path,
    role: Role = "training",
    task: str | None = None,
    limits: Limits = Limits(),  # noqa: B008
) -> dict[str, Any] | None:
    """The API's error where a file cannot be trained on, or validated with; None where it can.

    Args:
        path: the uploaded file, whatever its name.
        folder: where it may be unpacked; it is made, and stays.
        task: that of the base, where it is known.
    """
    try:
        rows = _read(placed(path, folder, role, limits), spec, task, limits)
    except DataError as error:
        return _error(role, str(error).split("\n")[0], error.faults, folder)
    except Exception as error:  # of a hostile file readers raise what they like
        return _error(role, f"it cannot be read ({type(error).__name__}).", [], folder)
    if rows.bad:
        said = f"{rows.bad:,} of {counted(rows.bad + rows.good, 'row')} cannot be used."
        return _error(role, said, rows.faults, folder)
    fewest = 1 if role == "validation" or rows.kind in FEW else limits.fewest
    if rows.good < fewest:
        said = f"it has {counted(rows.good, 'example')}, and at least {fewest} are needed."
        return {**_error(role, said, [], folder), "code": "invalid_n_examples"}
    return None


def _error(role: Role, said: str, found: Sequence[str], folder: Path) -> dict[str, Any]:
    more = [f"… and {len(found) - SHOWN:,} more"] if len(found) > SHOWN else []
    lines = [f"The {role} file cannot be used: {said}", *found[:SHOWN], *more]
    message = "\n".join(_without_places(line, folder) for line in lines)
    return {"code": f"invalid_{role}_file", "message": message, "param": f"{role}_file"}


def _without_places(text: str, folder: Path) -> str:
    """`/…/rows.jsonl:17: no column` → `line 17: no column`: where files lie here is nobody's business."""
    for place in sorted(folder.glob("rows.*")):
        text = text.replace(f"{place}:row ", "row ").replace(f"{place}:", "line ").replace(str(place), "the file")
    return text.replace(f"{folder}/", "").replace(str(folder), "the archive")


@dataclass
class Counted:
    """How many rows can be used and how many cannot, of which kind they are, and what is wrong with some."""

    good: int = 0
    bad: int = 0
    kind: str = ""
    faults: list[str] = field(default_factory=list)

    def add(self, found: Iterable[Fault | str]) -> None:
        for one in found:
            self.bad += 1
            if self.bad <= 10 * SHOWN:
                self.faults.append(str(one))


def _read(location: str, spec: JobSpec, task: str | None, limits: Limits) -> Counted:
    recipe = make_recipe_for(spec, "-", {"train": location}, lambda name: name, None)
    config = recipe.data.model_copy(update={"on_bad_rows": "skip"})
    kinds = _kinds(recipe.objective, task or (None if recipe.task == "auto" else recipe.task))
    found, first = Counted(), None
    for rows in _chunks(location, config, kinds):
        safe, unsafe = _apart(rows, location, config)
        if not safe:
            found.add(_in_order([*rows.faults, *unsafe]))
            continue
        begun: list[Row] = [first] if first else []
        records = make_records(Rows([*begun, *safe], []), location, config, kinds=kinds)
        own = records.records[len(begun) :]
        first = first or next(row for row in safe if row.source == records.records[0].source)
        found.kind, found.good = records.kind, found.good + len(own)
        found.add(_in_order([*rows.faults, *unsafe, *records.faults]))
        if records.kind not in recipe.objective.reads or (kinds and records.kind not in kinds):
            raise DataError(f"these are {records.kind} rows, and {_wanted(recipe.objective, kinds)} rows are needed.")
        _check_items(recipe.objective, own, found)
        if found.good > limits.rows:
            raise DataError(f"it has more than {limits.rows:,} rows: train on fewer.")
    return found


def _in_order(found: Sequence[Fault]) -> list[Fault]:
    """By their lines."""
    return sorted(found, key=lambda one: int((re.search(r"(\d+)$", one.source) or [0, 0])[1]))


def _kinds(objective: Objective, task: str | None) -> tuple[str, ...]:
    """The kinds of rows that are wanted, so far as objective and task tell them."""
    from tunewright.tasks import task_class

    own = task or (objective.tasks[0] if objective.tasks else None)
    return tuple(kind for kind in task_class(own).data_kinds if kind in objective.reads) if own else ()


def _wanted(objective: Objective, kinds: Sequence[str]) -> str:
    return " or ".join(kinds or objective.reads)


def _check_items(objective: Objective, records: Sequence[Record], found: Counted) -> None:
    """Rows that lack what a grader's template names can be used for nothing."""
    rewards = getattr(objective, "rewards", None)
    if rewards is None:
        return
    try:
        check_items(rewards, [(record.source, record.item) for record in records if isinstance(record, Prompt)])
    except DataError as error:
        found.add(error.faults)


def _chunks(location: str, config: DataConfig, kinds: Sequence[str]) -> Iterator[Rows]:
    """The rows, some at a time where the file can be read so."""
    streamed = {".jsonl": jsonl_rows, ".parquet": parquet_rows}.get(Path(location).suffix)
    if streamed is None or not Path(location).is_file():
        yield read_rows(location, captions_wanted(config, kinds))
        return
    rows = streamed(Path(location))
    while chunk := list(islice(rows, CHUNK)):
        yield Rows([one for one in chunk if isinstance(one, Row)], [one for one in chunk if isinstance(one, Fault)])


def _apart(rows: Rows, location: str, config: DataConfig) -> tuple[list[Row], list[Fault]]:
    """Rows that name no place but within the archive that they came in, and the faults of the others.

    This is seen to before anything opens what a row names.
    """
    folder = folder_of(location)
    root = None if Path(location).is_file() else folder.resolve()
    columns = (*COLUMNS, *(config.columns[name] for name in COLUMNS if name in config.columns))
    safe, unsafe = [], []
    for row in rows.rows:
        named = [row.values[column] for column in columns if column in row.values]
        fault = next((said for value in named if (said := _outside(value, folder, root))), None)
        if fault:
            unsafe.append(Fault(row.source, fault, None))
        else:
            safe.append(row)
    return safe, unsafe


def _outside(value: Any, folder: Path, root: Path | None) -> str | None:
    try:
        picture = as_picture(value, folder)
    except ValueError:
        return "the image is no base64"
    place = getattr(picture, "place", None)
    if getattr(picture, "address", ""):
        return "the image is an address, and only what comes with the file is read"
    if place is None:
        return None
    if root is None:
        return 'the image is a path: upload a zip archive with the images, or give each as {"base64": …}'
    if not place.resolve().is_relative_to(root):
        return "the image lies outside the archive"
    return None if place.is_file() else "there is no such image in the archive"
