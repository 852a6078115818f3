"""Is the tuned model still good elsewhere? The path from a run's start to its end, measured and chosen from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.artifacts.interpolate import check_alpha, load, write_point
from tunewright.artifacts.soup import soup as write_soup
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig, Location
from tunewright.data.records import Records, load_records
from tunewright.engine.device import pick_device
from tunewright.errors import DataError, RecipeError
from tunewright.evaluation.paired import subset
from tunewright.evaluation.picture import draw
from tunewright.evaluation.report import write_report
from tunewright.evaluation.robustness import Curve, document
from tunewright.folder import Run, open_run
from tunewright.prepare import read_rows
from tunewright.tasks.base import Model

FOUND = "interpolation.json"


def interpolate(
    run: str | Path,
    *,
    shifts: Mapping[str, Location] | None = None,
    alphas: str | Sequence[float] = "0:1:0.1",
    choose: str | float = "balanced",
    to: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a run between its start (α = 0) and its end (α = 1), and choose α on validation rows (WiSE-FT).

    The reference is the run's test set (its first, or its validation rows where it has none); its other test sets and
    `shifts` are the shifts. α is chosen on the run's validation rows and on one half of each shift; figures are of the
    test set and of the other halves.

    Args:
        shifts: further sets by name.
        alphas: first:last:step, numbers with commas, or numbers; 0 and 1 are always among them.
        choose: balanced, reference, or a number: see `evaluation.robustness.choose`.
        to: a new folder for the model at the chosen α.

    Returns what `interpolation.json` in the run's folder then says; the picture lies beside it, the report has both.

    Raises:
        MethodError: there is no path between start and end.
        DataError, RecipeError, OutputError: shifts, alphas or `to` cannot be used.
    """
    opened, points, place = open_run(run), parse_alphas(alphas), str(pick_device(device))
    sets = _sets(opened, shifts or {})
    measure = _Measure(sets, opened.recipe.data)
    curve = Curve(
        alphas=points,
        reference=next(iter(sets)),
        points=[measure(load(opened.folder, place, alpha=alpha)) for alpha in points],
        start_is="linear probe" if opened.recipe.training.head_first else "base",
    )
    found = document(curve, choose)
    if to is not None:
        found["folder"] = str(write_point(opened.folder, found["chosen"]["alpha"], Path(to)))
    (opened.folder / FOUND).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    draw(found, opened.folder / "interpolation")
    write_report(opened.folder)
    return found


def soup(runs: Sequence[str | Path], folder: str | Path) -> Path:
    """Write the mean of several runs that began alike to a new folder (model soups, arXiv 2203.05482)."""
    return write_soup(runs, Path(folder))


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
        order = np.random.default_rng(0).permutation(count)
        yield "validation", np.sort(order[: count // 2])
        yield "test", np.sort(order[count // 2 :])


def _sets(run: Run, shifts: Mapping[str, Location]) -> dict[str, list[Set]]:
    """The reference first, then the shifts. Raises DataError for rows that the run's task does not read."""
    recipe = run.recipe
    rows = read_rows(recipe.data, recipe.training.seed)
    tests = dict(rows.tests)
    for name, location in shifts.items():
        if name in tests:
            raise RecipeError(f"--shift {name}: the run has a set of that name. Name the shift otherwise.")
        tests[name] = load_records(location, recipe.data)
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

    def __init__(self, sets: Mapping[str, Sequence[Set]], data: DataConfig) -> None:
        self.sets, self.data = sets, data
        self.encoded: dict[str, list[list[Example]]] = {}

    def __call__(self, model: Model) -> dict[str, dict[str, Any]]:
        """By set and half."""
        if not self.encoded:
            for name, parts in self.sets.items():
                self.encoded[name] = [model.task.encode(model, p.rows.records, self.data).examples for p in parts]
        return {name: self._halves(model, name) for name in self.sets}

    def _halves(self, model: Model, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for part, examples in zip(self.sets[name], self.encoded[name], strict=True):
            predictions = model.task.predict(model, examples)
            if part.half:
                found[part.half] = predictions
            else:
                found |= {half: subset(predictions, rows) for half, rows in part.halves(len(examples))}
        return found
