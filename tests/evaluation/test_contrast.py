"""Two models on the same rows: the statistics against closed forms, scipy and simulation; and what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from tunewright.errors import TunewrightError
from tunewright.evaluation.calibration import calibration, confidence, error_of
from tunewright.evaluation.contrast import Both, calibration_figures, document, met, sentence, where_worse
from tunewright.evaluation.paired import chance, difference, holm, mcnemar, primary, recall
from tunewright.tasks.base import Predictions

LABELS = ["bug", "praise"]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(3)


def classified(right: Any, gold: Any = None) -> Predictions:
    """A classifier of two classes that is right on these rows, always 80 % sure."""
    right_N = np.asarray(right, dtype=bool)
    gold_N = np.zeros(len(right_N), dtype=np.int64) if gold is None else np.asarray(gold)
    said_N = np.where(right_N, gold_N, 1 - gold_N)
    output_N2 = np.where(np.eye(2, dtype=bool)[said_N], 0.8, 0.2)
    return Predictions("single_label", [f"r:{i}" for i in range(len(right_N))], output_NC=output_N2, gold=gold_N)


def read(nll: Any, count: Any) -> Predictions:
    sources = [f"r:{i}" for i in range(len(nll))]
    return Predictions("likelihood", sources, nll_N=np.asarray(nll, float), count_N=np.asarray(count, float))


def flips(lost: int, won: int, both: int = 0) -> tuple[Predictions, Predictions]:
    """A and B, where B loses and wins so many rows."""
    return classified([1] * lost + [0] * won + [1] * both), classified([0] * lost + [1] * won + [1] * both)


# The statistics


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 5), (3, 12), (7, 7), (1, 0)])
def test_mcnemar_is_the_binomial_test_of_the_flips(lost: int, won: int) -> None:
    a, b = flips(lost, won, both=20)
    expected = min(1.0, 2 * binom.cdf(min(lost, won), lost + won, 0.5)) if lost + won else 1.0
    assert chance(a, b) == pytest.approx(expected)


def test_rows_that_both_have_right_or_wrong_do_not_count(random: np.random.Generator) -> None:
    one, other = random.random(40) < 0.5, random.random(40) < 0.7
    same = np.array([True, False] * 30)
    assert mcnemar(one, other) == mcnemar(np.append(one, same), np.append(other, same))


def test_the_paired_interval_covers_the_truth(random: np.random.Generator) -> None:
    """Of a difference of two losses per token, whose true value is 0.1; rows are far apart, the models close."""
    covered = 0
    for _ in range(120):
        hard_N, count_N = random.normal(3, 1, 150), random.integers(1, 9, 150)
        a = read(hard_N * count_N, count_N)
        b = read((hard_N + 0.1 + random.normal(0, 0.2, 150)) * count_N, count_N)
        found = difference(b, a)
        covered += found.low <= 0.1 <= found.high
        assert found.high - found.low < 0.15, "what makes a row hard for both cancels out"
    assert 0.89 <= covered / 120 <= 0.99


def test_the_chance_of_no_difference_is_uniform(random: np.random.Generator) -> None:
    found = []
    for _ in range(120):
        noise = random.normal(3, 1, (2, 80))
        found.append(chance(*(read(nll, np.ones(80)) for nll in noise)))
    assert np.mean(np.array(found) < 0.05) < 0.11 and 0.4 < np.mean(found) < 0.6


def few(kind: str, rows: int) -> tuple[Predictions, Predictions]:
    """A and B, where B is better on every row."""
    sources, ones = [f"r:{i}" for i in range(rows)], np.ones(rows)
    if kind == "likelihood":
        return read(3 * ones, ones), read(2 * ones, ones)
    if kind == "regression":
        gold_N1 = np.arange(rows)[:, None] + 1.0
        a, b = (Predictions(kind, sources, output_NC=gold_N1 + off, gold=gold_N1) for off in (0.9, 0.1))
        return a, b
    gold_NC = np.ones((rows, 2))
    a, b = (Predictions(kind, sources, output_NC=gold_NC * [0.9, p], gold=gold_NC) for p in (0.1, 0.9))
    return a, b


@pytest.mark.parametrize("kind", ["likelihood", "regression", "multi_label"])
def test_few_rows_say_no_more_than_a_coin(kind: str) -> None:
    """All resamples of one to five rows that changed one way lie on one side, and still may be chance."""
    for rows in range(2 if kind == "regression" else 1, 8):
        p = chance(*few(kind, rows))
        assert p == pytest.approx(max(2 * 0.5**rows, 2 / 1001), rel=1e-3)
        assert (said(*few(kind, rows))["change"] == "better") == (rows >= 6)


def test_a_single_row_has_no_interval() -> None:
    one = said(*few("likelihood", 1))
    assert one["difference"] == {"value": -1, "low": None, "high": None, "n": 1} and one["change"] == "cannot tell"
    assert sentence(("a", "b"), {"test": one}).endswith("Loss on test went from 3.00 to 2.00: −1, p 1, 1 row.")
    sure = said(*flips(0, 1))
    assert sure["difference"]["low"] is None and sure["a"]["high"] < 1, "an accuracy has Wilson's"
    assert calibration_figures(sure["calibration"]) == ("80.0 %", "20.0 %", "−60 points")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_recall_is_the_accuracy_on_the_rows_of_a_class() -> None:
    gold = [0, 0, 0, 1, 1]
    found = recall(classified([1, 0, 1, 0, 0], gold), 0)
    assert found.sources == ["r:0", "r:1", "r:2"] and difference(found, found).value == 0
    labels_NC, says_NC = np.array([[1, 0], [1, 1], [0, 1]]), np.array([[0.9, 0.9], [0.1, 0.6], [0.9, 0.2]])
    several = Predictions("multi_label", ["a", "b", "c"], output_NC=says_NC, gold=labels_NC)
    both = document(Both("test", several, several, LABELS), 0)
    assert [both["classes"][label]["a"]["value"] for label in LABELS] == [0.5, 0.5]


# Calibration


def sure(confidences: Any, right: Any) -> Predictions:
    """Of class 0 with these probabilities, which is the right answer or not."""
    p_N = np.asarray(confidences, float)
    gold_N = np.where(np.asarray(right, bool), 0, 1)
    sources = [str(i) for i in range(len(p_N))]
    return Predictions("single_label", sources, output_NC=np.stack([p_N, 1 - p_N], axis=1), gold=gold_N)


def error(predictions: Predictions) -> float:
    return error_of(*confidence(predictions))(np.arange(len(predictions.sources)))


def test_calibration_error_by_hand() -> None:
    assert error(sure([0.8] * 10, [1] * 8 + [0] * 2)) == pytest.approx(0)
    assert error(sure([0.8] * 10, [0] * 5 + [1] * 5)) == pytest.approx(0.3), "in whatever order"
    assert error(sure([0.6] * 30 + [0.9] * 10, [1] * 24 + [0] * 6 + [0] * 10)) == pytest.approx(0.75 * 0.2 + 0.25 * 0.9)


def test_bins_have_equal_mass(random: np.random.Generator) -> None:
    confidences = random.uniform(0.5, 1, 300) ** 0.2
    found = calibration(*[sure(confidences, random.random(300) < confidences)] * 2)
    assert found is not None
    assert [round(each["share"] * 300) for each in found["bins"]["a"]] == [20] * 15
    assert found["difference"]["value"] == found["difference"]["low"] == 0


def test_labels_that_hold_each_for_itself_are_as_many_answers() -> None:
    output_NC, gold_NC = np.array([[0.9, 0.4]] * 2), np.array([[1, 0], [0, 0]])
    says = Predictions("multi_label", ["a", "b"], output_NC=output_NC, gold=gold_NC)
    assert error(says) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4), "90 % sure and half right; 60 % sure and always right"
    assert calibration(read([1.0], [1]), read([1.0], [1])) is None


# What is said


def said(a: Predictions, b: Predictions, **more: Any) -> dict[str, Any]:
    return document(Both("test", a, b, LABELS if a.output_NC is not None else (), **more), 2)


@pytest.mark.parametrize(
    ("lost", "won", "change"), [(2, 20, "better"), (20, 2, "worse"), (5, 5, "cannot tell"), (0, 4, "cannot tell")]
)
def test_a_change_needs_both_interval_and_p_value(lost: int, won: int, change: str) -> None:
    """Four flips one way put the bootstrap's interval above zero, and mean nothing (p 0.125)."""
    found = said(*flips(lost, won, both=30))
    assert found["change"] == change
    if won == 4:
        assert found["difference"]["low"] > 0 and found["p"] == pytest.approx(0.125)


def test_less_loss_is_better() -> None:
    hard_N = np.linspace(1, 5, 30)
    found = said(read(hard_N, np.ones(30)), read(hard_N - 0.5, np.ones(30)))
    assert (found["change"], found["difference"]["value"]) == ("better", pytest.approx(-0.5))


def test_parts_are_corrected_for_their_number() -> None:
    """Seven flips one way: p 0.016 alone, and no news among ten slices."""
    a, b = flips(7, 0, both=60)
    slices = {str(i): np.arange(7 if i == 0 else 60) for i in range(10)}
    one, many = (said(a, b, slices=dict(list(slices.items())[:count])) for count in (1, 10))
    assert one["slices"]["0"]["change"] == "worse", "two comparisons: this slice, and the class of all rows"
    assert many["slices"]["0"]["change"] == "cannot tell" and many["slices"]["0"]["difference"]["high"] < 0
    assert "11 classes and slices" in many["notes"][0] and "Holm" in many["notes"][0]


def test_rows_that_flipped() -> None:
    words = {f"r:{i}": (f"text {i}", "bug") for i in range(9)}
    found = said(*flips(3, 1, both=5), words=words)["flipped"]
    assert (found["worse"]["rows"], found["better"]["rows"]) == (3, 1)
    row = {"source": "r:0", "input": "text 0", "reference": "bug", "a": "bug", "b": "praise"}
    assert found["worse"]["shown"][0] == row and len(found["worse"]["shown"]) == 2


def test_rows_of_a_text_by_their_loss_per_token() -> None:
    found = said(read([10, 10, 10], [10, 1, 5]), read([20, 14, 5], [10, 1, 5]))["flipped"]
    assert [row["source"] for row in found["worse"]["shown"]] == ["r:1", "r:0"]
    assert [(row["source"], row["a"], row["b"]) for row in found["better"]["shown"]] == [
        ("r:2", "loss 2.00", "loss 1.00")
    ]


def test_the_verdict_is_a_sentence_with_its_figures() -> None:
    better = {"test": said(*flips(2, 20, both=78))}
    assert sentence(("old", "new"), better).replace("\u00a0", " ") == (
        "new is better than old. Accuracy on test went from 80.0 % to 98.0 %: "
        "+18 points [+9, +26], p < 0.001, 100 rows."
    )
    unclear = {"test": said(*flips(5, 5))}
    assert sentence(("old", "new"), unclear).startswith("Cannot tell whether new is better than old. Accuracy on test")


def test_where_it_is_worse() -> None:
    gold = [0] * 60 + [1] * 20
    a, b = classified([0] * 40 + [1] * 40, gold), classified([1] * 60 + [0] * 20, gold)
    found = {"test": said(a, b, slices={"late": np.arange(60, 80)}), "other": said(*flips(20, 0))}
    assert found["test"]["change"] == "better"
    assert [each.split(" went")[0] for each in where_worse(found)] == [
        "Accuracy on other", "Recall on praise of test", "Accuracy on late of test", "Recall on bug of other",
    ]  # fmt: skip
    assert where_worse({"test": said(*flips(20, 0))})[0].startswith("Recall on bug"), "the verdict says the rest"


@pytest.mark.parametrize(
    ("first", "second", "better", "not_worse"),
    [
        ("better", "cannot tell", True, True),
        ("cannot tell", "better", False, True),
        ("better", "worse", False, False),
        ("worse", "better", False, False),
        ("not measured", "cannot tell", False, False),
        ("better", "not measured", False, False),
    ],
)
def test_what_is_required(first: str, second: str, better: bool, not_worse: bool) -> None:
    sets = {"test": {"change": first}, "other": {"change": second}}
    assert (met("better", sets), met("not-worse", sets)) == (better, not_worse)


def test_undefined_is_not_measured() -> None:
    constant = Predictions("regression", ["a", "b"], output_NC=np.ones((2, 1)), gold=np.ones((2, 1)))
    found = {"test": said(constant, constant)}
    assert found["test"]["change"] == "not measured" and found["test"]["p"] is None
    assert "R² on test is undefined." in sentence(("a", "b"), found)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_model_is_refused(broken: float) -> None:
    """`argmax` takes NaN for the likeliest class: such a model could be better on the rows of class 0."""
    whole, gold = classified([0, 1, 1]), np.zeros(3, dtype=np.int64)
    half = Predictions("single_label", whole.sources, output_NC=np.array([[0.9, 0.1], [broken] * 2, [0, 1]]), gold=gold)
    assert np.isnan(chance(whole, half)) and not primary(half).is_defined
    with pytest.raises(TunewrightError, match=r"test: the output of B is not finite for 1 of 3 rows, first r:1"):
        Both("test", whole, half)
    with pytest.raises(TunewrightError, match=r"the output of A is not finite for 2 of 2 rows"):
        Both("test", read([broken] * 2, [1, 1]), read([1, 1], [1, 1]))
