"""Is B better than A? Two runs, models, or points between a run's start and end, on the same rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.api import plain
from tunewright.artifacts.interpolate import load
from tunewright.data.config import DataConfig, Location
from tunewright.data.records import Records, load_records
from tunewright.data.rows import read_rows
from tunewright.engine.device import pick_device
from tunewright.errors import BaseModelError, DataError, RecipeError
from tunewright.evaluation.contrast import Both, document, met, sentence, where_worse
from tunewright.evaluation.contrast_page import write_comparison
from tunewright.evaluation.evaluate import in_words
from tunewright.evaluation.paired import subset
from tunewright.folder import INFO, Run
from tunewright.recipe import checked
from tunewright.tasks._pretrained import max_length
from tunewright.tasks.base import Model, Predictions

REQUIREMENTS = ("better", "not-worse")
MOST_VALUES = 50
"""More values than this make no slices of a column."""


def compare(
    a: str | Path,
    b: str | Path,
    data: Location | Mapping[str, Location] | None = None,
    *,
    slices: Sequence[str] = (),
    to: str | Path | None = None,
    require: str | None = None,
    samples: int = 5,
    columns: Mapping[str, str] | None = None,
    format: str = "auto",
    overlength: str = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Is B, the candidate, better than A? Both are measured on the same rows, and compared row by row.

    Args:
        a, b: runs, model folders, hub names, or `RUN@0.5`: the point at α = 0.5 between a run's start and end.
        data: rows, or several sets by name; by default the test sets that the runs share.
        slices: `column=NAME`, a slice for each value of that column; or `name=REGEX`, the rows whose text (or prompt)
            the regular expression is found in.
        to: a file for the same as a page, which loads nothing.
        require: better (B is clearly better on the first set and clearly worse on none) or not-worse (clearly worse on
            none): sets `met`.
        samples: rows to give that flipped, each way.
        columns, format, overlength: how `data` is read.

    Returns:
        {"a", "b", "verdict", "worse", "sets": {name: figures}, "notes", "page", "require", "met"}. All differences are
        B − A.

    Raises:
        RecipeError, DataError: slices, rows or `require` cannot be used, or there are no rows.
        BaseModelError: the two models answer different questions, or cannot be measured on the same rows.
    """
    if require not in (None, *REQUIREMENTS):
        raise RecipeError(f"require: {require} is none of {', '.join(REQUIREMENTS)}.")
    wanted = [parse_slice(each) for each in slices]
    sides = Side(str(a), device), Side(str(b), device)
    if data is None:
        sets, config = _shared_sets(*sides)
    else:
        reading = {"columns": columns or {}, "format": format, "overlength": overlength}
        sets, config = _given_sets(plain(data), reading)
    _refuse_different(*sides)
    cut = {name: _slices(wanted, records, config.test_sets()[name]) for name, records in sets.items()}
    _refuse_empty(wanted, cut)
    answered = {name: _answered(name, sides, records, config, cut[name]) for name, records in sets.items()}
    found = {name: document(both, samples) for name, both in answered.items()}
    notes = [note for one in found.values() for note in one["notes"]]
    result = {
        "a": str(a),
        "b": str(b),
        "verdict": sentence((str(a), str(b)), found),
        "worse": where_worse(found),
        "sets": found,
        "notes": notes,
        **({"require": require, "met": met(require, found)} if require else {}),
    }
    return result if to is None else {**result, "page": str(write_comparison(result, Path(to)))}


class Side:
    """One of the two: its run if it has one, and its model, which is on the device only while it answers."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, str(pick_device(device))
        self.where, self.alpha = parse_point(name)
        folder = Path(self.where).expanduser()
        self.run = Run(folder) if (folder / INFO).is_file() else None
        self.model: Model = load(self.where, alpha=self.alpha)

    def encode(self, records: Records, config: DataConfig) -> list[Any]:
        """Rows as the model reads them, by its own chat template where it has one."""
        task, processor = self.model.task, self.model.processor
        if records.kind not in task.data_kinds:
            kinds = " or ".join(task.data_kinds)
            raise DataError(f"{records.location} holds {records.kind} rows; {self.name} needs {kinds} rows.")
        if hasattr(task, "prepare"):
            own = {"chat_template": None} if processor.chat_template else {}
            task.prepare(self.model, config.model_copy(update=own), records.kind)
        return task.encode(self.model, records.records, config).examples

    def predict(self, examples: Sequence[Any]) -> Predictions:
        self.model.module.to(self.device)
        predictions = self.model.task.predict(self.model, examples)
        self.model.module.to("cpu")
        return predictions


def parse_point(name: str) -> tuple[str, float]:
    """`RUN@0.5` as a run and α; any other name as itself and 1."""
    where, found, alpha = name.rpartition("@")
    if not found or Path(name).expanduser().exists():
        return name, 1.0
    try:
        return where, float(alpha)
    except ValueError:
        return name, 1.0


# Rows


def _shared_sets(a: Side, b: Side) -> tuple[dict[str, Records], DataConfig]:
    """The test sets that are the same in all runs there are; read as the first of them says.

    Raises DataError where there are none, or where their rows have changed since.
    """
    runs = [side.run for side in (b, a) if side.run]
    hashes = [_hashes(run) for run in runs]
    shared = [name for name in hashes[0] if all(hashes[0][name] == each.get(name) for each in hashes)] if runs else []
    if not shared:
        raise DataError(f"{a.name} and {b.name} share no test set. Name the rows to compare them on with --data.")
    config = runs[0].recipe.data.model_copy(update={"special_tokens": []})  # the models have these already
    sets = {name: load_records(config.test_sets()[name], config) for name in shared}
    for name, records in sets.items():
        if records.sha256 != hashes[0][name]:
            raise DataError(
                f"The rows of {name} ({records.location}) have changed since the runs. Name some with --data."
            )
    return sets, config


def _hashes(run: Run) -> dict[str, str]:
    """The hash of each of a run's test sets."""
    return {name: run.info["data"][name]["sha256"] for name in run.recipe.data.test_sets()}


def _given_sets(data: Any, reading: Mapping[str, Any]) -> tuple[dict[str, Records], DataConfig]:
    config = checked(DataConfig, {"train": "-", "test": data, **reading})
    return {name: load_records(location, config) for name, location in config.test_sets().items()}, config


# Slices


@dataclass(frozen=True)
class Slice:
    """`column=NAME` has no pattern."""

    name: str
    pattern: re.Pattern[str] | None


def parse_slice(given: str) -> Slice:
    """Raises RecipeError for what is neither `column=NAME` nor `name=REGEX`."""
    name, found, value = given.partition("=")
    if not (name and found and value):
        raise RecipeError(f"--slice: {given!r} is neither column=NAME nor name=REGEX.")
    if name == "column":
        return Slice(value, None)
    try:
        return Slice(name, re.compile(value))
    except re.error as error:
        raise RecipeError(f"--slice {name}: {value!r} is no regular expression: {error}") from error


def _slices(wanted: Sequence[Slice], records: Records, location: Location) -> dict[str, set[str]]:
    """The sources of the rows in each slice of one set."""
    found: dict[str, set[str]] = {}
    for one in wanted:
        if one.pattern is None:
            found |= _by_value(one.name, location)
        else:
            pattern = one.pattern
            found[one.name] = {r.source for r in records.records if pattern.search(in_words(r)[0])}
    return found


def _by_value(column: str, location: Location) -> dict[str, set[str]]:
    """The sources of the rows with each value. The rows are read again: records keep only what is learned from."""
    rows = read_rows(location).rows
    columns = dict.fromkeys(name for row in rows for name in row.values)
    if column not in columns:
        raise DataError(f"--slice column={column}: the columns found are {', '.join(columns)}.")
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(f"{column}={row.values.get(column)}", set()).add(row.source)
    if len(found) > MOST_VALUES:
        raise DataError(
            f"--slice column={column}: it has {len(found)} values, and a slice is made of {MOST_VALUES} at most. "
            "Put its values into groups in a column of their own."
        )
    return dict(sorted(found.items()))


def _refuse_empty(wanted: Sequence[Slice], cut: Mapping[str, Mapping[str, set[str]]]) -> None:
    """A regular expression that finds nothing in any set is an error, not a slice without rows."""
    idle = [s for s in wanted if s.pattern and not any(slices[s.name] for slices in cut.values())]
    if idle:
        raise RecipeError(f"--slice {idle[0].name}: the regular expression finds nothing in any row.")


# The answers of both


def _refuse_different(a: Side, b: Side) -> None:
    """Raise BaseModelError where the two do not answer the same question."""
    for what in ("name", "kind", "labels"):
        one, other = (getattr(side.model.task, what, None) for side in (a, b))
        if (sorted(one) != sorted(other)) if what == "labels" and one and other else one != other:
            word = {"name": "task", "kind": "kind of answer", "labels": "classes"}[what]
            raise BaseModelError(
                f"{a.name} and {b.name} cannot be compared: the {word} of the first: {_said(one)}; of the second: "
                f"{_said(other)}."
            )


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _answered(
    name: str, sides: tuple[Side, Side], records: Records, config: DataConfig, slices: Mapping[str, set[str]]
) -> Both:
    """The predictions of both on one set, on the rows that neither had to drop."""
    if records.kind != "classification":  # windows of one length, so that both read the same tokens
        limit = min(max_length(side.model, config.max_length) for side in sides)
        config = config.model_copy(update={"max_length": limit})
    a, b = _aligned(name, sides, [side.predict(side.encode(records, config)) for side in sides])
    rows = {label: np.flatnonzero([source in each for source in a.sources]) for label, each in slices.items()}
    words = {record.source: in_words(record) for record in records.records}
    return Both(name, a, b, getattr(sides[0].model.task, "labels", []), words, rows)


def _aligned(name: str, sides: tuple[Side, Side], found: Sequence[Predictions]) -> tuple[Predictions, Predictions]:
    """Both with the same rows, and classes in A's order. Raises BaseModelError where their tokens differ."""
    a, b = (_only(one, set(other.sources)) for one, other in (found, found[::-1]))
    tokens = [list(one.count_N) if one.count_N is not None else None for one in (a, b)]
    if a.sources != b.sources or tokens[0] != tokens[1]:
        raise BaseModelError(
            f"{sides[0].name} and {sides[1].name} read the rows of {name} as different tokens, by their tokenizers or "
            "chat templates: losses per token cannot be compared between them."
        )
    if b.output_NC is None or b.kind == "regression":
        return a, b
    order, own = (getattr(side.model.task, "labels", []) for side in sides)
    return a, replace(b, output_NC=b.output_NC[:, [own.index(label) for label in order]], gold=a.gold)


def _only(predictions: Predictions, sources: set[str]) -> Predictions:
    return subset(predictions, np.flatnonzero([source in sources for source in predictions.sources]))
