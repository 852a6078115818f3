"""LoRAs in the file of diffusers' pipelines: `unet.…` and `text_encoder.…` keys, and the scales in the header.

Without the header, `load_lora_weights` takes alpha to be the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.methods._lora_file import (
    DIFFUSERS,
    PREFIX,
    TEXT_MODEL,
    WEIGHTS,
    lora_scale,
    module_of,
    read_adapter,
    write_adapter,
)

if TYPE_CHECKING:
    from torch import Tensor

HEADER = "lora_adapter_metadata"
ENCODER = "text_encoder"


def as_diffusers(folder: Path) -> None:
    """Put a LoRA's weights in a folder into diffusers' file; PEFT's configuration stays, with every module by name."""
    state, config = read_adapter(folder)
    modules = sorted({module_of(key) for key in state})
    write_adapter(folder, state, {**config, "target_modules": modules})
    write_diffusers(folder, state, config)
    (folder / WEIGHTS).unlink()


def write_diffusers(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a LoRA so that `pipeline.load_lora_weights(folder)` computes what PEFT does.

    Args:
        state, config: as PEFT writes them for a `Diffusion`: the keys' modules begin with a component's name.
    """
    from safetensors.torch import save_file

    header: dict[str, Any] = {}
    for component in sorted({module_of(key).split(".")[0] for key in state}):
        header |= {f"{component}.{key}": value for key, value in _part(state, config, component).items()}
    tensors = {_key(name): tensor.contiguous() for name, tensor in state.items()}
    metadata = {HEADER: json.dumps(header, indent=2, sort_keys=True)}  # alone: the file has several in any order
    save_file(tensors, folder / DIFFUSERS, metadata=metadata)


def _part(state: Mapping[str, Tensor], config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """What PEFT is to be told of one component: each module with its own rank and alpha where these differ."""
    modules = sorted({module_of(key) for key in state if key.startswith(f"{PREFIX}{component}.")})
    ranks = {name: state[f"{PREFIX}{name}.lora_A.weight"].shape[0] for name in modules}
    root = config.get("use_rslora", False)
    alphas = {name: lora_scale(config, name) * (rank**0.5 if root else rank) for name, rank in ranks.items()}
    rank, alpha = ranks[modules[0]], alphas[modules[0]]
    inner = {name: name.removeprefix(f"{component}.").removeprefix(TEXT_MODEL) for name in modules}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(inner.values()),
        "rank_pattern": {inner[name]: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {inner[name]: own for name, own in alphas.items() if own != alpha},
        "use_rslora": root,
        "use_dora": config.get("use_dora", False),
    }


def _key(name: str) -> str:
    """A key as it has always been: text encoders have their layers in a `text_model`, which transformers 5 left out."""
    component, _, rest = name.removeprefix(PREFIX).partition(".")
    inside = component.startswith(ENCODER) and not rest.startswith(TEXT_MODEL)
    return f"{component}.{TEXT_MODEL}{rest}" if inside else f"{component}.{rest}"
