"""Layer-wise learning rates and gradual unfreezing, on every kind of trunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tunewright as tw
from tests.contracts.steps import job_of, prepared
from tests.runs import recipe
from tests.tiny import rows_for
from tunewright.engine.depth import depths
from tunewright.engine.loop import Step
from tunewright.engine.state import TrainState
from tunewright.errors import RecipeError
from tunewright.methods.base import is_batch_norm

TEXT, IMAGES, WORDS = "text-classification", "image-classification", "text-generation"
TRUNKS = [(IMAGES, "resnet"), (IMAGES, "vit"), (TEXT, "bert"), (WORDS, "llama")]
TOP = 4  # three blocks, and what lies behind them
RATE, DECAY = 1e-3, 0.5
KEYS = ("key.bias", "k_proj.bias")


def step_of(base: str, task: str, method: Any = "full", **training: Any) -> tuple[Any, Step]:
    ready = prepared(
        base, rows_for(task), task=task, method=method,
        training={"learning_rate": RATE, "warmup": 0, "schedule": "constant", "batch": 4, **training},
    )  # fmt: skip
    job = job_of(ready)
    return ready, Step(job, TrainState(ready.model, job.method, job.config, "fp32"))


def weights(step: Step) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in step.state.parameters.items()}


def moved(step: Step, before: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest change of each trained weight."""
    return {name: float((p.detach() - before[name]).abs().max()) for name, p in step.state.parameters.items()}


@pytest.mark.parametrize("task, kind", TRUNKS)
def test_depths_go_from_stem_to_head(task: str, kind: str, tiny_base: Any) -> None:
    ready, _ = step_of(tiny_base(kind), task)
    found = depths(ready.model)
    assert set(found.values()) == set(range(TOP + 1))
    for name, depth in found.items():
        if any(part in name for part in ("classifier", "lm_head", "pooler", "model.norm", "vit.layernorm")):
            assert depth == TOP, name
        if "embed" in name:
            assert depth == 0, name


@pytest.mark.parametrize("method", ["full", {"type": "freeze", "last": 2}, {"type": "lora", "rank": 2}])
@pytest.mark.parametrize("task, kind", TRUNKS)
def test_each_block_moves_by_a_share_of_the_one_above(method: Any, task: str, kind: str, tiny_base: Any) -> None:
    """Adam's first step moves each weight by its learning rate, whatever the gradient; that of keys' biases is 0."""
    ready, step = step_of(tiny_base(kind), task, method, layer_decay=DECAY)
    found, before = depths(ready.model), weights(step)
    step.take()
    changes = {n: change for n, change in moved(step, before).items() if change and not n.endswith(KEYS)}
    assert len({found[name] for name in changes}) > 1
    for name, change in changes.items():
        assert change == pytest.approx(RATE * DECAY ** (TOP - found[name]), rel=0.05), name
    rates = {round(group["lr"] / RATE, 6) for group in step.state.optimizer.param_groups}
    assert rates == {DECAY ** (TOP - depth) for depth in found.values()}


def test_the_ratio_of_lora_plus_comes_on_top(tiny_base: Any) -> None:
    method = {"type": "lora", "rank": 2, "plus_ratio": 8.0}
    _, step = step_of(tiny_base("llama"), WORDS, method, layer_decay=DECAY)
    rates = {group["rate"] for group in step.state.optimizer.param_groups}
    assert rates == {ratio * DECAY**above for ratio in (1.0, 8.0) for above in (1, 2, 3)}


@pytest.mark.parametrize("option", [{"layer_decay": 0.5}, {"gradual_unfreezing": 0.5}])
def test_where_all_is_equally_deep_it_is_refused(option: dict[str, float], tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=f"{next(iter(option))}: all that trains here is equally deep"):
        tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=TEXT, method="head", training=option))
    assert not (tmp_path / "run").exists()


# Gradual unfreezing


@pytest.mark.parametrize("method, lowest", [("full", 0), ({"type": "freeze", "last": 2}, 2), ("adapter", 1)])
@pytest.mark.parametrize("task, kind", TRUNKS)
def test_one_more_depth_trains_each_epoch(method: Any, lowest: int, task: str, kind: str, tiny_base: Any) -> None:
    """Until then its weights and statistics stay bit for bit, though decay would move them; then it moves."""
    options = {"gradual_unfreezing": 1, "weight_decay": 0.1, "epochs": 5}
    ready, step = step_of(tiny_base(kind), task, method, **options)
    found = depths(ready.model)
    norms = {name: m for name, m in ready.model.module.named_modules() if is_batch_norm(m)}
    highest = max(found.values())
    for epoch in range(highest - lowest + 1):
        before = weights(step)
        means = {name: norm.running_mean.clone() for name, norm in norms.items()}
        while step.state.step < len(step.job.plan) and step.job.plan[step.state.step][0] <= epoch + 1:
            step.take()
        training = {found[name] for name, change in moved(step, before).items() if change}
        assert training == {depth for depth in found.values() if depth >= highest - epoch}
        for name, norm in norms.items():
            deep = found.get(f"{name}.weight")
            trains = deep is not None and deep >= highest - epoch
            assert torch.equal(norm.running_mean, means[name]) != trains, name
        assert all(p.requires_grad for p in step.state.parameters.values()), "between steps all that trains is marked"


def test_what_rests_has_neither_gradient_nor_noise(tiny_base: Any) -> None:
    base = tiny_base("bert", hidden_dropout_prob=0.2)
    ready, step = step_of(base, TEXT, gradual_unfreezing=0.5)
    seen: dict[str, tuple[bool, bool]] = {}
    for name, module in ready.model.module.named_modules():
        if name.endswith("output.dropout"):
            module.register_forward_hook(
                lambda m, _, output, name=name: seen.__setitem__(name, (m.training, output.requires_grad))
            )
    step.take()
    assert set(seen.values()) == {(False, False)} and len(seen) == 6
    step.state.step = len(step.job.plan) - 1
    step.take()
    assert set(seen.values()) == {(True, True)}


def test_what_would_never_train_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    """Depths 4 to 0, and the last step begins when 2 3/4 epochs are done."""

    def document(pace: float) -> Any:
        training = {"epochs": 3, "gradual_unfreezing": pace}
        return recipe(tiny_base("bert"), tmp_path / "run", task=TEXT, method="full", training=training)

    with pytest.raises(RecipeError, match=r"would never train\. Set it to at most 0\.687"):
        tw.train(document(0.69))
    assert tw.check(document(0.687))["steps"] == 12
