"""What trains of batch norms, bit for bit over whole runs; and that their rows go through them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tunewright as tw
from tests.contracts.steps import ALL, assert_same, gradient, prepared
from tests.runs import recipe
from tests.tiny import pictures
from tunewright.artifacts.batch_norm import batch_norms
from tunewright.errors import MethodError, RecipeError

TASK = "image-classification"
AFFINE, STATISTICS = ("weight", "bias"), ("running_mean", "running_var", "num_batches_tracked")


def moved(base: str, method: Any, folder: Path) -> dict[str, set[str]]:
    """Which tensors of each batch norm a run moved."""
    run = tw.train(recipe(base, folder, task=TASK, method=method, training={"epochs": 1}))
    before = dict(batch_norms(prepared(base, pictures(), task=TASK, method="head").model.module))
    after = dict(batch_norms(tw.load(run.folder).module))
    assert before.keys() == after.keys() and len(after) == 9
    return {
        name: {key for key in (*AFFINE, *STATISTICS) if not torch.equal(getattr(norm, key), getattr(before[name], key))}
        for name, norm in after.items()
    }


@pytest.mark.parametrize(
    ("policy", "moves"), [("train", {*AFFINE, *STATISTICS}), ("freeze_stats", {*AFFINE}), ("freeze", set())]
)
def test_what_moves_of_a_batch_norm(policy: str, moves: set[str], tiny_base: Any, tmp_path: Path) -> None:
    found = moved(tiny_base("resnet"), {"type": "full", "batch_norm": policy}, tmp_path / "run")
    assert all(one == moves for one in found.values())


def test_frozen_blocks_keep_theirs(tiny_base: Any, tmp_path: Path) -> None:
    found = moved(tiny_base("resnet"), {"type": "freeze", "last": 1}, tmp_path / "run")
    assert all(bool(one) == (".stages.2." in name) for name, one in found.items())


@pytest.mark.parametrize("method", ["lora", "head", "adapter"])
def test_what_is_added_leaves_them_as_they_were(method: str, tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("resnet"), tmp_path / "run", task=TASK, method=method, training={"epochs": 1}))
    before = dict(batch_norms(prepared(tiny_base("resnet"), pictures(), task=TASK, method="head").model.module))
    for name, norm in batch_norms(tw.load(run.folder).module):
        for key in (*AFFINE, *STATISTICS):
            assert torch.equal(getattr(norm, key), getattr(before[name], key))


def test_a_model_without_them_refuses_the_option(tiny_base: Any) -> None:
    with pytest.raises(MethodError, match="no batch norm"):
        prepared(tiny_base("vit"), pictures(), task=TASK, method={"type": "full", "batch_norm": "freeze"})


def test_with_frozen_statistics_a_step_may_be_cut(tiny_base: Any) -> None:
    ready = prepared(tiny_base("resnet"), pictures(8), task=TASK, method={"type": "full", "batch_norm": "freeze_stats"})
    assert_same(gradient(ready, ALL), gradient(ready, 12), 1e-5)


def test_without_it_a_step_is_one_forward_pass(tiny_base: Any, tmp_path: Path) -> None:
    """Cut, its gradient would be another one; so what would cut it is refused."""
    ready = prepared(tiny_base("resnet"), pictures(8), task=TASK, method="full")
    with pytest.raises(AssertionError):
        assert_same(gradient(ready, ALL), gradient(ready, 12), 1e-2)
    small = {"batch": 6, "micro_batch_tokens": 12}
    with pytest.raises(RecipeError, match=r"micro_batch_tokens: .*24 positions\. .*freeze_stats"):
        tw.train(recipe(tiny_base("resnet"), tmp_path / "run", task=TASK, method="full", training=small))
    assert not (tmp_path / "run").exists()
