"""Saved folders: whole or absent, and in the ecosystem's formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file
from transformers import modeling_utils

from tests.contracts.journeys import journey, logits
from tunewright.artifacts.card import CARD, Card, read_card
from tunewright.artifacts.load import is_adapter, load, weights_folder
from tunewright.artifacts.save import save
from tunewright.engine import checkpoint
from tunewright.errors import BaseModelError, CheckpointError, MethodError, OutputError
from tunewright.methods import Full

GENERATION, CLASSIFICATION = "text-generation", "text-classification"


def test_a_model_replaces_the_one_before_as_a_whole(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    model = load(tiny_base("llama"))
    save(model, Full(), tmp_path / "model")
    (tmp_path / "model" / "stray.txt").write_text("")
    save(model, Full(), tmp_path / "model")
    assert not (tmp_path / "model" / "stray.txt").exists()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Card, "write", full)
    with pytest.raises(OutputError, match=r"No space left.*resume"):
        save(model, Full(), tmp_path / "model")
    assert torch.equal(logits(load(tmp_path / "model")), logits(model)), "the one before is still there"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_called_as_a_draft_might_be_stays(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / ".model.draft").mkdir()
    save(load(tiny_base("llama")), Full(), tmp_path / "model")
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".model.draft"}
    assert (tmp_path / "model").stat().st_mode == (tmp_path / ".model.draft").stat().st_mode, "others may read it too"


def test_the_card_says_what_weights_do_not(tiny_base: Any, tmp_path: Path) -> None:
    seen = journey(tiny_base("bert"), CLASSIFICATION, {"type": "lora"}, tmp_path)
    card = read_card(seen.folder)
    assert card is not None
    assert (card.task, card.base, card.kind) == (CLASSIFICATION, tiny_base("bert"), "single_label")
    assert card.labels == ["class 0", "class 1", "class 2"]
    assert card.make_method() == seen.method
    assert read_card(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"task": "text-generation"}', '{"nothing": 1}'])
def test_a_card_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text(text)
    with pytest.raises(BaseModelError, match="cannot be read"):
        read_card(tmp_path)


def test_a_whole_model_loads_without_its_card(tiny_base: Any, tmp_path: Path) -> None:
    for task, kind in ((GENERATION, "llama"), (CLASSIFICATION, "roberta")):
        seen = journey(tiny_base(kind), task, {"type": "full"}, tmp_path / kind)
        (seen.folder / CARD).unlink()
        again = load(seen.folder)
        assert again.task.name == task
        assert torch.equal(logits(again), seen.end)
        if task == CLASSIFICATION:
            assert again.task.labels == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("method", [{"type": "adapter"}, {"type": "lora"}], ids=["adapter", "lora"])
def test_an_adapter_that_lost_a_tensor_is_refused(method: Any, tiny_base: Any, tmp_path: Path) -> None:
    seen = journey(tiny_base("llama"), GENERATION, method, tmp_path)
    path = next(seen.folder.glob("adapter*.safetensors"))
    state = load_file(path)
    state.pop(sorted(state)[0])
    save_file(state, path)
    with pytest.raises(MethodError, match="fit"):
        load(seen.folder)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(MethodError):
        load(seen.folder)


@pytest.mark.parametrize("kind", ["llama", "qwen3"], ids=["head of its own", "tied head"])
@pytest.mark.parametrize("method", ["full", "freeze", "adapter"])
def test_a_model_whose_library_leaves_out_a_tensor_is_not_written(
    method: str, kind: str, tiny_base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    seen = journey(tiny_base(kind), GENERATION, {"type": method}, tmp_path)
    before = [path.name for path in tmp_path.iterdir()]

    def all_but_one(state: dict[str, Any], path: Path, **options: Any) -> None:
        save_file({name: state[name] for name in sorted(state)[1:]}, path, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", all_but_one)
    monkeypatch.setattr(modeling_utils, "safe_save_file", all_but_one)
    with pytest.raises(OutputError, match=r"not written whole: [\d,]+ of its [\d,]+ weights"):
        save(seen.model, seen.method, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == before
    assert torch.equal(logits(seen.again()), seen.end), "the one before is still there"


def test_a_run_stands_for_its_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"status": "stopped"}))
    with pytest.raises(BaseModelError, match=r"stopped.*tunewright resume"):
        weights_folder(tmp_path)
    (tmp_path / "model").mkdir()
    assert weights_folder(tmp_path) == tmp_path / "model"
    assert not is_adapter(tmp_path / "model")
    assert str(weights_folder("owner/name")) == "owner/name"


# Checkpoints


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    bytes_4 = torch.arange(4, dtype=torch.uint8)
    tensors = {"weight/a": torch.randn(3, 4), "optimizer/a/step": torch.tensor(5.0), "b/c": bytes_4}
    numbers = {"best": {"step": 3, "loss": 0.25}, "stale": 1}
    folder = checkpoint.write(tmp_path, 7, tensors, numbers)
    found, said = checkpoint.read(folder)
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert said["step"] == 7
    assert said["best"] == numbers["best"]
    assert checkpoint.steps(tmp_path) == [7]


def test_a_checkpoint_is_written_over_as_a_whole(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        checkpoint.write(tmp_path, 1, {"weight/a": torch.tensor([value])}, {})
    assert checkpoint.read(tmp_path / "step-1")[0]["weight/a"].item() == 2.0
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_steps_are_in_order_and_strays_are_left_alone(tmp_path: Path) -> None:
    for name in ("step-10", "step-9", "step-x", ".step-11.draft", "other"):
        (tmp_path / name).mkdir()
    assert checkpoint.steps(tmp_path) == [9, 10]
    assert checkpoint.steps(tmp_path / "nowhere") == []
    checkpoint.prune(tmp_path, keep=set(), last=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".step-11.draft", "other", "step-10", "step-x"]


def test_when_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint.write(tmp_path, step, {"weight/a": torch.zeros(2)}, {})
        (tmp_path / f"step-{step}" / checkpoint.TENSORS).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-2 is damaged.*step-1 is damaged"):
        checkpoint.newest(tmp_path)
