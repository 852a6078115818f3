"""The curve over α: what is chosen, what is reported, and paired differences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunewright.errors import DataError, RecipeError
from tunewright.evaluation.paired import correct, difference, ensemble, primary, statistic, subset
from tunewright.evaluation.picture import draw
from tunewright.evaluation.robustness import Curve, best, choose, document, parse_rule, sentence, table
from tunewright.tasks.base import Predictions

ROWS = 200


def answers(right: float, rows: int = ROWS) -> Predictions:
    """A classifier that is right on the first `right` of its rows."""
    gold = np.zeros(rows, dtype=np.int64)
    output = np.zeros((rows, 2))
    output[np.arange(rows), (np.arange(rows) >= right * rows).astype(int)] = 1.0
    return Predictions("single_label", [f"row {i}" for i in range(rows)], output_NC=output, gold=gold)


def likelihoods(nll: float, rows: int = ROWS) -> Predictions:
    ones = np.ones(rows)
    return Predictions("likelihood", [f"row {i}" for i in range(rows)], nll_N=nll * ones, count_N=ones, correct_N=ones)


def curve(make: Any, **sets: list[tuple[float, float]]) -> Curve:
    """Each set's (validation, test) values at α = 0, .5, 1; the first set is the reference."""
    points = [
        {name: {"validation": make(values[i][0]), "test": make(values[i][1])} for name, values in sets.items()}
        for i in range(3)
    ]
    return Curve([0.0, 0.5, 1.0], next(iter(sets)), points)


ACCURATE = {
    "test": [(0.50, 0.50), (0.90, 0.80), (0.90, 0.90)],
    "far": [(0.80, 0.80), (0.70, 0.70), (0.40, 0.95)],
    "near": [(0.60, 0.60), (0.80, 0.85), (0.70, 0.60)],
}


def test_alpha_is_chosen_on_validation_alone() -> None:
    one = curve(answers, **ACCURATE)
    assert choose(one, "balanced") == 0.5  # .90 + (.70 + .80) / 2 against .50 + .70 and .90 + .55
    assert choose(one, "reference") == 0.5  # the smallest of those that are as good
    assert best(one, "balanced", "test") == 1.0
    assert choose(one, 0.25) == 0.25 and parse_rule("1") == 1.0 and parse_rule("reference") == "reference"
    with pytest.raises(RecipeError, match="balanced, reference, or a number"):
        parse_rule("best")


def test_a_loss_is_better_where_it_is_lower() -> None:
    one = curve(likelihoods, test=[(3.0, 3.0), (1.0, 1.0), (0.998, 0.9)], far=[(1.0, 1.0), (1.2, 1.2), (4.0, 4.0)])
    assert choose(one, "balanced") == 0.5
    assert choose(one, "reference") == 0.5, "within half a percent"
    over = document(one, "balanced")["over_shifts"]
    assert [each["worst"]["value"] for each in over] == pytest.approx([1.0, 1.2, 4.0])


def test_half_a_point_is_the_slack_of_the_reference_rule() -> None:
    assert choose(curve(answers, test=[(0.5, 0.5), (0.895, 0.9), (0.9, 0.9)]), "reference") == 0.5
    assert choose(curve(answers, test=[(0.5, 0.5), (0.890, 0.9), (0.9, 0.9)]), "reference") == 1.0


def test_what_is_reported() -> None:
    found = document(curve(answers, **ACCURATE), "balanced")
    assert found["reference"] == "test" and found["shifts"] == ["far", "near"] and found["metric"] == "accuracy"
    assert found["chosen"] == {"rule": "balanced", "alpha": 0.5} and found["oracle"] == 1.0
    assert found["choices"] == {"balanced": 0.5, "reference": 0.5}
    assert [over["mean"]["value"] for over in found["over_shifts"]] == pytest.approx([0.7, 0.775, 0.775])
    assert [over["worst"]["value"] for over in found["over_shifts"]] == pytest.approx([0.6, 0.7, 0.6])
    assert [over["worst"]["name"] for over in found["over_shifts"]] == ["near", "far", "near"]
    assert found["against_tuned"]["near"][1]["value"] == pytest.approx(0.25)
    assert found["against_tuned"]["near"][1]["low"] > 0.15
    assert found["against_start"]["test"][1]["value"] == pytest.approx(0.3)
    assert set(found["baselines"]) == {"ensemble"}
    told = sentence(found)
    assert "α = 0.5" in told and "test: −10 points [" in told and "near: +25 points [" in told


def test_the_mean_of_shifts_is_surer_than_each() -> None:
    """Each shift is resampled by itself: the mean of two has an interval narrower than either, by about √2."""
    over = document(curve(answers, **ACCURATE), "balanced")["over_shifts"][0]
    far = primary(answers(0.8))
    width = over["mean"]["high"] - over["mean"]["low"]
    assert width == pytest.approx((far.high - far.low) / 2**0.5, rel=0.25) and over["mean"]["n"] == 2 * ROWS


def test_the_table_names_what_each_row_is() -> None:
    columns, rows = table(document(curve(answers, **ACCURATE), "balanced"))
    assert columns == ["test", "far", "near", "mean shift", "worst shift"]
    assert [(name, role) for name, _, role in rows] == [
        ("0", "base"), ("0.5", "chosen"), ("1", "tuned, oracle"), ("ensemble", "mean of the logits of both ends"),
    ]  # fmt: skip
    assert [round(m.value, 3) for m in rows[1][1]] == [0.8, 0.7, 0.85, 0.775, 0.7]
    assert table(document(curve(answers, test=ACCURATE["test"]), "balanced"))[0] == ["test"]


def test_a_difference_that_may_be_chance_says_so() -> None:
    found = document(curve(answers, test=[(0.5, 0.5), (0.9, 0.895), (0.9, 0.9)]), 0.5)
    assert "cannot tell" in sentence(found)
    assert "as it is" in sentence(document(curve(answers, **ACCURATE), 1.0))


@pytest.mark.parametrize("sets", [ACCURATE, {"test": ACCURATE["test"]}, {n: ACCURATE[n] for n in ("test", "far")}])
def test_the_picture(sets: Any, tmp_path: Path) -> None:
    draw(document(curve(answers, **sets), "balanced"), tmp_path / "curve")
    svg = (tmp_path / "curve.svg").read_text()
    assert svg.startswith("<?xml") and (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    draw(document(curve(answers, **sets), "balanced"), tmp_path / "again")


# Undefined

NAN = float("nan")


@pytest.mark.parametrize("make", [answers, likelihoods])
def test_a_point_that_is_not_finite_is_the_worst(make: Any) -> None:
    """`argmax` takes NaN for the largest; a classifier that says NaN would even be right about class 0."""
    one = curve(broken(make), test=[(0.5, 0.5), (0.6, 0.6), (NAN, NAN)], far=[(0.5, 0.5), (0.6, 0.6), (NAN, NAN)])
    right = 0.5 if make is answers else 0.0
    assert [best(one, "balanced", half) for half in ("validation", "test")] == [right, right]
    assert choose(one, "reference") == right
    found = document(one, "balanced")
    assert found["oracle"] == right and found["over_shifts"][2]["mean"]["value"] is None
    assert "test: undefined; far: undefined" in sentence(document(one, 0.5))


def broken(make: Any) -> Any:
    """As `make`, and NaN in every row where its figure is NaN."""

    def made(figure: float) -> Predictions:
        if not np.isnan(figure):
            return make(figure)
        whole = make(0.5)
        return replace(whole, **{name: np.full_like(getattr(whole, name), NAN) for name in ("output_NC", "nll_N")
                                 if getattr(whole, name) is not None})  # fmt: skip

    return made


def test_where_nothing_is_defined_nothing_is_chosen() -> None:
    one = curve(broken(answers), test=[(NAN, 0.5), (NAN, 0.6), (NAN, 0.7)])
    for rule in ("balanced", "reference"):
        with pytest.raises(DataError, match="Accuracy is undefined on the validation rows at every α"):
            choose(one, rule)
    found = document(one, 0.5)
    assert found["choices"] == {"balanced": None, "reference": None} and found["oracle"] == 1.0


def numbers(error: float, gold_N: np.ndarray) -> Predictions:
    output_N1 = (gold_N + error)[:, None]
    return Predictions("regression", [str(i) for i in gold_N], output_NC=output_N1, gold=gold_N[:, None])


def test_a_shift_of_equal_labels_says_nothing() -> None:
    """R² is undefined there at every α: the other sets choose, and stand for the shifts."""
    several, equal = np.arange(20.0), np.ones(20)
    golds = {"test": several, "far": several, "same": equal}
    errors = {"test": (3.0, 1.0, 2.0), "far": (1.0, 2.0, 5.0), "same": (1.0, 1.0, 1.0)}
    points = [
        {name: dict.fromkeys(("validation", "test"), numbers(errors[name][i], gold)) for name, gold in golds.items()}
        for i in range(3)
    ]
    found = document(Curve([0.0, 0.5, 1.0], "test", points), "balanced")
    assert found["chosen"]["alpha"] == 0.5
    assert [over["worst"]["name"] for over in found["over_shifts"]] == ["far"] * 3
    assert found["over_shifts"][0]["mean"]["value"] == found["curve"]["far"]["test"][0]["value"]


@pytest.mark.parametrize("broken_at", [0, 1, 2])
@pytest.mark.parametrize("shifts", [0, 1, 2])
@pytest.mark.filterwarnings("error")
def test_the_picture_leaves_a_gap(shifts: int, broken_at: int, tmp_path: Path) -> None:
    values = [(NAN, NAN) if i == broken_at else (0.5, 0.5) for i in range(3)]
    one = curve(broken(answers), **dict.fromkeys(["test", "far", "near"][: shifts + 1], values))
    draw(document(one, "balanced"), tmp_path / "curve")
    assert (tmp_path / "curve.svg").is_file()


def test_the_picture_of_nothing(tmp_path: Path) -> None:
    points = [{"test": {half: numbers(1.0, np.ones(9)) for half in ("validation", "test")}} for _ in range(2)]
    draw(document(Curve([0.0, 1.0], "test", points), 1.0), tmp_path / "curve")
    assert (tmp_path / "curve.png").is_file()


# Pairs


def test_a_paired_interval_is_narrower_than_two_separate_ones() -> None:
    one, other = answers(0.80), answers(0.85)
    change = difference(other, one)
    assert change.value == pytest.approx(0.05) and change.low > 0
    assert primary(other).low < primary(one).high, "two intervals alone could not tell"


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        hard = random.random(150) < 0.5
        one, other = ((random.random(150) < np.where(hard, p, 0.95)) for p in (0.5, 0.7))
        change = difference(of_hits(other), of_hits(one))
        covered += change.low <= 0.1 <= change.high  # half of the rows are hard, and 0.2 apart
    assert 52 <= covered <= 60


def of_hits(hits_N: np.ndarray) -> Predictions:
    output = np.stack([hits_N, ~hits_N], axis=1).astype(float)
    return Predictions("single_label", [str(i) for i in range(len(hits_N))], output_NC=output,
                       gold=np.zeros(len(hits_N), dtype=np.int64))  # fmt: skip


def test_other_rows_are_no_pairs() -> None:
    with pytest.raises(AssertionError):
        difference(answers(0.5), answers(0.5, rows=100))


def test_the_statistic_is_the_metric_for_every_kind() -> None:
    rows = np.arange(4)
    several = Predictions("multi_label", list("abcd"), output_NC=np.array([[0.9, 0.1], [0.8, 0.7], [0.2, 0.9], [0, 0]]),
                          gold=np.array([[1, 0], [1, 0], [0, 1], [1, 0]]))  # fmt: skip
    assert statistic(several)(rows) == pytest.approx(2 * 3 / (4 + 4))
    number = Predictions("regression", list("abcd"), output_NC=np.array([[1.0], [2], [3], [5]]),
                         gold=np.array([[1.0], [2], [3], [4]]))  # fmt: skip
    assert statistic(number)(rows) == pytest.approx(1 - 1 / 5)
    text = Predictions("likelihood", list("ab"), nll_N=np.array([2.0, 6]), count_N=np.array([2.0, 2]),
                       correct_N=np.zeros(2))  # fmt: skip
    assert statistic(text)(np.arange(2)) == 2.0
    assert subset(text, np.array([1])).nll_N.tolist() == [6.0] and subset(text, np.array([1])).sources == ["b"]


def test_the_ensemble_averages_logits() -> None:
    one = Predictions("single_label", ["a"], output_NC=np.array([[0.9, 0.1]]), gold=np.array([0]))
    other = Predictions("single_label", ["a"], output_NC=np.array([[0.5, 0.5]]), gold=np.array([0]))
    mixed = ensemble(one, other)
    assert mixed is not None and mixed.output_NC is not None
    odds = mixed.output_NC[0, 0] / mixed.output_NC[0, 1]
    assert odds == pytest.approx((9.0 * 1.0) ** 0.5) and mixed.output_NC.sum() == pytest.approx(1)
    assert ensemble(likelihoods(1.0), likelihoods(2.0)) is None
    assert correct(mixed).tolist() == [True]
