"""LoRAs of diffusion models by their tensors' keys: every convention that is known is brought into one form.

In memory that is a `LoraFile`, named as diffusers names it today.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError
from tunewright.methods._lora_file import PREFIX, TEXT_MODEL
from tunewright.methods._unet_names import dotted, from_original, is_original

if TYPE_CHECKING:
    from torch import Tensor

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
    ".lora_mid.weight": "mid",
    ".dora_scale": "scale",
    ".alpha": "alpha",
}
"""How the conventions call a layer's two factors, its scale, and the magnitudes of DoRA.

LyCORIS has a kernel between the factors of a convolution, which are then 1 × 1 both.
"""
OTHERS = {
    ".hada_": "a LoHa", ".lokr_": "a LoKr", ".oft_": "an OFT", ".on_input": "an IA³", ".diff": "of whole weights",
    "string_to_param": "a textual inversion", "emb_params": "a textual inversion", "clip_l": "a textual inversion",
}  # fmt: skip
"""What other files hold, by a part of their keys."""
WHOLE = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
"""How the keys of a whole Stable Diffusion in one file begin."""
CANONICAL = {"A": "lora_A.weight", "B": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
OLD_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


AS_FOLDER = (
    "Make it a folder: diffusers.StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), for SDXL with "
    "StableDiffusionXLPipeline."
)


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
        return sorted({layer_of(key) for key in self.state})

    def alpha(self, layer: str) -> float:
        """What makes this layer's scale alpha / rank, also where the file says alpha / √rank."""
        config = self.configs[layer.split(".")[0]]
        alpha = _alpha(config, layer)
        return alpha * math.sqrt(self.state[f"{layer}.lora_A.weight"].shape[0]) if config.get("use_rslora") else alpha


def from_state(
    state: Mapping[str, Tensor],
    configs: Mapping[str, Mapping[str, Any]] | None = None,
    layers_per_block: int = 2,
    name: str = "This file",
) -> LoraFile:
    """Tensors under the keys of any known convention as a LoraFile.

    Where no configuration says otherwise, a layer's alpha is the tensor beside it, and without one its rank.
    """
    known = known_keys(state, layers_per_block, name)
    found: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    kernels: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for key, (layer, part) in known.items():
        if part == "alpha":
            alphas[layer] = float(state[key])
        elif part == "mid":
            kernels[layer] = state[key]
        elif part == "scale":
            scales[layer] = state[key]
        else:
            found[f"{layer}.{CANONICAL[part]}"] = state[key]
    _refuse_halves(found, alphas, name)
    for layer, kernel in kernels.items():
        found[f"{layer}.{CANONICAL['A']}"] = _folded(kernel, found[f"{layer}.{CANONICAL['A']}"])
    for layer, scale in scales.items():
        found[f"{layer}.{CANONICAL['magnitude']}"] = _magnitude(scale, found[f"{layer}.{CANONICAL['B']}"], layer, name)
    components = [c for c in COMPONENTS if any(key.startswith(f"{c}.") for key in found)]
    return LoraFile(found, {c: _settled(c, (configs or {}).get(c), found, alphas) for c in components})


def known_keys(keys: Iterable[str], layers_per_block: int = 2, name: str = "This file") -> dict[str, tuple[str, str]]:
    """Each key as its layer, named as in a LoraFile, and which part of it this is.

    Raises BaseModelError where some are of no known convention, or there are none at all.
    """
    parsed = {key: _parsed(key, layers_per_block) for key in keys}
    known = {key: found for key, found in parsed.items() if found}
    strange = [key for key in parsed if key not in known]
    if known and not strange:
        return known
    if any(key.startswith(WHOLE) for key in strange):
        raise BaseModelError(f"{name} is a whole model, no LoRA. {AS_FOLDER}")
    listed = ", ".join(strange[:5]) + (" …" if len(strange) > 5 else "")
    kinds = [kind for key in strange for part, kind in OTHERS.items() if part in key]
    if kinds:
        raise BaseModelError(f"{name} is {kinds[0]}, and LoRAs alone are read here. Keys that are none: {listed}.")
    raise BaseModelError(
        f"{name} is no LoRA of a convention that is known (diffusers, PEFT, kohya). Keys that are not: "
        f"{listed or 'it has none at all'}."
    )


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
        if any(re.match(rf"(.*\.)?({key})$", name) for name in (layer, with_text_model(layer))):
            return alpha
    return config["lora_alpha"]


def _folded(kernel: Tensor, down: Tensor) -> Tensor:
    """One convolution for two behind each other: a kernel [rank × rank × height × width] and A [rank × in × 1 × 1]."""
    import torch

    return torch.einsum("rshw,si->rihw", kernel.float(), down.flatten(1).float()).to(down.dtype)


def _magnitude(scale: Tensor, up: Tensor, layer: str, name: str) -> Tensor:
    """The magnitudes of DoRA as PEFT has them, [out], of a convolution [1 × out × 1 × 1]; LyCORIS has [out × 1 …].

    Raises BaseModelError for LyCORIS' other form, [1 × in …], which is not PEFT's DoRA.
    """
    if scale.shape[0] != up.shape[0]:
        raise BaseModelError(
            f"{name}: the DoRA of {layer} has a magnitude for each input, and PEFT's has one for each output. Merge it "
            "into its base where it was made."
        )
    return scale.reshape(1, -1, 1, 1) if up.ndim == 4 else scale.reshape(-1)


def _refuse_halves(state: Mapping[str, Tensor], alphas: Mapping[str, float], name: str) -> None:
    layers = {layer_of(key) for key in state} | set(alphas)
    halves = [layer for layer in sorted(layers) if not {f"{layer}.{CANONICAL[p]}" for p in "AB"} <= state.keys()]
    if halves:
        raise BaseModelError(f"{name} has only one half of the update of {', '.join(halves[:5])}. Get it again.")


def with_text_model(name: str) -> str:
    """A text encoder's key as it has always been: transformers 5 leaves the `text_model` out in some of them."""
    component, module = name.split(".", 1)
    bare = component == "unet" or module.startswith((TEXT_MODEL, "text_projection"))
    return name if bare else f"{component}.{TEXT_MODEL}{module}"


def _part(state: Mapping[str, Tensor], component: str) -> dict[str, Tensor]:
    """The A of each layer of a component."""
    ending = f".{CANONICAL['A']}"
    found = ((key.removesuffix(ending), tensor) for key, tensor in state.items() if key.endswith(ending))
    return {layer: tensor for layer, tensor in found if layer.startswith(f"{component}.")}


def _others(numbers: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    return {layer.split(".", 1)[1]: number for layer, number in sorted(numbers.items()) if number != usual}


def layer_of(key: str) -> str:
    return key.split(".lora_")[0]


def _most(numbers: Any) -> Any:
    """The most frequent one, and among several the smallest."""
    return min(Counter(numbers).items(), key=lambda item: (-item[1], item[0]))[0]
