"""A linear probe: the features are what the last layer sees, and the fit is put in its place as it was made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tests.tiny import labelled
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Labelled
from tunewright.evaluation.linear_probe import STRENGTHS, put_probe
from tunewright.tasks import task_class
from tunewright.tasks.base import Model

KINDS = ("bert", "distilbert", "roberta", "llama", "gpt2")


def classifier(base: str, classes: int = 3, kind: str = "single_label") -> Model:
    labels = [f"class {i}" for i in range(classes)]
    return task_class("text-classification")(labels, kind).load(base)


def examples_of(model: Model, rows: Sequence[Any]) -> list[Example]:
    records = [Labelled(row["text"], row["label"], str(i), weight=row.get("weight", 1.0)) for i, row in enumerate(rows)]
    return model.task.encode(model, records, DataConfig(train="-")).examples


def features(model: Model, examples: Sequence[Example]) -> np.ndarray:
    return model.task.features(model, examples)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_features_times_the_last_layer_are_the_logits(kind: str, tiny_base: Any) -> None:
    """Of decoders too, whose logits exist at every token and are picked at the last one."""
    model = classifier(tiny_base(kind))
    examples = examples_of(model, labelled(20))
    layer: Any = model.task.last_layer(model.module)  # type: ignore[attr-defined]
    features_NH = torch.from_numpy(features(model, examples))
    logits_NC = features_NH @ layer.weight.double().T + (0 if layer.bias is None else layer.bias.double())
    output_NC = torch.from_numpy(model.task.predict(model, examples).output_NC)
    torch.testing.assert_close(logits_NC.softmax(-1), output_NC, rtol=1e-5, atol=1e-6)
    assert features_NH.shape == (20, 32) and features_NH.std(0).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [2, 3])
def test_the_model_answers_as_the_regression_does(kind: str, classes: int, tiny_base: Any) -> None:
    model = classifier(tiny_base(kind), classes)
    rows = [{**row, "weight": 1.0 + i % 3} for i, row in enumerate(labelled(60, classes))]
    train, test = examples_of(model, rows), examples_of(model, labelled(90, classes)[60:])
    expected = by_hand(model, train, [row["weight"] for row in rows], [i % classes for i in range(60)])(test)
    assert put_probe(model, train, [])
    found = model.task.predict(model, test).output_NC
    assert found is not None
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert expected.std(0).min() > 0.01


def by_hand(
    model: Model, train: Sequence[Example], weights: Sequence[float], gold: Sequence[int], c: float = 1.0
) -> Any:
    scaler = StandardScaler().fit(features(model, train))
    fit = LogisticRegression(C=c, max_iter=1000).fit(scaler.transform(features(model, train)), gold, weights)
    state = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}

    def answer(examples: Sequence[Example]) -> np.ndarray:
        assert all(torch.equal(state[name], tensor) for name, tensor in model.module.state_dict().items())
        return np.asarray(fit.predict_proba(scaler.transform(features(model, examples))))

    return answer


@pytest.mark.parametrize("best", [0.01, 10.0])
def test_the_strength_is_chosen_on_validation_rows(best: float, tiny_base: Any) -> None:
    """The validation rows have the labels that one strength answers."""
    model = classifier(tiny_base("bert"))
    train, others = examples_of(model, labelled(60)), examples_of(model, labelled(240)[60:])
    answers = {c: by_hand(model, train, [1.0] * 60, [i % 3 for i in range(60)], c)(others) for c in STRENGTHS}
    told = answers[best].argmax(1)
    assert all((answers[c].argmax(1) != told).any() for c in STRENGTHS if c != best), "else any would do"
    assert put_probe(model, train, [replace(e, target=told[i : i + 1]) for i, e in enumerate(others)])
    np.testing.assert_allclose(model.task.predict(model, others).output_NC, answers[best], atol=1e-4)  # type: ignore[arg-type]


def test_rows_without_a_label_are_not_looked_at_and_soft_ones_are_their_likeliest_class(tiny_base: Any) -> None:
    rows = labelled(30)
    answers = []
    for changed in (rows, [{**row, "label": {row["label"]: 0.6, "class 0": 0.4}} for row in rows]):
        model = classifier(tiny_base("bert"))
        unlabelled = [replace(e, weight=np.zeros_like(e.weight)) for e in examples_of(model, labelled(9)[1:])]
        more = unlabelled if changed is rows else []
        assert put_probe(model, [*examples_of(model, changed), *more], more)
        answers.append(model.task.predict(model, examples_of(model, rows)).output_NC)
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_class_without_rows_is_never_answered(kind: str, tiny_base: Any) -> None:
    model = classifier(tiny_base(kind), classes=4)
    train = examples_of(model, labelled(30))
    assert put_probe(model, train, train)
    output_NC = model.task.predict(model, train).output_NC
    assert output_NC is not None and np.isfinite(output_NC).all() and (output_NC[:, 3] == 0).all()
    other = classifier(tiny_base(kind), classes=4)
    two = [e for e in train if e.target[0] < 2]
    assert put_probe(other, two, []) and not put_probe(other, [e for e in train if e.target[0] == 1], [])
    output_NC = other.task.predict(other, train).output_NC
    assert output_NC is not None and (output_NC[:, 2:] == 0).all()


def test_a_language_model_has_none(tiny_base: Any) -> None:
    assert not put_probe(task_class("text-generation")().load(tiny_base("llama")), [], [])


def test_a_broken_model_has_no_probe(tiny_base: Any) -> None:
    model = classifier(tiny_base("bert"))
    train = examples_of(model, labelled(30))
    with torch.no_grad():
        model.module.get_input_embeddings().weight.fill_(float("nan"))
    assert not put_probe(model, train, [])
