"""What trains of batch norms, bit for bit over whole runs; and that their rows go through them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tunewright as tw
from tests.batch_norms import make_base
from tests.contracts.steps import ALL, assert_same, gradient, job_of, prepared
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import pictures
from tunewright.artifacts.batch_norm import batch_norms
from tunewright.errors import BaseModelError, MethodError, RecipeError

TASK = "image-classification"
SMALL = {"image": {"resize": 16, "crop": 16}}
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


def test_without_statistics_no_row_has_an_answer_of_its_own(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", statistics=False)
    with pytest.raises(BaseModelError, match=r"trunk.layers.0.norm, .*track_running_stats=True"):
        tw.train(recipe(base, tmp_path / "run", task="text-classification", method="full"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["full", {"type": "freeze", "last": 1}, {"type": "full", "batch_norm": "train"}])
def test_instance_norms_keep_their_statistics(method: Any, tmp_path: Path) -> None:
    """They are no batch norms: however a step is cut, its gradient is the same."""
    document = recipe("tests.networks:InstanceNorms", tmp_path / "run", task=TASK, method=method, module=SMALL,
                      training={"epochs": 2, "micro_batch_tokens": 4, "batch": 6})  # fmt: skip
    run = tw.train(document)
    start = load_file(run.folder / "start/base/model.safetensors")
    end = load_file(run.folder / "model/model.safetensors")
    statistics = {name for name in start if name.rpartition(".")[2] in STATISTICS}
    assert len(statistics) == 12 and all(torch.equal(start[name], end[name]) for name in statistics)
    assert not torch.equal(start["layer3.1.weight"], end["layer3.1.weight"])


def test_instance_norms_have_nothing_to_freeze(tmp_path: Path) -> None:
    method = {"type": "full", "batch_norm": "freeze"}
    with pytest.raises(MethodError, match="no batch norm"):
        tw.train(recipe("tests.networks:InstanceNorms", tmp_path / "run", task=TASK, method=method, module=SMALL))


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


# A step has rows enough to normalize by


def test_an_automatic_step_has_rows_to_normalize_by(tiny_base: Any) -> None:
    def batch(kind: str, method: Any) -> Any:
        return prepared(tiny_base(kind), pictures(40), task=TASK, method=method).recipe.training.batch

    assert batch("resnet", "full") == 8
    assert batch("resnet", {"type": "full", "batch_norm": "freeze_stats"}) == 2
    assert batch("vit", "full") == batch("resnet", "head") == 2


@pytest.mark.parametrize("method, sizes", [("full", {4, 5}), ("head", {4, 1})])
def test_a_row_that_is_left_over_joins_the_step_before(method: str, sizes: set[int], tiny_base: Any) -> None:
    """The last maps of this model are 1 × 1: alone, a row has one number a channel."""
    ready = prepared(tiny_base("resnet"), pictures(13), task=TASK, method=method, training={"batch": 4})
    epochs = [job_of(ready).epoch(number) for number in range(2)]
    for steps in epochs:
        assert {len(rows) for rows in steps} == sizes
        assert sorted(row for rows in steps for row in rows) == list(range(13))


def test_with_a_joined_step_a_run_resumes_exactly(tiny_base: Any, tmp_path: Path) -> None:
    def cut() -> None:
        raise KeyError("cut")

    training = {"checkpoint_every": 1, "batch": 11}
    made = [recipe(tiny_base("resnet"), tmp_path / n, task=TASK, method="full", training=training) for n in "ab"]
    whole = tw.train(made[0])
    assert whole.info["steps"] == 2, "12 rows are one step, not 11 and one"
    with pytest.raises(KeyError):
        tw.train(made[1], watchers=[stop_at(2, cut)])
    assert left_behind(tw.resume(tmp_path / "b").folder) == left_behind(whole.folder)


def test_a_step_of_one_row_is_refused_where_it_leaves_one_number(tiny_base: Any, tmp_path: Path) -> None:
    one = {"batch": 1, "epochs": 1}
    with pytest.raises(RecipeError, match=r"training\.batch: .*freeze_stats"):
        tw.train(recipe(tiny_base("resnet"), tmp_path / "run", task=TASK, method="full", training=one))
    assert not (tmp_path / "run").exists()
    still = {"type": "full", "batch_norm": "freeze_stats"}
    tw.train(recipe(tiny_base("resnet"), tmp_path / "still", task=TASK, method=still, training=one))
    tw.train(recipe(tiny_base("module"), tmp_path / "maps", task=TASK, method="full", training=one))
