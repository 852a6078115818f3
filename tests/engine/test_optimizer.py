"""Schedules at their corners, and what each optimizer is given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunewright.engine.config import OPTIMIZERS, TrainingConfig
from tunewright.engine.device import auto_batch, auto_learning_rate
from tunewright.engine.optimizer import build_optimizer, learning_rate, set_rate
from tunewright.methods import Full, LoRA

SCHEDULES = ("cosine", "linear", "constant", "wsd")


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{"learning_rate": 1.0, "warmup": 10, **changes})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_climbs_to_its_peak_at_the_end_of_the_warm_up(schedule: Any) -> None:
    chosen = config(schedule=schedule)
    assert learning_rate(1, 100, chosen) == pytest.approx(0.1)
    assert learning_rate(5, 100, chosen) == pytest.approx(0.5)
    assert learning_rate(10, 100, chosen) == 1.0
    assert learning_rate(11, 100, chosen) == 1.0


@pytest.mark.parametrize(
    "schedule, middle, last",
    [
        ("constant", 1.0, 1.0),
        ("linear", 0.5, 1 / 90),
        ("cosine", 0.5, 0.5 * (1 + math.cos(math.pi * 89 / 90))),
        ("wsd", 1.0, 1 - math.sqrt((89 / 90 - 0.8) / 0.2)),
    ],
)
def test_the_rate_falls(schedule: Any, middle: float, last: float) -> None:
    chosen = config(schedule=schedule)
    assert learning_rate(56, 100, chosen) == pytest.approx(middle)
    assert learning_rate(100, 100, chosen) == pytest.approx(last)


def test_a_warm_up_below_1_is_a_share_of_the_steps() -> None:
    assert [learning_rate(s, 40, config(warmup=0.1)) for s in (1, 2, 4)] == [0.25, 0.5, 1.0]
    assert learning_rate(1, 40, config(warmup=0)) == 1.0


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 60),
    warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 80)),
)
def test_the_rate_is_never_below_0_nor_above_its_peak(schedule: Any, total: int, warmup: float) -> None:
    """Also where the warm-up ends between two steps."""
    rates = [learning_rate(step, total, config(schedule=schedule, warmup=warmup)) for step in range(1, total + 1)]
    assert all(0 < rate <= 1 for rate in rates)


def test_auto_learning_rate_follows_the_width() -> None:
    assert auto_learning_rate(2e-4, 4096) == 2e-4
    assert auto_learning_rate(2e-4, 1024) == 4e-4
    assert auto_learning_rate(2e-5, 384) == 6.5e-5


@pytest.mark.parametrize("rows, batch", [(1, 1), (39, 1), (40, 2), (200, 10), (320, 16), (10**6, 16)])
def test_auto_batch_leaves_20_steps_an_epoch(rows: int, batch: int) -> None:
    assert auto_batch(rows) == batch


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_takes_a_step_downhill(name: Any) -> None:
    if name == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(96, 64))
    bias = torch.nn.Parameter(torch.randn(96))
    optimizer = build_optimizer(
        {"w.weight": weight, "w.bias": bias}, config(optimizer=name, learning_rate=0.01), Full()
    )
    before = loss = (weight.square().sum() + bias.square().sum()).detach()
    for _ in range(5):
        optimizer.zero_grad()
        loss = weight.square().sum() + bias.square().sum()
        loss.backward()
        set_rate(optimizer, 0.01)
        optimizer.step()
    assert loss < before


def test_only_matrices_decay() -> None:
    parameters = {"w.weight": torch.nn.Parameter(torch.ones(2, 2)), "w.bias": torch.nn.Parameter(torch.ones(2))}
    optimizer = build_optimizer(parameters, config(weight_decay=0.1), Full())
    assert {g["params"][0].ndim: g["weight_decay"] for g in optimizer.param_groups} == {2: 0.1, 1: 0.0}


def test_lora_plus_trains_b_faster() -> None:
    names = ["q.lora_A.default.weight", "q.lora_B.default.weight"]
    optimizer = build_optimizer({n: torch.nn.Parameter(torch.ones(2, 2)) for n in names}, config(), LoRA(plus_ratio=16))
    set_rate(optimizer, 1e-3)
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 1.6e-2]
