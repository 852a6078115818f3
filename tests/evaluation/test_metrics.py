"""Values against scikit-learn or a hand computation; intervals in order; nothing lost in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from tunewright.errors import RecipeError, TunewrightError
from tunewright.evaluation import judged, metrics
from tunewright.evaluation.scores import Metric, Scores, bootstrap, mean, proportion

LABELS = ["no", "maybe", "yes"]
ROWS = 60


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def values(scores: Scores) -> dict[str, float]:
    return {name: metric.value for name, metric in scores.metrics.items()}


def test_classification_agrees_with_sklearn(random: np.random.Generator) -> None:
    probabilities, gold = random.dirichlet(np.ones(3), ROWS), random.integers(3, size=ROWS)
    scores = metrics.classification(probabilities, gold, LABELS)
    predicted = probabilities.argmax(axis=1)
    assert values(scores) == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(gold, predicted),
            "macro_f1": sklearn_metrics.f1_score(gold, predicted, average="macro"),
            "loss": sklearn_metrics.log_loss(gold, probabilities, labels=[0, 1, 2]),
        }
    )
    assert scores.confusion == {
        "labels": LABELS,
        "counts": sklearn_metrics.confusion_matrix(gold, predicted, labels=[0, 1, 2]).tolist(),
    }
    assert (scores.primary, scores.higher_is_better) == ("accuracy", True)


def test_macro_f1_leaves_out_labels_that_nobody_names() -> None:
    scores = metrics.classification([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]], [0, 1], LABELS)
    assert scores.metrics["macro_f1"].value == pytest.approx((2 / 3 + 0) / 2)


def test_soft_gold_gives_cross_entropy_and_counts_its_largest_label() -> None:
    probabilities, gold = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]), np.array([[0.7, 0.3, 0.0], [0.5, 0.0, 0.5]])
    scores = metrics.classification(probabilities, gold, LABELS)
    by_hand = [0.7 * math.log(2) + 0.3 * math.log(4), -0.5 * math.log(0.2) - 0.5 * math.log(0.6)]
    assert scores.metrics["loss"].value == pytest.approx(sum(by_hand) / 2)
    assert scores.metrics["accuracy"].value == 0.5


def test_hard_gold_and_its_one_hot_distribution_score_the_same(random: np.random.Generator) -> None:
    probabilities, gold = random.dirichlet(np.ones(3), ROWS), random.integers(3, size=ROWS)
    assert metrics.classification(probabilities, gold, LABELS) == metrics.classification(
        probabilities, np.eye(3)[gold], LABELS
    )


def test_a_probability_of_zero_keeps_the_loss_finite() -> None:
    loss = metrics.classification([[1.0, 0.0]], [1], ["a", "b"]).metrics["loss"]
    assert loss.value == pytest.approx(87.3, abs=0.1)


def test_many_labels_have_no_confusion_matrix() -> None:
    labels = [str(n) for n in range(101)]
    assert metrics.classification(np.full((2, 101), 1 / 101), [0, 1], labels).confusion is None


def test_multi_label_agrees_with_sklearn(random: np.random.Generator) -> None:
    probabilities, gold = random.random((ROWS, 3)), random.integers(2, size=(ROWS, 3))
    predicted = probabilities > 0.5
    scores = metrics.multi_label(probabilities, gold, LABELS)
    assert values(scores) == pytest.approx(
        {
            "micro_f1": sklearn_metrics.f1_score(gold, predicted, average="micro"),
            "macro_f1": sklearn_metrics.f1_score(gold, predicted, average="macro"),
            "subset_accuracy": sklearn_metrics.accuracy_score(gold, predicted),
            "loss": sklearn_metrics.log_loss(gold.ravel(), probabilities.ravel()),
        }
    )
    assert scores.primary == "micro_f1"


def test_f1_without_any_label_is_undefined_and_null_in_json() -> None:
    scores = metrics.multi_label([[0.1, 0.2]], [[0, 0]], ["a", "b"])
    assert not scores.answer.is_defined
    assert scores.to_dict()["metrics"]["micro_f1"] == {"value": None, "low": None, "high": None, "n": 1}


def test_regression_agrees_with_sklearn_and_scipy(random: np.random.Generator) -> None:
    from scipy import stats

    gold = random.normal(size=ROWS)
    predicted = np.round(gold + random.normal(size=ROWS), 1)  # rounded, so that there are ties to rank
    assert values(metrics.regression(predicted, gold)) == pytest.approx(
        {
            "r2": sklearn_metrics.r2_score(gold, predicted),
            "mse": sklearn_metrics.mean_squared_error(gold, predicted),
            "mae": sklearn_metrics.mean_absolute_error(gold, predicted),
            "pearson": stats.pearsonr(predicted, gold).statistic,
            "spearman": stats.spearmanr(predicted, gold).statistic,
        }
    )


def test_a_constant_prediction_has_no_correlation_but_an_r2() -> None:
    scores = metrics.regression([0.1, 0.1, 0.1], [1.0, 2.0, 3.0])
    assert [name for name, metric in scores.metrics.items() if not metric.is_defined] == ["pearson", "spearman"]


def test_likelihood_weighs_by_tokens() -> None:
    scores = metrics.likelihood([2.0, 10.0], [4, 2], [3, 0])
    assert values(scores) == pytest.approx({"loss": 2.0, "perplexity": math.exp(2.0), "token_accuracy": 0.5})
    assert (scores.primary, scores.higher_is_better) == ("loss", False)
    assert "token_accuracy" not in metrics.likelihood([2.0], [4]).metrics


def test_perplexity_may_overflow() -> None:
    perplexity = metrics.likelihood([1e4], [1]).metrics["perplexity"]
    assert perplexity.value == math.inf
    assert perplexity.to_dict()["value"] is None


def test_generation_exact_match_and_rouge() -> None:
    scores = metrics.generation([" the cat sat ", "a dog"], ["the cat sat", "a cat sat down"], [True, False])
    # Longest common subsequence "a": precision 1/2, recall 1/4.
    assert values(scores) == pytest.approx({"exact_match": 0.5, "rouge_l": (1 + 1 / 3) / 2, "answers_ended": 0.5})
    assert scores.primary == "rouge_l"


@pytest.mark.parametrize("text", ["сорок два", "日本語の文", "Ελληνικά"])
def test_rouge_reads_every_script(text: str) -> None:
    assert metrics.generation([text], [text], [True]).metrics["rouge_l"].value == 1


def test_pattern_match_compares_the_last_find_and_says_what_it_did_not_count() -> None:
    outputs = ["#### 1, no: #### 7 ", "#### 3", "nothing", "#### 4"]
    references = ["#### 7", "#### 5", "#### 6", "no answer here"]
    scores = metrics.generation(outputs, references, [True] * len(outputs), r"#### (\d+)")
    assert scores.answer.value == pytest.approx(1 / 3)
    assert scores.answer.n == 3
    assert scores.primary == "pattern_match"
    assert scores.notes == (r"The pattern '#### (\\d+)' finds nothing in 1 of 4 references: rows not counted.",)


def test_pattern_without_a_group_takes_the_whole_find() -> None:
    assert metrics.generation(["it is 42."], ["42"], [True], r"\d+").answer.value == 1


@pytest.mark.parametrize("pattern", ["(", "absent"])
def test_an_unusable_pattern_is_a_recipe_error(pattern: str) -> None:
    with pytest.raises(RecipeError, match="pattern"):
        metrics.generation(["a"], ["b"], [True], pattern)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_output_that_is_not_finite_is_refused(bad: float) -> None:
    """`argmax` takes NaN for the largest: without the check, a broken model could score 100 %."""
    attempts: list[Callable[[], Scores]] = [
        lambda: metrics.classification([[0.5, 0.5], [bad, 0.5]], [0, 0], ["a", "b"]),
        lambda: metrics.multi_label([[0.5, 0.5], [bad, 0.5]], [[0, 0], [0, 0]], ["a", "b"]),
        lambda: metrics.regression([0.0, bad], [0.0, 1.0]),
        lambda: metrics.likelihood([0.0, bad], [1, 1]),
    ]
    for score in attempts:
        with pytest.raises(TunewrightError, match="not finite for 1 of 2 rows, first row 2"):
            score()


def test_no_rows_and_no_tokens_are_refused() -> None:
    attempts: list[Callable[[], Scores]] = [
        lambda: metrics.classification(np.zeros((0, 2)), [], ["a", "b"]),
        lambda: metrics.multi_label(np.zeros((0, 2)), np.zeros((0, 2)), ["a", "b"]),
        lambda: metrics.regression([], []),
        lambda: metrics.likelihood([], []),
        lambda: metrics.likelihood([0.0], [0]),
        lambda: metrics.generation([], [], []),
    ]
    for score in attempts:
        with pytest.raises(TunewrightError, match="there are no"):
            score()


def test_wilson_by_hand() -> None:
    # Wilson's interval of 2 in 10, as published in many tables.
    metric = proportion([True] * 2 + [False] * 8)
    assert [metric.low, metric.high] == pytest.approx([0.0567, 0.5098], abs=1e-4)


def test_intervals_cover_the_truth_about_95_times_in_100(random: np.random.Generator) -> None:
    def coverage(truth: float, draw: Any, measure: Any) -> float:
        drawn = [measure(draw()) for _ in range(300)]
        return float(np.mean([metric.low <= truth <= metric.high for metric in drawn]))

    assert 0.91 <= coverage(0.9, lambda: random.random(100) < 0.9, proportion) <= 0.99
    assert 0.91 <= coverage(0.0, lambda: random.normal(size=100), mean) <= 0.99


def test_the_bootstrap_repeats_itself_and_leaves_out_undefined_resamples() -> None:
    def mean_of_odd(rows: np.ndarray[Any, Any]) -> float:
        odd = rows[rows % 2 == 1]
        return float(odd.mean()) if len(odd) else math.nan

    metric = bootstrap(mean_of_odd, 4)
    assert metric == bootstrap(mean_of_odd, 4)
    assert (metric.low, metric.value, metric.high) == (1, 2, 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_interval_contains_the_value_of_a_biased_statistic(sign: int) -> None:
    """A resample always has fewer distinct rows than the sample."""
    metric = bootstrap(lambda rows: float(sign * len(np.unique(rows))), 50)
    assert metric.low <= metric.value <= metric.high


rows_of_labels = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.integers(0, 2), min_size=n, max_size=n),
    )
)
pairs_of_numbers = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None)
@given(rows_of_labels)
def test_shares_stay_in_order_and_between_0_and_1(rows: tuple[list[list[float]], list[int]]) -> None:
    probabilities, gold = rows
    for scores in (
        metrics.classification(probabilities, gold, LABELS),
        metrics.multi_label(probabilities, np.eye(3)[gold], LABELS),
    ):
        for name, metric in scores.metrics.items():
            if metric.has_interval:
                assert 0 <= metric.low <= metric.value <= metric.high, name
                assert name == "loss" or metric.high <= 1, name
        assert_json_round_trip(scores)


@settings(max_examples=15, deadline=None)
@given(pairs_of_numbers)
def test_regression_stays_in_order_and_in_bounds(pairs: list[tuple[int, int]]) -> None:
    scores = metrics.regression([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    bounds = {"r2": (-math.inf, 1), "mse": (0, math.inf), "mae": (0, math.inf), "pearson": (-1, 1), "spearman": (-1, 1)}
    for name, metric in scores.metrics.items():
        lowest, highest = bounds[name]
        if metric.has_interval:
            assert lowest <= metric.low <= metric.value <= metric.high <= highest, name
    assert_json_round_trip(scores)


def assert_json_round_trip(scores: Scores) -> None:
    text = json.dumps(scores.to_dict(), allow_nan=False)
    assert Scores.from_dict(json.loads(text)).to_dict() == scores.to_dict()


def test_json_keeps_every_field() -> None:
    scores = Scores(
        {"accuracy": Metric(0.5, 0.25, 0.75, 8)},
        primary="accuracy",
        higher_is_better=True,
        confusion={"labels": ["a", "b"], "counts": [[1, 2], [3, 2]]},
        notes=("one row was left out",),
    )
    assert Scores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores


def test_overlap() -> None:
    low, middle, high = Metric(0.2, 0.1, 0.3, 9), Metric(0.3, 0.2, 0.4, 9), Metric(0.6, 0.5, 0.7, 9)
    assert low.overlaps(middle) and middle.overlaps(low)
    assert not low.overlaps(high) and not high.overlaps(low)


# Answers that are compared or rated


def test_preferences_by_hand() -> None:
    """Two answers, a tie, and a ranking of three of which one pair is the wrong way round."""
    score = [-3.0, -5.0, -4.0, -4.0, -1.0, -6.0, -2.0]
    element = [0, 0, 1, 1, 2, 2, 2]
    length = [1, 5, 3, 2, 4, 2, 1]
    found = judged.preference(score, element, length, per_length=True).metrics
    assert found["accuracy"].value == pytest.approx((1 + 0.5 + 2 / 3) / 3)
    assert found["accuracy"].n == 3
    # per token: -3 < -1; -1.33 > -2; -.25, -3, -2
    assert found["accuracy_per_token"].value == pytest.approx((0 + 1 + 2 / 3) / 3)
    assert found["longer_is_better"].value == pytest.approx((0 + 1 + 1) / 3)
    assert found["margin"].value == pytest.approx((2 + 0 + (5 + 1 - 4) / 3) / 3)


def test_the_reward_is_what_was_gained_since_the_start() -> None:
    found = judged.preference([-3.0, -5.0, -4.0, -4.0], [0, 0, 1, 1], [1, 1, 1, 1], [-2.0, -9.0, -5.0, -5.5])
    assert found.primary == "reward_accuracy"
    assert found.metrics["reward_accuracy"].value == 0.0  # gains -1 and 4; 1 and 1.5
    assert found.metrics["reward_margin"].value == pytest.approx((-5 - 0.5) / 2)


def test_without_a_pair_nothing_is_compared() -> None:
    with pytest.raises(TunewrightError, match="no two answers"):
        judged.preference([1.0, 2.0], [0, 1], [1, 1])


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
def test_auc_is_that_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    score, good = (np.array(column) for column in zip(*rows, strict=True))
    found = judged.auc(score.astype(float), good)
    if good.all() or not good.any():
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sklearn_metrics.roc_auc_score(good, score))


def test_rated_answers_by_hand() -> None:
    found = judged.rated([-4.0, -3.0, -2.0], [True, False, True], [8, 1, 4], [-6.0, -2.0, -2.0])
    assert found.primary == "reward_auc"
    assert values(found) == {"reward_auc": 1.0, "auc": 0.5, "auc_per_token": 1.0, "auc_of_length": 1.0}
