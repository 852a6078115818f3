"""Advantages against sums that are written out, as the papers have them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.objectives._advantages import TINY, adapted, generalized, grouped, leave_one_out, whitened

numbers = st.floats(-5, 5, allow_nan=False)
groups = st.integers(1, 4).flatmap(
    lambda p: st.integers(2, 6).flatmap(
        lambda g: st.lists(numbers, min_size=p * g, max_size=p * g).map(lambda flat: np.array(flat).reshape(p, g))
    )
)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=9), st.floats(0.1, 1), st.floats(0, 1))
def test_gae_is_the_double_sum(steps: list[tuple[float, float]], gamma: float, lam: float) -> None:
    """A_t = Σ_l (γλ)^l δ_{t+l}, δ_t = r_t + γ V_{t+1} - V_t; with λ = 1 the return is Σ_l γ^l r_{t+l}."""
    reward, value = (np.array(column) for column in zip(*steps, strict=True))
    count, after = len(value), [*value[1:], 0.0]
    advantage, wanted = generalized(reward, value, gamma, lam)
    for t in range(count):
        deltas = [(gamma * lam) ** (k - t) * (reward[k] + gamma * after[k] - value[k]) for k in range(t, count)]
        assert advantage[t] == pytest.approx(sum(deltas), abs=1e-9)
        assert wanted[t] == pytest.approx(sum(deltas) + value[t], abs=1e-9)
    whole = generalized(reward, value, gamma, 1.0)[1]
    assert whole[0] == pytest.approx(sum(gamma**k * reward[k] for k in range(count)), abs=1e-9)


@given(groups)
def test_groups_are_centred_and_scaled(reward_PG: np.ndarray) -> None:
    for rewards, centred, scaled in zip(reward_PG, grouped(reward_PG, False), grouped(reward_PG, True), strict=True):
        mean = sum(rewards) / len(rewards)
        deviation = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
        np.testing.assert_allclose(centred, [r - mean for r in rewards], atol=1e-9)
        np.testing.assert_allclose(scaled, [(r - mean) / (deviation + TINY) for r in rewards], atol=1e-6)


@given(groups)
def test_an_answer_is_compared_with_the_others(reward_PG: np.ndarray) -> None:
    for rewards, found in zip(reward_PG, leave_one_out(reward_PG), strict=True):
        for i, reward in enumerate(rewards):
            assert found[i] == pytest.approx(reward - np.mean(np.delete(rewards, i)), abs=1e-9)


@given(st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=5))
def test_whitened_values_have_mean_0_and_deviation_1(values: list[list[float]]) -> None:
    found = whitened([np.array(one) for one in values])
    assert [len(one) for one in found] == [len(one) for one in values]
    flat, before = np.concatenate(found), np.concatenate([np.array(one) for one in values])
    assert flat.mean() == pytest.approx(0, abs=1e-4)
    if before.std() > 1e-3:
        assert flat.std() == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(flat, (before - before.mean()) / before.std(), atol=1e-3)


@pytest.mark.parametrize(
    ("kl", "after"), [(6.0, 0.5), (6.6, 0.505), (60.0, 0.51), (5.4, 0.495), (0.0, 0.49), (-3.0, 0.49)]
)
def test_the_coefficient_follows_kl_by_at_most_a_fiftieth_a_draw(kl: float, after: float) -> None:
    """0.5 towards a KL of 6 nats: by a tenth of how far off it is, and that is cut to a fifth (Ziegler et al., 2.2)."""
    assert adapted(0.5, kl, 6.0) == pytest.approx(after)
