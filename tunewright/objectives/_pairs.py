"""The pairs of a ranking: each answer beside every worse one, all pairs of a ranking counting as one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Pairs(NamedTuple):
    """P pairs of answers: which is better, which worse, and what share of its ranking the pair is, each [P]."""

    better: Tensor
    worse: Tensor
    share: Tensor


def pairs(element_S: Tensor) -> Pairs:
    """Of answers that stand best first within their element. A ranking of K has K (K - 1) / 2 pairs."""
    together_SS = element_S[:, None] == element_S[None, :]
    better_P, worse_P = together_SS.triu(1).nonzero(as_tuple=True)
    count_P = element_S[better_P].bincount()[element_S[better_P]]
    return Pairs(better_P, worse_P, 1.0 / count_P)
