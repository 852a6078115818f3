"""What the one loop promises besides exactness: which weights are kept, when it stops, what it does in trouble."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tunewright as tw
from tests.contracts.steps import NOWHERE, assert_same, gradient, job_of, likelihood, prepared
from tests.runs import CONTRARY, recipe
from tests.tiny import DECODERS, completions, labelled
from tunewright.data.batches import epoch_plan, micro_batches
from tunewright.engine import checkpoint
from tunewright.engine.device import micro_batch_tokens, pick_device, pick_precision
from tunewright.engine.loop import Step
from tunewright.engine.processes import Processes
from tunewright.engine.state import TrainState
from tunewright.errors import BaseModelError, MethodError, MissingExtra, OutputError, RecipeError, TrainingDiverged
from tunewright.run import make_job

FULL = {"type": "full"}
PROMPT = {"type": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}}
EVERY = {"learning_rate": 0.003, "schedule": "constant", "evaluate_every": 1}


def validation_loss(run: Any) -> float:
    """Of the model that the run ends with, computed anew."""
    rows = run.recipe.data.validation
    ready = prepared(run.recipe.base, rows, task=run.recipe.task, method=FULL)
    ready.model.module = run.model.module
    examples = ready.examples("train")
    total = sum(float(e.weight.sum()) for e in examples)
    return float(likelihood(ready, range(len(examples))).sum()) / total


def evaluations(run: Any) -> dict[int, float]:
    return {line["step"]: line["validation"]["loss"] for line in run.metrics if "validation" in line}


@pytest.mark.parametrize("ema", [None, 0.8])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_weights_of_the_best_evaluation_are_kept(method: str, ema: Any, tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(
        recipe(tiny_base("bert"), tmp_path / "run", method=method, training={**EVERY, "ema": ema}, **CONTRARY)
    )
    losses = evaluations(run)
    best = min(losses, key=lambda step: losses[step])
    assert run.info["best"] == {"step": best, "loss": losses[best]}
    assert best < max(losses)
    assert validation_loss(run) == pytest.approx(losses[best], rel=1e-5)


def test_keep_last_keeps_the_last(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", training={**EVERY, "keep": "last"}, **CONTRARY))
    losses = evaluations(run)
    assert validation_loss(run) == pytest.approx(losses[max(losses)], rel=1e-5)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_patience_ends_the_run(keep: str, tiny_base: Any, tmp_path: Path) -> None:
    """Also where the last step would not have had a checkpoint."""
    training = {**EVERY, "epochs": 10, "patience": 2, "checkpoint_every": 100, "keep": keep}
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", training=training, **CONTRARY))
    losses = evaluations(run)
    best = min(losses, key=lambda step: losses[step])
    assert run.info["steps"] == max(losses) == best + 2 < 40


def test_patience_without_validation_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="patience"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run", training={"patience": 1}, data={"validation": 0}))


def test_without_validation_the_last_weights_are_kept(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", data={"validation": 0}))
    assert run.info["best"] is None
    assert "last step, 8" in run.info["weights"]


@pytest.mark.parametrize(
    "training, steps",
    [
        ({"epochs": 0.5}, 2),
        ({"epochs": 0.01}, 1),
        ({"epochs": 1.5}, 6),
        ({"max_steps": 5}, 5),
        ({"max_steps": 11, "epochs": 1}, 11),
        ({"epochs": 1, "batch": "auto"}, 12),
        ({"epochs": 1, "batch": 100}, 1),
    ],
)
def test_the_number_of_steps(training: dict[str, Any], steps: int, tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", training=training))
    assert run.info["steps"] == steps
    assert sum("loss" in line for line in run.metrics) == steps


def test_batch_tokens_bounds_a_step(tiny_base: Any, tmp_path: Path) -> None:
    training = {"batch": "auto", "batch_tokens": 60, "epochs": 1}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", training=training))
    tokens = [line["tokens"] for line in run.metrics if "tokens" in line]
    assert len(tokens) > 2
    assert all(count <= 60 for count in tokens)
    assert not any("batch_tokens" in notice for notice in run.info["notices"])


def test_rows_that_are_longer_than_a_step_are_named(tiny_base: Any) -> None:
    rows = [*completions(4), {"prompt": "How many apples " * 9, "completion": "are left?"}]
    ready = prepared(tiny_base("llama"), rows, training={"batch_tokens": 30})
    job = make_job(ready, NOWHERE, Processes())
    longest = max(job.lengths)
    assert longest > 30 > sorted(job.lengths)[-2]
    said = f"training.batch_tokens: 1 row is longer than 30, up to {longest}: each is a step of its own. Raise it."
    assert said in ready.notices


@pytest.mark.parametrize(("warmup", "refused"), [(7, False), (0.99, False), (8, True), (5000, True)])
def test_a_warm_up_ends_before_the_run(warmup: float, refused: bool, tiny_base: Any) -> None:
    ready = prepared(tiny_base("llama"), completions(12))
    if not refused:
        assert len(job_of(ready, warmup=warmup, epochs=2, batch=3).plan) == 8
        return
    said = rf"training\.warmup: the warm-up takes {warmup:,} steps, and the run has 8\. Set it lower"
    with pytest.raises(RecipeError, match=said):
        job_of(ready, warmup=warmup, epochs=2, batch=3)


# One step


def step_of(ready: Any, **training: Any) -> Step:
    job = job_of(ready, **training)
    return Step(job, TrainState(ready.model, job.method, job.config, "fp32"))


def test_the_gradient_is_clipped(tiny_base: Any) -> None:
    norms = {}
    for clip in (None, 0.01):
        ready = prepared(tiny_base("llama"), completions(), method=FULL, training={"batch": 4, "gradient_clip": clip})
        step = step_of(ready)
        seen: list[float] = []
        step.state.optimizer.register_step_pre_hook(
            lambda optimizer, *_, seen=seen: seen.append(
                float(sum(p.grad.square().sum() for g in optimizer.param_groups for p in g["params"]) ** 0.5)
            )
        )
        said = step.take()["grad_norm"]
        norms[clip] = (said, seen[0])
    assert norms[None][0] == pytest.approx(norms[None][1], rel=1e-5)
    assert norms[0.01][0] == pytest.approx(norms[None][0], rel=1e-5), "what is said is the norm before"
    assert norms[0.01][1] == pytest.approx(0.01, rel=1e-3)


def test_the_average_follows_its_formula(tiny_base: Any) -> None:
    ready = prepared(tiny_base("llama"), completions(), method="lora", training={"batch": 4, "ema": 0.5})
    step = step_of(ready)
    name, parameter = next((n, p) for n, p in step.state.parameters.items() if "lora_B" in n)
    expected = parameter.detach().clone()
    for number in range(1, 4):
        step.take()
        d = min(0.5, (1 + number) / (10 + number))
        expected = d * expected + (1 - d) * parameter.detach()
        torch.testing.assert_close(step.state.average[name], expected)


def test_judged_weights_are_given_back(tiny_base: Any) -> None:
    ready = prepared(tiny_base("llama"), completions(), training={"batch": 4, "ema": 0.5})
    state = step_of(ready).state
    step_of(ready)
    before = {n: p.detach().clone() for n, p in state.parameters.items()}
    with pytest.raises(ZeroDivisionError), state.judged_weights():
        raise ZeroDivisionError
    assert all(torch.equal(p, before[n]) for n, p in state.parameters.items())


@pytest.mark.parametrize("method", ["full", "lora", {"type": "freeze", "last": 2}, "adapter"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recomputed_activations_give_the_same_gradient(kind: str, method: Any, tiny_base: Any) -> None:
    from tunewright.engine.recompute import recompute_activations

    ready = prepared(tiny_base(kind), completions(), method=method)
    plain = gradient(ready)
    recompute_activations(ready.model)
    assert_same(plain, gradient(ready))


def test_recomputed_dropout_is_the_same_dropout(tiny_base: Any, tmp_path: Path) -> None:
    runs = [
        tw.train(
            recipe(
                tiny_base("llama", attention_dropout=0.2), tmp_path / str(on), method="full",
                training={"activation_checkpointing": on},
            )
        )
        for on in (False, True)
    ]  # fmt: skip
    losses = [[line["loss"] for line in run.metrics if "loss" in line] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_rows_without_weight_do_no_harm(tiny_base: Any, tmp_path: Path) -> None:
    """A step may hold nothing but rows of weight 0."""
    rows = [{**row, "weight": i % 2} for i, row in enumerate(labelled(8))]
    run = tw.train(
        recipe(
            tiny_base("bert"), tmp_path / "run", task="text-classification", training={"batch": 1},
            data={"train": rows, "validation": 0},
        )
    )  # fmt: skip
    losses = [line["loss"] for line in run.metrics]
    assert losses.count(0.0) == 8
    assert all(np.isfinite(losses))


# Trouble


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_names_step_and_rows(
    what: str, tiny_base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    from tunewright.tasks.text_generation import TextGeneration

    nll = TextGeneration.nll
    calls = {"n": 0}

    def poisoned(self: Any, module: Any, batch: Any, **options: Any) -> Any:
        found = nll(self, module, batch, **options)
        calls["n"] += module.training
        if calls["n"] > 6 and module.training:
            poison = torch.tensor(float("nan"))
            if what == "loss":
                found.nll_BT.data.fill_(poison)
            else:
                found.nll_BT.register_hook(lambda gradient: gradient * poison)
        return found

    monkeypatch.setattr(TextGeneration, "nll", poisoned)
    with pytest.raises(
        TrainingDiverged, match=rf"{what} is not finite at step \d, in rows rows\[\d+\].*step 6 is kept"
    ):
        tw.train(
            recipe(tiny_base("llama"), tmp_path / "run", training={"checkpoint_every": 2, "micro_batch_tokens": 1000})
        )
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "failed"
    assert "not finite" in info["error"]
    kept = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert all(torch.isfinite(t).all() for n, t in kept[0].items() if n.startswith("weight/"))


def test_an_evaluation_that_is_not_finite_is_never_the_best(tiny_base: Any) -> None:
    state = step_of(prepared(tiny_base("llama"), completions(), training={"batch": 4})).state
    assert [state.judge(loss) for loss in (float("nan"), 2.0, float("nan"), 1.0)] == [False, True, False, True]


def test_a_step_that_does_not_fit_is_cut_smaller(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from tunewright.tasks.text_generation import TextGeneration

    whole = tw.train(recipe(tiny_base("llama"), tmp_path / "whole"))
    nll = TextGeneration.nll

    def small(self: Any, module: Any, batch: Any, **options: Any) -> Any:
        if batch.weight.numel() > 40 and module.training:
            raise torch.OutOfMemoryError("out of memory")
        return nll(self, module, batch, **options)

    monkeypatch.setattr(TextGeneration, "nll", small)
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run"))
    assert any("did not fit" in notice for notice in run.info["notices"])
    one, other = (load_file(r.folder / "model" / "adapter_model.safetensors") for r in (run, whole))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in other)


def test_a_row_that_never_fits_says_what_to_do(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from tunewright.tasks.text_generation import TextGeneration

    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(TextGeneration, "nll", never)
    with pytest.raises(BaseModelError, match="activation_checkpointing"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run"))


def test_a_full_disk_is_said(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    import safetensors.torch

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OutputError, match="No space left"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run"))
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    monkeypatch.undo()


def test_the_missing_extra_is_named(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingExtra, match=r"tunewright\[bnb\]"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run", training={"optimizer": "adamw8bit"}))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"training": {"packing": True}, "task": "text-classification"}, "packing"),
        ({"training": {"packing": True}, "method": PROMPT}, "packing"),
        ({"training": {"precision": "fp16", "device": "cpu"}}, "fp16"),
        ({"training": {"device": "abacus"}}, "no device"),
        ({"objective": {"router_loss": 0.1}}, "router_loss"),
        ({"objective": {"router_loss": 0.1}, "task": "text-classification"}, "router_loss"),
        ({"objective": {"class_weights": "balanced"}}, "class_weights"),
        ({"objective": {"class_weights": {"nobody": 2}}, "task": "text-classification"}, "nobody"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(changes: Any, match: str, tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("bert" if "task" in changes else "llama")
    with pytest.raises((RecipeError, MethodError), match=match):
        tw.train(recipe(base, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize("kind", [*DECODERS, "gpt_neox", "bloom", "mamba"])
def test_packing_is_refused_where_rows_would_leak(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    chosen = recipe(tiny_base(kind), tmp_path / "run", method="full", training={"packing": True, "max_steps": 1})
    if kind in ("bloom", "mamba"):
        with pytest.raises(RecipeError, match="does not keep packed rows apart"):
            tw.train(chosen)
    else:
        assert tw.train(chosen).info["status"] == "finished"


def test_smoothing_of_numbers_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    rows = [{**row, "label": i / 3} for i, row in enumerate(labelled())]
    changes = {"task": "text-classification", "data": {"train": rows, "validation": 0}}
    with pytest.raises(RecipeError, match="label_smoothing"):
        tw.train(recipe(tiny_base("bert"), tmp_path / "run", objective={"label_smoothing": 0.1}, **changes))


def test_precision_and_device_on_a_cpu() -> None:
    cpu = pick_device("cpu")
    assert pick_precision("auto", cpu) == "fp32"
    assert pick_precision("bf16", cpu) == "bf16"
    assert micro_batch_tokens(recipe("x", Path("y"), training={"micro_batch_tokens": "auto"}).training, cpu) == 2048


@pytest.mark.parametrize("method", ["lora", "full", "adapter"])
def test_bf16_trains_close_to_fp32_and_saves_fp32(method: str, tiny_base: Any, tmp_path: Path) -> None:
    runs = {
        p: tw.train(
            recipe(tiny_base("llama"), tmp_path / p, method=method, training={"precision": p, "learning_rate": 1e-3})
        )
        for p in ("fp32", "bf16")
    }
    losses = {p: [line["loss"] for line in run.metrics if "loss" in line] for p, run in runs.items()}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    saved = next((runs["bf16"].folder / "model").glob("*.safetensors"))
    assert {t.dtype for t in load_file(saved).values()} == {torch.float32}


# The plan


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=150),
    epoch=st.integers(0, 3),
    seed=st.integers(0, 1000),
    batch=st.integers(1, 9),
    tokens=st.one_of(st.none(), st.integers(1, 300)),
)
def test_an_epoch_has_every_row_once(lengths: list[int], epoch: int, seed: int, batch: int, tokens: int | None) -> None:
    plan = epoch_plan(lengths, epoch, seed, batch, tokens)
    assert sorted(row for step in plan for row in step) == list(range(len(lengths)))
    assert plan == epoch_plan(lengths, epoch, seed, batch, tokens)
    if tokens is None:
        assert all(len(step) <= batch for step in plan)
    else:
        assert all(len(step) * max(lengths[r] for r in step) <= tokens or len(step) == 1 for step in plan)
    if epoch == 0:
        assert max(lengths) in [lengths[row] for row in plan[0]], "what cannot fit fails at once"


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=30), budget=st.integers(1, 200), world=st.integers(1, 5)
)
def test_forward_passes_share_a_step_among_processes(lengths: list[int], budget: int, world: int) -> None:
    rows = list(range(len(lengths)))
    shares = [micro_batches(rows, lengths, budget, rank, world) for rank in range(world)]
    assert sorted(row for share in shares for group in share for row in group) == rows
    for group in (group for share in shares for group in share):
        assert len(group) * max(lengths[row] for row in group) <= budget or len(group) == 1


def test_another_seed_is_another_order() -> None:
    lengths = [5] * 40
    assert epoch_plan(lengths, 0, 0, 4) != epoch_plan(lengths, 0, 1, 4)
    assert epoch_plan(lengths, 0, 0, 4) != epoch_plan(lengths, 1, 0, 4)
