"""The curve over α: what a point on the path from start to end is worth on the reference set and under each shift.

Each set has a validation half, on which α is chosen, and a test half, whose figures are reported. The best α on the
test halves is the oracle: nobody can know it beforehand, and it is called so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.errors import RecipeError
from tunewright.evaluation.formats import difference_of, metric_name
from tunewright.evaluation.paired import PRIMARY, difference, ensemble, primary
from tunewright.evaluation.scores import LOWER_IS_BETTER, Metric

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

HALF_A_POINT = 0.005
"""How far from the best the `reference` rule may go: half a point of a share; for a loss, half a percent of it."""

Halves = Mapping[str, "Predictions"]
"""A set's predictions: {"validation": …, "test": …}."""


@dataclass(frozen=True)
class Curve:
    """Predictions at every α, by set and half.

    Attributes:
        alphas: ascending, from 0 to 1.
        reference: the set that the model was tuned for; all others are shifts.
        points: for each α the halves of each set.
    """

    alphas: Sequence[float]
    reference: str
    points: Sequence[Mapping[str, Halves]]

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

    def worst_shift(self, half: str) -> np.ndarray:
        found = self.sign * np.array([self.values(name, half) for name in self.shifts or [self.reference]])
        return self.sign * found.min(axis=0)


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
    chosen = curve.points[curve.alphas.index(alpha)]
    start, end = curve.points[0], curve.points[-1]
    return {
        "alphas": list(curve.alphas),
        "metric": curve.metric,
        "reference": curve.reference,
        "shifts": curve.shifts,
        "curve": {
            name: {half: [m.to_dict() for m in curve.metrics(name, half)] for half in ("validation", "test")}
            for name in (curve.reference, *curve.shifts)
        },
        "mean_of_shifts": curve.mean_of_shifts("test").tolist(),
        "worst_shift": curve.worst_shift("test").tolist(),
        "chosen": {"rule": rule, "alpha": alpha},
        "oracle": choose(curve, "balanced", "test"),
        "baselines": {name: _on_test(found) for name, found in _baselines(start, end).items()},
        "against_tuned": {name: difference(chosen[name]["test"], end[name]["test"]).to_dict() for name in chosen},
        "against_start": {name: difference(chosen[name]["test"], start[name]["test"]).to_dict() for name in chosen},
    }


def sentence(found: Mapping[str, Any]) -> str:
    """What the chosen α costs on the reference and gains under shift, with the paired intervals, in words."""
    alpha, name = found["chosen"]["alpha"], metric_name(found["metric"]).lower()
    if alpha == 1:
        return f"Chosen: α = 1, the tuned model as it is ({found['chosen']['rule']})."
    told = [f"{each}: {_told(found, each)}" for each in (found["reference"], *found["shifts"])]
    return f"Chosen: α = {alpha:g} ({found['chosen']['rule']}). Against the tuned model, {name} on {'; '.join(told)}."


def _told(found: Mapping[str, Any], name: str) -> str:
    change = Metric.from_dict(found["against_tuned"][name])
    return difference_of(found["metric"], change, "" if change.low > 0 or change.high < 0 else ", cannot tell")


def _baselines(start: Mapping[str, Halves], end: Mapping[str, Halves]) -> dict[str, dict[str, Predictions]]:
    mixed = {name: ensemble(start[name]["test"], end[name]["test"]) for name in start}
    both = {name: found for name, found in mixed.items() if found is not None}
    return {
        "start": {name: halves["test"] for name, halves in start.items()},
        "tuned": {name: halves["test"] for name, halves in end.items()},
        **({"ensemble": both} if both else {}),
    }


def _on_test(found: Mapping[str, Predictions]) -> dict[str, Any]:
    return {name: primary(predictions).to_dict() for name, predictions in found.items()}
