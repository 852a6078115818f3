"""LoRAs of diffusion models as files: what diffusers itself reads out of them is what was meant."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipelines import diffusers, make_pipeline
from tunewright.errors import BaseModelError, MethodError
from tunewright.methods._diffusers_file import (
    METADATA,
    LoraFile,
    evened,
    from_peft,
    from_state,
    on_base,
    read_lora,
    to_kohya,
    write_kohya,
    write_lora,
)
from tunewright.methods._unet_names import dotted, from_original, to_original

ENCODERS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", params=("sd1", "sdxl"))
def pipe(request: Any, tmp_path_factory: Any) -> Any:
    folder = make_pipeline(tmp_path_factory.mktemp("base") / request.param, request.param)
    return diffusers.DiffusionPipeline.from_pretrained(folder)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: Any) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(make_pipeline(tmp_path_factory.mktemp("base") / "sdxl", "sdxl"))


def layers_of(pipe: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of what a LoRA can be put on."""
    parts = {name: part for name in ("unet", *ENCODERS) if (part := getattr(pipe, name, None)) is not None}
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {
        f"{name}.{place}": tuple(layer.weight.shape)
        for name, part in parts.items()
        for place, layer in part.named_modules()
        if isinstance(layer, kinds) and "projection" not in place
    }


def a_lora(pipe: Any, rank: int = 4, alpha: float = 16.0, **config: Any) -> LoraFile:
    """Random updates of every layer."""
    draw = torch.Generator().manual_seed(3)
    state = {}
    for layer, (out, size, *kernel) in layers_of(pipe).items():
        state[f"{layer}.lora_A.weight"] = 0.1 * torch.randn(rank, size, *kernel, generator=draw)
        state[f"{layer}.lora_B.weight"] = 0.1 * torch.randn(out, rank, *(1 for _ in kernel), generator=draw)
    return from_peft(state, {"r": rank, "lora_alpha": alpha, **config})


def uneven(pipe: Any) -> LoraFile:
    """Ranks and alphas of each layer's own."""
    lora = a_lora(pipe)
    state, alphas = dict(lora.state), {}
    for number, layer in enumerate(lora.modules):
        rank = 1 + number % 4
        alphas[layer] = float(2 + number % 3)
        state[f"{layer}.lora_A.weight"] = state[f"{layer}.lora_A.weight"][:rank]
        state[f"{layer}.lora_B.weight"] = state[f"{layer}.lora_B.weight"][:, :rank]
    return from_peft(state, {"r": 4, "lora_alpha": 16.0, "alpha_pattern": alphas})


@torch.no_grad()
def prediction(pipe: Any) -> torch.Tensor:
    """What the U-Net says to a prompt, through the pipeline's own text encoders: [1, 4, height, width]."""
    draw = torch.Generator().manual_seed(5)
    encoded = pipe.encode_prompt("a red wall", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    more: dict[str, Any] = {}
    if getattr(pipe, "text_encoder_2", None) is not None:
        sizes = torch.tensor([[16.0, 16, 0, 0, 16, 16]])
        more["added_cond_kwargs"] = {"text_embeds": encoded[2], "time_ids": sizes}
    noisy = torch.randn(1, 4, 8, 8, generator=draw)
    return pipe.unet(noisy, torch.tensor([500]), encoder_hidden_states=encoded[0], **more).sample


def loaded(pipe: Any, lora: Path) -> Any:
    """The pipeline with the file as diffusers reads it."""
    pipe = copy.deepcopy(pipe)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    return pipe


def put_on(pipe: Any) -> dict[str, Any]:
    """The tensors and scales of what was loaded."""
    parts = [(name, part) for name in ("unet", *ENCODERS) if (part := getattr(pipe, name, None)) is not None]
    found: dict[str, Any] = {}
    for name, part in parts:
        found |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items() if "lora_" in key}
        found |= {f"{name}.{key}": m.scaling["default_0"] for key, m in part.named_modules() if hasattr(m, "scaling")}
    return found


@torch.no_grad()
def merged(pipe: Any, lora: LoraFile) -> torch.Tensor:
    """What is predicted with the updates added to the weights, by the formula."""
    pipe = copy.deepcopy(pipe)
    for layer in lora.modules:
        component, module = layer.split(".", 1)
        names = dict(getattr(pipe, component).named_modules())
        weight = names[module if module in names else f"text_model.{module}"].weight
        down, up = lora.state[f"{layer}.lora_A.weight"], lora.state[f"{layer}.lora_B.weight"]
        update = lora.alpha(layer) / down.shape[0] * up.flatten(1) @ down.flatten(1)
        weight += update.reshape(weight.shape)
    return prediction(pipe)


def same(one: LoraFile, other: LoraFile) -> bool:
    return (
        one.configs == other.configs
        and one.state.keys() == other.state.keys()
        and all(torch.equal(tensor, other.state[key]) for key, tensor in one.state.items())
    )


MAKERS = {"plain": a_lora, "uneven": uneven, "rslora": lambda pipe: a_lora(pipe, use_rslora=True)}


@pytest.mark.parametrize("kind", MAKERS)
def test_diffusers_applies_what_the_file_says(pipe: Any, tmp_path: Path, kind: str) -> None:
    lora = MAKERS[kind](pipe)
    write_lora(lora, tmp_path / "own.safetensors")
    write_kohya(evened(lora), pipe.unet.config, tmp_path / "kohya.safetensors")
    meant = merged(pipe, lora)
    assert (meant - prediction(pipe)).abs().max() > 0.05
    own, kohya = loaded(pipe, tmp_path / "own.safetensors"), loaded(pipe, tmp_path / "kohya.safetensors")
    torch.testing.assert_close(prediction(own), meant, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prediction(kohya), meant, rtol=1e-4, atol=1e-5)
    if kind == "plain":
        torch.testing.assert_close(put_on(kohya), put_on(own), rtol=0, atol=0)


@pytest.mark.parametrize("kind", MAKERS)
def test_load_save_load_is_identical(pipe: Any, tmp_path: Path, kind: str) -> None:
    lora = MAKERS[kind](pipe)
    write_lora(lora, tmp_path / "own.safetensors")
    assert same(read_lora(tmp_path / "own.safetensors"), lora)
    layers = pipe.unet.config.layers_per_block
    write_kohya(lora, pipe.unet.config, tmp_path / "kohya.safetensors")
    once = read_lora(tmp_path / "kohya.safetensors", layers)
    assert once.modules == lora.modules
    assert all(torch.equal(once.state[key], tensor) for key, tensor in lora.state.items())
    assert all(once.alpha(layer) == pytest.approx(lora.alpha(layer)) for layer in lora.modules)
    write_kohya(once, pipe.unet.config, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "kohya.safetensors").read_bytes()


def test_the_alpha_that_diffusers_writes_is_read(pipe: Any, tmp_path: Path) -> None:
    """Rank 4 and alpha 16, saved and loaded by diffusers' own functions: nothing differs."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    tuned = copy.deepcopy(pipe)
    tuned.unet.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_v", "conv1"]))
    for name, parameter in tuned.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    state = get_peft_model_state_dict(tuned.unet)
    config = tuned.unet.peft_config["default"].to_dict()
    tuned.save_lora_weights(tmp_path / "theirs", unet_lora_layers=state, unet_lora_adapter_metadata=config)
    lora = read_lora(tmp_path / "theirs")
    assert lora.configs["unet"]["lora_alpha"] == 16 and lora.configs["unet"]["r"] == 4
    write_lora(lora, tmp_path / "ours.safetensors")
    assert torch.equal(prediction(loaded(pipe, tmp_path / "ours.safetensors")), prediction(tuned))
    assert same(from_peft({f"base_model.model.unet.{k}": v for k, v in state.items()}, config), lora)


def test_the_keys_are_those_that_others_know(sdxl: Any) -> None:
    keys = to_kohya(a_lora(sdxl), sdxl.unet.config).keys()
    assert "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k.lora_down.weight" in keys
    assert "lora_unet_output_blocks_0_0_skip_connection.lora_up.weight" in keys
    assert "lora_te1_text_model_encoder_layers_0_self_attn_out_proj.alpha" in keys
    assert "lora_te2_text_model_encoder_layers_2_mlp_fc1.alpha" in keys


def test_layers_have_their_original_names_of_sdxl() -> None:
    """Of Stability's own files, beside what diffusers calls them."""
    names = {
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
        "down_blocks.2.resnets.1.conv_shortcut": "input_blocks.8.0.skip_connection",
        "mid_block.attentions.0.transformer_blocks.9.attn1.to_q": "middle_block.1.transformer_blocks.9.attn1.to_q",
        "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.2.2.conv",
        "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_out.0": (
            "output_blocks.5.1.transformer_blocks.1.attn2.to_out.0"
        ),
        "up_blocks.2.resnets.2.conv2": "output_blocks.8.0.out_layers.3",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_out": "out.2",
    }
    for name, original in names.items():
        assert to_original(name, 2) == original
        assert from_original(original, 2) == name
        assert dotted(original.replace(".", "_")) == original
        assert dotted(name.replace(".", "_")) == name


def old_keys(key: str) -> str:
    """As diffusers wrote them at first: with the attention's processor."""
    key = key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
    if key.startswith("unet") and ".attn" in key:
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            key = key.replace(f".{name}.lora", f".processor.{name.removesuffix('.0')}_lora")
    if not key.startswith("unet"):
        for name, old in {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}.items():
            key = key.replace(f"self_attn.{name}.lora", f"self_attn.{old}_lora")
        key = key.replace("mlp.fc1.lora", "mlp.fc1.lora_linear_layer").replace(
            "mlp.fc2.lora", "mlp.fc2.lora_linear_layer"
        )
    return key


def newer_keys(key: str) -> str:
    """As they were before PEFT's names were taken over."""
    new = "lora" if key.startswith("unet") else "lora_linear_layer"
    return key.replace("lora_A", f"{new}.down").replace("lora_B", f"{new}.up")


@pytest.mark.parametrize("rename", [old_keys, newer_keys, lambda key: f"base_model.model.{key}"])
def test_other_conventions_are_recognised(pipe: Any, rename: Any) -> None:
    """Without a word about alpha it is the rank."""
    lora = a_lora(pipe, 4, 4.0)
    assert same(from_state({rename(key): tensor for key, tensor in lora.state.items()}), lora)
    alphas = {f"{layer}.alpha": torch.tensor(16.0) for layer in lora.modules}
    assert same(from_state({rename(key): tensor for key, tensor in lora.state.items()} | alphas), a_lora(pipe))


def test_a_unet_alone_needs_no_name_in_front(sdxl: Any) -> None:
    lora = a_lora(sdxl, 4, 4.0)
    bare = {key.removeprefix("unet."): tensor for key, tensor in lora.state.items() if key.startswith("unet.")}
    assert from_state(bare).configs == {"unet": lora.configs["unet"]}


def test_kohya_files_with_the_names_of_diffusers_are_read(sdxl: Any) -> None:
    """Some trainers write these for SDXL too."""
    lora = a_lora(sdxl)
    plain = {"layers_per_block": 1}
    state = {key.replace("lora_te_", "lora_te1_"): tensor for key, tensor in to_kohya(lora, plain).items()}
    assert any(key.startswith("lora_unet_down_blocks") for key in state)
    assert same(from_state(state), lora)


def test_a_peft_folder_is_read_with_its_configuration(sdxl: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    lora = a_lora(sdxl)
    state = {f"base_model.model.{key.removeprefix('unet.')}": t for key, t in lora.state.items() if key[:5] == "unet."}
    save_file(state, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    assert read_lora(tmp_path).configs == {"unet": lora.configs["unet"]}


def test_what_is_not_known_is_said(sdxl: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    lora = a_lora(sdxl)
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    for key, said in {
        f"{layer}.hada_w1_a": "is a LoHa, and LoRAs alone are read here.*hada_w1_a", f"{layer}.lokr_w1": "is a LoKr",
        f"{layer}.diff_b": "is of whole weights", "clip_l": "is a textual inversion",
        "model.diffusion_model.out.2.weight": "is a whole model, no LoRA. Make it a folder",
    }.items():  # fmt: skip
        with pytest.raises(BaseModelError, match=said):
            from_state({key: torch.ones(4, 4)})
    with pytest.raises(BaseModelError, match=r"transformer_blocks\.0"):
        from_state({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(4, 4)})
    with pytest.raises(BaseModelError, match="none at all"):
        from_state({})
    half = {key: tensor for key, tensor in lora.state.items() if "mid_block.resnets.0.conv1.lora_B" not in key}
    with pytest.raises(BaseModelError, match=r"half.*mid_block\.resnets\.0\.conv1"):
        from_state(half)
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(BaseModelError, match=r"a\.safetensors is no readable"):
        read_lora(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(BaseModelError, match=r"a\.safetensors, b\.safetensors"):
        read_lora(tmp_path)
    save_file(lora.state, tmp_path / "c.safetensors", metadata={METADATA: "[1]"})
    with pytest.raises(BaseModelError, match="cannot be read"):
        read_lora(tmp_path / "c.safetensors")


def test_dora_is_not_written_where_readers_drop_it(sdxl: Any) -> None:
    lora = a_lora(sdxl)
    magnitude = {"unet.conv_in.lora_magnitude_vector": torch.ones(8)}
    dora = from_state(lora.state | magnitude, lora.configs)
    assert dora.configs["unet"]["use_dora"] and not dora.configs["text_encoder"]["use_dora"]
    with pytest.raises(MethodError, match="DoRA"):
        to_kohya(dora, sdxl.unet.config)


def test_a_kernel_between_the_factors_is_folded_into_them(pipe: Any) -> None:
    """As LyCORIS writes convolutions: B(kernel(A(x)))."""
    name, conv = "unet.mid_block.resnets.0.conv1", torch.nn.functional.conv2d
    draw = torch.Generator().manual_seed(1)
    up, mid, down = (torch.randn(*shape, generator=draw) for shape in ((16, 3, 1, 1), (3, 3, 3, 3), (3, 16, 1, 1)))
    key = name.replace(".", "_")
    state = {f"lora_{key}.lora_{n}.weight": t for n, t in (("up", up), ("mid", mid), ("down", down))}
    lora = from_state({**state, f"lora_{key}.alpha": torch.tensor(6.0)})
    assert lora.modules == [name] and lora.alpha(name) == 6
    x = torch.randn(1, 16, 8, 8, generator=draw)
    wanted = conv(conv(conv(x, down), mid, padding=1), up)
    seen = conv(conv(x, lora.state[f"{name}.lora_A.weight"], padding=1), lora.state[f"{name}.lora_B.weight"])
    torch.testing.assert_close(seen, wanted, rtol=1e-4, atol=1e-3)
    on_base(lora, layers_of(pipe))


@pytest.mark.parametrize("kind", ["fc1", "mlp"])
def test_text_encoders_whose_attention_is_left_alone_are_read_by_diffusers(
    pipe: Any, tmp_path: Path, kind: str
) -> None:
    whole = a_lora(pipe)
    lora = from_peft({k: t for k, t in whole.state.items() if kind in k}, {"r": 4, "lora_alpha": 16.0})
    write_lora(lora, tmp_path / "own.safetensors")
    meant = merged(pipe, lora)
    assert (meant - prediction(pipe)).abs().max() > 0.001
    torch.testing.assert_close(prediction(loaded(pipe, tmp_path / "own.safetensors")), meant, rtol=1e-4, atol=1e-5)
    assert same(read_lora(tmp_path / "own.safetensors"), lora)


def test_a_lora_of_another_base_is_refused(pipe: Any) -> None:
    lora, shapes = a_lora(pipe), layers_of(pipe)
    state = on_base(lora, shapes)
    assert {key.split(".lora_")[0] for key in state} == shapes.keys()
    with pytest.raises(BaseModelError, match=r"unet\.conv_in: the base has no such layer"):
        on_base(lora, {name: shape for name, shape in shapes.items() if name != "unet.conv_in"})
    with pytest.raises(BaseModelError, match=r"unet\.conv_in: 8×4×3×3, the base's is 9×4×3×3"):
        on_base(lora, {**shapes, "unet.conv_in": (9, 4, 3, 3)})
