"""What is frozen stays bit for bit, in eval mode, and its running statistics do not follow the new data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.contracts.journeys import journey
from tests.contracts.steps import prepared
from tests.tiny import DECODERS, KINDS, completions, labelled, pictures, rows_for
from tunewright.errors import MethodError
from tunewright.methods import Adapter, Freeze, Full, Head, LoRA, Method
from tunewright.methods.base import enter_training, frozen_prefix, trained_groups, trained_parameters
from tunewright.tasks import task_class
from tunewright.tasks._blocks import trunk_blocks

EMBEDDINGS = ("embed", "wte", "wpe")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [1, 2, 3])
def test_embeddings_and_earlier_blocks_stay(last: int, kind: str, tiny_base: Any, tmp_path: Path) -> None:
    task = "text-generation" if kind in DECODERS else "text-classification"
    seen = journey(tiny_base(kind), task, {"type": "freeze", "last": last}, tmp_path)
    earlier = [name for name, _ in trunk_blocks(seen.model.module)][:-last]
    assert not [name for name in seen.moved if name.startswith(tuple(f"{name}." for name in earlier))]
    assert not [name for name in seen.moved if any(part in name for part in EMBEDDINGS)]
    later = [name for name, _ in trunk_blocks(seen.model.module)][-last:]
    assert all(any(moved.startswith(f"{name}.") for moved in seen.moved) for name in later)


@pytest.mark.parametrize("until", ["bert.encoder.layer.1", "layer.1", 1])
def test_what_comes_before_a_block_is_frozen_until_there(until: str | int, tiny_base: Any) -> None:
    named, last = (
        prepared(tiny_base("bert"), labelled(), method={"type": "freeze", **options})
        for options in ({"until": until}, {"last": 2})
    )
    names = trained_parameters(named.model.module).keys()
    assert names == trained_parameters(last.model.module).keys()
    assert "bert.encoder.layer.1.output.dense.weight" in names and "classifier.weight" in names
    assert not any(".layer.0." in name or "embeddings" in name for name in names)


def test_until_the_first_block_only_the_stem_is_frozen(tiny_base: Any) -> None:
    ready = prepared(tiny_base("resnet"), pictures(), method={"type": "freeze", "until": "stages.0"})
    frozen = {name for name, p in ready.model.module.named_parameters() if not p.requires_grad}
    assert frozen and all("embedder" in name for name in frozen)


def test_until_may_name_a_module_within_a_block(tiny_base: Any) -> None:
    half = prepared(tiny_base("bert"), labelled(), method={"type": "freeze", "until": "bert.encoder.layer.1.output"})
    names = trained_parameters(half.model.module).keys()
    assert "bert.encoder.layer.1.output.dense.weight" in names
    assert "bert.encoder.layer.1.intermediate.dense.weight" not in names
    assert "classifier.weight" in names


@pytest.mark.parametrize(
    "options, match",
    [
        ({"last": 4}, "last: 4 .* 3 blocks .* full"),
        ({"until": 3}, "until: 3 .* 3 blocks .* head"),
        ({"until": "layer.7"}, r"no block layer\.7\. Blocks: bert\.encoder\.layer\.0, .*layer\.1, .*layer\.2"),
        ({"until": "yer.1"}, "no block"),
    ],
)
def test_what_does_not_exist_cannot_be_frozen(options: Any, match: str, tiny_base: Any) -> None:
    with pytest.raises(MethodError, match=match):
        prepared(tiny_base("bert"), labelled(), method={"type": "freeze", **options})


# Eval mode


def modes(ready: Any) -> dict[str, bool]:
    enter_training(ready.model, ready.recipe.method)
    return {name: module.training for name, module in ready.model.module.named_modules()}


def test_the_frozen_prefix_is_in_eval_mode(tiny_base: Any) -> None:
    training = modes(prepared(tiny_base("bert"), labelled(), method={"type": "freeze", "last": 1}))
    assert not training["bert.embeddings"]
    assert not training["bert.embeddings.dropout"]
    assert not training["bert.encoder.layer.1.output.dropout"]
    assert training["bert.encoder.layer.2.output.dropout"]
    assert training["dropout"]


@pytest.mark.parametrize("method", ["lora", "full", "adapter"])
def test_what_trains_from_the_first_block_on_has_no_frozen_block(method: str, tiny_base: Any) -> None:
    ready = prepared(tiny_base("bert"), labelled(), method=method)
    training = modes(ready)
    assert all(on for name, on in training.items() if "encoder.layer" in name)
    embeddings = [on for name, on in training.items() if name.endswith("embeddings.dropout")]
    assert embeddings == [method == "full"], "frozen embeddings add no noise"


def test_dropout_acts_in_trained_blocks_alone(tiny_base: Any) -> None:
    base = tiny_base("llama", attention_dropout=0.5)
    ready = prepared(base, completions(), method={"type": "freeze", "last": 1})
    enter_training(ready.model, ready.recipe.method)
    seen: dict[int, list[torch.Tensor]] = {1: [], 2: []}
    for index, outputs in seen.items():
        block = ready.model.module.model.layers[index]
        block.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output))
    batch = ready.model.task.collate(ready.examples("train"))
    for _ in range(2):
        ready.model.module(**batch.inputs)
    assert torch.equal(*seen[1])
    assert not torch.equal(*seen[2])


def test_trained_embeddings_leave_no_frozen_prefix(tiny_base: Any) -> None:
    ready = prepared(tiny_base("bert"), labelled(), method={"type": "freeze", "last": 1})
    ready.model.module.bert.embeddings.requires_grad_(True)
    assert not list(frozen_prefix(ready.model))


# Batch norms


class Normed(nn.Module):
    """A feed-forward layer with a batch norm behind it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.norm = inner, nn.BatchNorm1d(32)

    def forward(self, hidden_BTH: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(hidden_BTH).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize(
    "method, moving",
    [(LoRA(rank=2), []), (Adapter(width=2), []), (Head(), []), (Freeze(last=1), [2]), (Full(), [0, 1, 2])],
    ids=lambda value: getattr(value, "type", ""),
)
def test_statistics_move_only_where_the_norm_trains(method: Method, moving: list[int], tiny_base: Any) -> None:
    model = task_class("text-generation")().load(tiny_base("llama"))
    for block in model.module.model.layers:
        block.mlp = Normed(block.mlp)
    norms = [block.mlp.norm for block in model.module.model.layers]
    method.attach(model)
    enter_training(model, method)
    ready = prepared(tiny_base("llama"), completions())
    model.module(**model.task.collate(ready.examples("train")).inputs)
    moved = [i for i, norm in enumerate(norms) if not torch.equal(norm.running_mean, torch.zeros(32))]
    assert moved == moving


# What is said of it


def test_what_trains_is_said_in_a_few_lines(tiny_base: Any) -> None:
    ready = prepared(tiny_base("llama"), completions(), method={"type": "lora", "rank": 4, "targets": ["q_proj"]})
    assert trained_groups(ready.model.module) == [
        "model.layers.*.self_attn.q_proj.lora_A.weight: 3 × 4×32",
        "model.layers.*.self_attn.q_proj.lora_B.weight: 3 × 32×4",
    ]


@pytest.mark.parametrize("task", ["text-generation", "text-classification"])
def test_a_head_trains_alone(task: str, tiny_base: Any, tmp_path: Path) -> None:
    seen = journey(tiny_base("llama"), task, {"type": "head"}, tmp_path)
    head = "lm_head" if task == "text-generation" else "score"
    assert seen.trained == {f"{head}.weight"}
    assert len(rows_for(task)) > 1
