"""LoRAs of diffusion models as files: diffusers' own, kohya's, and others that are about, read and written.

In memory there is one form, `LoraFile`, named as diffusers names it today. A file of any convention is brought into it.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError, MethodError
from tunewright.methods._lora_file import (
    CONFIG,
    DIFFUSERS,
    PREFIX,
    TEXT_MODEL,
    WEIGHTS,
    module_of,
    read_adapter,
    write_adapter,
)
from tunewright.methods._unet_names import dotted, from_original, is_original, to_original

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "lora_adapter_metadata"
"""Where diffusers looks in a file's header for the configurations, as JSON: `{"unet.r": 4, …}`."""
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
ENDINGS = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",
    ".lora_B.default.weight": "B",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    ".alpha": "alpha",
}
"""How the conventions call a layer's two factors, its scale, and the magnitudes of DoRA."""
CANONICAL = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
OLD_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA on the parts of a pipeline.

    Attributes:
        state: the tensors by `COMPONENT.MODULE.lora_A.weight` and `….lora_B.weight`, A [rank × in] and B [out × rank],
            or, on a convolution, [rank × in × height × width] and [out × rank × 1 × 1]. A text encoder's module has no
            leading `text_model.`, since not every version of transformers has it.
        configs: PEFT's LoraConfig of each component.
    """

    state: dict[str, Tensor]
    configs: dict[str, dict[str, Any]]

    @property
    def modules(self) -> list[str]:
        """The adapted layers, as `COMPONENT.MODULE`."""
        return sorted({_layer(key) for key in self.state})

    def alpha(self, layer: str) -> float:
        """What makes this layer's scale alpha / rank, also where the file says alpha / √rank."""
        config = self.configs[layer.split(".")[0]]
        alpha = _alpha(config, layer)
        return alpha * math.sqrt(self.state[f"{layer}.lora_A.weight"].shape[0]) if config.get("use_rslora") else alpha


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


def from_state(
    state: Mapping[str, Tensor],
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    layers_per_block: int = 2,
    name: str = "This file",
) -> LoraFile:
    """Tensors under the keys of any known convention as a LoraFile.

    Where no configuration says otherwise, a layer's alpha is the tensor beside it, and without one its rank.
    """
    known = {key: _parsed(key, layers_per_block) for key in state}
    strange = [key for key, found in known.items() if found is None]
    if strange or not state:
        listed = ", ".join(strange[:5]) + (" …" if len(strange) > 5 else "")
        raise BaseModelError(
            f"{name} is no LoRA of a convention that is known (diffusers, PEFT, kohya). Keys that are not: "
            f"{listed or 'it has none at all'}."
        )
    found: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for key, parsed in known.items():
        layer, part = parsed or ("", "")
        if part == "alpha":
            alphas[layer] = float(state[key])
        else:
            found[f"{layer}.{CANONICAL[part]}"] = state[key]
    _refuse_halves(found, alphas, name)
    components = [c for c in COMPONENTS if any(key.startswith(f"{c}.") for key in found)]
    return LoraFile(found, {c: _settled(c, (configs or {}).get(c), found, alphas) for c in components})


def write_lora(lora: LoraFile, path: Path) -> None:
    """Write diffusers' format, with the configurations in the header, so that its scale is read with it."""
    from safetensors.torch import save_file

    header = {f"{part}.{key}": value for part, config in lora.configs.items() for key, value in config.items()}
    state = {_with_text_model(key): tensor.contiguous() for key, tensor in lora.state.items()}
    # one entry alone: safetensors writes several in any order, and equal models should be equal files
    save_file(state, path, metadata={METADATA: json.dumps(header, indent=2, sort_keys=True)})


def to_kohya(lora: LoraFile, unet: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors under kohya's keys, each layer with its alpha: the scale is alpha / rank.

    Args:
        unet: the configuration of the U-Net, which tells SDXL, whose layers go by their original names.

    Raises:
        MethodError: DoRA, which what reads this convention leaves out without a word.
    """
    import torch

    if any(config.get("use_dora") for config in lora.configs.values()):
        raise MethodError("kohya's files have no DoRA that others read. Export as diffusers, or merged.")
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
        own = next((found for found in (layer, _with_text_model(layer)) if found in shapes), None)
        down, up = lora.state[f"{layer}.lora_A.weight"], lora.state[f"{layer}.lora_B.weight"]
        if own is None:
            faults.append(f"{layer}: the base has no such layer")
        elif (up.shape[0], *down.shape[1:]) != tuple(shapes[own]):
            faults.append(f"{layer}: {_times((up.shape[0], *down.shape[1:]))}, the base's is {_times(shapes[own])}")
        else:
            keys = (key for key in lora.state if _layer(key) == layer)
            state |= {own + key.removeprefix(layer): lora.state[key] for key in keys}
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults[:5]) + ("\n  …" if len(faults) > 5 else "")
        raise BaseModelError(f"{name} was made for another base. Give the base that it was trained on.\n{listed}")
    return state


def _parsed(key: str, layers: int) -> tuple[str, str] | None:
    """A key as its layer, named as in a LoraFile, and which part of it this is; None where it is none."""
    ending = next((e for e in sorted(ENDINGS, key=len, reverse=True) if key.endswith(e)), None)
    if ending is None:
        return None
    name = key.removesuffix(ending).removeprefix(PREFIX).replace(".processor", "")
    for start, component in KOHYA.items():
        if name.startswith(start):
            name = f"{component}.{dotted(name.removeprefix(start))}"
    if not name.startswith(tuple(f"{component}." for component in COMPONENTS)):
        name = f"unet.{name}"  # the oldest files, and PEFT's of a U-Net alone
    component, module = name.split(".", 1)
    if component == "unet":
        try:
            module = from_original(module, layers) if is_original(module) else module
        except (KeyError, ValueError, IndexError):
            return None
        module = f"{module}.0" if module.endswith(".to_out") else module
        known = module.startswith(("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_"))
    else:
        module = module.removeprefix(TEXT_MODEL)
        *rest, last = module.split(".")
        module = ".".join([*rest, OLD_ENCODER.get(last, last)])
        known = module.startswith(("encoder.", "text_projection", "embeddings."))
    return (f"{component}.{module}", ENDINGS[ending]) if known else None


def _settled(
    component: str, config: Mapping[str, Any] | None, state: Mapping[str, Tensor], alphas: Mapping[str, float]
) -> dict[str, Any]:
    """The configuration of a component: as given, with its layers named one by one, or read off the tensors."""
    ranks = {layer: tensor.shape[0] for layer, tensor in _part(state, component).items()}
    given = {layer: _alpha(config, layer) if config else alphas.get(layer) or rank for layer, rank in ranks.items()}
    scales = {layer: float(alpha) for layer, alpha in given.items()}  # 16 and 16.0 are to be one file
    rank, alpha = _most(ranks.values()), _most(scales.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _others(ranks, rank),
        "alpha_pattern": _others(scales, alpha),
        "target_modules": sorted(layer.split(".", 1)[1] for layer in ranks),
        "use_rslora": bool(config and config.get("use_rslora")),
        "use_dora": any("lora_magnitude_vector" in key for key in state if key.startswith(f"{component}.")),
    }


def _alpha(config: Mapping[str, Any], layer: str) -> float:
    """PEFT's rule: the keys of a pattern are regular expressions for the end of a module's name."""
    for key, alpha in (config.get("alpha_pattern") or {}).items():
        if any(re.match(rf"(.*\.)?({key})$", name) for name in (layer, _with_text_model(layer))):
            return alpha
    return config["lora_alpha"]


def _refuse_halves(state: Mapping[str, Tensor], alphas: Mapping[str, float], name: str) -> None:
    layers = {_layer(key) for key in state} | set(alphas)
    halves = [layer for layer in sorted(layers) if not {f"{layer}.{CANONICAL[p]}" for p in "AB"} <= state.keys()]
    if halves:
        raise BaseModelError(f"{name} has only one half of the update of {', '.join(halves[:5])}. Get it again.")


def _kohya_name(layer: str, unet: Mapping[str, Any]) -> str:
    component, module = layer.split(".", 1)
    sdxl = unet.get("addition_embed_type") == "text_time"
    if component == "unet":
        return f"lora_unet_{to_original(module, unet['layers_per_block']) if sdxl else module}".replace(".", "_")
    start = {"text_encoder": "lora_te1_" if sdxl else "lora_te_", "text_encoder_2": "lora_te2_"}[component]
    return start + _with_text_model(layer).split(".", 1)[1].replace(".", "_")


def _with_text_model(name: str) -> str:
    """A text encoder's key as it has always been: transformers 5 leaves the `text_model` out in some of them."""
    component, module = name.split(".", 1)
    bare = component == "unet" or module.startswith((TEXT_MODEL, "text_projection"))
    return name if bare else f"{component}.{TEXT_MODEL}{module}"


def _unpacked(header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = {}
    for key, value in header.items():
        component, _, field = key.partition(".")
        configs.setdefault(component, {})[field] = value
    return configs


def _part(state: Mapping[str, Tensor], component: str) -> dict[str, Tensor]:
    """The A of each layer of a component."""
    ending = f".{CANONICAL['A']}"
    found = ((key.removesuffix(ending), tensor) for key, tensor in state.items() if key.endswith(ending))
    return {layer: tensor for layer, tensor in found if layer.startswith(f"{component}.")}


def _others(numbers: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    return {layer.split(".", 1)[1]: number for layer, number in sorted(numbers.items()) if number != usual}


def _layer(key: str) -> str:
    return key.split(".lora_")[0]


def _most(numbers: Any) -> Any:
    """The most frequent one, and among several the smallest."""
    return min(Counter(numbers).items(), key=lambda item: (-item[1], item[0]))[0]


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
