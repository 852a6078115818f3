"""Is the tuned model still good elsewhere? The path from a run's start to its end, measured and chosen from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.account import refuse_changed
from tunewright.artifacts import batch_norm as norms
from tunewright.artifacts.interpolate import check_alpha, load, write_point
from tunewright.artifacts.load import weights_folder
from tunewright.artifacts.save import refuse_place
from tunewright.artifacts.soup import soup as write_soup
from tunewright.artifacts.targets.base import merge
from tunewright.artifacts.unaveraged import load_unaveraged
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig, Location
from tunewright.data.given import as_location
from tunewright.data.records import Records, load_records
from tunewright.engine.device import pick_device
from tunewright.errors import DataError, RecipeError, counted
from tunewright.evaluation import linear_probe
from tunewright.evaluation.evaluate import by_prompt
from tunewright.evaluation.paired import subset
from tunewright.evaluation.picture import draw
from tunewright.evaluation.report import write_report
from tunewright.evaluation.robustness import Curve, document, parse_rule
from tunewright.folder import Run, open_run
from tunewright.policies import Asking
from tunewright.reading import Rows, read_rows
from tunewright.tasks.base import Model

FOUND = "interpolation.json"
BATCH_NORM = ("interpolate", "recompute")

Settle = Callable[[Model], None]
"""What is done to a model between the ends, in place."""


def interpolate(
    run: str | PathLike[str],
    *,
    shifts: Mapping[str, Location] | None = None,
    alphas: str | Sequence[float] = "0:1:0.1",
    choose: str | float = "balanced",
    to: str | Path | None = None,
    batch_norm: str = "interpolate",
    columns: Mapping[str, str] | None = None,
    device: str = "auto",
    watch: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Measure a run between its start (α = 0) and its end (α = 1), and choose α on validation rows (WiSE-FT).

    The reference is the run's test set (its first, or its validation rows where it has none); its other test sets and
    `shifts` are the shifts. α is chosen on the run's validation rows and on one half of each shift; figures are of the
    test set and of the other halves.

    Args:
        shifts: further sets by name.
        alphas: first:last:step, numbers with commas, or numbers; 0 and 1 are always among them.
        choose: balanced, reference, or a number, which is then one of the points: see `evaluation.robustness.choose`.
        to: a new folder for the model at the chosen α.
        batch_norm: interpolate the statistics of batch norms like weights, or recompute them between the ends.
        columns: standard column name -> name in the files of `shifts`, where these are not named as the run's rows are.
        watch: told how many of how many points have been measured.

    Returns what `interpolation.json` in the run's folder then says; the picture lies beside it, the report has both.

    Raises:
        MethodError: there is no path between start and end.
        BaseModelError: the run has no model yet.
        DataError: shifts cannot be used, or the run's own rows have changed since it was trained.
        RecipeError, OutputError: alphas, `choose`, `to`, `batch_norm` or `columns` cannot be used.
    """
    opened, place = open_run(run), str(pick_device(device))
    weights_folder(opened.folder)  # what can be refused is refused before anything is read or loaded
    points, rule = _points(alphas, choose)
    if batch_norm not in BATCH_NORM:
        raise RecipeError(f"batch_norm: {batch_norm} is neither interpolate nor recompute.")
    if to is not None:
        refuse_place(Path(to))
    recipe = opened.recipe
    rows = read_rows(recipe)
    refuse_changed(rows.sets(), opened.info["data"], "Put them back, or train anew.")
    sets = _sets(rows, _reading(recipe.data, columns or {}, shifts or {}), shifts or {})
    asked = [record for parts in sets.values() for part in parts for record in part.rows.records]
    measure = _Measure(sets, recipe.data, Asking(opened.folder, asked, device))
    settle = _settling(opened, rows, batch_norm)
    measured = []
    for alpha in points:
        measured.append(measure(_point(opened, place, alpha, settle)))
        watch(len(measured), len(points))
    curve = Curve(
        alphas=points,
        reference=measure.reference,
        points=measured,
        start_is="linear probe" if recipe.training.head_first else "base",
        others={name: measure(model) for name, model in _others(opened, rows, measure, place)},
    )
    found = {**document(curve, rule), "batch_norm": batch_norm if settle else None}
    if to is not None:
        found["folder"] = str(write_point(opened.folder, found["chosen"]["alpha"], Path(to), settle))
    draw(found, opened.folder / "interpolation")
    (opened.folder / FOUND).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    write_report(opened.folder)
    return found


def soup(runs: Sequence[str | PathLike[str]], folder: str | Path) -> Path:
    """Write the mean of several runs that began alike to a new folder (model soups, arXiv 2203.05482)."""
    return write_soup(runs, Path(folder))


def _points(alphas: str | Sequence[float], choose: str | float) -> tuple[list[float], str | float]:
    """The points to measure, with the one that is chosen as a number; and the rule. Raises RecipeError."""
    points, rule = parse_alphas(alphas), parse_rule(choose)
    return (points if isinstance(rule, str) else parse_alphas([*points, rule])), rule


def parse_alphas(given: str | Sequence[float]) -> list[float]:
    """`0:1:0.25` or `0.3,0.6` as ascending numbers with 0 and 1. Raises RecipeError for anything else."""
    try:
        if isinstance(given, str) and ":" in given:
            first, last, step = (float(part) for part in given.split(":"))
            if step <= 0:
                raise ValueError
            numbers = [first + i * step for i in range(int((last - first) / step + 1e-9) + 1)]
        else:
            numbers = [float(part) for part in (given.split(",") if isinstance(given, str) else given)]
    except ValueError:
        raise RecipeError(f"alphas: {given} is neither first:last:step, such as 0:1:0.1, nor numbers.") from None
    for number in numbers:
        check_alpha(round(number, 6))
    return sorted({0.0, 1.0, *(round(number, 6) for number in numbers)})


@dataclass(frozen=True)
class Set:
    """Rows with their halves; `half` names the one that all of them are, where the recipe had set the others apart."""

    rows: Records
    half: str | None = None

    def halves(self, count: int) -> Iterator[tuple[str, np.ndarray]]:
        """Row numbers of each half, drawn once and for all."""
        if self.half:
            yield self.half, np.arange(count)
            return
        order = np.random.default_rng(0).permutation(count)
        yield "validation", np.sort(order[: count // 2])
        yield "test", np.sort(order[count // 2 :])

    def refuse_few(self, name: str, count: int) -> None:
        """Raises DataError where there is no row for each half."""
        if not self.half and count < 2:
            raise DataError(
                f"{name} has {counted(count, 'row')} and needs two: one half of them chooses α, the other is measured. "
                "Give more rows."
            )


def _reading(data: DataConfig, columns: Mapping[str, str], shifts: Mapping[str, Location]) -> DataConfig:
    """How shifts are read: as the run's rows, but for the names of their columns. Raises RecipeError."""
    if columns and not shifts:
        raise RecipeError("columns says how the rows of --shift are read, and there are none: leave it out.")
    return data.model_copy(update={"columns": dict(columns)}) if columns else data


def _sets(rows: Rows, data: DataConfig, shifts: Mapping[str, Location]) -> dict[str, list[Set]]:
    """The reference first, then the shifts. Raises DataError for rows that the run's task does not read."""
    tests, own = dict(rows.tests), dict.fromkeys(("train", "validation", *rows.tests))
    for name, location in shifts.items():
        if name in own:
            raise RecipeError(f"--shift {name}: the run's own sets are {', '.join(own)}. Name the shift otherwise.")
        tests[name] = load_records(as_location(location, name), data, kinds=[rows.train.kind])
        if tests[name].kind != rows.train.kind:
            raise DataError(f"{name} holds {tests[name].kind} rows, the run was trained on {rows.train.kind} rows.")
    if not tests and rows.validation is None:
        raise DataError("The run has neither test nor validation rows. Name some with --shift.")
    if not tests or (rows.tests == {} and rows.validation):
        assert rows.validation is not None
        return {"validation": [Set(rows.validation)], **{name: [Set(found)] for name, found in tests.items()}}
    reference, *others = tests
    first = [Set(rows.validation, "validation"), Set(tests[reference], "test")] if rows.validation else None
    return {reference: first or [Set(tests[reference])], **{name: [Set(tests[name])] for name in others}}


class _Measure:
    """What models of one run answer on the same sets. Rows are encoded once: all have the run's tokenizer."""

    def __init__(self, sets: Mapping[str, Sequence[Set]], data: DataConfig, ask: Asking) -> None:
        self.sets, self.data, self.ask = sets, data, ask
        self.encoded: dict[str, list[list[Example]]] = {}
        for name, part in self._parts():
            if data.overlength_for(part.rows.kind) != "split":  # else one text may make several rows
                part.refuse_few(name, len(part.rows.records))

    def __call__(self, model: Model) -> dict[str, dict[str, Any]]:
        """By set and half."""
        if not self.encoded:
            model.reserve = self.ask.reserve
            for name, part in self._parts():
                examples = model.task.encode(model, part.rows.records, self.data).examples
                part.refuse_few(name, len(examples))
                self.encoded.setdefault(name, []).append(examples)
        return {name: self._halves(model, name) for name in self.sets}

    def _parts(self) -> Iterator[tuple[str, Set]]:
        return ((name, part) for name, parts in self.sets.items() for part in parts)

    @property
    def reference(self) -> str:
        return next(iter(self.sets))

    def validation(self) -> list[Example]:
        """The rows of the reference that choose: they are in no figure."""
        parts = zip(self.sets[self.reference], self.encoded[self.reference], strict=True)
        halves = ((half, rows, found) for part, found in parts for half, rows in part.halves(len(found)))
        return [found[i] for half, rows, found in halves if half == "validation" for i in rows]

    def _halves(self, model: Model, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part, examples in zip(self.sets[name], self.encoded[name], strict=True):
            predictions = by_prompt(self.ask(model, examples), part.rows.records)
            found |= {half: subset(predictions, rows) for half, rows in part.halves(len(examples))}
        return found


def _others(run: Run, rows: Rows, measure: _Measure, place: str) -> Iterator[tuple[str, Model]]:
    """What else a reader would compare the curve with, one model after the other."""
    training = run.recipe.training
    if run.info["kind"] == "single_label" and not training.head_first:  # else the start is one
        start = load(run.folder, place, alpha=0.0)
        merge(start)
        if linear_probe.put_probe(start, _drawn(start, rows, run, linear_probe.ROWS), measure.validation()):
            yield "linear probe", start
    if training.ema:
        best = run.info["best"] if training.keep == "best" else None
        trained = load_unaveraged(run.folder, int(best["step"]) if best else run.info["steps"], place)
        if trained:
            yield "without averaging", trained


def _point(run: Run, place: str, alpha: float, settle: Settle | None) -> Model:
    model = load(run.folder, place, alpha=alpha)
    if settle and 0 < alpha < 1:
        settle(model)
    return model


def _settling(run: Run, rows: Rows, batch_norm: str) -> Settle | None:
    """What makes a point between the ends ready; None where that is nothing. Raises RecipeError without batch norms."""
    if batch_norm == "interpolate":
        return None
    start = load(run.folder, alpha=0.0)
    moved = norms.moved_norms(start, load(run.folder))
    examples = _drawn(start, rows, run, norms.ROWS)
    return lambda model: norms.recompute(model, moved, examples)


def _drawn(model: Model, rows: Rows, run: Run, count: int) -> list[Example]:
    """At most `count` of the training rows, always the same, encoded for any model of the run."""
    records = rows.train.records
    drawn = np.sort(np.random.default_rng(0).permutation(len(records))[:count])
    return model.task.encode(model, [records[i] for i in drawn], run.recipe.data).examples
