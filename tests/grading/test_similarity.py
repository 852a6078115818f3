"""Similarities, against numbers worked out by hand and against other code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.gleu_score import sentence_gleu

from tunewright.grading.similarity import METRICS, Metric, cosines, similarities

CAT = ("the cat sat on a mat", "the cat is on the mat")


def alike(metric: Metric, text: str, reference: str) -> float:
    return similarities(metric, [text], [reference])[0]


@pytest.mark.parametrize(
    ("metric", "texts", "value"),
    [
        ("fuzzy_match", ("lewenstein", "levenshtein"), 1 - 3 / 21),  # w out, v and h in
        ("fuzzy_match", ("abc", "xyz"), 0),
        # 1-grams: the cat on mat, 4 of 6; 2-grams: "the cat", 1 of 5; no 3-gram of 4, no 4-gram of 3
        ("gleu", CAT, 5 / 18),
        ("gleu", ("Yes.", "yes."), 1 / 3),  # of Yes, the full stop and the pair of them
        ("gleu", ("a a a a", "a"), 1 / 10),
        ("rouge_1", CAT, 4 / 6),
        ("rouge_2", CAT, 1 / 5),
        ("rouge_3", CAT, 0),
        ("rouge_l", CAT, 4 / 6),  # the cat … on … mat
        ("rouge_l", ("b a", "a x b"), 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("rouge_1", ("Größe, 猫!", "größe 犬"), 1 / 2),
        ("rouge_5", ("a b c d e f", "A B C D E"), 2 * (1 / 2) * 1 / (1 / 2 + 1)),
        # exponential smoothing halves for each order without a match: 1/2 of 1 in 4, then 1/4 of 1 in 3
        ("bleu", CAT, (4 / 6 * 1 / 5 * 1 / (2 * 4) * 1 / (4 * 3)) ** (1 / 4)),
        ("bleu", ("the cat", "the cat sat on"), math.exp(1 - 4 / 2)),  # all right, and half too short
        ("bleu", ("yes", "yes"), 1),
        ("bleu", ("no", "yes"), 0),
    ],
)
def test_worked_out_by_hand(metric: Metric, texts: tuple[str, str], value: float) -> None:
    assert math.isclose(alike(metric, *texts), value, rel_tol=1e-9, abs_tol=1e-12)


words = st.lists(st.sampled_from(["a", "b", "c", "d"]), min_size=1, max_size=12)


@given(words, words)
def test_gleu_is_that_of_nltk(text: Sequence[str], reference: Sequence[str]) -> None:
    assert math.isclose(alike("gleu", " ".join(text), " ".join(reference)), sentence_gleu([reference], text))


@pytest.mark.parametrize("metric", [metric for metric in METRICS if metric != "cosine"])
@given(st.text(max_size=20), st.text(max_size=20))
def test_all_lie_between_0_and_1(metric: Metric, text: str, reference: str) -> None:
    assert 0 <= alike(metric, text, reference) <= 1
    same = "one, two three four five six " + text
    assert alike(metric, same, same) == pytest.approx(1)


def test_cosine_of_embeddings() -> None:
    vectors = {"x": [1.0, 0.0], "y": [3.0, 4.0], "back": [-1.0, 0.0], "none": [0.0, 0.0]}
    texts, references = ["x", "x", "x", "none"], ["y", "x", "back", "x"]
    assert cosines(lambda given: [vectors[t] for t in given], texts, references) == pytest.approx([0.6, 1, 0, 0])
