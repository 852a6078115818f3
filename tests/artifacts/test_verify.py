"""The comparison of two models' answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from tunewright.artifacts.apart.foreign import Answers
from tunewright.artifacts.verify import EXACT, Limits, compare, effect_of, limits_for

OPEN = Limits(top1=0.0, logits=1e3, kl=1e3)


@pytest.fixture
def trained() -> Answers:
    draw = np.random.default_rng(0)
    rows = [draw.normal(size=(length, 20)).astype(np.float32) for length in (3, 30, 17)]
    return Answers(rows, texts=[[1, 2], [3]], prompts=[[4], [5, 6]])


def changed(answers: Answers, **changes: Any) -> Answers:
    """The same answers with one logit, text or prompt of another value."""
    rows = [row.copy() for row in answers.logits]
    if "logit" in changes:
        rows[1][4, 7] += changes.pop("logit")
    return replace(answers, logits=rows, **changes)


def test_the_same_answers_agree(trained: Answers) -> None:
    found = compare(trained, changed(trained), "single_label", EXACT)
    assert found.failures == [] and found.figures == {
        "positions": 50, "max_logit_difference": 0, "kl": 0, "top1_agreement": 1, "top1_where_decided": 1,
        "same_prompt": 1, "same_text": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logit": 0.01}, ["An output differs by 0.01"]),
        ({"logit": 20.0}, ["An output differs by 20", "without near ties", "The answers diverge by"]),
        ({"logit": np.nan}, ["An output differs by nan", "without near ties", "The answers diverge by nan nats"]),
        ({"texts": [[1, 2], [3, 3]]}, ["the same text behind 50% of the prompts only"]),
        ({"prompts": [[4], [5]]}, ["the trained tokens of 50% of the prompts only"]),
    ],
)
def test_what_differs_is_said(trained: Answers, changes: dict[str, Any], said: list[str]) -> None:
    failures = compare(trained, changed(trained, **changes), "single_label", EXACT).failures
    assert len(failures) == len(said) and all(words in line for words, line in zip(said, failures, strict=True))


def test_another_shape_is_said(trained: Answers) -> None:
    other = replace(trained, logits=[row[:, :-1] for row in trained.logits])
    assert "another shape" in compare(trained, other, "single_label", EXACT).failures[0]


def test_texts_may_differ_where_rounding_decides(trained: Answers) -> None:
    other = changed(trained, texts=[[], []])
    found = compare(trained, other, "single_label", limits_for("merged", "bf16", routed=False))
    assert found.figures["same_text"] == 0 and found.failures == []


def test_a_near_tie_may_be_decided_otherwise_and_a_clear_case_may_not() -> None:
    limits = replace(OPEN, top1=1.0, logits=0.1)
    trained = Answers([np.array([[2.0, 1.9, 0.0], [2.0, 1.0, 0.0]])], [], [])
    for rows, plain, decided in (([[1.9, 2.0, 0], [2, 1, 0]], 0.5, 1.0), ([[2, 1.9, 0], [1, 2, 0]], 0.5, 0.0)):
        found = compare(trained, Answers([np.array(rows, dtype=float)], [], []), "single_label", limits)
        assert (found.figures["top1_agreement"], found.figures["top1_where_decided"]) == (plain, decided)
        assert any("likeliest" in line for line in found.failures) is (decided < 1)


def test_divergence_is_that_of_scipy(trained: Answers) -> None:
    other = changed(trained, logit=2.0)
    p, q = (softmax(np.concatenate(one.logits).astype(float), axis=1) for one in (trained, other))
    found = compare(trained, other, "single_label", OPEN)
    assert found.figures["kl"] == pytest.approx(entropy(p, q, axis=1).mean())


def test_several_labels_are_compared_each() -> None:
    one, other = Answers([np.array([1.0, -1.0])], [], [[1]]), Answers([np.array([1.0, 1.0])], [], [[1]])
    found = compare(one, other, "multi_label", OPEN)
    both = [1 / (1 + np.exp(1)), 1 / (1 + np.exp(-1))]
    assert found.figures["top1_agreement"] == 0.5
    assert found.figures["kl"] == pytest.approx(entropy(both, both[::-1]) / 2)


def test_a_value_has_no_likeliest_answer() -> None:
    found = compare(Answers([np.array([1.0])], [], [[1]]), Answers([np.array([1.1])], [], [[1]]), "regression", EXACT)
    assert found.figures.keys() == {"positions", "max_logit_difference", "same_prompt"} and len(found.failures) == 1


def test_a_router_has_more_room_but_not_where_nothing_is_rounded() -> None:
    assert limits_for("merged", "bf16", routed=True).logits > limits_for("merged", "bf16", routed=False).logits
    assert limits_for("merged", "fp32", routed=True) is EXACT


# The share of what tuning changed


def tuned(
    share: float, noise: float, rows: int = 200, change: float = 0.3, logits: int = 120
) -> tuple[Answers, Answers, Answers]:
    """A base, what tuning made of it, and an export that rounds and has a share of the change."""
    draw = np.random.default_rng(1)
    base, changed, rounding = (draw.normal(size=(rows, logits)) * size for size in (3, change, noise))
    exported = base + share * changed + rounding
    return tuple(Answers(list(logits), [], []) for logits in (base, base + changed, exported))  # type: ignore[return-value]


def test_a_tenth_of_the_adapter_is_missed_among_rounding() -> None:
    """Rounding is as large as the fault: no other figure sees it."""
    limits = limits_for("merged", "bf16", routed=False)
    for share, failures in ((1.0, 0), (0.9, 1), (1.1, 1)):
        base, trained, exported = tuned(share, noise=0.03)
        found = compare(trained, exported, "single_label", limits, base)
        assert found.figures["effect"] == pytest.approx(share, abs=0.01) and len(found.failures) == failures
        assert compare(trained, exported, "single_label", limits).failures == []
    assert f"It has {found.figures['effect']:.1%} of what tuning changed" in found.failures[0]


@pytest.mark.parametrize(("rows", "change", "noise"), [(2, 0.01, 0.03), (200, 0.001, 0.03), (3, 0.3, 0.1)])
def test_few_rows_and_small_changes_fail_no_faithful_export(rows: int, change: float, noise: float) -> None:
    limits = replace(limits_for("merged", "bf16", routed=False), kl=1.0, top1=0.0, logits=1.0)
    base, trained, exported = tuned(1.0, noise, rows, change)
    assert compare(trained, exported, "single_label", limits, base).failures == []


def test_a_classifier_has_too_few_logits_for_a_limit() -> None:
    base, trained, exported = tuned(0.9, noise=0.03, logits=5)
    found = compare(trained, exported, "single_label", limits_for("merged", "bf16", routed=False), base)
    assert found.figures["effect"] < 0.95 and "effect" not in found.limits


def test_what_all_logits_have_in_common_is_no_effect() -> None:
    base, trained, _ = tuned(1.0, 0.0)
    shifted = [row + 5.0 for row in trained.logits]
    stacked = [np.stack(rows) for rows in (trained.logits, shifted, base.logits)]
    assert effect_of(*stacked, "single_label")[0] == pytest.approx(1.0)  # type: ignore[index]
    assert abs(effect_of(*stacked, "multi_label")[0] - 1) > 0.05  # type: ignore[index]
    assert effect_of(stacked[0], stacked[1], stacked[0], "single_label") is None, "tuning changed nothing"
