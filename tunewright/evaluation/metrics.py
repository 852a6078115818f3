"""From predictions and gold answers to `Scores`, one function a kind of answer. Numbers in, numbers out: no models.

Shapes: N rows, C labels. Each metric carries a 95 % interval over rows; `scores` says which and how.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tunewright.data.words import Words
from tunewright.errors import RecipeError, TunewrightError, counted
from tunewright.evaluation.scores import LOWER_IS_BETTER, Array, Metric, Scores, bootstrap, mean, proportion

__all__ = [
    "Metric",
    "Scores",
    "classification",
    "generation",
    "likelihood",
    "multi_label",
    "preference",
    "rated",
    "regression",
]

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Stands for a probability that rounded to 0, so that one row cannot make the loss infinite: -ln of it is 87.3."""

ROUNDING = 1e-6
"""Likelihoods that differ by less, relative to their size, are the same in fp32: nothing was gained."""

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
    probabilities = _finite(probabilities_NC)
    gold_array = np.asarray(gold)
    assert probabilities.shape == (len(gold_array), len(labels)), (probabilities.shape, gold_array.shape, len(labels))
    gold_N = gold_array.argmax(axis=1) if gold_array.ndim == 2 else gold_array.astype(np.int64)
    predicted_N = probabilities.argmax(axis=1)
    return _scores(
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
    probabilities, gold = _finite(probabilities_NC), np.asarray(gold_NC, dtype=np.float64)
    assert probabilities.shape == gold.shape == (len(gold), len(labels)), (probabilities.shape, gold.shape)
    predicted_NC, holds_NC = probabilities > 0.5, gold > 0.5
    hits_NC = predicted_NC & holds_NC
    # 2·TP + FP + FN is the number of predictions plus the number of gold labels.
    claims_NC = predicted_NC.astype(np.int64) + holds_NC
    cross_entropy_NC = -(gold * _log(probabilities) + (1 - gold) * _log(1 - probabilities))
    return _scores(
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

    predicted, gold = _finite(predicted_N), np.asarray(gold_N, dtype=np.float64)
    assert predicted.shape == gold.shape == (len(gold),), (predicted.shape, gold.shape)
    error = predicted - gold
    return _scores(
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
    score, length = _finite(score_S), np.asarray(length_S, dtype=np.float64)
    better, worse, prompt = _pairs(np.asarray(element_S))

    def right(values: Array) -> Metric:
        return mean(_by_prompt(_right(values[better], values[worse]), prompt))

    metrics = {"accuracy": right(score)}
    if per_length:
        metrics["accuracy_per_token"] = right(score / length)
    if start_S is not None:
        start = _finite(start_S)
        gain = np.where(np.isclose(score, start, rtol=ROUNDING, atol=0), 0.0, score - start)
        metrics = {"reward_accuracy": right(gain), **metrics}
        metrics["reward_margin"] = mean(_by_prompt(gain[better] - gain[worse], prompt))
    metrics["longer_is_better"] = right(length)
    metrics["margin"] = mean(_by_prompt(score[better] - score[worse], prompt))
    return _scores(metrics, primary=next(iter(metrics)))


def rewards(values: Mapping[str, npt.ArrayLike]) -> Scores:
    """The mean over prompts of what the policy's answers got, and of how long they are; the first is what counts.

    Args:
        values: by name, each [N]: `reward` first, then its parts, `kl` from the start in nats, `length` in tokens; of
            truth values (whether an answer ended, whether it breaks a rule) the share that is true.
    """
    found = {name: np.asarray(value) for name, value in values.items()}
    metrics = {name: proportion(one) if one.dtype == bool else mean(_finite(one)) for name, one in found.items()}
    return _scores(metrics, primary=next(iter(values)))


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
    score, good, length = _finite(score_N), np.asarray(good_N), np.asarray(length_N, dtype=np.float64)

    def told(values: Array) -> Metric:
        return bootstrap(lambda rows: auc(values[rows], good[rows]), len(good))

    metrics = {"auc": told(score), "auc_per_token": told(score / length)}
    if start_N is not None:
        start = _finite(start_N)
        gain = np.where(np.isclose(score, start, rtol=ROUNDING, atol=0), 0.0, score - start)
        metrics = {"reward_auc": told(gain), **metrics}
    return _scores({**metrics, "auc_of_length": told(length)}, primary=next(iter(metrics)))


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
    sums, counts = _finite(nll_sums), np.asarray(token_counts, dtype=np.float64)
    assert sums.shape == counts.shape == (len(counts),), (sums.shape, counts.shape)
    if not counts.sum():
        raise TunewrightError("there are no trained tokens to evaluate on; check which tokens of the rows are trained")
    loss = _ratio(sums, counts)
    metrics = {"loss": loss, "perplexity": Metric(_exp(loss.value), _exp(loss.low), _exp(loss.high), loss.n)}
    if correct_counts is not None:
        metrics["token_accuracy"] = _ratio(np.asarray(correct_counts, dtype=np.float64), counts)
    return _scores(metrics, primary="loss")


def errors(errors_N: npt.ArrayLike) -> Scores:
    """The mean of what is wrong with each row, with the bootstrap's interval: of images that are told from noise.

    Raises TunewrightError: there are no rows, or an error is not finite.
    """
    return _scores({"loss": mean(_finite(errors_N))}, primary="loss")


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
        return _scores(metrics, primary="rouge_l")
    match, notes = _pattern_match(outputs, references, pattern)
    return _scores({"pattern_match": match, **metrics}, primary="pattern_match", notes=notes)


def _scores(metrics: dict[str, Metric], primary: str, **more: Any) -> Scores:
    return Scores(metrics, primary, higher_is_better=primary not in LOWER_IS_BETTER, **more)


def _finite(numbers: npt.ArrayLike) -> Array:
    """The model's numbers as float64. NaN must not pass: `argmax` takes it for the largest probability."""
    array = np.asarray(numbers, dtype=np.float64)
    finite_N = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    bad = np.flatnonzero(~finite_N)
    if len(bad):
        raise TunewrightError(
            f"the model's output is not finite for {len(bad):,} of {counted(len(array), 'row')}, first row "
            f"{bad[0] + 1}; lower the learning rate, or compute in a wider number format"
        )
    return array


def _log(probabilities: Array) -> Array:
    logarithms: Array = np.log(np.maximum(probabilities, SMALLEST_PROBABILITY))
    return logarithms


def _cross_entropy(probabilities_NC: Array, gold: Array) -> Array:
    """-Σ_c gold_c ln p_c of each row (N), for label numbers (N) or distributions (N, C)."""
    if gold.ndim == 1:
        return -_log(np.take_along_axis(probabilities_NC, gold.astype(np.int64)[:, None], axis=1)[:, 0])
    nll_N: Array = -(gold * _log(probabilities_NC)).sum(axis=1)
    return nll_N


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
