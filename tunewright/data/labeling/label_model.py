"""From the votes of rules to a probability for each class.

Shapes: S distinct sets of votes (most rows share theirs with others), V votes in all of them, R rules, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

Ballot = tuple[tuple[int, int], ...]
"""The votes that a row has: (rule, class), in the order of the rules."""


@dataclass(frozen=True)
class Votes:
    """Distinct ballots, how many rows have each, and how many rules and classes there are."""

    ballots: Sequence[Ballot]
    rows_S: np.ndarray
    rules: int
    classes: int

    @cached_property
    def place(self) -> np.ndarray:
        """The ballot that each vote is in."""
        return np.repeat(np.arange(len(self.ballots)), [len(ballot) for ballot in self.ballots])

    @cached_property
    def rule(self) -> np.ndarray:
        return np.array([rule for ballot in self.ballots for rule, _ in ballot], dtype=np.int64)

    @cached_property
    def label(self) -> np.ndarray:
        return np.array([label for ballot in self.ballots for _, label in ballot], dtype=np.int64)

    def summed(self, value_V: np.ndarray) -> np.ndarray:
        """Sums over the votes of each ballot, [S]."""
        return np.bincount(self.place, value_V, minlength=len(self.ballots))

    def by_class(self, value_V: np.ndarray) -> np.ndarray:
        """Sums over the votes of each ballot for each class, [S, K]."""
        size = len(self.ballots) * self.classes
        return np.bincount(self.place * self.classes + self.label, value_V, size).reshape(-1, self.classes)

    def by_rule(self, value_V: np.ndarray) -> np.ndarray:
        """Sums over the rows that each rule votes on, [R]."""
        return np.bincount(self.rule, value_V * self.rows_S[self.place], self.rules)


@dataclass(frozen=True)
class Fitted:
    """What a label model makes of votes.

    Attributes:
        soft_SK: a distribution over the classes for each ballot; all 0 where it has nothing to say.
        accuracy_R: how often each rule is right, as the model believes; None where it does not ask.
    """

    soft_SK: np.ndarray
    accuracy_R: np.ndarray | None = None


def majority(votes: Votes, ties: Literal["share", "abstain"] = "share") -> Fitted:
    """Each rule has one vote, and most of them decide. A tie is shared among its classes, or decides nothing."""
    counts_SK = votes.by_class(np.ones(len(votes.rule)))
    top_S1 = counts_SK.max(-1, keepdims=True)
    first_SK = (counts_SK == top_S1) & (top_S1 > 0)
    winners_S1 = first_SK.sum(-1, keepdims=True)
    if ties == "abstain":
        first_SK = first_SK & (winners_S1 == 1)
    return Fitted(first_SK / np.maximum(winners_S1, 1))


def em(
    votes: Votes,
    prior: tuple[float, float],
    balance_K: np.ndarray | None = None,
    steps: int = 500,
    tolerance: float = 1e-6,
) -> Fitted:
    """One coin a rule: it is right with a probability of its own, and where it is wrong, any other class is as likely.

    The model of Dawid and Skene (Applied Statistics 28, 1979) with one parameter a rule in place of a K × K table,
    fitted by expectation and maximization; each accuracy has a beta prior and is its posterior's mode:

        p_sk ∝ π_k · Π_r [a_r if r votes k else (1 − a_r) / (K − 1)]       over the rules that vote on s
        a_r  = (Σ_s n_s · p_s,vote + α − 1) / (Σ_s n_s + α + β − 2)         over the ballots in which r votes

    Args:
        prior: (α, β), both at least 1.
        balance_K: how frequent the classes are; None: all alike.
        tolerance: it ends when no accuracy moves by more.
    """
    alpha, beta = prior
    balance_K = np.full(votes.classes, 1 / votes.classes) if balance_K is None else balance_K
    cast_R = votes.by_rule(np.ones(len(votes.rule)))
    accuracy_R = np.full(votes.rules, alpha / (alpha + beta))
    for _ in range(steps):
        soft_SK = _posterior(votes, accuracy_R, balance_K)
        right_R = votes.by_rule(soft_SK[votes.place, votes.label])
        before_R, accuracy_R = accuracy_R, (right_R + alpha - 1) / np.maximum(cast_R + alpha + beta - 2, 1e-12)
        if np.abs(accuracy_R - before_R).max(initial=0.0) < tolerance:
            break
    soft_SK = _posterior(votes, accuracy_R, balance_K)
    silent_S = np.array([not ballot for ballot in votes.ballots])
    return Fitted(np.where(silent_S[:, None], 0.0, soft_SK), accuracy_R)


def _posterior(votes: Votes, accuracy_R: np.ndarray, balance_K: np.ndarray) -> np.ndarray:
    right_R = np.log(accuracy_R.clip(1e-6, 1 - 1e-6))
    wrong_R = np.log((1 - accuracy_R).clip(1e-6, 1 - 1e-6) / max(1, votes.classes - 1))
    wrong_S = votes.summed(wrong_R[votes.rule])
    log_SK = wrong_S[:, None] + votes.by_class((right_R - wrong_R)[votes.rule]) + np.log(balance_K.clip(1e-12))
    found_SK = np.exp(log_SK - log_SK.max(-1, keepdims=True))
    return found_SK / found_SK.sum(-1, keepdims=True)
