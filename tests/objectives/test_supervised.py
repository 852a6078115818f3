"""The numbers of supervised learning, against scikit-learn and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from tests.contracts.steps import gradient, likelihood, prepared
from tests.tiny import completions, labelled
from tests.tiny import objective as configured
from tunewright.data.batches import Example
from tunewright.data.groups import element
from tunewright.errors import RecipeError
from tunewright.objectives import OBJECTIVES, Supervised
from tunewright.objectives.supervised import class_weights
from tunewright.recipe import make_recipe


def example(target: Any, weight: Any) -> Example:
    return Example({}, np.asarray(target), np.asarray(weight, dtype=np.float32), "row", 1)


@given(st.lists(st.integers(0, 2), min_size=3, max_size=60))
def test_balanced_weights_are_those_of_scikit_learn(classes: list[int]) -> None:
    classes = [*classes, 0, 1, 2]
    found = class_weights("balanced", ["a", "b", "c"], [example([c], [1]) for c in classes])
    np.testing.assert_allclose(found, compute_class_weight("balanced", classes=np.arange(3), y=classes), rtol=1e-6)


def test_named_weights_and_a_name_that_nobody_has() -> None:
    np.testing.assert_array_equal(class_weights({"b": 3}, ["a", "b"], []), [1, 3])
    with pytest.raises(RecipeError, match="nobody; the classes are a, b"):
        class_weights({"nobody": 3}, ["a", "b"], [])


@pytest.mark.parametrize("name", OBJECTIVES)
@given(
    weights=st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=5), min_size=2, max_size=9)
)
def test_counts_of_disjoint_rows_add_up(name: str, weights: list[list[float]]) -> None:
    """Or else a step could not be cut into forward passes."""
    objective = make_recipe({"base": "-", "data": "-", "objective": configured(name)}).objective
    rows = [example([0] * len(w), w) for w in weights]
    if name != "supervised":
        rows = [element([row, row], "row") for row in rows]
    whole, first, rest = (objective.counts(part) for part in (rows, rows[:1], rows[1:]))
    assert whole == {key: first[key] + rest[key] for key in whole}


def test_the_loss_is_the_weighted_mean_over_tokens(tiny_base: Any) -> None:
    """Not the mean of the rows' means: a long answer counts more than a short one."""
    ready = prepared(tiny_base("llama"), completions(), method="full")
    examples = ready.examples("train")
    sums = likelihood(ready, range(len(examples)))
    by_hand = float(sums.sum()) / sum(e.trained for e in examples)
    assert gradient(ready)[0]["loss"] == pytest.approx(by_hand, rel=1e-6)
    assert len({e.trained for e in examples}) > 3


def test_label_smoothing_is_that_of_torch(tiny_base: Any) -> None:
    ready = prepared(tiny_base("bert"), labelled(), method="full", objective={"label_smoothing": 0.3})
    batch = ready.model.task.collate(ready.examples("train"))
    logits = ready.model.module(**batch.inputs).logits
    expected = torch.nn.functional.cross_entropy(logits, batch.target[:, 0], label_smoothing=0.3)
    assert gradient(ready)[0]["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_class_weights_weigh_the_rows(tiny_base: Any) -> None:
    weights = {"class 0": 1.0, "class 1": 4.0, "class 2": 0.5}
    ready = prepared(tiny_base("bert"), labelled(), method="full", objective={"class_weights": weights})
    batch = ready.model.task.collate(ready.examples("train"))
    logits = ready.model.module(**batch.inputs).logits
    expected = torch.nn.functional.cross_entropy(
        logits, batch.target[:, 0], weight=torch.tensor([weights[label] for label in ready.model.task.labels])
    )
    assert gradient(ready)[0]["loss"] == pytest.approx(float(expected), rel=1e-6)


def test_accuracy_counts_positions_and_not_weights(tiny_base: Any) -> None:
    rows = [{**row, "weight": 100 if i == 0 else 1} for i, row in enumerate(labelled())]
    plain, weighted = (prepared(tiny_base("bert"), r, method="full") for r in (labelled(), rows))
    assert gradient(plain)[0]["accuracy"] == gradient(weighted)[0]["accuracy"]
    assert Supervised().counts(weighted.examples("train"))["positions"] == len(rows)
