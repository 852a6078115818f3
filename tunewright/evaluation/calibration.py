"""Is a classifier as often right as it is sure? Its calibration error, and the points of a reliability diagram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.evaluation.paired import correct
from tunewright.evaluation.scores import Array, Statistic, bootstrap

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

BINS = 15


def calibration(a: Predictions, b: Predictions) -> dict[str, Any] | None:
    """The expected calibration errors of A and B, B's minus A's (paired bootstrap), and their bins; None for numbers.

    With few rows every model seems to err a little, and its resamples a little more: the difference, where that cancels
    out, is what can be read.
    """
    if a.kind not in ("single_label", "multi_label"):
        return None
    n, (one, other) = len(a.sources), (confidence(each) for each in (a, b))
    error_a, error_b = error_of(*one), error_of(*other)
    return {
        "a": bootstrap(error_a, n).to_dict(),
        "b": bootstrap(error_b, n).to_dict(),
        "difference": bootstrap(lambda rows: error_b(rows) - error_a(rows), n).to_dict(),
        "bins": {"a": list(bins(*one)), "b": list(bins(*other))},
    }


def confidence(predictions: Predictions) -> tuple[Array, Array]:
    """How sure each answer is, and whether it is right: [N, 1], or [N, C] for labels that hold each for itself."""
    assert predictions.output_NC is not None and predictions.gold is not None
    output_NC = predictions.output_NC
    if predictions.kind == "single_label":
        return output_NC.max(axis=1, keepdims=True), correct(predictions)[:, None]
    return np.maximum(output_NC, 1 - output_NC), (output_NC > 0.5) == (predictions.gold > 0.5)


def error_of(sure_NK: Array, right_NK: Array) -> Statistic:
    """The expected calibration error as a function of row numbers: Σ_bins share · |share right − mean confidence|.

    Naeini, Cooper & Hauskrecht 2015, with bins of equal mass (Nguyen & O'Connor 2015, arXiv 1508.05154).
    """

    def error(rows: Array) -> float:
        found = list(bins(sure_NK[rows], right_NK[rows]))
        return sum(each["share"] * abs(each["right"] - each["sure"]) for each in found)

    return error


def bins(sure_NK: Array, right_NK: Array) -> Iterator[dict[str, float]]:
    """Up to 15 bins of about as many answers each; equal confidences are in one bin, so that no order counts."""
    sure, right = sure_NK.reshape(-1), right_NK.reshape(-1)
    edges = np.quantile(sure, np.linspace(0, 1, BINS + 1)[1:-1])
    bin_of = np.searchsorted(edges, sure, side="left")
    counts = np.bincount(bin_of, minlength=BINS)
    sums = [np.bincount(bin_of, weights=values, minlength=BINS) for values in (sure, right)]
    for count, sure_sum, right_sum in zip(counts, *sums, strict=True):
        if count:
            yield {
                "share": float(count / len(sure)),
                "sure": float(sure_sum / count),
                "right": float(right_sum / count),
            }
