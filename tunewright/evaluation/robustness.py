"""The curve over α: what a point on the path from start to end is worth on the reference set and under each shift.

Each set has a validation half, on which α is chosen, and a test half, whose figures are reported. The best α on the
test halves is the oracle: nobody can know it beforehand, and it is called so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.errors import DataError, RecipeError
from tunewright.evaluation.formats import difference_of, metric_name
from tunewright.evaluation.paired import PRIMARY, difference, ensemble, primary, statistic, value
from tunewright.evaluation.scores import LOWER_IS_BETTER, Metric, mean, resampled, within

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

HALF_A_POINT = 0.005
"""How far from the best the `reference` rule may go: half a point of a share; of a loss or a reward half a percent."""

RULES = ("balanced", "reference")
BASELINES = {
    "ensemble": "mean of the logits of both ends",
    "linear probe": "last layer fitted to the start's features",
    "without averaging": "the trained weights as they are",
}
"""What stands beside the curve, in words, where its name does not say it."""

Halves = Mapping[str, "Predictions"]
"""A set's predictions: {"validation": …, "test": …}."""


@dataclass(frozen=True)
class Curve:
    """Predictions at every α, by set and half.

    Attributes:
        alphas: ascending, from 0 to 1.
        reference: the set that the model was tuned for; all others are shifts.
        points: for each α the halves of each set.
        start_is: what the start is called: the base, or the base with a head that was trained alone, a linear probe.
        others: further models by what they are, measured on the same sets; they stand beside the curve.
    """

    alphas: Sequence[float]
    reference: str
    points: Sequence[Mapping[str, Halves]]
    start_is: str = "base"
    others: Mapping[str, Mapping[str, Halves]] = field(default_factory=dict)

    @property
    def shifts(self) -> list[str]:
        return [name for name in self.points[0] if name != self.reference]

    @property
    def metric(self) -> str:
        return PRIMARY[self.points[0][self.reference]["test"].kind]

    @property
    def sign(self) -> float:
        return -1.0 if self.metric in LOWER_IS_BETTER else 1.0

    def metrics(self, name: str, half: str) -> list[Metric]:
        """The primary metric at every α."""
        return [primary(point[name][half]) for point in self.points]

    def values(self, name: str, half: str) -> np.ndarray:
        return np.array([value(point[name][half]) for point in self.points])

    def measured_shifts(self, half: str) -> list[str]:
        """Without those whose metric is undefined at every α, such as R² where all labels are equal: they say nothing.

        All of them where that would leave none.
        """
        return [name for name in self.shifts if np.isfinite(self.values(name, half)).any()] or self.shifts

    def mean_of_shifts(self, half: str) -> np.ndarray:
        """At every α; the reference itself where there is no shift."""
        return np.mean([self.values(name, half) for name in self.measured_shifts(half) or [self.reference]], axis=0)


def parse_rule(given: str | float) -> str | float:
    """`balanced`, `reference`, or a number. Raises RecipeError for anything else."""
    try:
        return given if given in RULES else round(float(given), 6)
    except ValueError:
        raise RecipeError(f"choose: {given} is no rule. Use balanced, reference, or a number from 0 to 1.") from None


def choose(curve: Curve, rule: str | float) -> float:
    """The α that a rule takes on the validation halves.

    Args:
        rule: `balanced`, the best mean of the reference and the mean over shifts; `reference`, the smallest α within
            half a point of the best on the reference set; or a number, which is taken as it is.

    Raises:
        DataError: the validation halves do not tell one α from another.
    """
    alpha = best(curve, rule, "validation") if isinstance(rule, str) else rule
    if alpha is None:
        raise DataError(
            f"{metric_name(curve.metric)} is undefined on the validation rows at every α, so none can be chosen by "
            f"{rule}: the models' output is not finite, or all labels are equal. Give other rows, or choose a number."
        )
    return alpha


def best(curve: Curve, rule: str, half: str) -> float | None:
    """The α that one of the rules takes on one half of the sets; None where it is undefined at every α.

    Where it is undefined at some of them, these are the worst.
    """
    score, slack = _with_worst(curve.sign * curve.values(curve.reference, half)), 0.0
    if rule == "balanced":
        shifts = _with_worst(curve.sign * curve.mean_of_shifts(half))
        told = [each for each in (score, shifts) if np.isfinite(each).any()]  # the other one, where one says nothing
        score = np.sum(told or [score], axis=0)
    else:
        slack = HALF_A_POINT * (abs(score.max()) if curve.metric in (*LOWER_IS_BETTER, "reward") else 1.0)
    return curve.alphas[int(np.argmax(score >= score.max() - slack))] if np.isfinite(score.max()) else None


def _with_worst(values: np.ndarray) -> np.ndarray:
    """NaN as −∞: `argmax` takes it for the maximum."""
    return np.where(np.isfinite(values), values, -np.inf)


def document(curve: Curve, rule: str | float) -> dict[str, Any]:
    """All that was found, as JSON."""
    alpha = choose(curve, rule)
    assert alpha in curve.alphas, f"{alpha} is not one of the alphas {curve.alphas}"
    start, end = curve.points[0], curve.points[-1]
    return {
        "alphas": list(curve.alphas),
        "metric": curve.metric,
        "reference": curve.reference,
        "shifts": curve.shifts,
        "start_is": curve.start_is,
        "curve": {
            name: {half: [m.to_dict() for m in curve.metrics(name, half)] for half in ("validation", "test")}
            for name in (curve.reference, *curve.shifts)
        },
        "over_shifts": [_over_shifts(curve, point) for point in curve.points],
        "chosen": {"rule": rule, "alpha": alpha},
        "choices": {name: best(curve, name, "validation") for name in RULES},
        "oracle": best(curve, "balanced", "test"),
        "baselines": {name: _measured(curve, found) for name, found in _baselines(curve).items()},
        "against_tuned": {name: _against(curve, name, end) for name in start},
        "against_start": {name: _against(curve, name, start) for name in start},
        **_divergences(curve),
    }


def _divergences(curve: Curve) -> dict[str, Any]:
    """Of a policy its KL from the start at every α, on the test rows of the reference; else nothing."""
    told = [point[curve.reference]["test"].told for point in curve.points]
    return {"kl": [mean(one["kl"]).to_dict() for one in told if one and "kl" in one]} if all(told) else {}


def _over_shifts(curve: Curve, point: Mapping[str, Halves]) -> dict[str, Any]:
    """One model's mean over the shifts, each resampled by itself, and its worst shift; empty where there is no shift.

    On test rows; the worst shift's interval is its own.
    """
    names = curve.measured_shifts("test")
    if not names:
        return {}
    tests = [point[name]["test"] for name in names]
    resamples = [
        resampled(statistic(found), len(found.sources), seed, found.group_N) for seed, found in enumerate(tests)
    ]
    count = min(map(len, resamples))
    each = [primary(found) for found in tests]
    average = float(np.mean([metric.value for metric in each]))
    spread = np.mean([found[:count] for found in resamples], axis=0)
    worst = int(np.argmin(_with_worst(np.array([curve.sign * metric.value for metric in each]))))
    return {
        "mean": within(average, spread, sum(metric.n for metric in each)).to_dict(),
        "worst": {"name": names[worst], **each[worst].to_dict()},
    }


def _against(curve: Curve, name: str, end: Mapping[str, Halves]) -> list[dict[str, Any]]:
    """The paired difference to one end at every α, on test rows."""
    return [difference(point[name]["test"], end[name]["test"]).to_dict() for point in curve.points]


def sentence(found: Mapping[str, Any]) -> str:
    """What the chosen α costs on the reference and gains under shift, with the paired intervals, in words."""
    alpha, name = found["chosen"]["alpha"], metric_name(found["metric"]).lower()
    if alpha == 1:
        return f"Chosen: α = 1, the tuned model as it is ({found['chosen']['rule']})."
    told = [f"{each}: {_told(found, each)}" for each in (found["reference"], *found["shifts"])]
    anew = " Batch norms were measured anew." if found.get("batch_norm") == "recompute" and alpha else ""
    return (
        f"Chosen: α = {alpha:g} ({found['chosen']['rule']}). "
        f"Against the tuned model, {name} on {'; '.join(told)}.{anew}"
    )


def _told(found: Mapping[str, Any], name: str) -> str:
    at = found["alphas"].index(found["chosen"]["alpha"])
    change = Metric.from_dict(found["against_tuned"][name][at])
    if not change.is_defined:
        return "undefined"
    return difference_of(found["metric"], change) + ("" if change.excludes(0) else ", cannot tell")


@dataclass(frozen=True)
class Line:
    """A point or a baseline: its name, its figure on each set, the mean and the worst over the shifts, and what it is.

    `worst` is (the shift's name, its figure); both are None where there is no shift.
    """

    name: str
    sets: Mapping[str, Metric]
    mean: Metric | None
    worst: tuple[str, Metric] | None
    role: str


def lines(found: Mapping[str, Any]) -> Iterator[Line]:
    """Every α, then what stands beside the curve."""
    for at, alpha in enumerate(found["alphas"]):
        sets = {name: one["test"][at] for name, one in found["curve"].items()}
        yield _line(f"{alpha:g}", sets, found["over_shifts"][at], _role(found, alpha))
    for name, one in found["baselines"].items():
        yield _line(name, one["sets"], one["over_shifts"], BASELINES.get(name, ""))


def _line(name: str, sets: Mapping[str, Any], over: Mapping[str, Any], role: str) -> Line:
    mean = Metric.from_dict(over["mean"]) if over else None
    worst = (over["worst"]["name"], Metric.from_dict(over["worst"])) if over else None
    return Line(name, {each: Metric.from_dict(metric) for each, metric in sets.items()}, mean, worst, role)


def table(found: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[Metric], str]]]:
    """The columns, and for each α and baseline its name, its figures in these columns and what it is."""
    sets, several = [found["reference"], *found["shifts"]], len(found["shifts"]) > 1
    rows = []
    for line in lines(found):
        figures = [line.sets[name] for name in sets]
        if several and line.mean and line.worst:
            figures += [line.mean, line.worst[1]]
        rows.append((line.name, figures, line.role))
    return [*sets, *(["mean shift", "worst shift"] if several else [])], rows


def _role(found: Mapping[str, Any], alpha: float) -> str:
    names = {0.0: [found["start_is"]], 1.0: ["tuned"]}.get(alpha, [])
    names += ["chosen"] if alpha == found["chosen"]["alpha"] else []
    return ", ".join([*names, *(["oracle"] if alpha == found["oracle"] else [])])


def _baselines(curve: Curve) -> dict[str, Mapping[str, Halves]]:
    """What stands beside the curve: the ensemble of its ends where their outputs can be averaged, and other models."""
    start, end = curve.points[0], curve.points[-1]
    mixed = {name: ensemble(start[name]["test"], end[name]["test"]) for name in start}
    both = {name: {"test": found} for name, found in mixed.items() if found is not None}
    return {**({"ensemble": both} if both else {}), **curve.others}


def _measured(curve: Curve, point: Mapping[str, Halves]) -> dict[str, Any]:
    sets = {name: primary(halves["test"]).to_dict() for name, halves in point.items()}
    return {"sets": sets, "over_shifts": _over_shifts(curve, point)}
