"""What one job could take from all others is refused when it is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from tunewright.service.bounds import MOST, refuse_excess
from tunewright.service.errors import Refused
from tunewright.service.recipes import refuse_foreign, refuse_untrusted


@pytest.mark.parametrize(
    "recipe, param",
    [
        ({"method": {"type": "lora", "rank": 1_000_000}}, "recipe.method.rank"),
        ({"training": {"epochs": 1e9}}, "recipe.training.epochs"),
        ({"training": {"max_steps": 10**9}}, "recipe.training.max_steps"),
        ({"method": {"targets": "(.*.*)+x"}}, "recipe.method.targets"),
        ({"objective": {"rewards": [{"type": "pattern", "pattern": "a" * 600}]}}, "recipe.objective.rewards.0.pattern"),
    ],
)
def test_too_much_is_refused_by_name(recipe: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as found:
        refuse_untrusted(recipe)
    assert found.value.status == 400 and found.value.param == param


def test_what_a_job_may_have_is_let_through() -> None:
    method = {"type": "lora", "rank": MOST["rank"], "targets": ["q_proj", "layers.0.up"], "use_dora": True}
    refuse_excess({"method": method, "training": {"epochs": 50, "batch": "auto"}, "data": {"max_length": None}})
    refuse_excess({"method": {"targets": "all-linear"}})


def test_graders_are_bounded_too() -> None:
    with pytest.raises(Refused, match="more than 500"):
        refuse_foreign({"type": "multi", "graders": {"a": {"type": "pattern", "pattern": "x" * 501}}})
