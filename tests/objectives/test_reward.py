"""The loss of a reward model is Bradley-Terry's: in numpy and fp64, from the score of each answer alone."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from tests.contracts.steps import gradient, moved, prepared
from tests.objectives.test_preference import assert_derived, sigmoid
from tests.tiny import preferences, rankings
from tunewright.prepare import Prepared


def ready_with(base: str, rows: Any, **options: Any) -> Prepared:
    return moved(prepared(base, rows, method="full", objective={"type": "reward", **options}))


def scores(ready: Prepared) -> list[list[float]]:
    """Each answer's score, fed by itself."""
    module = ready.model.module.eval()
    with torch.no_grad():
        return [
            [
                float(module(**{k: torch.tensor(v)[None] for k, v in part.inputs.items()}).logits[0, 0])
                for part in e.parts
            ]
            for e in ready.examples("train")
        ]


@pytest.mark.parametrize("base", ["bert", "gpt2"])
@pytest.mark.parametrize("rows", [preferences(9, margins=True), rankings(9)], ids=["pairs", "rankings"])
def test_the_loss_is_the_mean_over_the_pairs_of_a_ranking(base: str, rows: Any, tiny_base: Any) -> None:
    """With a margin of the row times the places between the two, one of the recipe, and scores kept round 0."""
    ready = ready_with(tiny_base(base), rows, margin=0.3, centring=0.05)
    terms, by_hand = gradient(ready)[0], []
    for row, score in zip(rows, scores(ready), strict=True):
        own = [
            (-np.log(sigmoid(score[i] - score[j] - 0.3 - row.get("margin", 0.0) * (j - i))), (score[i] + score[j]) ** 2)
            for i, j in combinations(range(len(score)), 2)
        ]
        by_hand.append(np.mean(own, axis=0))
    loss, centring = np.mean(by_hand, axis=0)
    assert terms["loss"] == pytest.approx(loss, rel=1e-6)
    assert terms["centring"] == pytest.approx(centring, rel=1e-6)


def test_gradients_are_finite_differences(tiny_base: Any) -> None:
    ready = ready_with(tiny_base("bert"), rankings(6), margin=0.3, centring=0.05)
    task, module, objective = ready.model.task, ready.model.module, ready.recipe.objective
    assert_derived(ready, ready.examples("train"), lambda batch: objective.terms(task, module, batch))


def test_a_ranking_of_three_counts_as_its_three_pairs(tiny_base: Any) -> None:
    """Each of them as a row gives the same loss, as there is one ranking."""
    prompt, (a, b, c) = "the fox ", ("had apples", "lived in a forest", "she")
    together = ready_with(tiny_base("bert"), [{"prompt": prompt, "answers": [a, b, c]}])
    apart = [{"prompt": prompt, "chosen": x, "rejected": y} for x, y in ((a, b), (a, c), (b, c))]
    expected = gradient(ready_with(tiny_base("bert"), apart))[0]
    assert gradient(together)[0] == pytest.approx(expected, rel=1e-6)


def test_an_encoder_reads_the_prompt_and_the_answer_as_a_pair(tiny_base: Any) -> None:
    ready = prepared(tiny_base("bert"), preferences(3), method="full", objective="reward")
    own = ready.model.processor(preferences(3)[1]["prompt"], preferences(3)[1]["rejected"])
    part = next(e for e in ready.examples("train") if e.source == "rows[1]").parts[1]
    assert {name: values.tolist() for name, values in part.inputs.items()} == dict(own)


def test_a_decoder_reads_the_tokens_of_a_language_model(tiny_base: Any) -> None:
    generating = prepared(tiny_base("llama"), preferences(3), method="full", objective="preference")
    judging = prepared(tiny_base("llama"), preferences(3), method="full", objective="reward")
    for one, other in zip(generating.examples("train"), judging.examples("train"), strict=True):
        for a, b in zip(one.parts, other.parts, strict=True):
            assert [*a.inputs["input_ids"][:1], *a.target] == b.inputs["input_ids"].tolist()
