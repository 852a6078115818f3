"""Bases that must be refused, and what the refusal says to do."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.contracts.steps import prepared
from tests.tiny import completions, labelled, rows_for
from tunewright.artifacts.load import infer_task, load
from tunewright.errors import BaseModelError, MethodError, TunewrightError
from tunewright.tasks import MODULES, task_class


def copied(base: str, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder))


def changed(base: str, folder: Path, **values: Any) -> str:
    path = copied(base, folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return str(folder)


@pytest.mark.parametrize("task", MODULES)
@pytest.mark.parametrize("where", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_missing_folder(where: str, task: str) -> None:
    with pytest.raises(BaseModelError, match="no folder"):
        task_class(task)().load(where)


@pytest.mark.parametrize("task", MODULES)
def test_a_point_of_a_run_is_no_base(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("run@0.5", f"{tmp_path}/run@0.5"):
        with pytest.raises(BaseModelError, match=rf"{name} is a point of a run\..*tunewright export {name} DIR"):
            task_class(task)().load(name)
    with pytest.raises(BaseModelError, match="neither a folder here"):
        task_class(task)().load("none@0.5")


@pytest.mark.parametrize("task", MODULES)
def test_an_address(task: str) -> None:
    with pytest.raises(BaseModelError, match=r"https://example\.com/model is an address"):
        task_class(task)().load("https://example.com/model")


def test_a_name_that_cannot_be_fetched() -> None:
    with pytest.raises(BaseModelError, match="neither a folder here nor"):
        load("nobody/nothing-of-this-name", task="text-generation")


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        load(tmp_path, task="text-generation")


@pytest.mark.parametrize("text", ["{", "[]", "", '{"model_type": "nobody"}', "{}"])
def test_a_configuration_that_means_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(BaseModelError):
        load(tmp_path, task="text-generation")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickles_are_not_opened(name: str, tiny_base: Any, tmp_path: Path) -> None:
    folder = copied(tiny_base("llama"), tmp_path / "base")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(BaseModelError, match="pickle"):
        load(folder)


def test_the_pickle_of_an_adapter_is_not_opened(tiny_base: Any, tmp_path: Path) -> None:
    module = transformers.AutoModelForCausalLM.from_pretrained(tiny_base("llama"))
    adapted = get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(TunewrightError, match="is not opened"):
        load(tmp_path / "adapter")


def test_code_of_a_base_is_not_run(tiny_base: Any, tmp_path: Path) -> None:
    base = changed(
        tiny_base("llama"), tmp_path / "base", model_type="theirs", auto_map={"AutoModelForCausalLM": "modeling.Theirs"}
    )
    (tmp_path / "base" / "modeling.py").write_text("raise SystemExit('their code ran')")
    with pytest.raises(BaseModelError, match="auto_map"):
        load(base, task="text-generation")


def test_code_beside_a_known_architecture_is_ignored(tiny_base: Any, tmp_path: Path) -> None:
    base = changed(tiny_base("llama"), tmp_path / "base", auto_map={"AutoModelForCausalLM": "modeling.Theirs"})
    (tmp_path / "base" / "modeling.py").write_text("raise SystemExit('their code ran')")
    assert type(load(base).module).__name__ == "LlamaForCausalLM"


def test_code_of_a_tokenizer_is_not_run(tiny_base: Any, tmp_path: Path) -> None:
    folder = copied(tiny_base("llama"), tmp_path / "base")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization.Theirs", None]}
    config["tokenizer_class"] = "Theirs"
    path.write_text(json.dumps(config))
    (folder / "tokenization.py").write_text("raise SystemExit('their code ran')")
    with suppress(BaseModelError):
        load(folder)


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_an_encoder_does_not_generate(kind: str, tiny_base: Any) -> None:
    with pytest.raises(BaseModelError, match="text-classification"):
        prepared(tiny_base(kind), completions(), task="text-generation")


def test_a_base_that_is_cut_short(tiny_base: Any, tmp_path: Path) -> None:
    folder = copied(tiny_base("llama"), tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("task", MODULES)
def test_a_base_without_some_weights(task: str, tiny_base: Any, tmp_path: Path) -> None:
    """transformers itself would draw them at random."""
    if task == "text-to-image":
        pytest.skip("its components have a test of their own")
    kind = "vit" if task == "image-classification" else "llama"
    base = changed(tiny_base(kind), tmp_path / "base", num_hidden_layers=5)
    with pytest.raises(BaseModelError, match="lacks"):
        prepared(base, rows_for(task), task=task)


@pytest.mark.parametrize("task", MODULES)
def test_a_base_of_other_shapes(task: str, tiny_base: Any, tmp_path: Path) -> None:
    kind = "vit" if task == "image-classification" else "llama"
    base = changed(tiny_base(kind), tmp_path / "base", intermediate_size=64)
    with pytest.raises(BaseModelError):
        prepared(base, rows_for(task), task=task)


def test_a_base_without_a_tokenizer(tiny_base: Any, tmp_path: Path) -> None:
    folder = copied(tiny_base("llama"), tmp_path / "base")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BaseModelError, match="tokenizer"):
        load(folder)


def test_a_model_without_a_head_does_not_classify(tiny_base: Any) -> None:
    with pytest.raises(BaseModelError, match="no classification head"):
        load(tiny_base("bert"), task="text-classification")


def test_a_base_says_what_it_is_for_or_is_asked(tiny_base: Any) -> None:
    assert infer_task(tiny_base("llama")) == "text-generation"
    with pytest.raises(BaseModelError, match="Give the task"):
        infer_task(tiny_base("bert"))


def test_a_head_that_fits_is_kept(tiny_base: Any, tmp_path: Path) -> None:
    """The order of its classes too, whatever the order of the rows."""
    module = transformers.AutoModelForSequenceClassification.from_pretrained(
        tiny_base("bert"), id2label={0: "class 2", 1: "class 0", 2: "class 1"}
    )
    folder = copied(tiny_base("bert"), tmp_path / "base")
    module.save_pretrained(folder)
    ready = prepared(str(folder), labelled(), method="full")
    assert ready.model.task.labels == ["class 2", "class 0", "class 1"]
    assert torch.equal(ready.model.module.classifier.weight, module.classifier.weight)
    assert not any("new head" in notice for notice in ready.notices)


def test_a_head_of_other_classes_begins_anew(tiny_base: Any, tmp_path: Path) -> None:
    module = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_base("bert"), num_labels=3)
    folder = copied(tiny_base("bert"), tmp_path / "base")
    module.save_pretrained(folder)
    ready = prepared(str(folder), labelled(), method="full")
    assert not torch.equal(ready.model.module.classifier.weight, module.classifier.weight)
    assert any("new head for 3" in notice for notice in ready.notices)


def test_an_adapter_without_its_base(tiny_base: Any, tmp_path: Path) -> None:
    folder = copied(tiny_base("llama"), tmp_path / "base")
    module = transformers.AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    shutil.rmtree(folder)
    with pytest.raises((BaseModelError, MethodError), match="which is not there"):
        load(tmp_path / "a")


def test_an_adapter_for_a_deeper_base(tiny_base: Any, tmp_path: Path) -> None:
    """Every layer of the base finds its weights, but some of the adapter's have no place."""
    deep = tiny_base("llama", num_hidden_layers=5)
    module = transformers.AutoModelForCausalLM.from_pretrained(deep)
    get_peft_model(module, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text(config.read_text().replace(deep, tiny_base("llama")))
    with pytest.raises(MethodError, match="does not fit"):
        load(tmp_path / "a")
