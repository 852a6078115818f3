"""LoRA's options: what they choose, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from tests.contracts.journeys import journey
from tests.contracts.steps import prepared
from tests.tiny import completions, labelled, rows_for
from tunewright.account import describe_parameters
from tunewright.errors import MethodError, RecipeError
from tunewright.methods import LoRA
from tunewright.methods._lora_file import lora_scale, stackable
from tunewright.methods.base import trained_parameters
from tunewright.methods.lora import convolutions
from tunewright.tasks import task_class
from tunewright.tasks._module_config import ModuleConfig
from tunewright.tasks._modules import laid_out
from tunewright.tasks.base import Model


def trained(base: str, rows: Any, **options: Any) -> set[str]:
    ready = prepared(base, rows, method={"type": "lora", "rank": 2, **options})
    names = {name for name in trained_parameters(ready.model.module) if "lora_" in name}
    return {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in names}


@pytest.mark.parametrize(
    "kind, layers",
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("phi3", {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
        ("mixtral", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
def test_all_linear_layers_but_the_head(kind: str, layers: set[str], tiny_base: Any) -> None:
    assert trained(tiny_base(kind), completions()) == layers


def test_one_name_is_a_name_and_not_an_expression(tiny_base: Any) -> None:
    assert trained(tiny_base("llama"), completions(), targets="q_proj") == {"q_proj"}


def test_experts_are_adapted_only_where_asked(tiny_base: Any) -> None:
    base = tiny_base("mixtral")
    assert not any("expert" in name for name in trained(base, completions()))
    assert trained(base, completions(), experts=True) > trained(base, completions())


def test_experts_that_peft_would_adapt_by_an_old_name_are_refused(tiny_base: Any) -> None:
    """PEFT takes `gate_proj` for the experts that were once layers of that name, also where a dense block has it."""
    base = tiny_base("qwen3_moe", mlp_only_layers=[0])
    with pytest.raises(MethodError, match="experts: true"):
        trained(base, completions(), targets=["q_proj", "gate_proj", "up_proj", "down_proj"])
    assert trained(base, completions(), targets=["q_proj"]) == {"q_proj"}


@pytest.mark.parametrize(
    "options, match",
    [
        ({"targets": ["q_proj", "nothing"]}, r"nothing matches no layer.*q_proj"),
        ({"targets": ".*nothing"}, "matches no layer"),
        ({"targets": "nothing"}, "matches no layer"),
        ({"targets": ["input_layernorm"]}, "no linear layers"),
        ({"train_along": ["nothing"]}, "matches no module"),
    ],
)
def test_a_target_that_matches_nothing_is_refused(options: Any, match: str, tiny_base: Any) -> None:
    with pytest.raises(MethodError, match=match):
        trained(tiny_base("llama"), completions(), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"init": "pissa", "dora": True}, {"init": "pissa", "experts": True}, {"dora": True, "experts": True},
        {"targets": "("}, {"rank": 0}, {"alpha": 0}, {"plus_ratio": 0.5},
    ],
)  # fmt: skip
def test_what_cannot_go_together_is_refused_when_read(options: Any) -> None:
    with pytest.raises(RecipeError):
        LoRA(**options)


def test_the_head_of_a_classifier_trains_in_full(tiny_base: Any) -> None:
    ready = prepared(tiny_base("distilbert"), labelled(), method="lora")
    names = set(trained_parameters(ready.model.module))
    assert "base_model.model.classifier.modules_to_save.default.weight" in names
    assert not any("lora" in name and "classifier" in name for name in names)


def test_the_seed_draws_the_adapter_and_the_head(tiny_base: Any) -> None:
    def values(seed: int) -> torch.Tensor:
        ready = prepared(tiny_base("bert"), labelled(), method="lora", training={"seed": seed})
        return torch.cat([p.detach().flatten() for p in trained_parameters(ready.model.module).values()])

    assert torch.equal(values(1), values(1))
    assert not torch.equal(values(1), values(2))


def test_scales_follow_peft(tiny_base: Any, tmp_path: Any) -> None:
    config = {"r": 4, "lora_alpha": 8, "rank_pattern": {"a.q": 16}, "alpha_pattern": {"q": 2}}
    assert lora_scale(config, "x.a.q") == 2 / 16
    assert lora_scale(config, "x.b.q") == 2 / 4
    assert lora_scale(config, "x.k") == 2
    assert lora_scale({**config, "use_rslora": True}, "x.k") == 4


@pytest.mark.parametrize(
    "key, value",
    [("use_dora", True), ("bias", "all"), ("init_lora_weights", "pissa"), ("target_parameters", ["experts.down_proj"])],
)
def test_what_is_no_plain_sum_is_not_stacked(key: str, value: Any) -> None:
    assert stackable({"peft_type": "LORA", "r": 4})
    assert not stackable({"peft_type": "LORA", "r": 4, key: value})


def test_what_trains_is_a_share_of_all(tiny_base: Any) -> None:
    """Of the base and what was added, though that may be more; a head of which PEFT trains a copy counts once."""

    task = "image-classification"

    def counts(method: Any) -> Any:
        ready = prepared(tiny_base("vit"), rows_for(task), task=task, method=method)
        return describe_parameters(ready.model.module)

    full, large = counts("full"), counts({"type": "lora", "rank": 256})
    head = counts("head")["trained"]
    assert full["trained"] == full["total"] < large["trained"]
    assert large["total"] == full["total"] + large["trained"] - head
    assert large["share"] == large["trained"] / large["total"] < 1


def test_peft_options_are_checked_by_name(tiny_base: Any, tmp_path: Any) -> None:
    for config, match in (
        ({"peft_type": "LORRA"}, "Did you mean.*LORA"),
        ({"peft_type": "LORA", "rang": 3}, "has no option rang.*"),
        ({}, "missing"),
        ({"peft_type": "LORA", "target_modules": ["nothing"]}, "cannot apply LORA"),
    ):
        seen = journey(tiny_base("llama"), "text-generation", {"type": "peft", "config": config}, tmp_path)
        assert isinstance(seen.refusal, MethodError)
        assert re.search(match, str(seen.refusal))


@pytest.mark.parametrize(
    ("kind", "task", "targets", "named"),
    [
        ("sd1", "text-to-image", ".*", r"text_encoder \(CLIPText"),
        ("sd1", "text-to-image", ["norm1"], r"norm1 \(GroupNorm\)"),
        ("vit", "image-classification", ".*", r"vit \(ViTModel\)"),
        ("llama", "text-generation", ["q_proj", "mlp"], r"mlp \(LlamaMLP\)"),
    ],
)
def test_targets_that_are_no_layers_are_named(kind: str, task: str, targets: Any, named: str, tiny_base: Any) -> None:
    with pytest.raises(MethodError, match=rf"matches \d+ modules that are no linear .*{named}") as found:
        prepared(tiny_base(kind), rows_for(task), task=task, method={"type": "lora", "targets": targets})
    assert "\n" not in str(found.value)


def test_a_block_that_is_a_convolution_is_adapted() -> None:
    """As of a plain CNN, whose blocks are its layers."""
    grey = {"resize": 16, "crop": 16, "channels": 1}
    task, module = (
        task_class("image-classification")(["a", "b"]),
        laid_out("tests.networks:Gray", ModuleConfig.model_validate({"image": grey})),
    )
    assert convolutions(Model(module, None, task, "")) == ["features.0", "features.3"]


@pytest.mark.parametrize("kind, task", [("llama", "text-generation"), ("resnet", "image-classification")])
def test_a_rank_that_no_layer_can_use_is_named(kind: str, task: str, tiny_base: Any) -> None:
    """The change of a layer has at most the rank of its smaller side: that of the layer where it is largest counts."""
    highest = {"llama": 32, "resnet": 16}[kind]
    for rank in (highest, highest + 1):
        found = prepared(tiny_base(kind), rows_for(task), task=task, method={"type": "lora", "rank": rank})
        said = [notice for notice in found.notices if notice.startswith("method.rank")]
        assert len(said) == (rank > highest) and all(f"{rank} is above {highest}, the highest" in one for one in said)
