"""From predictions and gold answers to `Scores`, one function a kind of answer. Numbers in, numbers out: no models.

Shapes: N rows, C labels. Each metric carries a 95 % interval over rows; `scores` says which and how.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunewright.data.words import Words
from tunewright.errors import RecipeError, TunewrightError, counted
from tunewright.evaluation.scores import Array, Draws, Metric, Scores, bootstrap, finite, mean, proportion, scored

__all__ = [
    "Metric",
    "Scores",
    "classification",
    "generation",
    "likelihood",
    "multi_label",
    "regression",
]

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Stands for a probability that rounded to 0, so that one row cannot make the loss infinite: -ln of it is 87.3."""

LARGEST_CONFUSION = 100
"""More labels than this have no confusion matrix: nobody reads 10,000 cells, but all who open run.json load them."""


def classification(probabilities_NC: npt.ArrayLike, gold: npt.ArrayLike, labels: Sequence[str]) -> Scores:
    """One label a row: accuracy (Wilson), macro F1 and loss (bootstrap), and the confusion matrix.

    Macro F1 is the mean over labels of `2·TP / (2·TP + FP + FN)`; labels that are neither gold nor predicted anywhere
    are left out of the mean. The loss is the mean of `-Σ_c gold_c ln p_c` in nats.

    Args:
        probabilities_NC: the model's probability of each label.
        gold: label numbers (N), or a distribution over labels (N, C), whose largest entry counts as the label.
        labels: the C names.

    Raises:
        TunewrightError: there are no rows, or probabilities are not finite.
    """
    probabilities = finite(probabilities_NC)
    gold_array = np.asarray(gold)
    assert probabilities.shape == (len(gold_array), len(labels)), (probabilities.shape, gold_array.shape, len(labels))
    gold_N = gold_array.argmax(axis=1) if gold_array.ndim == 2 else gold_array.astype(np.int64)
    predicted_N = probabilities.argmax(axis=1)
    return scored(
        {
            "accuracy": proportion(predicted_N == gold_N),
            "macro_f1": _macro_f1_single_label(predicted_N, gold_N, len(labels)),
            "loss": mean(_cross_entropy(probabilities, gold_array)),
        },
        primary="accuracy",
        confusion=_confusion(predicted_N, gold_N, labels),
    )


def multi_label(probabilities_NC: npt.ArrayLike, gold_NC: npt.ArrayLike, labels: Sequence[str]) -> Scores:
    """Any number of labels a row: micro and macro F1 (bootstrap), subset accuracy (Wilson), loss (bootstrap).

    A label is predicted where its probability is above one half. Micro F1 counts all labels together; macro F1 is as
    in `classification`; subset accuracy is the share of rows with every label right. The loss is binary
    cross-entropy in nats, the mean over rows and labels. F1 is undefined (NaN) where no label is gold or predicted.

    Args:
        probabilities_NC: the model's probability of each label, each for itself.
        gold_NC: 0 or 1, or the probability that the label holds, which counts as 1 above one half.
        labels: the C names.

    Raises:
        TunewrightError: there are no rows, or probabilities are not finite.
    """
    probabilities, gold = finite(probabilities_NC), np.asarray(gold_NC, dtype=np.float64)
    assert probabilities.shape == gold.shape == (len(gold), len(labels)), (probabilities.shape, gold.shape)
    predicted_NC, holds_NC = probabilities > 0.5, gold > 0.5
    hits_NC = predicted_NC & holds_NC
    # 2·TP + FP + FN is the number of predictions plus the number of gold labels.
    claims_NC = predicted_NC.astype(np.int64) + holds_NC
    cross_entropy_NC = -(gold * _log(probabilities) + (1 - gold) * _log(1 - probabilities))
    return scored(
        {
            "micro_f1": bootstrap(lambda rows: f1(hits_NC[rows].sum(), claims_NC[rows].sum()), len(gold)),
            "macro_f1": bootstrap(lambda rows: f1(hits_NC[rows].sum(axis=0), claims_NC[rows].sum(axis=0)), len(gold)),
            "subset_accuracy": proportion((predicted_NC == holds_NC).all(axis=1)),
            "loss": mean(cross_entropy_NC.mean(axis=1)),
        },
        primary="micro_f1",
    )


def regression(predicted_N: npt.ArrayLike, gold_N: npt.ArrayLike) -> Scores:
    """A number a row: R² = 1 - Σ(gold - predicted)² / Σ(gold - mean)², MSE, MAE, Pearson, Spearman (bootstrap).

    R² is undefined (NaN) where all gold numbers are equal, the correlations where either side's are.

    Raises:
        TunewrightError: there are no rows, or predictions are not finite.
    """
    from scipy.stats import rankdata

    predicted, gold = finite(predicted_N), np.asarray(gold_N, dtype=np.float64)
    assert predicted.shape == gold.shape == (len(gold),), (predicted.shape, gold.shape)
    error = predicted - gold
    return scored(
        {
            "r2": bootstrap(lambda rows: r2(error[rows], gold[rows]), len(gold)),
            "mse": mean(error**2),
            "mae": mean(np.abs(error)),
            "pearson": bootstrap(lambda rows: _correlation(predicted[rows], gold[rows]), len(gold)),
            "spearman": bootstrap(
                lambda rows: _correlation(rankdata(predicted[rows]), rankdata(gold[rows])), len(gold)
            ),
        },
        primary="r2",
    )


def likelihood(
    nll_sums: npt.ArrayLike, token_counts: npt.ArrayLike, correct_counts: npt.ArrayLike | None = None
) -> Scores:
    """How well a language model predicts the trained tokens: loss and token accuracy per token, and perplexity.

    The loss is `Σ nll / Σ tokens` in nats and the perplexity its exponential, so a long row weighs more than a short
    one. All intervals are the bootstrap's over rows: tokens of one row are not independent of each other.

    Args:
        nll_sums: the negative log-likelihood of each row's trained tokens, summed (N).
        token_counts: how many trained tokens each row has (N).
        correct_counts: for how many of them the most probable token is the right one (N).

    Raises:
        TunewrightError: there are no rows or no tokens, or the sums are not finite.
    """
    sums, counts = finite(nll_sums), np.asarray(token_counts, dtype=np.float64)
    assert sums.shape == counts.shape == (len(counts),), (sums.shape, counts.shape)
    if not counts.sum():
        raise TunewrightError("there are no trained tokens to evaluate on; check which tokens of the rows are trained")
    loss = _ratio(sums, counts)
    metrics = {"loss": loss, "perplexity": _perplexity(loss)}
    if correct_counts is not None:
        metrics["token_accuracy"] = _ratio(np.asarray(correct_counts, dtype=np.float64), counts)
    return scored(metrics, primary="loss")


def errors(errors_N: npt.ArrayLike) -> Scores:
    """The mean of what is wrong with each row, with the bootstrap's interval: of images that are told from noise.

    Raises TunewrightError: there are no rows, or an error is not finite.
    """
    return scored({"loss": mean(finite(errors_N))}, primary="loss")


def generation(
    outputs: Sequence[str], references: Sequence[str], ended: Sequence[bool], pattern: str | None = None
) -> Scores:
    """Generated text against a reference: ROUGE-L F (bootstrap), exact match and pattern match (Wilson), and its ends.

    Exact match ignores white space at both ends. ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013) is Google's
    implementation without stemming, over words of any script.

    With a pattern, a row matches where the pattern's last find in the output equals its last find in the reference:
    an answer comes after its reasoning. A find is the first group, or the whole find where the pattern has no groups,
    without white space at both ends. Rows whose reference the pattern does not find are not counted, and `notes` says
    how many they are.

    Args:
        outputs: what the model wrote (N).
        references: what it should have written (N).
        ended: whether it ended by itself (N).
        pattern: a regular expression such as `#### (.+)`.

    Raises:
        RecipeError: the pattern is not a regular expression, or finds nothing in any reference.
        TunewrightError: there are no rows.
    """
    assert len(outputs) == len(references), (len(outputs), len(references))
    metrics = {
        "exact_match": proportion([out.strip() == ref.strip() for out, ref in zip(outputs, references, strict=True)]),
        "rouge_l": mean(_rouge_l(outputs, references)),
        "answers_ended": proportion(ended),
    }
    if pattern is None:
        return scored(metrics, primary="rouge_l")
    match, notes = _pattern_match(outputs, references, pattern)
    return scored({"pattern_match": match, **metrics}, primary="pattern_match", notes=notes)


def _log(probabilities: Array) -> Array:
    logarithms: Array = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return logarithms


def _cross_entropy(probabilities_NC: Array, gold: Array) -> Array:
    """-Σ_c gold_c ln p_c of each row (N), for label numbers (N) or distributions (N, C)."""
    if gold.ndim == 1:
        return -_log(np.take_along_axis(probabilities_NC, gold.astype(np.int64)[:, None], axis=1)[:, 0])
    nll_N: Array = -(gold * _log(probabilities_NC)).sum(axis=1)
    return nll_N


def _perplexity(loss: Metric) -> Metric:
    draws = loss.draws
    if draws is not None and draws.values is not None:
        draws = Draws(draws.units, np.array([_exp(one) for one in draws.values]))
    return Metric(_exp(loss.value), _exp(loss.low), _exp(loss.high), loss.n, draws)


def _exp(number: float) -> float:
    """Infinity instead of an error where the exponential does not fit a float."""
    return math.exp(number) if number < 700 else math.inf


def f1(hits: Array, claims: Array) -> float:
    """Mean F1 over the labels with any claim (a prediction or a gold label), NaN where there is none."""
    hits, claims = np.atleast_1d(hits), np.atleast_1d(claims)
    claimed = claims > 0
    return float((2 * hits[claimed] / claims[claimed]).mean()) if claimed.any() else math.nan


def _macro_f1_single_label(predicted_N: Array, gold_N: Array, classes: int) -> Metric:
    def macro_f1(rows: Array) -> float:
        predicted, gold = predicted_N[rows], gold_N[rows]
        hits = np.bincount(gold[predicted == gold], minlength=classes)
        return f1(hits, np.bincount(predicted, minlength=classes) + np.bincount(gold, minlength=classes))

    return bootstrap(macro_f1, len(gold_N))


def _confusion(predicted_N: Array, gold_N: Array, labels: Sequence[str]) -> dict[str, Any] | None:
    classes = len(labels)
    if classes > LARGEST_CONFUSION:
        return None
    counts_CC = np.bincount(gold_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)
    return {"labels": list(labels), "counts": counts_CC.tolist()}


def r2(error: Array, gold: Array) -> float:
    variation = ((gold - gold.mean()) ** 2).sum()
    return float(1 - (error**2).sum() / variation) if np.ptp(gold) > 0 else math.nan


def _correlation(left: Array, right: Array) -> float:
    """Pearson's r, NaN where one side does not vary."""
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    left, right = left - left.mean(), right - right.mean()
    return float(np.clip((left @ right) / math.sqrt((left @ left) * (right @ right)), -1, 1))


def _ratio(sums_N: Array, counts_N: Array) -> Metric:
    """Σ sums / Σ counts. A resample may hold only rows without counts: undefined."""

    def ratio(rows: Array) -> float:
        count = counts_N[rows].sum()
        return float(sums_N[rows].sum() / count) if count else math.nan

    return bootstrap(ratio, len(counts_N))


def _rouge_l(outputs: Sequence[str], references: Sequence[str]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return [scorer.score(ref, out)["rougeL"].fmeasure for out, ref in zip(outputs, references, strict=True)]


def wanted_finds(references: Sequence[str], pattern: str) -> list[str | None]:
    """The pattern's last find in each reference, None where there is none.

    Raises RecipeError where the pattern is not a regular expression, or finds nothing in any reference.
    """
    try:
        wanted = [_last_find(re.compile(pattern), reference) for reference in references]
    except re.error as error:
        raise RecipeError(f"the pattern {pattern!r} is not a regular expression: {error}") from error
    if all(find is None for find in wanted):
        raise RecipeError(f"the pattern {pattern!r} finds nothing in any of the {len(references)} references; mend it")
    return wanted


def _pattern_match(outputs: Sequence[str], references: Sequence[str], pattern: str) -> tuple[Metric, tuple[str, ...]]:
    wanted = wanted_finds(references, pattern)
    compiled = re.compile(pattern)
    pairs = [(_last_find(compiled, out), want) for out, want in zip(outputs, wanted, strict=True) if want is not None]
    missing = len(references) - len(pairs)
    where = f"{missing:,} of {counted(len(references), 'reference')}"
    note = f"The pattern {pattern!r} finds nothing in {where}: rows not counted."
    return proportion([found == want for found, want in pairs]), (note,) if missing else ()


def _last_find(pattern: re.Pattern[str], text: str) -> str | None:
    finds = list(pattern.finditer(text))
    if not finds:
        return None
    found = finds[-1].group(1 if pattern.groups else 0)
    return None if found is None else found.strip()
