"""θ(α) = (1 − α)·θ₀ + α·θ₁ for every task and method: exact ends, and in between what the weights say."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tunewright as tw
from tests.contracts.journeys import close, logits
from tests.contracts.test_methods import CASES, PLAIN
from tests.runs import recipe
from tests.tiny import completions
from tunewright.artifacts.interpolate import blend, load, write_point
from tunewright.artifacts.soup import soup
from tunewright.artifacts.start import find_tensors, start_of, state_of
from tunewright.errors import BaseModelError, MethodError, OutputError, RecipeError
from tunewright.methods._peft import merge_adapter

BASES = {
    "text-generation": "llama",
    "text-classification": "bert",
    "image-classification": "resnet",
    "text-to-image": "sd1",
}
NO_PATH = ("prefix", "prompt", "p-tuning", "peft LORA", "peft bias")  # virtual tokens; the base's weights changed
TEXT = ("text-generation", "text-classification")
IMAGES = ("text encoder", "textual inversion")  # the latter begins elsewhere than its base: it has tests of its own
PAIRS = [(task, name) for task in TEXT for name in CASES if name not in ("experts", *IMAGES)] + [
    ("text-generation", "experts")
]
PAIRS += [("image-classification", name) for name in PLAIN if name not in ("peft", *IMAGES)] + [
    ("image-classification", "dora")
]
PAIRS += [("text-to-image", name) for name in (*PLAIN, "dora", "text encoder") if name not in ("head", IMAGES[1])]
KINDS = {"experts": "mixtral"}
QUICK = {"max_steps": 3, "batch": 4, "learning_rate": 0.02}


def between(run: tw.Run, alpha: float) -> torch.Tensor:
    return logits(load(run.folder, alpha=alpha))


@pytest.fixture(scope="session")
def ran(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tw.Run]:
    """A short run whose new head, if there is one, was trained alone first."""

    @cache
    def train(task: str, name: str, kind: str = "", seed: int = 0) -> tw.Run:
        head_first = 1 if task in ("text-classification", "image-classification") and name != "head" else 0
        training = {**QUICK, "head_first": head_first, "seed": seed}
        base = kind or tiny_base(KINDS.get(name, BASES[task]))
        folder = tmp_path_factory.mktemp("run") / "run"
        return tw.train(recipe(base, folder, task=task, method=CASES[name], training=training))

    return train


def pairs(*but: str) -> Any:
    return pytest.mark.parametrize(("task", "name"), [pair for pair in PAIRS if pair[1] not in (*NO_PATH, *but)])


@pairs("head")
def test_between_the_ends_are_the_interpolated_weights(task: str, name: str, ran: Any) -> None:
    run = ran(task, name)
    for alpha in (0.3, 0.8):
        assert close(between(run, alpha), by_hand(run, alpha), 2e-5)
    assert not close(between(run, 0.5), between(run, 1.0), 1e-3), "the path leads nowhere"


def by_hand(run: tw.Run, alpha: float) -> torch.Tensor:
    """Both ends as whole models in memory, blended by name; an adapter that cannot be merged has its own weights."""
    end, start = load(run.folder), start_of(run.folder).model()
    method = run.recipe.method
    if hasattr(start.module, "peft_config"):  # it went on from an adapter
        merge_adapter(start)
    if method.type == "adapter":
        for module in end.module.modules():
            if hasattr(module, "bottleneck"):
                for parameter in module.bottleneck.up.parameters():
                    parameter.data *= alpha
    else:
        method.merge(end)
    here, there = dict(state_of(end.module)), dict(state_of(start.module))
    blend({name: here[name] for name in there}, iter(there.items()), alpha)
    return logits(end)


@pairs()
def test_the_ends_are_exact(task: str, name: str, ran: Any, tiny_base: Any) -> None:
    run = ran(task, name)
    assert torch.equal(between(run, 1.0), logits(run.model))
    if task in ("text-generation", "text-to-image"):
        assert torch.equal(between(run, 0.0), logits(load(run.info["base"])))
    elif name != "head":
        start = start_of(run.folder)
        head = {n: p for n, p in load(run.folder, alpha=0.0).module.named_parameters() if n in start.head}
        assert head and all(torch.equal(p, start.head[n]) for n, p in head.items())


@pytest.mark.parametrize(("task", "name"), [pair for pair in PAIRS if pair[1] in NO_PATH])
def test_where_there_is_no_path_only_the_ends_are_given(task: str, name: str, ran: Any) -> None:
    if (task, name) == ("text-classification", "prompt"):
        pytest.skip("a classifier's virtual tokens are tried with prefix")
    run = ran(task, name)
    with pytest.raises(MethodError):
        load(run.folder, alpha=0.5)
    assert torch.equal(between(run, 1.0), logits(run.model))


@pytest.mark.parametrize("name", ["lora", "full", "dora", "adapter"])
def test_nan_at_one_end_never_reaches_the_other(name: str, ran: Any, tmp_path: Path) -> None:
    run = copy_of(ran("text-generation", name), tmp_path)
    file = next(path for path in (run.folder / "model").glob("*.safetensors"))
    save_file({n: torch.full_like(t, float("nan")) for n, t in load_file(file).items()}, file, {"format": "pt"})
    assert torch.isfinite(between(run, 0.0)).all()
    assert not torch.isfinite(between(run, 1.0)).all()


def copy_of(run: tw.Run, folder: Path) -> tw.Run:
    return tw.Run(Path(shutil.copytree(run.folder, folder / "copy")))


@pytest.mark.parametrize("name", ["lora", "full", "freeze", "adapter"])
def test_a_head_that_began_at_random_has_no_path(name: str, tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "r", task="text-classification", method=CASES[name],
                          training=QUICK))  # fmt: skip
    for alpha in (0.0, 0.5):
        with pytest.raises(MethodError, match="head_first"):
            load(run.folder, alpha=alpha)


def test_the_head_learns_alone_first(ran: Any, tiny_base: Any) -> None:
    run = ran("text-classification", "full")
    lines = [json.loads(line) for line in (run.folder / "start" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    losses = [line["validation"]["loss"] for line in lines if "validation" in line]
    start, base = load(run.folder, alpha=0.0), run.model.task.load(tiny_base("bert"))
    moved = {n for n, p in start.module.named_parameters() if not torch.equal(p, base.module.get_parameter(n))}
    assert losses and moved == set(start_of(run.folder).head), "the trunk is still the base's"


@pytest.mark.parametrize("then", ["lora", "rslora", "full", "dora"])
def test_the_path_of_a_run_that_went_on_begins_where_the_first_ended(
    then: str, ran: Any, tmp_path: Path, tiny_base: Any
) -> None:
    first = ran("text-generation", "lora")
    run = tw.train(recipe(str(first.folder), tmp_path / "then", method=CASES[then], training={**QUICK, "seed": 5}))
    assert close(between(run, 0.0), logits(first.model))
    assert close(between(run, 0.4), by_hand(run, 0.4), 2e-5)
    assert torch.equal(between(run, 1.0), logits(run.model))


def test_a_second_run_with_the_same_head_needs_no_head_first(ran: Any, tmp_path: Path) -> None:
    first = ran("text-classification", "lora")
    for then in ("lora", "full"):
        run = tw.train(
            recipe(str(first.folder), tmp_path / then, task="text-classification", method=CASES[then],
                   training={**QUICK, "seed": 5})
        )  # fmt: skip
        assert close(between(run, 0.0), logits(first.model))
        assert close(between(run, 0.4), by_hand(run, 0.4), 2e-5)


def test_the_row_of_a_token_is_blended_too(tiny_base: Any, tmp_path: Path) -> None:
    told = [{**row, "completion": f"{row['completion']} <a> <a>"} for row in completions(8)]
    data = {"special_tokens": ["<a>"], "train": told}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", data=data, training=QUICK))
    row = run.model.processor.convert_tokens_to_ids("<a>")
    rows = [rows_of(load(run.folder, alpha=alpha), row) for alpha in (0.0, 0.25, 1.0)]
    torch.testing.assert_close(rows[1], 0.75 * rows[0] + 0.25 * rows[2])
    assert not torch.equal(rows[0], rows[2])


def rows_of(model: Any, row: int) -> torch.Tensor:
    return model.module.get_input_embeddings()(torch.tensor([row])).detach()


# The base's files are read one tensor at a time, where its names can be told


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "bert", "distilbert", "mixtral"])
def test_reading_in_a_stream_equals_loading_the_base(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    task = "text-classification" if "bert" in kind else "text-generation"
    head = {"head_first": 1} if "bert" in kind else {}
    run = tw.train(recipe(tiny_base(kind), tmp_path / "r", task=task, method="full", training={**QUICK, **head}))
    start, module = start_of(run.folder), run.model.module
    streamed, whole = dict(start.tensors(module)), dict(state_of(start.model().module))
    assert streamed.keys() == {name for name, tensor in state_of(module) if tensor.is_floating_point()}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in streamed.items())
    rest = {n: t for n, t in state_of(module) if t.is_floating_point() and n not in start.head}
    assert bool(find_tensors(start.base, rest, module)) == (kind != "mixtral"), "fused experts have other names on disk"


def test_the_start_is_never_in_memory_as_a_whole(ran: Any, monkeypatch: Any) -> None:
    """Of the start's tensors two are alive at once at most: the one that is blended and the one that is read."""
    run = ran("text-generation", "full")
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Watched:
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.file = safe_open(*arguments, **named)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, key: str) -> torch.Tensor:
            tensor = self.file.get_tensor(key)
            seen.append(weakref.ref(tensor))
            alive.append(sum(each() is not None for each in seen))
            return tensor

    monkeypatch.setattr("safetensors.safe_open", Watched)
    model = load(run.folder, alpha=0.5)
    assert len(alive) == len(dict(state_of(model.module))) and max(alive) == 2


# Points as folders, and soups


@pytest.mark.parametrize("name", ["lora", "dora", "full", "adapter", "peft OFT", "pissa"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_a_point_is_written_as_it_is_loaded(name: str, alpha: float, ran: Any, tmp_path: Path) -> None:
    run = ran("text-classification", name)
    folder = write_point(run.folder, alpha, tmp_path / "point")
    assert close(logits(load(folder)), between(run, alpha), 2e-5)
    with pytest.raises(OutputError, match="not empty"):
        write_point(run.folder, alpha, folder)


@pytest.mark.parametrize("name", ["lora", "full", "dora"])
def test_a_soup_is_the_mean_of_the_weights(name: str, ran: Any, tmp_path: Path) -> None:
    runs = [ran("text-generation", name, seed=seed) for seed in (0, 1, 2)]
    folder = soup([run.folder for run in runs], tmp_path / "soup")
    models = [load(run.folder) for run in runs]
    for run, model in zip(runs, models, strict=True):
        run.recipe.method.merge(model)
    states = [dict(state_of(model.module)) for model in models]
    with torch.no_grad():
        for key, tensor in states[0].items():
            tensor.copy_(torch.stack([state[key] for state in states]).mean(0))
    assert close(logits(load(folder)), logits(models[0]), 2e-5)


def test_a_soup_of_one_head(ran: Any, tmp_path: Path) -> None:
    """The seed draws the head and the order of rows: another seed is another head, and no soup."""
    one, other = ran("text-classification", "lora"), ran("text-classification", "lora", seed=1)
    with pytest.raises(BaseModelError, match="did not begin alike"):
        soup([one.folder, other.folder], tmp_path / "soup")
    folder = soup([one.folder, copy_of(one, tmp_path).folder], tmp_path / "same")
    assert close(logits(load(folder)), logits(one.model), 2e-5)


def test_a_start_that_is_gone_is_not_taken_for_the_base(tiny_base: Any, tmp_path: Path) -> None:
    """The start of a LoRA that was stacked on another is the other one, not what both lie over."""
    first = tw.train(recipe(tiny_base("llama"), tmp_path / "first"))
    then = tw.train(recipe(str(first.folder), tmp_path / "then"))
    assert load(then.folder, alpha=0.5)
    shutil.rmtree(then.folder / "start" / "adapter")
    for alpha in (0.0, 0.5):
        with pytest.raises(BaseModelError, match=r"start/adapter is missing"):
            load(then.folder, alpha=alpha)


def test_what_is_no_point(ran: Any, tiny_base: Any) -> None:
    run = ran("text-generation", "lora")
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(RecipeError, match="alpha"):
            load(run.folder, alpha=alpha)
    with pytest.raises(BaseModelError, match="no run"):
        load(tiny_base("llama"), alpha=0.5)
    assert torch.equal(logits(load(tiny_base("llama"), alpha=1.0)), logits(load(tiny_base("llama"))))


def test_an_adapter_that_others_made_has_a_path_too(ran: Any) -> None:
    folder = ran("text-generation", "lora").folder / "model"
    assert close(logits(load(folder, alpha=0.3)), between(ran("text-generation", "lora"), 0.3))
