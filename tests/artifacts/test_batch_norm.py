"""Batch norms: held still where frozen, interpolated as weights are, or measured anew between the ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import tunewright as tw
from tests import batch_norms
from tests.contracts.journeys import logits
from tests.runs import recipe
from tests.tiny import labelled
from tunewright.artifacts import start as start_of_runs
from tunewright.artifacts.batch_norm import BATCH, moved_norms, recompute
from tunewright.artifacts.batch_norm import batch_norms as norms_of
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Labelled
from tunewright.engine import checkpoint
from tunewright.errors import RecipeError
from tunewright.methods.base import plain_name
from tunewright.tasks.base import Model

QUICK = {"max_steps": 6, "batch": 4, "learning_rate": 0.05, "micro_batch_tokens": 4096}
TASK = "text-classification"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return batch_norms.make_base(tmp_path_factory.mktemp("bases") / "norms")


@pytest.fixture(scope="session")
def ran(base: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tw.Run]:
    @cache
    def train(method: str) -> tw.Run:
        data = {"train": labelled(40), "test": {"test": labelled(70)[40:], "other": labelled(90)[70:]}}
        given = {"type": "lora", "targets": ["dense"]} if method == "lora" else method
        folder = tmp_path_factory.mktemp("run") / "run"
        return tw.train(recipe(base, folder, task=TASK, method=given, data=data, training=QUICK))

    return train


def buffers(model: Model) -> dict[str, torch.Tensor]:
    return {f"{name}.{kind}": getattr(norm, kind).clone() for name, norm in norms_of(model.module)
            for kind in ("running_mean", "running_var", "num_batches_tracked")}  # fmt: skip


def left_by_the_loop(run: tw.Run) -> dict[str, torch.Tensor]:
    saved = checkpoint.read(run.folder / "checkpoints" / f"step-{run.info['steps']}")[0]
    return {plain_name(n.removeprefix("buffer/")): found for n, found in saved.items() if n.startswith("buffer/")}


def examples_of(model: Model, count: int = 40) -> list[Any]:
    rows = [Labelled(row["text"], row["label"], str(i)) for i, row in enumerate(labelled(count))]
    return model.task.encode(model, rows, DataConfig(train="-")).examples


@pytest.mark.parametrize(("method", "moving"), [("head", 0), ("lora", 0), ("freeze", 1), ("full", 3)])
def test_a_frozen_batch_norm_does_not_move_in_training(method: str, moving: int, base: str, ran: Any) -> None:
    """As the loop left them: an adapter's file has none of its base's statistics."""
    before, after = buffers(tw.load(base)), left_by_the_loop(ran(method))
    assert len(before) == 9 and before.keys() == after.keys()
    moved = {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"trunk.layers.{i}.norm" for i in range(3 - moving, 3)}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("method", ["freeze", "full"])
def test_statistics_are_interpolated_like_weights(method: str, streamed: bool, ran: Any, monkeypatch: Any) -> None:
    if not streamed:  # the base is loaded whole, with its counts
        monkeypatch.setattr(start_of_runs, "find_tensors", lambda *_: {})
    start, between, end = (buffers(tw.load(ran(method).folder, alpha=alpha)) for alpha in (0.0, 0.3, 1.0))
    for name, found in between.items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(found, end[name]), "a count is no weight"
        else:
            torch.testing.assert_close(found, 0.7 * start[name] + 0.3 * end[name])
    assert not torch.equal(start["trunk.layers.2.norm.running_mean"], end["trunk.layers.2.norm.running_mean"])


def test_those_of_a_head_that_trained_along_too(tmp_path: Path) -> None:
    """An adapter's file holds the head with its statistics."""
    base = batch_norms.make_base(tmp_path / "base", norm_in_head=True)
    method = {"type": "lora", "targets": ["dense"]}
    data = {"train": labelled(40)}
    run = tw.train(recipe(base, tmp_path / "run", task=TASK, method=method, data=data, training=QUICK))
    name = "classifier.0.running_mean"
    start, between, end = (buffers(tw.load(run.folder, alpha=alpha))[name] for alpha in (0.0, 0.3, 1.0))
    assert not torch.equal(start, end)
    torch.testing.assert_close(between, 0.7 * start + 0.3 * end)
    tw.interpolate(run.folder, alphas="0.3", choose=0.3, to=tmp_path / "point", batch_norm="recompute")
    written = buffers(tw.load(tmp_path / "point"))
    assert written.pop("classifier.0.num_batches_tracked") == 2 and not torch.equal(written.pop(name), between)
    trunk = buffers(tw.load(base))
    assert all(torch.equal(found, trunk[name]) for name, found in written.items() if name.startswith("trunk."))


def test_statistics_measured_anew_are_those_of_the_rows(ran: Any) -> None:
    """In one batch by hand: means agree in any batches of one size, with what entered the norms in front as it is."""
    run = ran("full")
    model = tw.load(run.folder, alpha=0.5)
    names = moved_norms(tw.load(run.folder, alpha=0.0), run.model)
    assert names == {f"trunk.layers.{i}.norm" for i in range(3)}
    examples = examples_of(model, 2 * BATCH)
    entering: list[torch.Tensor] = []
    first = model.module.trunk.layers[0]
    first.norm.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    before = buffers(model)
    recompute(model, names, examples)
    assert [len(x) for x in entering] == [BATCH, BATCH] and first.norm.num_batches_tracked == 2
    torch.testing.assert_close(first.norm.running_mean, torch.cat(entering).mean(0))
    torch.testing.assert_close(first.norm.running_var, torch.stack([x.var(0) for x in entering]).mean(0))
    assert not torch.equal(first.norm.running_mean, before["trunk.layers.0.norm.running_mean"])
    assert not model.module.training and not any(m.training for m in model.module.modules())
    assert {norm.momentum for _, norm in norms_of(model.module)} == {0.1}
    assert all(p.grad is None for p in model.module.parameters())


def test_rows_and_dropout_draw_nothing(ran: Any) -> None:
    models = [tw.load(ran("full").folder, alpha=0.5) for _ in range(2)]
    names = {name for name, _ in norms_of(models[0].module)}
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        recompute(model, names, examples_of(model, BATCH + 1))  # a batch of one row would have no variance
    one, other = map(buffers, models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_norm_that_was_held_still_stays_so(ran: Any) -> None:
    run = ran("freeze")
    model = tw.load(run.folder, alpha=0.5)
    before = buffers(model)
    names = moved_norms(tw.load(run.folder, alpha=0.0), run.model)
    recompute(model, names, examples_of(model))
    changed = {n.rsplit(".", 1)[0] for n, found in buffers(model).items() if not torch.equal(found, before[n])}
    assert names == changed == {"trunk.layers.2.norm"}


@pytest.mark.parametrize("method", ["freeze", "full"])
def test_interpolation_with_statistics_measured_anew(method: str, ran: Any, tmp_path: Path) -> None:
    run = ran(method)
    plain = tw.interpolate(run.folder, alphas="0,0.5,1")
    found = tw.interpolate(run.folder, alphas="0,0.5,1", choose=0.5, to=tmp_path / "point", batch_norm="recompute")
    assert found["batch_norm"] == "recompute" and plain["batch_norm"] is None
    assert "measured anew" in run.report.read_text()
    curves = [one["curve"]["test"]["test"] for one in (plain, found)]
    assert curves[0][0] == curves[1][0] and curves[0][2] == curves[1][2], "the ends stay exact"
    written = buffers(tw.load(tmp_path / "point"))
    blended = tw.load(run.folder, alpha=0.5)
    recompute(blended, moved_norms(tw.load(run.folder, alpha=0.0), run.model), examples_of(blended))
    assert all(torch.equal(written[name], value) for name, value in buffers(blended).items())
    assert torch.equal(logits(tw.load(tmp_path / "point")), logits(blended))
    assert json.loads((tmp_path / "point" / "tunewright.json").read_text())["task"] == TASK
    scores = tw.evaluate(tmp_path / "point", labelled(70)[40:])["scores"]["metrics"]["accuracy"]
    assert scores["value"] == curves[1][1]["value"]


def test_the_end_is_written_as_it_is(ran: Any, tmp_path: Path) -> None:
    run = ran("full")
    tw.interpolate(run.folder, alphas="0,1", choose=1, to=tmp_path / "point", batch_norm="recompute")
    assert torch.equal(logits(tw.load(tmp_path / "point")), logits(run.model))


@pytest.mark.parametrize(
    ("method", "match"), [("lora", "held still"), ("head", "held still"), ("bert", "has no batch norm: leave it out")]
)
def test_where_nothing_would_be_measured_it_is_refused(
    method: str, match: str, ran: Any, tiny_base: Any, tmp_path: Path
) -> None:
    if method == "bert":
        training = {"max_steps": 2, "batch": 4, "head_first": 1}
        run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=TASK, training=training))
    else:
        run = ran(method)
    with pytest.raises(RecipeError, match=match):
        tw.interpolate(run.folder, alphas="0,1", batch_norm="recompute")
    with pytest.raises(RecipeError, match="neither interpolate nor recompute"):
        tw.interpolate(run.folder, alphas="0,1", batch_norm="drop")
