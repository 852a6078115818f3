"""What two models' answers to the same rows say: is B better than A, and where is it worse?

All differences are B − A, paired by row. A change is called better or worse only where its 95 % interval excludes zero
and its p-value is below 0.05; among the many parts of a set (its classes and slices) the p-value is Holm's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.errors import TunewrightError, counted
from tunewright.evaluation.calibration import calibration
from tunewright.evaluation.evaluate import answer
from tunewright.evaluation.formats import difference_of, metric_name, number, value_of, with_interval
from tunewright.evaluation.judged import right_by_prompt
from tunewright.evaluation.paired import (
    PRIMARY,
    chance,
    correct,
    difference,
    finite_rows,
    holm,
    primary,
    recall,
    subset,
)
from tunewright.evaluation.scores import LEVEL, LOWER_IS_BETTER, Array, Metric
from tunewright.evaluation.verdict import Change

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

MANY = (
    "{name}: {count} classes and slices are as many comparisons, of which one in twenty would look changed by chance. "
    "Those called better or worse are so by p-values with Holm's correction; the intervals are not corrected."
)


@dataclass(frozen=True)
class Both:
    """What A and B answered on one set. Raises TunewrightError where that is not finite: nothing can be said of it.

    Attributes:
        name: of the set.
        a, b: predictions on the same rows, classes in the same order; B is the candidate.
        labels: the names of the classes; empty where there are none.
        words: for each source what was asked, and the right answer if there is one.
        slices: row numbers by the name of the slice.
    """

    name: str
    a: Predictions
    b: Predictions
    labels: Sequence[str] = ()
    words: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    slices: Mapping[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side, predictions in (("A", self.a), ("B", self.b)):
            bad = np.flatnonzero(~finite_rows(predictions))
            if len(bad):
                raise TunewrightError(
                    f"{self.name}: the output of {side} is not finite for {len(bad):,} of "
                    f"{counted(len(predictions.sources), 'row')}, first {predictions.sources[bad[0]]}: its weights are "
                    "broken, or it computes in too narrow a number format. Compare another model."
                )


def document(both: Both, samples: int) -> dict[str, Any]:
    """All that one set says, as JSON.

    Args:
        samples: how many rows to give that flipped each way.
    """
    whole = measured(both.a, both.b)
    parts = _parts(both)
    classes = {label: part for kind, label, part in parts if kind == "class"}
    slices = {label: part for kind, label, part in parts if kind == "slice"}
    return {
        **whole,
        "change": change(whole, whole["p"]).value.lower(),
        "classes": classes,
        "slices": slices,
        "flipped": flipped(both, samples),
        "calibration": calibration(both.a, both.b),
        "notes": [MANY.format(name=both.name, count=len(parts))] if len(parts) > 1 else [],
    }


def measured(a: Predictions, b: Predictions, metric: str = "") -> dict[str, Any]:
    """The primary metric of both (`metric` is what to call it), B's minus A's, and the p-value of the difference."""
    p = chance(a, b)
    return {
        "metric": metric or PRIMARY[a.kind],
        "rows": len(a.sources),
        "a": primary(a).to_dict(),
        "b": primary(b).to_dict(),
        "difference": difference(b, a).to_dict(),
        "p": None if math.isnan(p) else p,
    }


def change(found: Mapping[str, Any], p: float | None) -> Change:
    """What a difference and its p-value say of B."""
    changed = Metric.from_dict(found["difference"])
    if not changed.is_defined or p is None:
        return Change.UNMEASURED
    if not changed.excludes(0) or p >= LEVEL:
        return Change.UNCLEAR
    return Change.BETTER if (changed.value > 0) == (found["metric"] not in LOWER_IS_BETTER) else Change.WORSE


def _parts(both: Both) -> list[tuple[str, str, dict[str, Any]]]:
    """(class or slice, its name, what was measured), with p-values that are corrected for all of them."""
    pairs = [("class", label, recall(both.a, c), recall(both.b, c)) for c, label in enumerate(_classes(both))]
    pairs += [("slice", name, subset(both.a, rows), subset(both.b, rows)) for name, rows in both.slices.items()]
    metrics = {"class": "recall", "slice": ""}
    found = [(kind, name, measured(a, b, metrics[kind])) for kind, name, a, b in pairs if a.sources]
    known = [part for _, _, part in found if part["p"] is not None]
    for part, p in zip(known, holm([part["p"] for part in known]), strict=True):
        part["p"] = p
    return [(kind, name, {**part, "change": change(part, part["p"]).value.lower()}) for kind, name, part in found]


def _classes(both: Both) -> Sequence[str]:
    return both.labels if both.a.kind in ("single_label", "multi_label") else ()


# Rows that flipped


def flipped(both: Both, samples: int) -> dict[str, Any]:
    """The rows that B has wrong and A right, and the other way; where nothing is right or wrong, by their loss.

    Returns {"worse" | "better": {"rows": how many, "shown": [{"source", "input", "reference", "a", "b"}]}}.
    """
    rise_N = _loss(both.b) - _loss(both.a)
    shown_a, shown_b = _answers(both.a, both.labels), _answers(both.b, both.labels)
    found = {}
    for name, sign in (("worse", 1.0), ("better", -1.0)):
        rows = np.flatnonzero(sign * rise_N > 0)
        rows = rows[np.argsort(-sign * rise_N[rows], kind="stable")]
        shown = [{**_row(both, i), "a": shown_a(i), "b": shown_b(i)} for i in rows[:samples].tolist()]
        found[name] = {"rows": len(rows), "shown": shown}
    return found


def _loss(predictions: Predictions) -> Array:
    """What is wrong with each row [N]: 1 or 0 for classes, the loss per token of a text, the squared error.

    Of several answers the share of their pairs that is the wrong way round; of a rated one how (un)likely it is; of one
    that was drawn the reward that it did not get.
    """
    if predictions.told is not None:
        return -predictions.told["reward"]
    if predictions.kind == "likelihood":
        assert predictions.nll_N is not None and predictions.count_N is not None
        return predictions.nll_N / np.maximum(predictions.count_N, 1)
    if predictions.kind == "preference":
        assert predictions.score_S is not None and predictions.element_S is not None
        return 1.0 - right_by_prompt(predictions.score_S, predictions.element_S)
    if predictions.kind == "rated":
        assert predictions.score_S is not None and predictions.good_S is not None
        return np.where(predictions.good_S, -predictions.score_S, predictions.score_S)
    assert predictions.output_NC is not None and predictions.gold is not None
    if predictions.kind == "single_label":
        return 1.0 - correct(predictions)
    if predictions.kind == "multi_label":
        return 1.0 - ((predictions.output_NC > 0.5) == (predictions.gold > 0.5)).all(axis=1)
    error_N: Array = (predictions.output_NC[:, 0] - predictions.gold.reshape(-1)) ** 2
    return error_N


def _answers(predictions: Predictions, labels: Sequence[str]) -> Any:
    """A row's answer in words, by its number; of a language model its loss, since it was not asked to answer."""
    if predictions.score_S is not None:
        return lambda row: _scores_of(predictions, row)
    if predictions.told is not None:
        got_N = predictions.told["reward"]
        return lambda row: f"{predictions.answers[row]} (reward {number(float(got_N[row]))})"
    if predictions.kind != "likelihood":
        return lambda row: answer(predictions, row, labels)
    loss_N = _loss(predictions)
    return lambda row: f"loss {number(float(loss_N[row]))}"


def _scores_of(predictions: Predictions, row: int) -> str:
    """`-12.3, -14.1`: of the answers to a prompt, the best first."""
    assert predictions.score_S is not None
    return ", ".join(number(float(score)) for score in predictions.score_S[predictions.element_S == row])


def _row(both: Both, row: int) -> dict[str, Any]:
    source = both.a.sources[row]
    asked, reference = both.words.get(source, ("", None))
    return {"source": source, "input": asked, "reference": reference}


# In words


def figures(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Rows, metric, A, B, B − A, and what that means: a line of a table."""
    metric = found["metric"]
    a, b, changed = (Metric.from_dict(found[key]) for key in ("a", "b", "difference"))
    values = (value_of(metric, each.value) for each in (a, b))
    change = found["change"].capitalize()
    return number(found["rows"]), metric_name(metric), *values, difference_of(metric, changed), change


def calibration_figures(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """The calibration errors of A and B with their intervals, and B's minus A's."""
    a, b, changed = (Metric.from_dict(found[key]) for key in ("a", "b", "difference"))
    name = "calibration_error"
    first, second = (with_interval(name, each) for each in (a, b))
    return first, second, difference_of(name, changed)


def sentence(names: tuple[str, str], sets: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether B is better than A on the first set, with the figures."""
    name, found = next(iter(sets.items()))
    a, b = names
    told = {
        "better": f"{b} is better than {a}.",
        "worse": f"{b} is worse than {a}.",
        "cannot tell": f"Cannot tell whether {b} is better than {a}.",
        "not measured": f"Nothing can be said of {b} and {a}.",
    }
    return f"{told[found['change']]} {in_words(name, found)}"


def in_words(name: str, found: Mapping[str, Any]) -> str:
    """`Accuracy on test went from 84.0 % to 89.5 %: +5.5 points [+1.2, +9.8], p 0.012, 200 rows.`"""
    metric, p = found["metric"], found["p"]
    a, b, changed = (Metric.from_dict(found[key]) for key in ("a", "b", "difference"))
    if not changed.is_defined:
        return f"{metric_name(metric)} on {name} is undefined."
    rows = counted(found["rows"], "row")
    figures = f"from {value_of(metric, a.value)} to {value_of(metric, b.value)}: {difference_of(metric, changed)}"
    return f"{metric_name(metric)} on {name} went {figures}, {_chance(p)}, {rows}."


def _chance(p: float) -> str:
    return f"p {p:.2g}" if p >= 0.001 else "p < 0.001"


def where_worse(sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The further sets, classes and slices that are clearly worse, a sentence each."""
    first = next(iter(sets))
    found = [in_words(name, one) for name, one in sets.items() if name != first and one["change"] == "worse"]
    for name, one in sets.items():
        parts = [*one["classes"].items(), *one["slices"].items()]
        found += [in_words(f"{label} of {name}", part) for label, part in parts if part["change"] == "worse"]
    return found


def met(require: str, sets: Mapping[str, Mapping[str, Any]]) -> bool:
    """`better`: clearly better on the first set, and clearly worse on none; `not-worse`: clearly worse on none.

    Where the change of a set is undefined neither is met: a gate lets nothing pass that was not measured.
    """
    first = next(iter(sets.values()))
    none_worse = all(found["change"] in ("better", "cannot tell") for found in sets.values())
    return none_worse and (require == "not-worse" or first["change"] == "better")
