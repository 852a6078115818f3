"""Metrics of answers that somebody, or a reward, has judged: numbers in, numbers out.

Shapes: S answers, P pairs of answers, N rows. Each metric carries a 95 % interval over prompts: rows that share one are
drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tunewright.errors import TunewrightError, counted
from tunewright.evaluation.scores import (
    Array,
    Draws,
    Metric,
    Scores,
    bootstrap,
    finite,
    mean,
    proportion,
    scored,
    share_of,
    units_of,
)

ROUNDING = 1e-6
"""Likelihoods that differ by less, relative to their size, are the same in fp32: nothing was gained."""


def preference(
    score_S: npt.ArrayLike,
    element_S: npt.ArrayLike,
    length_S: npt.ArrayLike,
    start_S: npt.ArrayLike | None = None,
    per_length: bool = False,
    group_N: Array | None = None,
) -> Scores:
    """How often the better of two answers to a prompt has the higher score, beside what their lengths alone tell.

    A row with more than two answers counts as the mean of its pairs, and a tie as half right. Intervals are Wilson's
    where each row is a pair with a prompt of its own, else the bootstrap's over prompts.

    Args:
        score_S: of each answer; those of one row stand together, the best first (S).
        element_S: the number of the row (S).
        length_S: the length of each answer (S).
        start_S: the scores at the run's start; the accuracy is then also that of the gain over these, which is what
            DPO and its family learn as a reward.
        per_length: whether the scores are likelihoods, which fall with the length, so that they count per token too.
        group_N: the prompt of each row, by a number; None: each has its own.

    Raises:
        TunewrightError: there are no pairs, or scores are not finite.
    """
    score, length, element = finite(score_S), np.asarray(length_S, dtype=np.float64), np.asarray(element_S)

    def right(values: Array) -> Metric:
        return rightness(values, element, group_N)

    def margin(values: Array) -> Metric:
        better, worse, row = _pairs(element)
        return mean(_by_prompt(values[better] - values[worse], row), group_N)

    metrics = {"accuracy": right(score)}
    if per_length:
        metrics["accuracy_per_token"] = right(score / length)
    if start_S is not None:
        start = finite(start_S)
        gain = np.where(np.isclose(score, start, rtol=ROUNDING, atol=0), 0.0, score - start)
        metrics = {"reward_accuracy": right(gain), **metrics, "reward_margin": margin(gain)}
    metrics["longer_is_better"] = right(length)
    metrics["margin"] = margin(score)
    return scored(metrics, primary=next(iter(metrics)), notes=_shared(group_N))


def rightness(score_S: Array, element_S: npt.NDArray[Any], group_N: Array | None) -> Metric:
    """The share of pairs whose better answer has the higher score. For its interval see `preference`."""
    right_N = right_by_prompt(score_S, element_S)
    if units_of(len(right_N), group_N) < len(right_N) or np.bincount(element_S).max() > 2:
        return mean(right_N, group_N)
    each = right_N if (right_N == 0.5).any() else right_N == 1
    return replace(share_of(float(right_N.sum()), len(right_N)), draws=Draws(len(right_N), each=each))


def _shared(group_N: Array | None) -> tuple[str, ...]:
    """A note where intervals are wider than their rows alone would have it."""
    prompts = None if group_N is None else units_of(len(group_N), group_N)
    if group_N is None or prompts == len(group_N):
        return ()
    return (f"{counted(len(group_N), 'row')} share {counted(prompts or 0, 'prompt')}, over which the intervals are.",)


def rewards(values: Mapping[str, npt.ArrayLike], group_N: Array | None = None) -> Scores:
    """The mean over prompts of what the policy's answers got, and of how long they are; the first is what counts.

    Args:
        values: by name, each [N]: `reward` first, then its parts, `kl` from the start in nats, `length` in tokens; of
            truth values (whether an answer ended, whether it breaks a rule) the share that is true.
        group_N: the prompt of each row, by a number; None: each has its own.
    """
    found = {name: np.asarray(value) for name, value in values.items()}
    apart = group_N is None or units_of(len(group_N), group_N) == len(group_N)
    metrics = {
        name: proportion(one) if apart and one.dtype == bool else mean(finite(one), group_N)
        for name, one in found.items()
    }
    return scored(metrics, primary=next(iter(values)), notes=_shared(group_N))


def right_by_prompt(score_S: npt.NDArray[Any], element_S: npt.NDArray[Any]) -> Array:
    """Of each prompt the share of its pairs whose better answer has the higher score [N]; a tie is half right."""
    better, worse, prompt = _pairs(element_S)
    return _by_prompt(_right(score_S[better], score_S[worse]), prompt)


def _right(better_P: Array, worse_P: Array) -> Array:
    return np.where(better_P == worse_P, 0.5, better_P > worse_P)


def rated(
    score_N: npt.ArrayLike,
    good_N: npt.ArrayLike,
    length_N: npt.ArrayLike,
    start_N: npt.ArrayLike | None = None,
    group_N: Array | None = None,
) -> Scores:
    """How well a language model's likelihoods tell good answers from bad ones, each a row of its own.

    AUC is the chance that a good answer has the higher score than a bad one (ties count half); NaN without either.
    Intervals are the bootstrap's over prompts.

    Args:
        score_N: the log-likelihood of each answer.
        good_N: whether it is good.
        length_N: how many tokens it has.
        start_N: the log-likelihoods at the run's start; what was gained over them is what KTO learns as a reward.
        group_N: the prompt of each row, by a number; None: each has its own.

    Raises:
        TunewrightError: there are no rows, or scores are not finite.
    """
    score, good, length = finite(score_N), np.asarray(good_N), np.asarray(length_N, dtype=np.float64)

    def told(values: Array) -> Metric:
        return bootstrap(lambda rows: auc(values[rows], good[rows]), len(good), group_N)

    metrics = {"auc": told(score), "auc_per_token": told(score / length)}
    if start_N is not None:
        start = finite(start_N)
        gain = np.where(np.isclose(score, start, rtol=ROUNDING, atol=0), 0.0, score - start)
        metrics = {"reward_auc": told(gain), **metrics}
    found = {**metrics, "auc_of_length": told(length)}
    rating = "good" if good.all() else "bad"
    alike = (f"All answers are rated {rating}, so that AUC is undefined.",) if len(np.unique(good)) == 1 else ()
    return scored(found, primary=next(iter(metrics)), notes=(*alike, *_shared(group_N)))


def auc(score_N: Array, good_N: npt.NDArray[Any]) -> float:
    """The area under the ROC curve, by ranks (Mann and Whitney); NaN where all are good, or none is."""
    from scipy.stats import rankdata

    good, bad = int(good_N.sum()), int((~good_N).sum())
    if not good or not bad:
        return math.nan
    return float((rankdata(score_N)[good_N].sum() - good * (good + 1) / 2) / (good * bad))


def _pairs(element_S: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Of each pair of answers to one prompt: which is better, which worse, and the prompt's number."""
    found = [
        (i, j, element_S[i])
        for i in range(len(element_S))
        for j in range(i + 1, int(np.searchsorted(element_S, element_S[i], side="right")))
    ]
    if not found:
        raise TunewrightError("there are no two answers to one prompt, so nothing can be compared")
    better, worse, prompt = np.array(found).T
    return better, worse, prompt


def _by_prompt(value_P: npt.NDArray[Any], prompt_P: npt.NDArray[Any]) -> Array:
    """The mean over the pairs of each prompt."""
    _, number_P = np.unique(prompt_P, return_inverse=True)
    return np.bincount(number_P, value_P) / np.bincount(number_P)
