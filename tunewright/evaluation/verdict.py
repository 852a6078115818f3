"""Is the tuned model better? One word and one sentence, with the figures that it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tunewright.errors import counted
from tunewright.evaluation.formats import interval_of, metric_name, value_of
from tunewright.evaluation.scores import LEVEL, LOWER_IS_BETTER, NEITHER_IS_BETTER, Metric, Scores

FIRST = {"test": 0, "validation": 1}
"""The evaluation sets that a verdict prefers, best first. Validation rows chose the checkpoint: they flatter it."""


class Change(StrEnum):
    """What an evaluation before and one after say about a metric."""

    BETTER = "Better"
    WORSE = "Worse"
    HIGHER = "Higher"
    LOWER = "Lower"
    UNCLEAR = "Cannot tell"
    UNMEASURED = "Not measured"


@dataclass(frozen=True)
class Comparison:
    """One evaluation set: what was measured on it before and after the training, where it was.

    `paired` has for each metric the difference by row: an interval, and its p-value.
    """

    name: str
    before: Scores | None
    after: Scores | None
    paired: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """The name of the metric that answers "is it better?"."""
        scores = self.after or self.before
        return scores.primary if scores else ""

    @property
    def rows(self) -> int:
        scores = self.after or self.before
        return max((metric.n for metric in scores.metrics.values()), default=0) if scores else 0

    def change(self, metric: str) -> Change:
        before, after = self.of(self.before, metric), self.of(self.after, metric)
        if before is None or after is None or not (before.is_defined and after.is_defined):
            return Change.UNMEASURED
        if not self._differ(metric, before, after):
            return Change.UNCLEAR
        if metric in NEITHER_IS_BETTER:
            return Change.HIGHER if after.value > before.value else Change.LOWER
        return Change.BETTER if (after.value > before.value) == self._higher_is_better(metric) else Change.WORSE

    def _differ(self, name: str, before: Metric, after: Metric) -> bool:
        """By the rows in pairs; where only the two intervals are known, by these, and by how few rows there are."""
        if found := self.paired.get(name):
            return Metric.from_dict(found).excludes(0) and found["p"] < LEVEL
        return not before.overlaps(after) and 2 * 0.5**after.n < LEVEL

    @staticmethod
    def of(scores: Scores | None, metric: str) -> Metric | None:
        return scores.metrics.get(metric) if scores else None

    def _higher_is_better(self, metric: str) -> bool:
        """Scores state the direction of their primary metric; those of the others are known by name."""
        for scores in (self.after, self.before):
            if scores and scores.primary == metric:
                return scores.higher_is_better
        return metric not in LOWER_IS_BETTER


@dataclass(frozen=True)
class Verdict:
    """`label` in a word, `sentence` with the figures, `reservations`: where it is worse all the same."""

    label: str
    tone: str
    sentence: str
    reservations: tuple[str, ...] = ()


def comparisons(run: Mapping[str, Any]) -> list[Comparison]:
    """One for each evaluation set of run.json; the test set first, then as written."""

    def measured(scores: Mapping[str, Any], when: str) -> Scores | None:
        return Scores.from_dict(scores[when]) if scores.get(when) else None

    found = [
        Comparison(name, measured(scores, "before"), measured(scores, "after"), scores.get("changes") or {})
        for name, scores in (run.get("evaluation") or {}).items()
    ]
    return sorted(found, key=lambda comparison: FIRST.get(comparison.name, len(FIRST)))


def verdict(run: Mapping[str, Any], last_step: int | None) -> Verdict:
    """The verdict of a run in any state.

    Args:
        run: run.json, whose every key is optional.
        last_step: the last step in metrics.jsonl.
    """
    status = run.get("status")
    at = f" at step {last_step:,}" if last_step is not None else " before its first step"
    if status == "failed":
        return Verdict("Failed", "worse", f"The run failed{at}: {run.get('error') or 'no reason is recorded'}")
    if status == "running":
        return Verdict("Running", "unclear", f"The run is still under way{at if last_step is not None else ''}.")
    measured = _of_evaluation(comparisons(run))
    if status == "stopped":
        return Verdict("Stopped", "unclear", f"The run was stopped{at}. {measured.sentence}", measured.reservations)
    return measured


def _of_evaluation(sets: list[Comparison]) -> Verdict:
    with_both = [each for each in sets if each.change(each.metric) is not Change.UNMEASURED]
    if with_both:
        first, *others = with_both
        change = first.change(first.metric)
        worse = tuple(change_in_words(each) for each in others if each.change(each.metric) is Change.WORSE)
        return Verdict(change.value, change.name.lower(), change_in_words(first), worse)
    for each in sets:
        if (after := Comparison.of(each.after, each.metric)) and after.is_defined:
            return Verdict(Change.UNMEASURED, "unmeasured", _only_after(each, after))
    sentence = "Nothing was measured before and after the training, so nothing here says whether the model is better."
    return Verdict(Change.UNMEASURED, "unmeasured", sentence)


def change_in_words(compared: Comparison) -> str:
    """`Accuracy on test rose from 12.5 % to 91.0 % (95 % interval …, 200 rows).`"""
    name = compared.metric
    before, after = Comparison.of(compared.before, name), Comparison.of(compared.after, name)
    assert before is not None and after is not None
    subject = f"{metric_name(name)} on {compared.name}"
    figures = f"from {value_of(name, before.value)} to {value_of(name, after.value)}"
    if compared.change(name) is Change.UNCLEAR:
        return f"{subject} went {figures} ({_measured_by(name, before, after)}): cannot tell apart at this size."
    verb = "rose" if after.value > before.value else "fell"
    return f"{subject} {verb} {figures} ({_measured_by(name, after)})."


def _only_after(compared: Comparison, after: Metric) -> str:
    name = compared.metric
    return (
        f"{metric_name(name)} on {compared.name} is {value_of(name, after.value)} ({_measured_by(name, after)}); "
        "nothing was measured before the training to compare it with."
    )


def _measured_by(name: str, *metrics: Metric) -> str:
    """`95 % intervals 40.1–52.3 and 48.0–60.2, 200 rows`; a single row has no interval."""
    found = [interval_of(name, metric) for metric in metrics if metric.has_interval]
    intervals = f"95 % interval{'s' if len(found) > 1 else ''} {' and '.join(found)}, " if found else ""
    return intervals + counted(metrics[-1].n, "row")
