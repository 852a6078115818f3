"""Is B better than A? Two runs, models, or points between a run's start and end, on the same rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from tunewright.account import refuse_changed
from tunewright.artifacts.save import refuse_file
from tunewright.data.config import DataConfig, Location
from tunewright.data.given import as_location
from tunewright.data.kinds import LabelledImage
from tunewright.data.pictures import thumbnail
from tunewright.data.records import Records, load_records
from tunewright.data.rows import read_rows
from tunewright.errors import DataError, RecipeError
from tunewright.evaluation.config import EvaluationConfig
from tunewright.evaluation.contrast import document, met, sentence, where_worse
from tunewright.evaluation.contrast import in_words as told
from tunewright.evaluation.contrast_page import write_comparison
from tunewright.evaluation.evaluate import in_words
from tunewright.folder import Run
from tunewright.forgetting import on_general_text, on_own_answers, refuse_idle
from tunewright.policies import kinds_of
from tunewright.reading import wanted_kinds
from tunewright.recipe import checked
from tunewright.sides import Side, answer, asking, refuse_different, refuse_other_rows, refuse_other_tasks

REQUIREMENTS = ("better", "not-worse")
MOST_VALUES = 50
"""More values than this make no slices of a column."""


def compare(
    a: str | PathLike[str],
    b: str | PathLike[str],
    data: Location | Mapping[str, Location] | None = None,
    *,
    slices: Sequence[str] = (),
    to: str | Path | None = None,
    require: str | None = None,
    samples: int = 5,
    general: Location | None = None,
    forgetting: bool = False,
    columns: Mapping[str, str] | None = None,
    format: str = "auto",
    overlength: str = "auto",
    max_length: int | None = None,
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
        general: text of all kinds, for what a language model has forgotten: its loss there.
        forgetting: have the base (α = 0) answer the prompts of the rows, and measure the loss of both on its answers.
        columns, format, overlength, max_length: how `data` is read.

    Returns:
        {"a", "b", "verdict", "worse", "sets": {name: figures}, "forgetting", "notes", "page", "require",
        "met"}. All differences are B − A; what is forgotten is no part of the verdict, nor of `require`.

    Raises:
        RecipeError, DataError: slices, rows or `require` cannot be used, or there are no rows.
        BaseModelError: the two models answer different questions, or cannot be measured on the same rows.
    """
    if require not in (None, *REQUIREMENTS):
        raise RecipeError(f"require: {require} is none of {', '.join(REQUIREMENTS)}.")
    checked(EvaluationConfig, {"samples": samples})
    if to is not None:
        refuse_file(Path(to))
    wanted = parse_slices(slices)
    sides = Side(str(a), device), Side(str(b), device)
    refuse_other_tasks(*sides)
    reading = {"columns": columns or {}, "format": format, "overlength": overlength, "max_length": max_length}
    sets, config = _sets(sides, data, reading)
    for records in sets.values():
        asking(sides, records)
    cut = {name: _slices(wanted, records, config.test_sets()[name]) for name, records in sets.items()}
    _refuse_empty(wanted, cut)
    elsewhere = None if general is None else _general(general)
    if elsewhere or forgetting:
        refuse_idle(sides, forgetting)
    for records in [*sets.values(), *([elsewhere] if elsewhere else [])]:
        refuse_other_rows(sides, records)
    refuse_different(*sides)  # the models are loaded here, after all that can be refused without them
    answered = {name: answer(name, sides, records, config, cut[name]) for name, records in sets.items()}
    found = {name: document(both, samples) for name, (both, _) in answered.items()}
    lost = forgotten(sides, sets, config, elsewhere, forgetting)
    notes = [note for _, left_out in answered.values() for note in left_out]
    notes += [note for one in found.values() for note in one["notes"]]
    result = {
        "a": str(a),
        "b": str(b),
        "verdict": sentence((str(a), str(b)), found),
        "worse": [*where_worse(found), *(told(name, one) for name, one in lost.items() if one["change"] == "worse")],
        "sets": found,
        "forgetting": lost,
        "notes": notes,
        **({"require": require, "met": met(require, found)} if require else {}),
    }
    if to is None:
        return result
    return {**result, "page": str(write_comparison(result, Path(to), _pictures(found, sets)))}


def _pictures(found: Mapping[str, Any], sets: Mapping[str, Records]) -> dict[str, dict[str, str]]:
    """The rows that flipped by set and source, made small, where they are images."""
    pictures: dict[str, dict[str, str]] = {}
    for name, records in sets.items():
        flipped = {row["source"] for way in found[name]["flipped"].values() for row in way["shown"]}
        images = (r for r in records.records if isinstance(r, LabelledImage) and r.source in flipped)
        pictures[name] = {record.source: thumbnail(record.image) for record in images}
    return pictures


def forgotten(
    sides: tuple[Side, Side], sets: Mapping[str, Records], config: DataConfig, general: Records | None, answers: bool
) -> dict[str, Any]:
    """What was asked for of: loss on general text, and on the base's own answers to the rows of the first set."""
    found: dict[str, Any] = {}
    if general:
        found["general text"] = on_general_text(sides, general)
    if answers:
        name, records = next(iter(sets.items()))
        found["the base's own answers"] = on_own_answers(sides, name, records, config)
    return found


# Rows


def _sets(sides: tuple[Side, Side], data: Any, reading: Mapping[str, Any]) -> tuple[dict[str, Records], DataConfig]:
    """The rows by set, and how they are read."""
    if data is not None:
        return _given_sets(sides, data, reading)
    idle = [name for name, value in reading.items() if value not in ("auto", {}, None)]
    if idle:
        raise RecipeError(f"{', '.join(idle)} says how the rows of --data are read, and there are none: leave it out.")
    return _shared_sets(*sides)


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
    kinds = wanted_kinds(runs[0].recipe)
    sets = {name: load_records(config.test_sets()[name], config, kinds=kinds) for name in shared}
    refuse_changed(sets, runs[0].info["data"], "Name some with --data.")
    return sets, config


def _hashes(run: Run) -> dict[str, str]:
    """The hash of each of a run's test sets."""
    return {name: run.info["data"][name]["sha256"] for name in run.recipe.data.test_sets()}


def _given_sets(
    sides: tuple[Side, Side], data: Any, reading: Mapping[str, Any]
) -> tuple[dict[str, Records], DataConfig]:
    config = checked(DataConfig, {"train": "-", "test": data, **reading})
    sets = config.test_sets()
    if not sets:
        raise DataError("data is empty: name the rows to compare on, or leave it out where the runs share a test set.")
    runs = [side.run for side in sides[::-1] if side.run]
    kinds = min((kinds_of(run, sides[0].task) for run in (*runs, None)), key=len)  # prompts, where one wants them
    return {name: load_records(location, config, kinds=kinds) for name, location in sets.items()}, config


def _general(given: Any) -> Records:
    location = as_location(given, "general")
    return load_records(location, DataConfig(train=location))


# Slices


@dataclass(frozen=True)
class Slice:
    """`column=NAME` has no pattern."""

    name: str
    pattern: re.Pattern[str] | None


def parse_slices(given: Sequence[str]) -> list[Slice]:
    if isinstance(given, str):
        raise RecipeError(f"slices is a list: [{given!r}].")
    return [parse_slice(each) for each in given]


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
