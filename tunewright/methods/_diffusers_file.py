"""LoRAs of diffusion models as files: diffusers' own, kohya's, and others that are about, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError, MethodError
from tunewright.methods._lora_file import (
    CONFIG,
    DIFFUSERS,
    OLDER,
    PREFIX,
    WEIGHTS,
    module_of,
    read_adapter,
    write_adapter,
)
from tunewright.methods._lora_keys import COMPONENTS, LoraFile, from_state, known_keys, layer_of, with_text_model
from tunewright.methods._unet_names import to_original

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "lora_adapter_metadata"
"""Where diffusers looks in a file's header for the configurations, as JSON: `{"unet.r": 4, …}`."""


def read_lora(place: Path, layers_per_block: int = 2) -> LoraFile:
    """A LoRA of whatever convention from a safetensors file, or the folder with it.

    Args:
        layers_per_block: of the U-Net, for a file with the original's names of blocks.

    Raises:
        BaseModelError: it is no such file, or of a convention that is not known.
    """
    from safetensors import SafetensorError, safe_open

    path = lora_path(place)
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            header = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{path} is no readable safetensors file: {error}") from error
    try:
        configs = _unpacked(json.loads(header[METADATA])) if METADATA in header else {}
        beside = path.with_name(CONFIG)
        if any(key.startswith(PREFIX) for key in state) and beside.is_file():
            configs = dict.fromkeys(COMPONENTS, json.loads(beside.read_text(encoding="utf-8")))
        return from_state(state, configs, layers_per_block, str(path))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BaseModelError):
            raise
        raise BaseModelError(f"The configuration that {path} brings along cannot be read: {error}") from error


def refuse_file(path: Path) -> None:
    """Raises BaseModelError for a file where a model's folder is needed: says what it is, and what to do with it."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return
    if any((path.parent / name).is_file() for name in (CONFIG, "config.json")):
        raise BaseModelError(f"{path} is one file of a model. Name its folder: {path.parent}")
    try:
        with safe_open(path, framework="pt") as file:
            known_keys(file.keys(), name=str(path))
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{path} is no model's folder, and no safetensors file either.") from error
    raise BaseModelError(
        f"{path} is a LoRA for images, in a file. Put it on its base, and use the new folder: tunewright export "
        f"{path} FOLDER --to diffusers --base PIPELINE"
    )


def lora_path(place: Path) -> Path:
    """The one safetensors file that a folder holds, or the place itself. Raises BaseModelError if that is unclear."""
    if not place.is_dir():
        return place
    found = sorted(place.glob("*.safetensors"))
    named = [path for path in found if path.name == DIFFUSERS] or found
    if len(named) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise BaseModelError(f"{place} should hold one LoRA file; it holds {names}. Name the file.")
    return named[0]


def write_lora(lora: LoraFile, path: Path) -> None:
    """Write diffusers' format, with the configurations in the header, so that its scale is read with it."""
    from safetensors.torch import save_file

    header = {f"{part}.{key}": value for part, config in lora.configs.items() for key, value in config.items()}
    state = {_as_written(key, lora): tensor.contiguous() for key, tensor in lora.state.items()}
    # one entry alone: safetensors writes several in any order, and equal models should be equal files
    save_file(state, path, metadata={METADATA: json.dumps(header, indent=2, sort_keys=True)})


def _as_written(key: str, lora: LoraFile) -> str:
    """A key in the file. diffusers (0.42) knows PEFT's keys of a text encoder by those of its attention: without such
    it takes older ones alone.
    """
    component = key.split(".")[0]
    if component != "unet" and not any(".self_attn." in name for name in lora.configs[component]["target_modules"]):
        key = re.sub(r"\.lora_[AB]\.", lambda found: OLDER[found[0]], key)
    return with_text_model(key)


def to_kohya(lora: LoraFile, unet: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under kohya's keys, each layer with its alpha: the scale is alpha / rank.

    Args:
        unet: the configuration of the U-Net, which tells SDXL, whose layers go by their original names.

    Raises:
        MethodError: DoRA. diffusers leaves kohya's magnitudes out of what it reads, so that nothing could be verified.
    """
    import torch

    if any(config.get("use_dora") for config in lora.configs.values()):
        raise MethodError(
            "diffusers reads kohya's files without the magnitudes of DoRA (dora_scale), so that such an export could "
            "not be verified. Export as diffusers, or merged."
        )
    state: dict[str, Tensor] = {}
    for layer in lora.modules:
        name = _kohya_name(layer, unet)
        state[f"{name}.lora_down.weight"] = lora.state[f"{layer}.lora_A.weight"]
        state[f"{name}.lora_up.weight"] = lora.state[f"{layer}.lora_B.weight"]
        state[f"{name}.alpha"] = torch.tensor(lora.alpha(layer), dtype=torch.float32)
    return state


def evened(lora: LoraFile) -> LoraFile:
    """The same updates with one alpha in each component, and what layers had of their own put into their B.

    diffusers (0.42) forgets the alphas of attention layers as it reads kohya's convention where they are not all alike.
    """
    usual = {component: config["lora_alpha"] for component, config in lora.configs.items()}
    if not any(config["alpha_pattern"] or config["use_rslora"] for config in lora.configs.values()):
        return lora
    state = dict(lora.state)
    for layer in lora.modules:
        factor = lora.alpha(layer) / usual[layer.split(".")[0]]
        state[f"{layer}.lora_B.weight"] = state[f"{layer}.lora_B.weight"] * factor
    plain = {"alpha_pattern": {}, "use_rslora": False}
    return LoraFile(state, {component: {**config, **plain} for component, config in lora.configs.items()})


def recognised(lora: LoraFile) -> LoraFile:
    """With an update of nothing in each text encoder where diffusers (0.42) would not know what its kohya keys are.

    It tells these by an `out_proj`: without one it gives up, or leaves the attention out without a word.
    """
    state = dict(lora.state)
    configs = {component: dict(config) for component, config in lora.configs.items()}
    for component, config in configs.items():
        layers = config["target_modules"]
        attention = next((name.rpartition(".")[0] for name in layers if ".self_attn." in name), None)
        if not attention or any(name.endswith(".out_proj") for name in layers):
            continue
        down = next(state[f"{component}.{n}.lora_A.weight"] for n in layers if n.startswith(f"{attention}."))
        state[f"{component}.{attention}.out_proj.lora_A.weight"] = down.new_zeros(down.shape)
        state[f"{component}.{attention}.out_proj.lora_B.weight"] = down.new_zeros(down.shape[::-1])
        config["target_modules"] = sorted([*layers, f"{attention}.out_proj"])
    return LoraFile(state, configs)


def cast(lora: LoraFile, dtype: Any) -> LoraFile:
    """Its tensors in another precision."""
    return LoraFile({key: tensor.to(dtype) for key, tensor in lora.state.items()}, lora.configs)


def write_kohya(lora: LoraFile, unet: Mapping[str, Any], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in to_kohya(lora, unet).items()}, path)


def as_diffusers(folder: Path) -> None:
    """Put a LoRA's weights in a folder into diffusers' file; PEFT's configuration stays, with every module by name."""
    state, config = read_adapter(folder)
    write_adapter(folder, state, {**config, "target_modules": sorted({module_of(key) for key in state})})
    write_lora(from_peft(state, config), folder / DIFFUSERS)
    (folder / WEIGHTS).unlink()


def from_peft(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> LoraFile:
    """PEFT's adapter over a module that holds the components under their own names."""
    return from_state(state, dict.fromkeys(COMPONENTS, config))


def on_base(lora: LoraFile, shapes: Mapping[str, tuple[int, ...]], name: str = "This LoRA") -> dict[str, Tensor]:
    """The tensors under the names of the model's own layers.

    Args:
        shapes: of the weights of the layers that a LoRA can be put on, by `COMPONENT.MODULE`.

    Raises:
        BaseModelError: it was made for another base. Lists what does not fit.
    """
    faults: list[str] = []
    state: dict[str, Tensor] = {}
    for layer in lora.modules:
        own = next((found for found in (layer, with_text_model(layer)) if found in shapes), None)
        down, up = lora.state[f"{layer}.lora_A.weight"], lora.state[f"{layer}.lora_B.weight"]
        if own is None:
            faults.append(f"{layer}: the base has no such layer")
        elif (up.shape[0], *down.shape[1:]) != tuple(shapes[own]):
            faults.append(f"{layer}: {_times((up.shape[0], *down.shape[1:]))}, the base's is {_times(shapes[own])}")
        else:
            keys = (key for key in lora.state if layer_of(key) == layer)
            state |= {own + key.removeprefix(layer): lora.state[key] for key in keys}
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:5]) + ("\n  …" if len(faults) > 5 else "")
        raise BaseModelError(f"{name} was made for another base. Give the base that it was trained on.\n{listed}")
    return state


def _kohya_name(layer: str, unet: Mapping[str, Any]) -> str:
    component, module = layer.split(".", 1)
    sdxl = unet.get("addition_embed_type") == "text_time"
    if component == "unet":
        return f"lora_unet_{to_original(module, unet['layers_per_block']) if sdxl else module}".replace(".", "_")
    start = {"text_encoder": "lora_te1_" if sdxl else "lora_te_", "text_encoder_2": "lora_te2_"}[component]
    return start + with_text_model(layer).split(".", 1)[1].replace(".", "_")


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _unpacked(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = {}
    for key, value in header.items():
        component, _, field = key.partition(".")
        configs.setdefault(component, {})[field] = value
    return configs
