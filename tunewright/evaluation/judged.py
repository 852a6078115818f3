"""Metrics of answers that somebody, or a reward, has judged: numbers in, numbers out.

Shapes: S answers, P pairs of answers, N prompts. Each metric carries a 95 % interval over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tunewright.errors import TunewrightError
from tunewright.evaluation.scores import Array, Metric, Scores, bootstrap, finite, mean, proportion, scored

ROUNDING = 1e-6
"""Likelihoods that differ by less, relative to their size, are the same in fp32: nothing was gained."""


def preference(
    score_S: npt.ArrayLike,
    element_S: npt.ArrayLike,
    length_S: npt.ArrayLike,
    start_S: npt.ArrayLike | None = None,
    per_length: bool = False,
) -> Scores:
    """How often the better of two answers to a prompt has the higher score, beside what their lengths alone tell.

    A prompt with more than two answers counts as the mean of its pairs, and a tie as half right. Intervals are the
    bootstrap's over prompts.

    Args:
        score_S: of each answer; those to one prompt stand together, the best first (S).
        element_S: the number of the prompt (S).
        length_S: the length of each answer (S).
        start_S: the scores at the run's start; the accuracy is then also that of the gain over these, which is what
            DPO and its family learn as a reward.
        per_length: whether the scores are likelihoods, which fall with the length, so that they count per token too.

    Raises:
        TunewrightError: there are no pairs, or scores are not finite.
    """
    score, length = finite(score_S), np.asarray(length_S, dtype=np.float64)
    better, worse, prompt = _pairs(np.asarray(element_S))

    def right(values: Array) -> Metric:
        return mean(_by_prompt(_right(values[better], values[worse]), prompt))

    metrics = {"accuracy": right(score)}
    if per_length:
        metrics["accuracy_per_token"] = right(score / length)
    if start_S is not None:
        start = finite(start_S)
        gain = np.where(np.isclose(score, start, rtol=ROUNDING, atol=0), 0.0, score - start)
        metrics = {"reward_accuracy": right(gain), **metrics}
        metrics["reward_margin"] = mean(_by_prompt(gain[better] - gain[worse], prompt))
    metrics["longer_is_better"] = right(length)
    metrics["margin"] = mean(_by_prompt(score[better] - score[worse], prompt))
    return scored(metrics, primary=next(iter(metrics)))


def rewards(values: Mapping[str, npt.ArrayLike]) -> Scores:
    """The mean over prompts of what the policy's answers got, and of how long they are; the first is what counts.

    Args:
        values: by name, each [N]: `reward` first, then its parts, `kl` from the start in nats, `length` in tokens; of
            truth values (whether an answer ended, whether it breaks a rule) the share that is true.
    """
    found = {name: np.asarray(value) for name, value in values.items()}
    metrics = {name: proportion(one) if one.dtype == bool else mean(finite(one)) for name, one in found.items()}
    return scored(metrics, primary=next(iter(values)))


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
) -> Scores:
    """How well a language model's likelihoods tell good answers from bad ones, each to a prompt of its own.

    AUC is the chance that a good answer has the higher score than a bad one (ties count half); NaN without either.
    Intervals are the bootstrap's over answers.

    Args:
        score_N: the log-likelihood of each answer.
        good_N: whether it is good.
        length_N: how many tokens it has.
        start_N: the log-likelihoods at the run's start; what was gained over them is what KTO learns as a reward.

    Raises:
        TunewrightError: there are no rows, or scores are not finite.
    """
    score, good, length = finite(score_N), np.asarray(good_N), np.asarray(length_N, dtype=np.float64)

    def told(values: Array) -> Metric:
        return bootstrap(lambda rows: auc(values[rows], good[rows]), len(good))

    metrics = {"auc": told(score), "auc_per_token": told(score / length)}
    if start_N is not None:
        start = finite(start_N)
        gain = np.where(np.isclose(score, start, rtol=ROUNDING, atol=0), 0.0, score - start)
        metrics = {"reward_auc": told(gain), **metrics}
    return scored({**metrics, "auc_of_length": told(length)}, primary=next(iter(metrics)))


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
