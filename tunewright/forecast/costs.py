"""From a few probes to a whole run: what forward passes cost, by their number, positions and lengths.

A pass over B rows padded to T positions costs c₁ + c₂·B·T + c₃·B·T²: what every pass costs, matrix products, attention.
A step costs c₀ more: the optimizer. All c ≥ 0, fitted to the probes by relative error (non-negative least squares,
Lawson & Hanson 1974).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Passes:
    """Forward passes together: how many, their padded positions B·T, their attention B·T², the largest one's B·T."""

    count: int = 0
    positions: int = 0
    attention: int = 0
    largest: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(
            self.count + other.count,
            self.positions + other.positions,
            self.attention + other.attention,
            max(self.largest, other.largest),
        )


def passes(groups: Iterable[Sequence[int]], lengths: Sequence[int], packed: bool = False) -> Passes:
    """Of groups of rows that each share a pass; `packed` rows stand behind each other and are not padded."""
    total = Passes()
    for group in groups:
        longest = max(lengths[row] for row in group)
        rows, width = (1, sum(lengths[row] for row in group)) if packed else (len(group), longest)
        total += Passes(1, rows * width, rows * width**2, rows * width)
    return total


@dataclass(frozen=True)
class Rate:
    """What passes cost in one unit, from `fit`."""

    coefficients: tuple[float, ...]

    def of(self, work: Passes, steps: int = 0) -> float:
        return float(np.dot(self.coefficients, _features(work, steps)))


def fit(probes: Sequence[tuple[Passes, int, float]]) -> Rate:
    """The rate that explains probes, each (passes, optimizer steps among them, cost)."""
    from scipy.optimize import nnls

    costs_N = np.array([max(cost, 1e-9) for _, _, cost in probes])
    features_NF = np.array([_features(work, steps) for work, steps, _ in probes], dtype=np.float64)
    scale_F = np.maximum(features_NF.max(axis=0), 1.0)
    found_F, _ = nnls(features_NF / scale_F / costs_N[:, None], np.ones(len(probes)))
    return Rate(tuple((found_F / scale_F).tolist()))


def _features(work: Passes, steps: int) -> tuple[int, ...]:
    return steps, work.count, work.positions, work.attention


def spread_out(costs: Sequence[float]) -> list[int]:
    """Indices in the order in which they tell most: a small one, the largest, then ever finer quantiles of the rest."""
    order = np.argsort(np.asarray(costs), kind="stable")
    shares = [0.1, 1.0]
    for parts in (2, 4, 8, 16):
        shares += [i / parts for i in range(1, parts, 2)]
    places = [order[min(len(order) - 1, int(share * len(order)))] for share in shares]
    return list(dict.fromkeys(int(place) for place in places))
