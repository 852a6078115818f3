"""Soft labels out of votes, against the formulas written out row by row."""

from __future__ import annotations

import numpy as np
import pytest

from tunewright.data.labeling.label_model import Ballot, Votes, em, majority


def some_votes(seed: int = 0, rules: int = 6, classes: int = 3, ballots: int = 40) -> Votes:
    chance = np.random.default_rng(seed)
    found: dict[Ballot, int] = {(): 3}
    while len(found) < ballots:
        ballot = tuple((r, int(chance.integers(classes))) for r in range(rules) if chance.random() < 0.4)
        found[ballot] = int(chance.integers(1, 9))
    return Votes(list(found), np.array(list(found.values()), float), rules, classes)


def test_majority_and_its_ties() -> None:
    ballots = [((0, 1), (1, 1), (2, 0)), ((0, 0), (1, 2)), (), ((2, 2),)]
    votes = Votes(ballots, np.ones(4), 3, 3)
    shared = [[0, 1, 0], [0.5, 0, 0.5], [0, 0, 0], [0, 0, 1]]
    np.testing.assert_array_equal(majority(votes).soft_SK, shared)
    np.testing.assert_array_equal(majority(votes, "abstain").soft_SK, [shared[0], [0, 0, 0], *shared[2:]])


@pytest.mark.parametrize("balance", [None, [0.2, 0.5, 0.3]])
def test_em_is_the_formula_row_by_row(balance: list[float] | None) -> None:
    votes, (alpha, beta) = some_votes(), (8.0, 4.0)
    pi = np.array(balance) if balance else np.full(3, 1 / 3)
    accuracy = np.full(6, alpha / (alpha + beta))
    for _ in range(2000):
        posterior = []
        for ballot in votes.ballots:
            p = pi.copy()
            for rule, vote in ballot:
                p = p * [accuracy[rule] if k == vote else (1 - accuracy[rule]) / 2 for k in range(3)]
            posterior.append(p / p.sum())
        for rule in range(6):
            cast = [
                (n, p[dict(b)[rule]])
                for b, n, p in zip(votes.ballots, votes.rows_S, posterior, strict=True)
                if rule in dict(b)
            ]
            accuracy[rule] = (sum(n * p for n, p in cast) + alpha - 1) / (sum(n for n, _ in cast) + alpha + beta - 2)
    found = em(votes, (alpha, beta), np.array(balance) if balance else None, steps=5000, tolerance=1e-12)
    np.testing.assert_allclose(found.accuracy_R, accuracy, atol=1e-6)
    np.testing.assert_allclose(found.soft_SK[1:], posterior[1:], atol=1e-6)
    assert not found.soft_SK[0].any()  # nobody voted


def test_em_finds_who_can_be_trusted() -> None:
    """Three good rules and three that guess: the good ones' accuracies are found, and so more labels are right."""
    chance = np.random.default_rng(0)
    truth, right = chance.integers(3, size=4000), [0.9, 0.85, 0.8, 0.4, 0.35, 0.34]
    rows = [
        tuple((r, int(t if chance.random() < a else (t + chance.integers(1, 3)) % 3)) for r, a in enumerate(right))
        for t in truth
    ]
    ballots = list(dict.fromkeys(rows))
    place = {ballot: i for i, ballot in enumerate(ballots)}
    index = np.array([place[row] for row in rows])
    votes = Votes(ballots, np.bincount(index).astype(float), 6, 3)
    fitted = em(votes, (70, 30))
    assert fitted.accuracy_R is not None
    np.testing.assert_allclose(fitted.accuracy_R, right, atol=0.03)
    good, plain = (np.mean(f.soft_SK[index].argmax(-1) == truth) for f in (fitted, majority(votes)))
    assert good > plain + 0.03
