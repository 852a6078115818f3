"""A linear probe: the last layer of a classifier's head alone, fitted to the features of the frozen model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.batches import Example
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn

ROWS = 10_000
"""So many training rows at most are worth their forward pass."""

STRENGTHS = (0.01, 0.1, 1.0, 10.0)
"""C of the logistic regression, from strongly to weakly regularised."""


def put_probe(model: Model, train: Sequence[Example], validation: Sequence[Example]) -> bool:
    """Put a logistic regression on the features of the training rows into a classifier's last layer, in place.

    C is the smallest of those that are right most often on the validation rows, and 1 without any. A row counts as its
    weight says, a soft label as its likeliest class; the objective's class weights are not looked at.

    Returns:
        whether there is such a layer, rows of two classes or more, and features that are finite.
    """
    layer = model.task.last_layer(model.module) if hasattr(model.task, "last_layer") else None
    train, validation = _labelled(train), _labelled(validation)
    if layer is None or len(set(_gold(train))) < 2:
        return False
    features_NH, weight_N = model.task.features(model, train), np.array([e.weight[0] for e in train])  # type: ignore[attr-defined]
    if not np.isfinite(features_NH).all():
        return False
    fits = [_fit(features_NH, _gold(train), weight_N, c) for c in (STRENGTHS if validation else (1.0,))]
    if validation:
        validation_NH = model.task.features(model, validation)  # type: ignore[attr-defined]
        fits.sort(key=lambda fit: -fit.score(validation_NH, _gold(validation)))  # stable
    _put(layer, *_affine(fits[0], layer.out_features))
    return True


def _labelled(examples: Sequence[Example]) -> list[Example]:
    return [e for e in examples if e.trained]


def _gold(examples: Sequence[Example]) -> list[int]:
    return [int(e.target.argmax() if e.target.dtype.kind == "f" else e.target[0]) for e in examples]


def _fit(features_NH: np.ndarray, gold_N: Sequence[int], weight_N: np.ndarray, c: float) -> Any:
    """Features are scaled first, so that C means the same for every model and the fit converges."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fit = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    return fit.fit(features_NH, gold_N, logisticregression__sample_weight=weight_N)


def _affine(fit: Any, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The fit as W [C, H] and b [C] on features that are not scaled. A class without rows is never answered."""
    scaler, regression = fit
    coefficient_KH, intercept_K = regression.coef_ / scaler.scale_, regression.intercept_
    intercept_K = intercept_K - coefficient_KH @ scaler.mean_
    if len(regression.classes_) == 2:  # one sigmoid for the second of them, which is a softmax over ∓z/2
        coefficient_KH = np.concatenate([-coefficient_KH, coefficient_KH]) / 2
        intercept_K = np.concatenate([-intercept_K, intercept_K]) / 2
    weight_CH, bias_C = np.zeros((classes, coefficient_KH.shape[1])), np.full(classes, -np.inf)
    weight_CH[regression.classes_], bias_C[regression.classes_] = coefficient_KH, intercept_K
    return weight_CH, bias_C


def _put(layer: nn.Linear, weight_CH: np.ndarray, bias_C: np.ndarray) -> None:
    """The heads of decoders have no bias until now."""
    from torch import nn

    like = layer.weight
    layer.weight = nn.Parameter(like.new_tensor(weight_CH))
    layer.bias = nn.Parameter(like.new_tensor(bias_C))
