"""The rows of a recipe, read and checked, and the task that they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.artifacts.load import infer_task
from tunewright.data.config import Location
from tunewright.data.kinds import Classified, Record
from tunewright.data.labels import may_be_numbers
from tunewright.data.records import Records, load_records, make_records, split_validation
from tunewright.errors import BaseModelError, DataError, RecipeError, counted
from tunewright.evaluation.rules import never_true
from tunewright.labeling import weak_rows
from tunewright.objectives import OBJECTIVES, Objective
from tunewright.recipe import Recipe
from tunewright.tasks import MODULES, task_class
from tunewright.tasks._classification import label_names
from tunewright.tasks._factories import is_factory
from tunewright.tasks._pipeline import is_pipeline
from tunewright.tasks.base import Task


@dataclass
class Rows:
    """The rows of a recipe, read and checked: by the name of their set.

    `held_out` is the share of the training rows that the validation rows are; None where these were given.
    `labeling` is the account of the rules that labelled the training rows, if any.
    """

    train: Records
    validation: Records | None
    tests: dict[str, Records]
    notices: list[str] = field(default_factory=list)
    held_out: float | None = None
    prior: Records | None = None
    labeling: dict[str, Any] | None = None

    @property
    def given(self) -> Records:
        """The training rows as they were given: a class may be so rare that all its rows are held out."""
        if not (self.held_out and self.validation):
            return self.train
        return replace(self.train, records=[*self.train.records, *self.validation.records])

    def sets(self) -> dict[str, Records]:
        others = {"validation": self.validation, "prior": self.prior}
        return {"train": self.train, **{name: rows for name, rows in others.items() if rows}, **self.tests}


def read_rows(recipe: Recipe) -> Rows:
    """Read every set. The faults of all files come in one DataError.

    Raises RecipeError before that, where the objective is not for the task.
    """
    _refuse_other_task(recipe)
    data, seed, kinds = recipe.data, recipe.training.seed, wanted_kinds(recipe)
    if data.labeling and "classification" not in recipe.objective.reads:
        raise RecipeError(
            f"data.labeling makes labels, which objective: {recipe.objective.type} does not read. Leave it out."
        )
    wanted = {"train": data.train, **data.test_sets()}
    if data.prior:
        wanted["prior"] = data.prior
    if data.validation is not None and not isinstance(data.validation, float | int):
        wanted["validation"] = data.validation
    account: dict[str, Any] = {}

    def load(name: str, location: Location) -> Records:
        if name != "train" or not data.labeling:
            own = () if name == "prior" and "prompt" in kinds else kinds  # rows to learn by heart beside prompts
            return load_records(location, data, kinds=own)
        read, told = weak_rows(data.labeling, location, data.columns)
        account.update(told)
        return make_records(read, location, data, kinds=kinds)

    found, errors = each_set(wanted, load)
    if faults := lines_of(errors):
        raise DataError(
            faults[0] if len(faults) == 1 else "The data cannot be used:", faults if len(faults) > 1 else ()
        )
    notices = [doubt for records in found.values() for doubt in records.doubts]
    train, validation, prior = found.pop("train"), found.pop("validation", None), found.pop("prior", None)
    share = None if "validation" in wanted else _share(data.validation, train)
    if share:
        train, validation = split_validation(train, share, seed)
        validation = replace(validation, records=_once(validation.records))
        held_out = counted(len(validation.records), "of the training rows is", "of the training rows are")
        notices.append(f"{held_out} held out for validation.")
    elif data.validation is None:
        notices.append(
            f"Of {counted(len(_once(train.records)), 'image')} none is held out for validation (from {FEWEST} on a "
            "tenth is), so the last weights are kept. To have the best ones chosen give data.validation."
        )
    for name, records in [("validation", validation), ("prior", prior), *found.items()]:
        if records and records.kind != train.kind and not (name == "prior" and train.kind == "prompt"):
            raise DataError(
                f"{name} holds {records.kind} rows, the training set {train.kind} rows: they must be alike."
            )
    if data.labeling:
        measured_on = [*found.values(), *([validation] if validation and not share else [])]
        true = {name for records in measured_on for row in records.records for name in _names(row)}
        notices += never_true(account, true)
    if data.labeling and share and validation:
        notices.append("The validation rows have the rules' labels: give data.validation to measure on true ones.")
    return Rows(train, validation, found, notices, held_out=share, prior=prior, labeling=account or None)


def _names(record: Record) -> list[str]:
    return label_names(record.label) if isinstance(record, Classified) else []


HELD_OUT = 0.1
FEWEST = 20
"""Captioned images of which some are held out by themselves: of fewer, one or two would choose the weights."""


def _share(wanted: Any, train: Records) -> float:
    """The fraction of the training rows to hold out, as the recipe says or by the rule."""
    if wanted is not None:
        return float(wanted)
    few = train.kind == "captioned_image" and len(_once(train.records)) < FEWEST
    return 0.0 if few else HELD_OUT


def _once(records: Sequence[Record]) -> list[Record]:
    """Rows that an epoch repeats, once each: a measurement counts independent rows."""
    return list({record.source: record for record in records}.values())


def task_of_rows(kind: str | None) -> str | None:
    """The one task that reads rows of this kind; None where there is none, or are several."""
    fitting = [task for task in MODULES if kind in task_class(task).data_kinds]
    return fitting[0] if len(fitting) == 1 else None


def wanted_kinds(recipe: Recipe) -> tuple[str, ...]:
    """The kinds of rows that the objective learns from and the task reads, so far as task or base tell that."""
    own = recipe.objective.tasks
    name = recipe.task if recipe.task != "auto" else own[0] if own else _told_task(recipe.base)
    kinds = task_class(name).data_kinds if name else ()
    return tuple(kind for kind in kinds if kind in recipe.objective.reads)


def _told_task(base: str) -> str | None:
    """The task that a base tells which lies here. What is wrong with it is said where it is loaded."""
    try:
        return infer_task(base) if Path(base).exists() or is_factory(base) else None
    except BaseModelError:
        return None


def _refuse_other_task(recipe: Recipe) -> None:
    """Raises RecipeError where the objective is not for the task that the recipe names."""
    objective, name = recipe.objective, recipe.task
    if objective.tasks and name not in ("auto", *objective.tasks):
        raise RecipeError(f"objective: {objective.type} is for {' and '.join(objective.tasks)}, not for {name}.")


def _refuse_other_images(name: str, recipe: Recipe, rows: Records) -> None:
    """Classes for a base that makes images of captions, and captions for one that classifies. Raises RecipeError."""
    base, told = recipe.base, _told_task(recipe.base)
    if rows.kind == "image" and (told == "text-to-image" or (told is None and is_pipeline(base))):
        raise RecipeError(
            f"{base} makes images from captions, and these rows have labels: write captions (text files beside the "
            "images, or a column text), or take a base that classifies images."
        )
    if rows.kind == "captioned_image" and recipe.task == "auto" and told not in (None, name):
        raise RecipeError(
            f"{base} is for {told}, and these rows are images with captions: give classes (a folder for each, or a "
            "column label), or take a pipeline of diffusers' as base."
        )


def choose_task(recipe: Recipe, rows: Records) -> tuple[Task, list[str]]:
    """The task, from the recipe, or else from the rows and the base; with what was inferred, in words."""
    name, notices, objective = recipe.task, [], recipe.objective
    if rows.kind not in objective.reads:
        raise RecipeError(_other_objective(objective, rows.kind))
    if name == "auto" and len(objective.tasks) == 1:
        name = objective.tasks[0]
    if name == "auto":
        name = task_of_rows(rows.kind) or infer_task(recipe.base)
        notices.append(f"Task: {name} (the rows are {rows.kind} rows).")
    chosen = task_class(name)
    if rows.kind not in chosen.data_kinds:
        raise RecipeError(
            f"task: {name} reads {' or '.join(chosen.data_kinds)} rows, and these are {rows.kind} rows. "
            "Change task, or say with data.format and data.columns how the rows are meant."
        )
    _refuse_other_images(name, recipe, rows)
    labels = [r.label for r in rows.records if isinstance(r, Classified) and isinstance(r.label, str)]
    if recipe.data.labels == "auto" and may_be_numbers(labels):
        notices.append("Labels: whole numbers are read as classes. To regress on them set data.labels: numbers.")
    task = chosen.from_records(rows.records, recipe.data.classes) if hasattr(chosen, "from_records") else chosen()
    return task, notices


def _other_objective(objective: Objective, kind: str) -> str:
    """What to do with rows that the objective does not learn from."""
    others = [name for name, one in OBJECTIVES.items() if kind in one.reads]
    return (
        f"objective: {objective.type} learns from {' or '.join(objective.reads)} rows, and these are {kind} rows. "
        f"Set objective: {' or '.join(others)}, or say with data.format and data.columns how the rows are meant."
    )


def each_set(sets: Mapping[str, Any], make: Callable[[str, Any], Any]) -> tuple[dict[str, Any], list[DataError]]:
    """What `make` makes of every set by its name, and the errors of those that cannot be used."""
    made, errors = {}, []
    for name, one in sets.items():
        try:
            made[name] = make(name, one)
        except DataError as error:
            errors.append(error)
    return made, errors


def lines_of(errors: Sequence[DataError]) -> list[str]:
    """Errors as lines of one report: each with its own message, then its faults."""
    return [line for error in errors for line in (str(error).split("\n")[0], *error.faults)]
