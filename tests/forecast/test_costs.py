"""The sums from probes to a run."""

from __future__ import annotations

import numpy as np
import pytest

from tunewright.forecast.costs import Passes, Rate, fit, passes, spread_out


def test_passes_are_padded_or_packed() -> None:
    lengths = [10, 4, 6]
    assert passes([[0, 1], [2]], lengths) == Passes(2, 20 + 6, 2 * 100 + 36, 20)
    assert passes([[0, 1], [2]], lengths, packed=True) == Passes(2, 14 + 6, 14**2 + 36, 14)
    assert passes([], lengths) == Passes()


def test_a_law_is_found_again() -> None:
    law = Rate((0.05, 0.002, 1e-4, 2e-7))
    random = np.random.default_rng(0)
    works = [passes([range(n)] * (1 + n % 3), [int(t)] * n) for n, t in enumerate(random.integers(8, 400, 8), 1)]
    found = fit([(work, 1, law.of(work, 1)) for work in works])
    far = passes([range(30), range(20)], [250] * 30)
    assert found.of(far, 1) == pytest.approx(law.of(far, 1), rel=1e-6)


def test_noise_never_makes_a_cost_negative() -> None:
    probes = [(Passes(1, n, n * 8, n), 1, cost) for n, cost in ((100, 1.3), (200, 1.0), (400, 1.1))]
    assert min(fit(probes).coefficients) >= 0
    assert fit(probes[:1]).of(Passes(1, 100, 800, 100), 1) == pytest.approx(1.3), "a single probe is explained"


def test_a_large_probe_does_not_outweigh_the_small_ones() -> None:
    """Errors are relative: of two probes that contradict each other, neither is missed by more than the other."""
    low, high = Passes(1, 10, 0, 10), Passes(1, 1000, 0, 1000)
    found = fit([(low, 0, 2.0), (low, 0, 1.0), (high, 0, 100.0)])
    assert 1.0 < found.of(low) < 2.0 and found.of(high) == pytest.approx(100, rel=0.05)


def test_the_order_of_probes() -> None:
    costs = list(range(100, 0, -1))
    found = spread_out(costs)
    assert costs[found[0]] == 11 and costs[found[1]] == 100 and costs[found[2]] == 51
    assert sorted(costs[i] for i in found[3:5]) == [26, 76]
    assert len(found) == len(set(found)) and spread_out([3.0]) == [0] and sorted(spread_out([1.0, 1.0])) == [0, 1]
