"""`rl`: neither forward passes, shared prompts, processes nor interruptions change a run; the start stays the start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import tunewright as tw
from tests.contracts.steps import ALL, NOWHERE, assert_same, prepared
from tests.contracts.test_processes import flat, same_weights
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import words
from tunewright.artifacts.interpolate import load
from tunewright.data.groups import element
from tunewright.engine import checkpoint
from tunewright.engine.job import Job
from tunewright.engine.loop import Step, ready
from tunewright.engine.processes import Processes
from tunewright.methods.base import enter_training
from tunewright.run import make_job

ALGORITHMS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": "grpo", "samples": 4, "kl_coefficient": 0.1},
    "ppo": {"algorithm": "ppo", "samples": 2, "passes": 4, "parts": 2, "kl_target": 0.5},
    "rloo": {"algorithm": "rloo", "passes": 2},
    "reinforce": {"algorithm": "reinforce"},
}
REWARD = "def letters(samples):\n    return [len(set(s.text)) / 10 + s.item['bonus'] for s in samples]\n"
LONG = [{"prompt": words(i, 14 + i % 5) + " ", "bonus": i / 10} for i in range(12)]


def objective(folder: Path, **options: Any) -> dict[str, Any]:
    path = folder / "reward.py"
    path.write_text(REWARD)
    reward = {"type": "python", "function": f"{path}:letters"}
    return {"type": "rl", "rewards": [reward], "max_new_tokens": 6, **options}


def job_for(base: str, folder: Path, method: Any = "full", **options: Any) -> Job:
    made = prepared(base, LONG, method=method, objective=objective(folder, **options), training={"batch": 4})
    return make_job(made, NOWHERE, Processes())


def drawn(job: Job) -> tuple[Step, list[Any]]:
    """The first draw, from a policy that has then moved."""
    step = ready(job)
    found = list(job.objective.prepare(step.learner, [*job.train[:5], *job.prior], 0))
    with torch.no_grad():
        for parameter in step.state.parameters.values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    enter_training(job.model, job.method)
    return step, found


def gradient(step: Step, examples: list[Any], budget: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    step.budget = budget
    step.state.optimizer.zero_grad(set_to_none=True)
    terms = step._accumulate(examples, step.job.objective.counts(examples))
    return terms, {n: p.grad.clone() for n, p in step.state.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_forward_passes_of_any_size_and_shared_prompts_give_the_same_step(
    name: str, tiny_base: Any, tmp_path: Path
) -> None:
    step, found = drawn(job_for(tiny_base("llama"), tmp_path, **ALGORITHMS[name]))
    whole = gradient(step, found, ALL)
    apart = [element(e.parts, e.source) for e in found]
    assert any(e.shared for e in found) == (name != "reinforce") and not any(e.shared for e in apart)
    assert_same(whole, gradient(step, found, 60), relative=5e-6)
    assert_same(whole, gradient(step, found, 1), relative=5e-6)
    assert_same(whole, gradient(step, apart, ALL), relative=5e-6)
    assert_same(whole, gradient(step, apart, 40), relative=5e-6)


def test_rows_of_a_prior_are_cut_apart_like_others(tiny_base: Any, tmp_path: Path) -> None:
    rows = [{"prompt": words(i, 2), "completion": words(i + 1, 1 + i)} for i in range(5)]
    options = objective(tmp_path, samples=3, passes=2, prior_weight=0.5, temperature=0.7)
    made = prepared(tiny_base("llama"), LONG, method="full", objective=options, data={"prior": rows})
    step, found = drawn(make_job(made, NOWHERE, Processes()))
    assert sum(e.parts[0].fixed["prior"] for e in found) == 5
    assert_same(gradient(step, found, ALL), gradient(step, found, 1), relative=5e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_processes_equal_one(name: str, tiny_base: Any, tmp_path: Path) -> None:
    """Steps of three prompts, so that one process has more; measured before and after by the first process alone."""
    runs = []
    for processes in (1, 2):
        options = objective(tmp_path, **ALGORITHMS[name])
        data = {"train": LONG[:6], "validation": LONG[6:9], "test": LONG[9:]}
        training = {"max_steps": 10, "micro_batch_tokens": 60, "processes": processes, "learning_rate": 1e-3}
        changes = {"evaluation": {"before": True, "samples": 2, "generate": 0}, "data": data, "training": training}
        runs.append(tw.train(recipe(tiny_base("llama"), tmp_path / str(processes), objective=options, **changes)))
    one, two = runs
    assert [line.get("samples") for line in one.metrics] == [line.get("samples") for line in two.metrics]
    for mine, other in zip(one.metrics, two.metrics, strict=True):
        numbers = [{k: v for k, v in flat(line).items() if k != "samples"} for line in (mine, other)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-4, abs=1e-5)
    same_weights(one, two)
    found = [run.info["evaluation"]["test"] for run in runs]
    assert [found[1][when]["metrics"]["reward"]["value"] for when in ("before", "after")] == pytest.approx(
        [found[0][when]["metrics"]["reward"]["value"] for when in ("before", "after")], abs=1e-5
    )
    if name != "ppo":
        return
    critics = [load_file(run.folder / "checkpoints" / "step-10" / "state.safetensors") for run in runs]
    head = "weight/critic.score.weight"
    torch.testing.assert_close(critics[1][head], critics[0][head], rtol=1e-4, atol=1e-6)
    assert critics[0][head].abs().sum() > 0


CUT: dict[str, dict[str, Any]] = {
    "ppo, several updates of a draw": {"objective": ALGORITHMS["ppo"], "training": {"ema": 0.9}},
    "ppo, full": {"objective": ALGORITHMS["ppo"], "method": "full"},
    "grpo, start of full training": {"objective": {**ALGORITHMS["grpo"], "passes": 3}, "method": "full"},
    "rloo, pissa": {"objective": ALGORITHMS["rloo"], "method": {"type": "lora", "rank": 4, "init": "pissa"}},
    "grpo, LoRA": {"objective": ALGORITHMS["grpo"], "method": {"type": "lora", "rank": 4}},
}


class Cut(Exception):
    """The interruption."""


def cut() -> None:
    raise Cut


def document(base: str, output: Path, **changes: Any) -> Any:
    options = objective(output.parent, **changes.pop("objective"))
    training = {"max_steps": 13, "checkpoint_every": 1, "learning_rate": 1e-3, **changes.pop("training", {})}
    data = {"train": LONG[:7], "validation": LONG[7:10]}
    return recipe(base, output, objective=options, training=training, data=data, **changes)


def last_checkpoint(folder: Path) -> dict[str, bytes]:
    newest = checkpoint.steps(folder / "checkpoints")[-1]
    return {path.name: path.read_bytes() for path in (folder / "checkpoints" / f"step-{newest}").iterdir()}


@pytest.mark.parametrize("name", CUT)
def test_an_interrupted_run_ends_as_if_it_had_not_been(name: str, tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("llama")
    whole = tw.train(document(base, tmp_path / "whole", **CUT[name]))
    with pytest.raises(Cut):
        tw.train(document(base, tmp_path / "cut", **CUT[name]), watchers=[stop_at(11, cut)])
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints")[-1] == 10
    run = tw.resume(tmp_path / "cut")
    assert left_behind(run.folder) == left_behind(whole.folder)
    assert last_checkpoint(run.folder) == last_checkpoint(whole.folder)
    assert run.info["evaluation"] == whole.info["evaluation"]


KILLED = """
import os, sys
import tunewright as tw
from tests.runs import stop_at
tw.train(tw.read_recipe(sys.argv[1]), watchers=[stop_at(12, lambda: os.kill(os.getpid(), 9))])
"""
KILLED_DRAWING = """
import os, sys
import tunewright as tw
from tunewright.engine.learner import Learner

def sample(self, prompts, *, step, **more):
    if step == 8:  # answered, and not scored yet
        self.job.rewards = lambda *_: os.kill(os.getpid(), 9)
    return drawn(self, prompts, step=step, **more)

drawn, Learner.sample = Learner.sample, sample
tw.train(tw.read_recipe(sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("name", "script", "at"),
    [("ppo, full", KILLED, 11), ("ppo, full", KILLED_DRAWING, 8), ("grpo, LoRA", KILLED_DRAWING, 8)],
    ids=["between two steps on a draw", "while answers are drawn, ppo", "while answers are drawn, grpo"],
)
def test_kill_9_in_the_middle_of_a_draw(name: str, script: str, at: int, tiny_base: Any, tmp_path: Path) -> None:
    base, case = tiny_base("llama"), CUT[name]
    whole = tw.train(document(base, tmp_path / "whole", **case))
    path = tmp_path / "recipe.yaml"
    path.write_text(document(base, tmp_path / "cut", **case).to_yaml())
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints")[-1] == at
    run = tw.resume(tmp_path / "cut")
    assert left_behind(run.folder) == left_behind(whole.folder)
    assert last_checkpoint(run.folder) == last_checkpoint(whole.folder)


def test_the_value_net_is_kept_in_checkpoints_alone(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(document(tiny_base("llama"), tmp_path / "run", **CUT["ppo, full"]))
    with safe_open(next((run.folder / "checkpoints").glob("*/state.safetensors")), "pt") as file:
        kept = [name for name in file.keys() if "critic." in name]  # noqa: SIM118  it is no mapping
    assert any(name.startswith("weight/critic.model.layers.0") for name in kept)
    assert any(name.startswith("optimizer/critic.score.weight") for name in kept)
    tw.export(run.folder, "merged", tmp_path / "merged")
    plain = {name for path in Path(tiny_base("llama")).glob("*.safetensors") for name in load_file(path)}
    for folder in (run.folder / "model", tmp_path / "merged"):
        assert {name for path in folder.glob("*.safetensors") for name in load_file(path)} == plain
    start, half, end = (load(run.folder, alpha=alpha).module.state_dict() for alpha in (0, 0.5, 1))
    assert half.keys() == start.keys() == end.keys()
    for name, value in half.items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2)


METHODS: dict[str, Any] = {
    "lora": {"type": "lora", "rank": 4},
    "dora": {"type": "lora", "rank": 4, "dora": True},
    "pissa": {"type": "lora", "rank": 4, "init": "pissa"},
    "adapter": {"type": "adapter", "width": 4},
    "full": "full",
    "freeze": {"type": "freeze", "last": 1},
}


@pytest.mark.parametrize("name", METHODS)
def test_the_start_stays_the_start(name: str, tiny_base: Any, tmp_path: Path) -> None:
    job = job_for(tiny_base("llama"), tmp_path, method=METHODS[name], samples=3, kl_coefficient=0.1)
    step = ready(job)
    rows = [element(e.parts, e.source) for e in job.objective.prepare(step.learner, job.train[:3], 0)]
    now, first = (_flat(step.learner.nll(rows, 1.0, start=start)) for start in (False, True))
    np.testing.assert_allclose(first, now, rtol=1e-4, atol=2e-5)
    lines = [step.take() for _ in range(3)]
    assert abs(lines[0]["kl"]) < 1e-4 and abs(lines[0]["kl_loss"]) < 1e-6 and abs(lines[2]["kl"]) > 1e-3
    np.testing.assert_array_equal(_flat(step.learner.nll(rows, 1.0, start=True)), first)
    assert np.abs(_flat(step.learner.nll(rows, 1.0)) - first).max() > 1e-3


def test_the_start_of_a_run_that_goes_on_is_the_end_of_the_run_before(tiny_base: Any, tmp_path: Path) -> None:
    before = tw.train(recipe(tiny_base("llama"), tmp_path / "before", training={"learning_rate": 0.05}))
    options = objective(tmp_path, samples=3, kl_coefficient=0.1)
    made = prepared(str(before.folder), LONG, start=tmp_path / "start", objective=options, training={"batch": 4})
    step = ready(make_job(made, NOWHERE, Processes()))
    rows = list(step.job.objective.prepare(step.learner, step.job.train[:3], 0))
    assert abs(step.take()["kl"]) < 1e-4
    step.take()
    found = step.learner.nll(rows, 1.0, start=True)
    module = tw.load(before.folder).module.eval()
    for example, own in zip(rows, found, strict=True):
        for part, nll in zip(example.parts, own, strict=True):
            with torch.no_grad():
                logits_TV = module(input_ids=torch.tensor(part.inputs["input_ids"])[None]).logits[0]
            logp_T = logits_TV.log_softmax(-1)[torch.arange(part.length), torch.tensor(part.target)].numpy()
            np.testing.assert_allclose(nll, -logp_T[part.weight > 0], atol=1e-4)


VIRTUAL = {"num_virtual_tokens": 3}
TAKEN: dict[str, dict[str, Any]] = {
    "qwen3": {"base": "qwen3"},
    "gpt2": {"base": "gpt2", "method": "full"},
    "mistral": {"base": "mistral"},
    "gemma3": {"base": "gemma3"},
    "mixtral": {"base": "mixtral"},
    "prompt tuning": {"method": {"type": "peft", "config": {"peft_type": "PROMPT_TUNING", **VIRTUAL}}},
    "prefix tuning": {"method": {"type": "peft", "config": {"peft_type": "PREFIX_TUNING", **VIRTUAL}}},
    "a frozen trunk, of which states would be kept": {"method": "head", "training": {"epochs": 3}},
    "an average": {"training": {"ema": 0.9}},
    "bf16": {"training": {"precision": "bf16"}},
    "bf16, full": {"method": "full", "training": {"precision": "bf16"}},
    "activation checkpointing": {"method": "full", "training": {"activation_checkpointing": True}},
    "new tokens": {"data": {"special_tokens": ["<a>"]}},
    "a batch of positions": {"training": {"batch": "auto", "batch_tokens": 40}},
}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("name", TAKEN)
def test_whatever_trains_learns_from_a_reward(name: str, algorithm: str, tiny_base: Any, tmp_path: Path) -> None:
    """The weights move, the sampler and the trainer agree, and what is saved answers."""
    changes = dict(TAKEN[name])
    base = tiny_base(changes.pop("base", "llama"))
    data = {"train": LONG[:6], "validation": LONG[6:8], **changes.pop("data", {})}
    training = {"learning_rate": 1e-2, "epochs": 1, **changes.pop("training", {})}
    run = tw.train(
        recipe(base, tmp_path / "run", data=data, training=training, objective=objective(tmp_path, samples=2,
               algorithm=algorithm, kl_coefficient=0.1), **changes)
    )  # fmt: skip
    lines = [line for line in run.metrics if "loss" in line]
    half = run.recipe.training.precision == "bf16"
    assert lines[0]["grad_norm"] > 0 and all(line["sampler_gap"] < (0.05 if half else 1e-4) for line in lines)
    assert len(run.metrics) > len(lines)
    assert tw.chat(run.folder, LONG[0]["prompt"], max_new_tokens=2) is not None


def _flat(values: list[list[np.ndarray]]) -> np.ndarray:
    return np.concatenate([one for own in values for one in own])
