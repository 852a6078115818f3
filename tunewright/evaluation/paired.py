"""The one metric that answers "is it better?", for one model, and for two on the same rows.

Two models that answer the same rows are compared row by row: the rows are resampled, and both models are measured on
each resample (paired bootstrap, Efron & Tibshirani 1993, chapter 16). What makes a row hard for both cancels out, so
that far smaller differences show than two separate intervals could tell apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tunewright.evaluation.metrics import f1, r2
from tunewright.evaluation.scores import Metric, Statistic, bootstrap, proportion

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

PRIMARY = {"single_label": "accuracy", "multi_label": "micro_f1", "regression": "r2", "likelihood": "loss"}
"""The metric that answers "is it better?", by the kind of predictions."""


def primary(predictions: Predictions) -> Metric:
    """The primary metric with its 95 % interval: Wilson's for an accuracy, else the bootstrap's."""
    if predictions.kind == "single_label":
        return proportion(correct(predictions))
    return bootstrap(statistic(predictions), len(predictions.sources))


def difference(one: Predictions, other: Predictions) -> Metric:
    """The primary metric of `one` minus that of `other`, on the same rows, with the paired bootstrap's interval."""
    assert one.sources == other.sources, "paired predictions are of the same rows"
    mine, theirs = statistic(one), statistic(other)
    return bootstrap(lambda rows: mine(rows) - theirs(rows), len(one.sources))


def statistic(predictions: Predictions) -> Statistic:
    """The primary metric as a function of row numbers."""
    if predictions.kind == "likelihood":
        nll_N, count_N = predictions.nll_N, predictions.count_N
        assert nll_N is not None and count_N is not None
        return lambda rows: float(nll_N[rows].sum() / count_N[rows].sum()) if count_N[rows].sum() else float("nan")
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


def correct(predictions: Predictions) -> np.ndarray:
    """Which rows of a classifier with one label a row are right [N]."""
    assert predictions.output_NC is not None and predictions.gold is not None
    gold = predictions.gold
    gold_N = gold.argmax(axis=1) if gold.ndim == 2 else gold
    return np.asarray(predictions.output_NC.argmax(axis=1) == gold_N)


def subset(predictions: Predictions, rows: np.ndarray) -> Predictions:
    """The predictions of some rows, by their numbers."""
    fields = ("output_NC", "gold", "nll_N", "count_N", "correct_N")
    kept = {name: getattr(predictions, name) for name in fields}
    return type(predictions)(
        predictions.kind,
        [predictions.sources[i] for i in rows],
        **{name: value if value is None else value[rows] for name, value in kept.items()},
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
