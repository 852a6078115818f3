"""The one metric that answers "is it better?", for one model, and for two on the same rows.

Two models that answer the same rows are compared row by row: the rows are resampled, and both models are measured on
each resample (paired bootstrap, Efron & Tibshirani 1993, chapter 16). What makes a row hard for both cancels out, so
that far smaller differences show than two separate intervals could tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.evaluation.judged import auc, right_by_prompt, rightness
from tunewright.evaluation.metrics import f1, r2
from tunewright.evaluation.scores import Metric, Statistic, bootstrap, members, proportion, resampled, units_of

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

PRIMARY = {
    "single_label": "accuracy",
    "multi_label": "micro_f1",
    "regression": "r2",
    "likelihood": "loss",
    "preference": "accuracy",
    "rated": "auc",
    "reward": "reward",
}
"""The metric that answers "is it better?", by the kind of predictions."""


def primary(predictions: Predictions) -> Metric:
    """The primary metric with its 95 % interval: Wilson's for an accuracy, else the bootstrap's."""
    if predictions.kind == "single_label" and is_finite(predictions):
        return proportion(correct(predictions))
    if predictions.kind == "preference" and is_finite(predictions):
        assert predictions.score_S is not None and predictions.element_S is not None
        return rightness(predictions.score_S, predictions.element_S, predictions.group_N)
    return bootstrap(statistic(predictions), len(predictions.sources), predictions.group_N)


def value(predictions: Predictions) -> float:
    """The primary metric without its interval, which takes a thousand times as long."""
    return statistic(predictions)(np.arange(len(predictions.sources)))


def difference(one: Predictions, other: Predictions) -> Metric:
    """The primary metric of `one` minus that of `other`, on the same rows, with the paired bootstrap's interval."""
    assert one.sources == other.sources, "paired predictions are of the same rows"
    mine, theirs = statistic(one), statistic(other)
    return bootstrap(lambda rows: mine(rows) - theirs(rows), len(one.sources), one.group_N)


def chance(one: Predictions, other: Predictions) -> float:
    """The two-sided p-value of the difference of the primary metric, were there none; NaN where it is undefined.

    For an accuracy it is McNemar's, exact. For the rest it is the share of resamples on the far side of zero, twice
    (Efron & Tibshirani 1993, chapter 15), which with 1,000 resamples is never below 0.002. Of few rows that all changed
    one way every resample lies on one side, so it is never below 2·0.5ⁿ either: had each of the n rows gone either way
    by chance, that is how often all would have gone the same way. With fewer than six rows nothing is below 0.05.
    Of comparisons n counts the prompts that changed, and rows that share a prompt are one.
    """
    if math.isnan(value(one) - value(other)):
        return math.nan
    if one.kind == "single_label":
        return mcnemar(correct(one), correct(other))
    n, mine, theirs = len(one.sources), statistic(one), statistic(other)
    found = resampled(lambda rows: mine(rows) - theirs(rows), n, group_N=one.group_N)
    return two_sided(found, _moved(one, other))


def two_sided(found: np.ndarray, units: int) -> float:
    """The p-value of a difference by its values on resamples, NaN where undefined.

    Args:
        units: how many independent rows (or prompts) changed, or may have.
    """
    found = found[~np.isnan(found)]
    beyond = min((found <= 0).sum(), (found >= 0).sum())
    return float(min(1.0, max(2 * (beyond + 1) / (len(found) + 1), 2 * 0.5**units)))


def _moved(one: Predictions, other: Predictions) -> int:
    """How many independent rows can differ: of comparisons those prompts for which other pairs are right."""
    if one.kind != "preference":
        return units_of(len(one.sources), one.group_N)
    a, b = (statistic(each) for each in (one, other))
    rows_U = np.arange(len(one.sources))[:, None] if one.group_N is None else members(one.group_N)
    return sum(a(rows) != b(rows) for rows in rows_U)


def mcnemar(one_N: np.ndarray, other_N: np.ndarray) -> float:
    """McNemar's exact test (1947): of the rows that only one model has right, does either model have more than half?

    Args:
        one_N, other_N: which rows each model has right.
    """
    from scipy.stats import binomtest

    only_one, only_other = int((one_N & ~other_N).sum()), int((~one_N & other_N).sum())
    return float(binomtest(only_one, only_one + only_other).pvalue) if only_one + only_other else 1.0


def holm(p_M: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): below 0.05 for a false one in 5 % of all families at most."""
    order = np.argsort(p_M, kind="stable")
    raised = np.maximum.accumulate([(len(p_M) - rank) * p_M[i] for rank, i in enumerate(order)])
    found = np.empty(len(p_M))
    found[order] = np.minimum(raised, 1.0)
    return found.tolist()


def recall(predictions: Predictions, label: int) -> Predictions:
    """The rows that have the label, where the right answer is to claim it: their accuracy is the label's recall."""
    assert predictions.output_NC is not None and predictions.gold is not None
    if predictions.kind == "single_label":
        gold = predictions.gold
        return subset(predictions, np.flatnonzero((gold.argmax(axis=1) if gold.ndim == 2 else gold) == label))
    rows = np.flatnonzero(predictions.gold[:, label] > 0.5)
    claim_N = predictions.output_NC[rows, label]
    sources = [predictions.sources[i] for i in rows]
    output_N2 = np.stack([1 - claim_N, claim_N], axis=1)
    return type(predictions)("single_label", sources, output_NC=output_N2, gold=np.ones(len(rows), dtype=np.int64))


def statistic(predictions: Predictions) -> Statistic:
    """The primary metric as a function of row numbers; NaN for all of them where the model's output is not finite."""
    if not is_finite(predictions):
        return lambda rows: math.nan
    if predictions.told is not None:
        reward_N = predictions.told["reward"]
        return lambda rows: float(reward_N[rows].mean())
    if predictions.kind == "likelihood":
        nll_N, count_N = predictions.nll_N, predictions.count_N
        assert nll_N is not None and count_N is not None
        return lambda rows: float(nll_N[rows].sum() / count_N[rows].sum()) if count_N[rows].sum() else float("nan")
    if predictions.kind == "preference":
        assert predictions.score_S is not None and predictions.element_S is not None
        right_N = right_by_prompt(predictions.score_S, predictions.element_S)
        return lambda rows: float(right_N[rows].mean())
    if predictions.kind == "rated":
        score_N, good_N = predictions.score_S, predictions.good_S
        assert score_N is not None and good_N is not None
        return lambda rows: auc(score_N[rows], good_N[rows])
    assert predictions.output_NC is not None and predictions.gold is not None
    if predictions.kind == "single_label":
        hits_N = correct(predictions)
        return lambda rows: float(hits_N[rows].mean())
    if predictions.kind == "multi_label":
        claimed_NC, holds_NC = predictions.output_NC > 0.5, predictions.gold > 0.5
        hits_NC, claims_NC = claimed_NC & holds_NC, claimed_NC.astype(np.int64) + holds_NC
        return lambda rows: f1(hits_NC[rows].sum(), claims_NC[rows].sum())
    gold_N = predictions.gold.reshape(-1)
    error_N = predictions.output_NC[:, 0] - gold_N
    return lambda rows: r2(error_N[rows], gold_N[rows])


def is_finite(predictions: Predictions) -> bool:
    """Whether the model answered every row with numbers. NaN must not pass: `argmax` takes it for the likeliest."""
    return bool(finite_rows(predictions).all())


def finite_rows(predictions: Predictions) -> np.ndarray:
    """Which rows the model answered with numbers [N]."""
    if predictions.score_S is not None and predictions.element_S is not None:
        bad = predictions.element_S[~np.isfinite(predictions.score_S)]
        return ~np.isin(np.arange(len(predictions.sources)), bad)
    if predictions.told is not None:
        return np.isfinite(predictions.told["reward"])
    output = predictions.nll_N if predictions.output_NC is None else predictions.output_NC
    assert output is not None
    return np.asarray(np.isfinite(output).all(axis=tuple(range(1, output.ndim))))


def correct(predictions: Predictions) -> np.ndarray:
    """Which rows of a classifier with one label a row are right [N]."""
    assert predictions.output_NC is not None and predictions.gold is not None
    gold = predictions.gold
    gold_N = gold.argmax(axis=1) if gold.ndim == 2 else gold
    return np.asarray(predictions.output_NC.argmax(axis=1) == gold_N)


def subset(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions of some rows, by their numbers."""
    fields = ("output_NC", "gold", "nll_N", "count_N", "correct_N", "group_N")
    kept = {name: getattr(predictions, name) for name in fields}
    if predictions.element_S is not None:
        return _subset_of_answers(predictions, rows)
    told = predictions.told
    return type(predictions)(
        predictions.kind,
        [predictions.sources[i] for i in rows],
        told=None if told is None else {name: value[rows] for name, value in told.items()},
        answers=tuple(predictions.answers[i] for i in rows) if predictions.answers else (),
        **{name: value if value is None else value[rows] for name, value in kept.items()},
    )


def _subset_of_answers(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """Answers stand together with their prompt, whose number is its place among the rows."""
    places = [np.flatnonzero(predictions.element_S == row) for row in rows]
    chosen = np.concatenate([np.zeros(0, dtype=np.int64), *places])
    fields = ("score_S", "length_S", "start_S", "good_S")
    kept = {name: getattr(predictions, name) for name in fields}
    taken: dict[str, Any] = {name: value if value is None else value[chosen] for name, value in kept.items()}
    return type(predictions)(
        predictions.kind,
        [predictions.sources[i] for i in rows],
        group_N=None if predictions.group_N is None else predictions.group_N[rows],
        element_S=np.repeat(np.arange(len(places)), [len(each) for each in places]),
        **taken,
    )


def ensemble(one: Predictions, other: Predictions) -> Predictions | None:
    """The mean of two models' logits, as probabilities; None for language models, whose logits are not kept."""
    if one.output_NC is None or other.output_NC is None:
        return None
    if one.kind == "regression":
        mixed = (one.output_NC + other.output_NC) / 2
    elif one.kind == "multi_label":
        odds = [_log(p) - _log(1 - p) for p in (one.output_NC, other.output_NC)]
        mixed = 1 / (1 + np.exp(-(odds[0] + odds[1]) / 2))
    else:
        logits = (_log(one.output_NC) + _log(other.output_NC)) / 2
        mixed = np.exp(logits - logits.max(axis=1, keepdims=True))
        mixed /= mixed.sum(axis=1, keepdims=True)
    return type(one)(one.kind, one.sources, output_NC=mixed, gold=one.gold)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
