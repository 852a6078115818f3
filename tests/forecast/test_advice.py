"""What is advised where a run does not fit."""

from __future__ import annotations

from typing import Any

from tunewright.forecast.advice import advice, least_needed
from tunewright.forecast.costs import Passes
from tunewright.forecast.forecast import Forecast
from tunewright.forecast.meter import Cost
from tunewright.forecast.probe import Probe, Steps
from tunewright.recipe import make_recipe

MIB = 2**20


def recipe(method: str = "lora", **training: Any) -> Any:
    return make_recipe({"base": "b", "data": "d.jsonl", "method": method, "training": training})


def found(room: int, peak: int = 3000 * MIB, fixed: int = 1000 * MIB, per_position: float = MIB) -> Forecast:
    probes = [Probe(Passes(1, 512, 512, 512), 1, Cost(1.0, 1.0, peak))]
    made = Forecast(Steps(probes, fixed, per_position, 2000, True), room=room)
    made.hold("training", peak)
    return made


def test_nothing_is_advised_where_it_fits() -> None:
    assert advice(recipe(), found(room=3001 * MIB), 100, 1000) == []


def test_smaller_passes() -> None:
    """1,000 MiB are left for passes that hold 1 MiB a position, and a tenth more: 896 positions, a multiple of 64."""
    first, second, *_ = advice(recipe(), found(room=2000 * MIB), 100, 1000)
    assert first.startswith("training.micro_batch_tokens: 896 fits") and "activation_checkpointing: true" in second


def test_a_row_that_is_too_long_by_itself() -> None:
    first, *_ = advice(recipe(), found(room=2000 * MIB), 1500, 1000)
    assert "longest row (1,500 tokens)" in first and "data.max_length: 896" in first


def test_what_the_rows_do_not_change() -> None:
    said = advice(recipe("full", activation_checkpointing=True), found(room=500 * MIB), 100, 100_000_000)
    assert not any("micro_batch_tokens" in line or "activation_checkpointing" in line for line in said)
    assert any("method: lora" in line for line in said) and any("adafactor" in line for line in said)
    assert not any("method: lora" in line for line in advice(recipe(), found(room=500 * MIB), 100, 1000))


def test_the_least_that_is_needed() -> None:
    assert least_needed(recipe(), 1000, 10) == 4 * 1000 + 12 * 10
    assert least_needed(recipe(precision="bf16"), 1000, 10) == 2 * 1000 + 12 * 10
    assert least_needed(recipe("full", precision="bf16"), 1000, 1000) == 16 * 1000
    assert least_needed(recipe("full", optimizer="adafactor"), 1000, 1000) == 8 * 1000
