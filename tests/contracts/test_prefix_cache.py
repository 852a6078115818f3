"""What frozen blocks compute, kept: the same loss, gradient and run as without, or a notice that says why it is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import nn

import tunewright as tw
from tests.contracts.steps import NOWHERE, assert_same, job_of, prepared
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import DECODERS, KINDS, VISION, rows_for
from tunewright.data.pictures import Picture
from tunewright.engine.loop import Step, evaluate
from tunewright.engine.prefix_cache import prefix_cache
from tunewright.engine.prefix_cut import frozen_blocks
from tunewright.engine.state import TrainState
from tunewright.head_first import alone
from tunewright.methods.base import enter_training

TEXT, IMAGES, WORDS = "text-classification", "image-classification", "text-generation"
HEAD, LAST = "head", {"type": "freeze", "last": 1}
STILL = {"type": "freeze", "last": 1, "batch_norm": "freeze_stats"}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
CASES = [
    *((TEXT, kind, method) for kind in KINDS for method in (HEAD, LAST)),
    *((WORDS, kind, LAST) for kind in (*DECODERS, "qwen3_moe", "bloom", "gpt_neox")),
    (WORDS, "llama", HEAD),
    *((IMAGES, kind, method) for kind in VISION for method in (HEAD, LAST)),
    (IMAGES, "resnet", STILL),
]


def step_of(base: str, task: str, method: Any, **recipe: Any) -> Step:
    """12 training rows, 5 to validate on."""
    rows = rows_for(task, 17)
    data = {"validation": rows[12:], **recipe.pop("data", {})}
    ready = prepared(base, rows[:12], task=task, method=method, data=data, **recipe)
    job = job_of(ready)
    return Step(job, TrainState(ready.model, job.method, job.config, "fp32"))


def gradient(step: Step) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Of all rows, in a few forward passes of other rows than those that were computed together."""
    job = step.job
    enter_training(job.model, job.method)
    job.model.module.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    terms = step._accumulate(job.train, job.objective.counts(job.train))
    return terms, {n: p.grad.clone() for n, p in step.state.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("task, kind, method", CASES, ids=str)
def test_kept_states_give_the_same_loss_and_gradient(task: str, kind: str, method: Any, tiny_base: Any) -> None:
    """With dropout in what trains, whose draws are the same; RoBERTa's head calls one dropout twice."""
    step = step_of(tiny_base(kind, **(DROPOUT if kind in ("bert", "roberta", "vit") else {})), task, method)
    cache, step.cache = step.cache, None
    assert cache is not None, step.notices
    plain, measured = gradient(step), evaluate(step)
    step.cache = cache
    assert evaluate(step) == pytest.approx(measured, rel=2e-6)
    assert_same(gradient(step), plain, relative=2e-6)
    assert len(cache.states) == 17 and cache.filled == pytest.approx(cache.size, rel=0.01)


@pytest.mark.parametrize("task, kind", [(TEXT, "bert"), (WORDS, "llama"), (IMAGES, "resnet"), (IMAGES, "vit")])
@pytest.mark.parametrize("method", [HEAD, LAST], ids=str)
def test_a_row_goes_through_the_frozen_blocks_once(
    method: Any, task: str, kind: str, tiny_base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In three epochs with an evaluation each; an image is not even decoded again."""
    step = step_of(tiny_base(kind), task, method, training={"epochs": 3, "batch": 5})
    seen: list[int] = []
    first = next(m for m in step.job.model.task.blocks(step.job.model.module)[0][1].modules() if not any(m.children()))
    first.register_forward_hook(lambda _, given, output: seen.append(len(output)))
    pixels = Picture.pixels
    decoded: list[Any] = []
    monkeypatch.setattr(Picture, "pixels", lambda self: (decoded.append(self), pixels(self))[1])
    for _ in step.job.plan:
        step.take()
        if step.state.step % 3 == 0:
            evaluate(step)
    assert step.state.step == 9 and sum(seen) == 17
    assert len(decoded) == (17 if task == IMAGES else 0)


@pytest.mark.parametrize("task, kind", [(TEXT, "bert"), (WORDS, "llama"), (IMAGES, "resnet"), (IMAGES, "vit")])
def test_states_are_the_same_but_for_rounding(task: str, kind: str, tiny_base: Any) -> None:
    """Computed once more in their groups they have the same bits; alone, as in another batch, they are this near."""
    step = step_of(tiny_base(kind), task, LAST)
    cache = step.cache
    assert cache is not None
    enter_training(step.job.model, step.job.method)
    cache.fill([*step.job.train, *step.job.validation])
    for group in {id(group): group for group in cache.groups.values()}.values():
        for row, again in zip(group, cache._computed(group), strict=True):
            kept, alone = cache.states[id(row)], cache._computed([row])[0]
            assert torch.equal(kept, again)
            assert (kept - alone).abs().max() <= 1e-6 * kept.abs().max()


@pytest.mark.parametrize("task, kind", [(TEXT, "bert"), (WORDS, "llama"), (IMAGES, "resnet"), (IMAGES, "vit")])
def test_a_run_with_kept_states_ends_like_one_without(task: str, kind: str, tiny_base: Any, tmp_path: Path) -> None:
    made = {
        size: tw.train(
            recipe(
                tiny_base(kind), tmp_path / str(size), task=task, method=LAST,
                training={"prefix_cache": size, "epochs": 4, "learning_rate": 1e-3},
            )
        )
        for size in (0, 2)
    }  # fmt: skip
    without, kept = (load_file(made[size].folder / "model" / "model.safetensors") for size in (0, 2))
    for name, weight in without.items():
        if not name.endswith("key.bias"):  # whose gradient is rounding alone
            torch.testing.assert_close(kept[name], weight, rtol=1e-3, atol=2e-5)
    assert kept_notices(made[2]) and not kept_notices(made[0])


def kept_notices(run: tw.Run) -> list[str]:
    return [notice for notice in run.info["notices"] if "kept for later epochs" in notice]


@pytest.mark.parametrize("kind, method", [("resnet", LAST), ("resnet", HEAD), ("vit", LAST)], ids=str)
def test_an_interrupted_run_fills_them_again_with_the_same_bits(
    kind: str, method: Any, tiny_base: Any, tmp_path: Path
) -> None:
    def cut() -> None:
        raise KeyError("cut")

    training = {"checkpoint_every": 1, "epochs": 3}
    made = [recipe(tiny_base(kind), tmp_path / n, task=IMAGES, method=method, training=training) for n in "ab"]
    whole = tw.train(made[0])
    with pytest.raises(KeyError):
        tw.train(made[1], watchers=[stop_at(7, cut)])
    assert left_behind(tw.resume(tmp_path / "b").folder) == left_behind(whole.folder)


def test_a_head_that_learns_first_keeps_the_features(tiny_base: Any) -> None:
    """The head's own cache goes with it: the run behind it begins with none, since all blocks train."""
    ready = prepared(tiny_base("vit"), rows_for(IMAGES), task=IMAGES, method="full", training={"head_first": 3})
    own = alone(job_of(ready), NOWHERE)
    cache, notices = prefix_cache(own)
    assert cache is not None and "Frozen blocks (3)" in notices[0]
    ready.model.module.requires_grad_(True)
    assert prefix_cache(job_of(ready)) == (None, [])


# Where it is not exact, not of use, or too large


@pytest.mark.parametrize(
    "case",
    [
        {"training": {"packing": True}, "why": "share sequences"},
        {"training": {"activation_checkpointing": True}, "why": "recomputed"},
        {"training": {"prefix_cache": 1e-6}, "why": r"takes 0\.0 MB.* set training\.prefix_cache"},
        {"task": IMAGES, "kind": "vit", "data": {"augment": {}}, "why": "varied at each step"},
        {"kind": "mixtral", "objective": {"router_loss": 0.1}, "why": "not the same"},
    ],
    ids=lambda case: case["why"],
)
def test_what_stands_against_it_is_said(case: dict[str, Any], tiny_base: Any) -> None:
    rest = {key: value for key, value in case.items() if key not in ("task", "kind", "why")}
    step = step_of(tiny_base(case.get("kind", "llama")), case.get("task", WORDS), LAST, **rest)
    assert step.cache is None
    assert re.search(rf"Frozen blocks \(2\) are computed anew in each epoch: .*{case['why']}", step.notices[0])
    step.take()


def neighbours(module: nn.Module, seen: list[torch.Tensor]) -> None:
    """Each row is moved by the mean over the rows."""
    module.model.layers[0].register_forward_hook(lambda _, given, output: output - output.mean(0, keepdim=True))


def chance(module: nn.Module, seen: list[torch.Tensor]) -> None:
    """Dropout by a function, in a module that is not held in eval mode."""
    module.model.layers[0].register_forward_hook(lambda _, given, output: F.dropout(output, training=module.training))


def trained(module: nn.Module, seen: list[torch.Tensor]) -> None:
    """A frozen block uses a weight that trains."""
    module.model.layers[0].register_forward_hook(lambda _, given, output: output * module.lm_head.weight.mean())


def bypass(module: nn.Module, seen: list[torch.Tensor]) -> None:
    """What trains is also given what the first block made."""
    module.model.layers[0].register_forward_hook(lambda _, given, output: seen.append(output))
    module.model.layers[2].mlp.register_forward_pre_hook(lambda _, given: (given[0] + seen[-1], *given[1:]))


@pytest.mark.parametrize("odd, why", [(chance, "chance"), (trained, "what trains"), (neighbours, ""), (bypass, "")])
def test_a_model_that_is_otherwise_is_found_out(odd: Any, why: str, tiny_base: Any) -> None:
    ready = prepared(tiny_base("llama"), rows_for(WORDS), task=WORDS, method=LAST)
    odd(ready.model.module, [])
    cache, notices = prefix_cache(job_of(ready))
    assert cache is None and (why or "not the same") in notices[0]


@pytest.mark.parametrize("method, epochs", [("lora", 3), ("full", 3), (LAST, 1)], ids=str)
def test_where_it_is_of_no_use_nothing_is_said(method: Any, epochs: int, tiny_base: Any) -> None:
    step = step_of(tiny_base("llama"), WORDS, method, training={"epochs": epochs})
    assert step.cache is None and step.notices == []


@pytest.mark.parametrize("method", [LAST, "lora"], ids=str)
def test_nothing_is_said_of_a_pipeline(method: Any, tiny_base: Any) -> None:
    """Noise enters below all blocks, anew at each step: there is nothing that could be kept."""
    step = step_of(tiny_base("sd1"), "text-to-image", method)
    assert frozen_blocks(step.job) and step.cache is None and step.notices == []


def test_afterwards_the_model_is_as_it_was(tiny_base: Any) -> None:
    step = step_of(tiny_base("vit"), IMAGES, LAST)
    module = step.job.model.module
    step.take()
    assert not any("forward" in vars(m) or m._forward_pre_hooks or m._forward_hooks for m in module.modules())
