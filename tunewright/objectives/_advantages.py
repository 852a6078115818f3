"""How much better an answer, or a token of it, was than expected: the advantages of policy-gradient methods.

Plain functions of numbers. S answers, G answers to each of P prompts; a list holds an array for each answer [tokens].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray
KL_GAIN = 0.1
"""K_β, by which the KL coefficient follows its target."""
TINY = 1e-4
"""Added to a standard deviation before it divides, since all answers to a prompt may have the same reward."""


def grouped(reward_PG: Array, scaled: bool) -> Array:
    """r - mean of the group, over its standard deviation where `scaled` (GRPO, arXiv 2402.03300, section 4.1.2)."""
    centred_PG = reward_PG - reward_PG.mean(1, keepdims=True)
    return centred_PG / (reward_PG.std(1, ddof=1, keepdims=True) + TINY) if scaled else centred_PG


def leave_one_out(reward_PG: Array) -> Array:
    """r - mean of the others in the group (RLOO, arXiv 2402.14740, equation 8)."""
    others = reward_PG.shape[1] - 1
    return reward_PG - (reward_PG.sum(1, keepdims=True) - reward_PG) / others


def whitened(values: Sequence[Array]) -> list[Array]:
    """All values of a step minus their mean, over their standard deviation."""
    flat = np.concatenate([np.atleast_1d(value) for value in values])
    return [(value - flat.mean()) / (flat.std() + 1e-8) for value in values]


def generalized(reward: Array, value: Array, gamma: float, lam: float) -> tuple[Array, Array]:
    """GAE (arXiv 1506.02438, equation 16) of one answer's tokens: (advantages, returns), each [tokens].

    δ_t = r_t + γ V_{t+1} - V_t, with V = 0 behind the last token; A_t = δ_t + γ λ A_{t+1}; the return is A_t + V_t.
    """
    advantage = np.zeros_like(value)
    ahead = following = 0.0
    for t in reversed(range(len(value))):
        delta = reward[t] + gamma * following - value[t]
        ahead = delta + gamma * lam * ahead
        advantage[t], following = ahead, value[t]
    return advantage, advantage + value


def adapted(coefficient: float, kl: float, target: float) -> float:
    """The KL coefficient for the next draw (Ziegler et al., arXiv 1909.08593, section 2.2).

    e = clip(KL / target - 1, -0.2, 0.2); β ← β (1 + K e), K = 0.1: by up to 2 % a draw.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + KL_GAIN * error)
