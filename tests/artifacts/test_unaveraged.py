"""What a run with a moving average trained, put into its model from the checkpoint that it ended with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tunewright as tw
from tests.contracts.journeys import close, logits
from tests.contracts.test_methods import CASES
from tests.runs import recipe
from tests.tiny import completions
from tunewright.artifacts.unaveraged import load_unaveraged
from tunewright.engine import checkpoint
from tunewright.methods.base import plain_name

AVERAGED = {"max_steps": 4, "batch": 4, "learning_rate": 0.02, "ema": 0.9, "keep": "last"}
METHODS = ("lora", "dora", "full", "freeze", "adapter", "peft LOHA", "peft IA3")
TASKS = {"text-generation": "llama", "text-classification": "bert"}


@pytest.mark.parametrize(("task", "method"), [(task, method) for task in TASKS for method in METHODS])
def test_the_average_gives_the_model_and_the_weights_another(
    task: str, method: str, tiny_base: Any, tmp_path: Path
) -> None:
    training = {**AVERAGED, "head_first": 1 if task == "text-classification" else 0}
    base = tiny_base(TASKS[task])
    run = tw.train(recipe(base, tmp_path / "run", task=task, method=CASES[method], training=training))
    check(run)


@pytest.mark.parametrize(("first", "then"), [("lora", "lora"), ("lora", "full"), ("lora", "dora"), ("full", "lora")])
def test_of_a_run_that_went_on(first: str, then: str, tiny_base: Any, tmp_path: Path) -> None:
    """A LoRA stacked on another is saved as one of both ranks: its trained weights fit only what the loop had."""
    base = tw.train(recipe(tiny_base("llama"), tmp_path / "first", method=CASES[first], training=AVERAGED)).folder
    run = tw.train(recipe(str(base), tmp_path / "then", method=CASES[then], training=AVERAGED))
    if first == "lora":  # all that the new run needs of it, it keeps
        shutil.rmtree(base)
    check(run, 1e-5)


def test_with_a_token_that_trains(tiny_base: Any, tmp_path: Path) -> None:
    told = [{**row, "completion": f"{row['completion']} <a> <a>"} for row in completions(8)]
    data = {"special_tokens": ["<a>"], "train": told}
    check(tw.train(recipe(tiny_base("llama"), tmp_path / "run", data=data, training=AVERAGED)))


def check(run: tw.Run, within: float = 0.0) -> None:
    average, trained = (load_unaveraged(run.folder, run.info["steps"], kind=kind) for kind in ("average", "weight"))
    assert average is not None and trained is not None
    end = logits(run.model)
    assert close(logits(average), end, within) if within else torch.equal(logits(average), end)
    assert not close(logits(trained), end, 1e-3)
    saved = checkpoint.read(run.folder / "checkpoints" / f"step-{run.info['steps']}")[0]
    here = {plain_name(name): p for name, p in trained.module.named_parameters()}
    for name, tensor in saved.items():
        if name.startswith("weight/"):
            assert torch.equal(here[plain_name(name.removeprefix("weight/"))], tensor), name


def test_what_was_rewritten_as_it_was_saved_is_left_out(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", method=CASES["pissa"], training=AVERAGED))
    assert load_unaveraged(run.folder, run.info["steps"]) is None


def test_a_checkpoint_that_is_gone(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", training=AVERAGED))
    shutil.rmtree(run.folder / "checkpoints")
    assert load_unaveraged(run.folder, run.info["steps"]) is None
    found = tw.interpolate(run.folder, alphas="0,1")
    assert "without averaging" not in found["baselines"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_row_is_of_the_step_that_the_run_ended_with(keep: str, tiny_base: Any, tmp_path: Path) -> None:
    wild = {"max_steps": 16, "evaluate_every": 1, "learning_rate": 0.3, "schedule": "constant", "warmup": 0}
    training = {**AVERAGED, **wild, "keep": keep}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", training=training))
    best = run.info["best"]["step"]
    assert best < run.info["steps"], "else both are one step"
    model = load_unaveraged(run.folder, best if keep == "best" else run.info["steps"])
    assert model is not None
    row = tw.interpolate(run.folder, alphas="0,1")["baselines"]["without averaging"]["sets"]["validation"]
    assert row["value"] == pytest.approx(_loss(model, run), rel=1e-6)
    assert json.loads((run.folder / "interpolation.json").read_text())["baselines"].keys() == {"without averaging"}


def _loss(model: Any, run: tw.Run) -> float:
    """On the half of the validation rows that is measured."""
    from tunewright.evaluation.paired import primary
    from tunewright.policies import Asking
    from tunewright.reading import read_rows
    from tunewright.robust import Set, _Measure

    rows = read_rows(run.recipe)
    assert rows.validation is not None
    measure = _Measure(
        {"validation": [Set(rows.validation)]}, run.recipe.data, Asking(run.folder, rows.validation.records, "cpu")
    )
    return primary(measure(model)["validation"]["test"]).value
