"""`training.head_first`: a new head learns alone on the frozen base, and the run starts from there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tunewright as tw
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import completions
from tunewright.errors import MethodError, RecipeError

TASK, IMAGES = "text-classification", "image-classification"
HEAD = {"head_first": 12, "max_steps": 2, "batch": 4, "learning_rate": 0.02}


@pytest.mark.parametrize("method", ["full", "lora", "freeze", "adapter"])
def test_only_the_head_moves_before_the_method_begins(method: str, tiny_base: Any, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    run = tw.train(
        recipe(tiny_base("bert"), tmp_path / "run", task=TASK, method=method, training=HEAD),
        watchers=[lambda line: seen.append(dict(line))],
    )
    start = dict(tw.load(run.folder, alpha=0.0).module.named_parameters())
    trunk = transformers.AutoModel.from_pretrained(tiny_base("bert"), add_pooling_layer=False)
    for name, parameter in trunk.named_parameters():
        assert torch.equal(start[f"bert.{name}"], parameter), name
    losses = [line["loss"] for line in seen if line.get("phase") == "head" and "loss" in line]
    assert len(losses) == 36 and min(losses[-12:]) < max(losses[:3])
    assert [line["step"] for line in run.metrics if "loss" in line] == [1, 2], "the head's steps are not the run's"


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("method", ["full", "lora", {"type": "freeze", "last": 1}], ids=str)
def test_only_the_head_moves_before_the_method_begins_on_images(
    method: Any, kind: str, tiny_base: Any, tmp_path: Path
) -> None:
    """The statistics of batch norms stay too while the head learns, from features that are computed once, then move."""
    kept = {"keep": "last", "head_first": 6}
    run = tw.train(recipe(tiny_base(kind), tmp_path / "run", task=IMAGES, method=method, training={**HEAD, **kept}))
    start, end = (tw.load(run.folder, alpha=alpha).module.state_dict() for alpha in (0.0, 1.0))
    base = transformers.AutoModel.from_pretrained(tiny_base(kind)).state_dict()
    here = {name: start[f"{kind}.{name}"] for name in base if f"{kind}.{name}" in start}
    assert len(here) > len(base) - 3, "but for a pooler"
    assert all(torch.equal(here[name], base[name]) for name in here)
    if kind == "resnet" and method != "lora":
        assert any(not torch.equal(start[name], end[name]) for name in start if name.endswith("running_mean"))
    lines = [json.loads(line) for line in (run.folder / "start" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation"]["loss"] for line in lines if "validation" in line]
    assert len(losses) == 6 and losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_an_interrupted_head_of_an_image_model_goes_on(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    def document(name: str) -> Any:
        training = {**HEAD, "head_first": 3, "checkpoint_every": 1}
        return recipe(tiny_base(kind), tmp_path / name, task=IMAGES, method="full", training=training)

    def cut() -> None:
        raise KeyError("cut")

    whole = tw.train(document("whole"))
    with pytest.raises(KeyError):
        tw.train(document("cut"), watchers=[stop_at(7, cut)])
    assert not (tmp_path / "cut" / "start" / "head.safetensors").exists()
    assert left_behind(tw.resume(tmp_path / "cut").folder) == left_behind(whole.folder)


def test_the_head_warms_up_over_the_same_share_of_its_steps(tiny_base: Any, tmp_path: Path) -> None:
    """A number of steps is one of the run's: of the head's few it could be more than all."""
    training = {**HEAD, "head_first": 1, "max_steps": 12, "warmup": 8}
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=TASK, training=training))
    lines = map(json.loads, (run.folder / "start" / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert len(rates) == 3 and rates[1] == pytest.approx(2 * rates[0]) and rates[2] == rates[1]


def test_the_run_goes_on_from_the_trained_head(tiny_base: Any, tmp_path: Path) -> None:
    still = {**HEAD, "max_steps": 1, "learning_rate": 1e-9}
    made = [
        tw.train(recipe(tiny_base("bert"), tmp_path / str(epochs), task=TASK, training={**still, "head_first": epochs}))
        for epochs in (0, 12)
    ]
    without, with_head = ([line["validation"] for line in run.metrics if "validation" in line] for run in made)
    in_head = (made[1].folder / "start" / "metrics.jsonl").read_text().splitlines()
    best = min(line["validation"]["loss"] for line in map(json.loads, in_head) if "validation" in line)
    assert with_head[0]["loss"] == pytest.approx(best, rel=1e-5) and with_head[0] != without[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_an_average_begins_with_the_trained_head(method: str, tiny_base: Any, tmp_path: Path) -> None:
    slow = {**HEAD, "max_steps": 1, "learning_rate": 1e-9, "ema": 0.999, "weight_decay": 0.0}
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=TASK, method=method, training=slow))
    start, end = (dict(tw.load(run.folder, alpha=alpha).module.named_parameters()) for alpha in (0.0, 1.0))
    end = {name.replace("base_model.model.", "").replace(".modules_to_save.default", ""): p for name, p in end.items()}
    torch.testing.assert_close(end["classifier.weight"], start["classifier.weight"], rtol=0, atol=1e-6)


def test_a_head_that_was_trained_first_and_is_gone_is_said_to_be(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=TASK, training={**HEAD, "head_first": 1}))
    shutil.rmtree(run.folder / "start")
    with pytest.raises(MethodError, match=r"start/head\.safetensors is missing"):
        tw.load(run.folder, alpha=0.5)


@pytest.mark.parametrize(
    ("task", "kind", "method", "match"),
    [
        ("text-generation", "llama", "lora", "has its head already"),
        (TASK, "bert", "head", "only the head trains"),
    ],
)
def test_where_it_means_nothing_it_is_refused(
    task: str, kind: str, method: str, match: str, tiny_base: Any, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=match):
        tw.train(recipe(tiny_base(kind), tmp_path / "run", task=task, method=method, training=HEAD))
    assert not (tmp_path / "run").exists()


def test_special_tokens_are_no_head(tiny_base: Any, tmp_path: Path) -> None:
    data = {"special_tokens": ["<a>"], "train": completions(8)}
    with pytest.raises(RecipeError, match="has its head already"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run", data=data, training=HEAD))
