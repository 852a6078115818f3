"""The curve over α: what a point on the path from start to end is worth on the reference set and under each shift.

Each set has a validation half, on which α is chosen, and a test half, whose figures are reported. The best α on the
test halves is the oracle: nobody can know it beforehand, and it is called so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.errors import RecipeError
from tunewright.evaluation.formats import difference_of, metric_name
from tunewright.evaluation.paired import PRIMARY, difference, ensemble, primary, statistic
from tunewright.evaluation.scores import LOWER_IS_BETTER, Metric, resampled, within

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

HALF_A_POINT = 0.005
"""How far from the best the `reference` rule may go: half a point of a share; for a loss, half a percent of it."""

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
        return np.array([metric.value for metric in self.metrics(name, half)])

    def mean_of_shifts(self, half: str) -> np.ndarray:
        """At every α; the reference itself where there is no shift."""
        return np.mean([self.values(name, half) for name in self.shifts or [self.reference]], axis=0)


def choose(curve: Curve, rule: str | float, half: str = "validation") -> float:
    """The α that a rule takes.

    Args:
        rule: `balanced`, the best mean of the reference and the mean over shifts; `reference`, the smallest α within
            half a point of the best on the reference set; or a number, which is taken as it is.

    Raises:
        RecipeError: there is no such rule.
    """
    reference = curve.sign * curve.values(curve.reference, half)
    if rule == "balanced":
        return curve.alphas[int(np.argmax(reference + curve.sign * curve.mean_of_shifts(half)))]
    if rule == "reference":
        best = reference.max()
        slack = HALF_A_POINT * (abs(best) if curve.metric in LOWER_IS_BETTER else 1.0)
        return curve.alphas[int(np.argmax(reference >= best - slack))]
    try:
        return float(rule)
    except ValueError:
        raise RecipeError(f"choose: {rule} is no rule. Use balanced, reference, or a number from 0 to 1.") from None


def document(curve: Curve, rule: str | float) -> dict[str, Any]:
    """All that was found, as JSON. Raises RecipeError where a number was chosen that is not on the curve."""
    alpha = choose(curve, rule)
    if alpha not in curve.alphas:
        raise RecipeError(f"choose: {alpha} is not one of the alphas {', '.join(map(str, curve.alphas))}.")
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
        "choices": {name: choose(curve, name) for name in RULES},
        "oracle": choose(curve, "balanced", "test"),
        "baselines": {name: _measured(curve, found) for name, found in _baselines(curve).items()},
        "against_tuned": {name: _against(curve, name, end) for name in start},
        "against_start": {name: _against(curve, name, start) for name in start},
    }


def _over_shifts(curve: Curve, point: Mapping[str, Halves]) -> dict[str, Any]:
    """One model's mean over the shifts, each resampled by itself, and its worst shift; empty where there is no shift.

    On test rows; the worst shift's interval is its own.
    """
    if not curve.shifts:
        return {}
    tests = [point[name]["test"] for name in curve.shifts]
    resamples = [resampled(statistic(found), len(found.sources), seed) for seed, found in enumerate(tests)]
    count = min(map(len, resamples))
    each = [primary(found) for found in tests]
    average = float(np.mean([metric.value for metric in each]))
    spread = np.mean([found[:count] for found in resamples], axis=0)
    worst = min(range(len(each)), key=lambda i: curve.sign * each[i].value)
    return {
        "mean": within(average, spread, sum(metric.n for metric in each)).to_dict(),
        "worst": {"name": curve.shifts[worst], **each[worst].to_dict()},
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


def table(found: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list[Metric], str]]]:
    """The columns, and for each α and baseline its name, its figures in these columns and what it is."""
    sets = [found["reference"], *found["shifts"]]
    several = len(found["shifts"]) > 1
    rows = []
    for at, alpha in enumerate(found["alphas"]):
        figures = [found["curve"][name]["test"][at] for name in sets]
        rows.append((f"{alpha:g}", figures, found["over_shifts"][at], _role(found, alpha)))
    for name, one in found["baselines"].items():
        rows.append((name, [one["sets"][each] for each in sets], one["over_shifts"], BASELINES.get(name, "")))
    columns = [*sets, *(["mean shift", "worst shift"] if several else [])]
    return columns, [
        (name, [Metric.from_dict(m) for m in (*figures, *([over["mean"], over["worst"]] if several else []))], role)
        for name, figures, over, role in rows
    ]


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
