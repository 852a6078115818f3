"""A run that goes on from another: it starts where that one ended, and what it saves is complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import tunewright as tw
from tests.contracts.journeys import Journey, base_logits, close, journey, logits
from tests.contracts.test_methods import LORA, by_peft, peft
from tests.runs import recipe
from tests.tiny import labelled, rows_for
from tunewright.artifacts.card import CARD
from tunewright.artifacts.export import export
from tunewright.artifacts.load import load
from tunewright.errors import MethodError, TunewrightError

GENERATION, CLASSIFICATION = "text-generation", "text-classification"
BASES = {GENERATION: "llama", CLASSIFICATION: "bert"}
FIRST: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "pissa": {**LORA, "init": "pissa"},
    "rslora": {**LORA, "rslora": True},
    "dora": {**LORA, "dora": True},
    "full": {"type": "full"},
    "head": {"type": "head"},
    "adapter": {"type": "adapter", "width": 8},
    "loha": peft("LOHA", r=4, target_modules=["q_proj", "query"]),
    "peft pissa": peft("LORA", r=4, target_modules=["q_proj", "query"], init_lora_weights="pissa"),
    "biases": peft("LORA", r=4, target_modules=["c_attn", "q_proj", "query"], bias="all"),
}
STACKS = ("lora", "pissa", "rslora")


@pytest.fixture(scope="session")
def first(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Journey]:
    @cache
    def make(name: str, task: str, kind: str = "") -> Journey:
        return journey(tiny_base(kind or BASES[task]), task, FIRST[name], tmp_path_factory.mktemp("first"))

    return make


@pytest.mark.parametrize("task", BASES)
@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("then", STACKS)
def test_a_lora_on_a_lora_is_saved_over_the_original_base(
    name: str, then: str, task: str, first: Any, tiny_base: Any, tmp_path: Path
) -> None:
    before = first(name, task)
    seen = journey(
        str(before.folder), task, {**FIRST[then], "rank": 3, "targets": r".*(q_proj|up_proj|query|dense)"}, tmp_path
    )
    base = tiny_base(BASES[task])
    assert close(seen.start, before.end)
    assert not close(seen.end, before.end, 1e-3)
    assert close(seen.loaded, seen.end)
    assert close(by_peft(base, seen), seen.end)
    assert json.loads((seen.folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert not (tmp_path / "start").exists()


def test_three_loras_on_each_other(first: Any, tiny_base: Any, tmp_path: Path) -> None:
    one = first("lora", GENERATION)
    two = journey(str(one.folder), GENERATION, FIRST["rslora"], tmp_path / "two")
    three = journey(str(two.folder), GENERATION, FIRST["pissa"], tmp_path / "three")
    assert close(three.start, two.end)
    assert close(three.loaded, three.end)
    assert close(by_peft(tiny_base("llama"), three), three.end)


@pytest.mark.parametrize("task", BASES)
@pytest.mark.parametrize("name", ["dora", "full", "head", "loha", "peft pissa", "biases"])
def test_any_other_run_goes_on_too(name: str, task: str, first: Any, tmp_path: Path) -> None:
    before = first(name, task)
    seen = journey(str(before.folder), task, LORA, tmp_path)
    assert close(seen.start, before.end)
    assert close(seen.loaded, seen.end)


@pytest.mark.parametrize("task", BASES)
@pytest.mark.parametrize("then", [{**LORA, "dora": True}, {"type": "full"}, {"type": "freeze"}, {"type": "head"}])
def test_any_other_method_goes_on_from_a_lora(then: Any, task: str, first: Any, tmp_path: Path) -> None:
    before = first("lora", task)
    seen = journey(str(before.folder), task, then, tmp_path)
    assert close(seen.start, before.end)
    assert torch.equal(seen.loaded, seen.end)


@pytest.mark.parametrize("task", BASES)
def test_adapters_go_on_as_they_are(task: str, first: Any, tmp_path: Path) -> None:
    before = first("adapter", task)
    seen = journey(str(before.folder), task, FIRST["adapter"], tmp_path)
    assert torch.equal(seen.start, before.end)
    assert torch.equal(seen.loaded, seen.end)
    assert not close(seen.end, before.end, 1e-3)


@pytest.mark.parametrize("changed", [{"width": 16}, {"variant": "pfeiffer"}])
def test_adapters_cannot_change_their_shape(changed: dict[str, Any], first: Any, tmp_path: Path) -> None:
    before = first("adapter", GENERATION)
    refusal = journey(str(before.folder), GENERATION, {**FIRST["adapter"], **changed}, tmp_path).refusal
    assert isinstance(refusal, MethodError)
    assert "width" in str(refusal)


def test_nothing_else_goes_on_from_adapters(first: Any, tmp_path: Path) -> None:
    refusal = journey(str(first("adapter", GENERATION).folder), GENERATION, LORA, tmp_path).refusal
    assert isinstance(refusal, MethodError)
    assert "method: adapter" in str(refusal)


def test_nothing_goes_on_from_virtual_tokens(tiny_base: Any, tmp_path: Path) -> None:
    prompt = journey(tiny_base("llama"), GENERATION, peft("PROMPT_TUNING", num_virtual_tokens=3), tmp_path / "one")
    refusal = journey(str(prompt.folder), GENERATION, LORA, tmp_path / "two").refusal
    assert "cannot be merged" in str(refusal)


def test_other_classes_get_a_new_head(first: Any, tmp_path: Path) -> None:
    before = first("lora", CLASSIFICATION)
    seen = journey(str(before.folder), CLASSIFICATION, LORA, tmp_path, data={"train": labelled(classes=5)})
    assert seen.start.shape == (5, 5)
    assert close(seen.loaded, seen.end)


# Tokens


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3"])
@pytest.mark.parametrize("method", [LORA, {"type": "full"}, {**LORA, "dora": True}], ids=["lora", "full", "dora"])
def test_new_tokens_train_and_come_back(method: Any, kind: str, tiny_base: Any, tmp_path: Path) -> None:
    """Heads are tied to the embeddings (Qwen3, Gemma) or not (Llama)."""
    seen = journey(tiny_base(kind), GENERATION, method, tmp_path, data={"special_tokens": ["<a>", "<b>"]})
    assert torch.equal(seen.loaded, seen.end)
    model = seen.again()
    ids = model.processor.convert_tokens_to_ids(["<a>", "<b>"])
    assert (
        len(model.processor("x<a>", add_special_tokens=False)["input_ids"])
        == len(model.processor("x", add_special_tokens=False)["input_ids"]) + 1
    )
    now, then = (token_rows(m, ids) for m in (model, seen.model))
    assert all(torch.equal(a, b) for a, b in zip(now, then, strict=True))
    if method["type"] == "lora":
        assert close(by_peft(tiny_base(kind), seen, vocabulary=len(model.processor)), seen.end, 0.0)


def token_rows(model: Any, ids: list[int]) -> list[torch.Tensor]:
    """What the model reads for tokens, and the logits it gives them: the whole function of their rows."""
    with torch.no_grad():
        read = model.module.get_input_embeddings()(torch.tensor(ids))
        return [read, model.module(input_ids=torch.tensor([ids])).logits[..., ids]]


def test_only_the_rows_of_new_tokens_train(tiny_base: Any, tmp_path: Path) -> None:
    seen = journey(
        tiny_base("llama"), GENERATION, {**LORA, "targets": ["q_proj"]}, tmp_path, data={"special_tokens": ["<a>"]}
    )
    merged = seen.again()
    seen.method.merge(merged)
    base = load(tiny_base("llama"))
    old = len(base.processor)
    assert torch.equal(
        merged.module.get_input_embeddings().weight[:old], base.module.get_input_embeddings().weight[:old]
    )


@pytest.mark.parametrize("method", ["freeze", "head", "adapter"])
def test_methods_that_freeze_new_tokens_are_refused(method: str, tiny_base: Any, tmp_path: Path) -> None:
    refusal = journey(
        tiny_base("llama"), GENERATION, {"type": method}, tmp_path, data={"special_tokens": ["<a>"]}
    ).refusal
    assert isinstance(refusal, TunewrightError)
    assert "special_tokens" in str(refusal)
    assert "lora" in str(refusal)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_each_run_may_add_its_own_tokens(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    rows = [{"prompt": r["prompt"], "completion": "<a>" + r["completion"] + "<b>"} for r in rows_for(GENERATION)]
    base = tiny_base(kind)
    one = journey(base, GENERATION, LORA, tmp_path / "1", data={"train": rows, "special_tokens": ["<a>"]})
    two = journey(str(one.folder), GENERATION, LORA, tmp_path / "2", data={"train": rows, "special_tokens": ["<b>"]})
    three = journey(str(two.folder), GENERATION, LORA, tmp_path / "3", data={"train": rows})
    for seen in (two, three):
        model = seen.again()
        ids = model.processor.convert_tokens_to_ids(["<a>", "<b>"])
        assert all(close(a, b) for a, b in zip(token_rows(model, ids), token_rows(seen.model, ids), strict=True))
        assert close(seen.loaded, seen.end)
        assert close(by_peft(base, seen, vocabulary=len(model.processor)), seen.end)


def test_modules_that_an_earlier_run_trained_along_are_kept(tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("llama")
    one = journey(base, GENERATION, {**LORA, "train_along": ["lm_head"]}, tmp_path / "1")
    two = journey(str(one.folder), GENERATION, {**LORA, "train_along": ["model.norm"]}, tmp_path / "2")
    assert close(two.start, one.end)
    assert close(two.loaded, two.end)
    assert close(by_peft(base, two), two.end)


# What others made


def test_a_bare_peft_folder_loads_and_goes_on(tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("llama")
    module = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights=False)
    theirs = get_peft_model(module, config)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert isinstance(loaded.module, PeftModel)
    model = load(base)
    model.module = theirs
    assert torch.equal(logits(loaded), logits(model))
    assert not close(logits(loaded), base_logits(base, GENERATION), 1e-3)
    seen = journey(str(tmp_path / "theirs"), GENERATION, LORA, tmp_path)
    assert close(seen.start, logits(loaded))
    assert close(by_peft(base, seen), seen.end)


@pytest.mark.parametrize("name", ["lora", "dora", "loha", "full"])
@pytest.mark.parametrize("task", BASES)
def test_exported_merged_is_a_model_of_its_own(name: str, task: str, first: Any, tmp_path: Path) -> None:
    seen = first(name, task)
    folder = export(seen.folder, "merged", tmp_path / "merged")
    assert close(logits(load(folder)), seen.end)
    model = seen.again()
    auto = {
        GENERATION: transformers.AutoModelForCausalLM,
        CLASSIFICATION: transformers.AutoModelForSequenceClassification,
    }
    model.module = auto[task].from_pretrained(folder, dtype="float32")
    assert close(logits(model), seen.end)


def test_bottleneck_adapters_cannot_be_exported_merged(first: Any, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="cannot be merged"):
        export(first("adapter", GENERATION).folder, "merged", tmp_path / "merged")


def test_an_adapter_over_a_wrong_base_is_refused(first: Any, tiny_base: Any, tmp_path: Path) -> None:
    for name in ("lora", "adapter"):
        folder = tmp_path / name
        folder.mkdir()
        for file in first(name, GENERATION).folder.iterdir():
            text = file.read_bytes()
            if file.suffix == ".json":
                text = text.replace(tiny_base("llama").encode(), tiny_base("gpt2").encode())
            (folder / file.name).write_bytes(text)
        with pytest.raises(TunewrightError, match="not those that the training began with"):
            load(folder)
        card = json.loads((folder / CARD).read_text())
        (folder / CARD).write_text(json.dumps({**card, "base_sha256": None}))  # "I mean this one all the same"
        with pytest.raises(TunewrightError, match="fit"):
            load(folder)


def test_the_path_of_adapters_that_go_on_begins_with_them(tiny_base: Any, tmp_path: Path) -> None:
    first = tw.train(recipe(tiny_base("bert"), tmp_path / "1", task=CLASSIFICATION, method="adapter")).folder
    second = tw.train(recipe(str(first), tmp_path / "2", task=CLASSIFICATION, method="adapter")).folder
    begin, half, end = (dict(tw.load(second, alpha=alpha).module.named_parameters()) for alpha in (0.0, 0.5, 1.0))
    trained = [name for name in end if not torch.equal(begin[name], end[name])]
    assert any("bottleneck.down" in name for name in trained) and any("classifier" in name for name in trained)
    for name, tensor in tw.load(first).module.named_parameters():
        assert torch.equal(begin[name], tensor)
        torch.testing.assert_close(half[name], (tensor + end[name]) / 2)
