"""Adapters as files: read and written without a model, and several LoRAs on one base as a single one."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BESIDE = ("gaussian", "eva", "orthogonal")  # ways to begin a LoRA that take nothing out of the base
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS = "pytorch_lora_weights.safetensors"
"""What diffusers calls a LoRA's weights: they lie there in place of PEFT's file, and under keys without its prefix."""
TEXT_MODEL = "text_model."
OLDER = {".lora_A.": ".lora_linear_layer.down.", ".lora_B.": ".lora_linear_layer.up."}
"""What diffusers called the factors of a text encoder's layer before PEFT's names were taken over."""


def leaves_base(config: Mapping[str, Any]) -> bool:
    """Whether an adapter leaves the base's weights alone: trained biases, PiSSA and others of its kind do not."""
    init = config.get("init_lora_weights", True)
    return config.get("bias", "none") == "none" and (isinstance(init, bool) or init in BESIDE)


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of a PEFT adapter, without a model."""
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if (folder / DIFFUSERS).is_file():
        state = {f"{PREFIX}{_today(key)}": tensor for key, tensor in load_file(folder / DIFFUSERS).items()}
        return fitted(state, config["target_modules"]), config
    return load_file(folder / WEIGHTS), config


def _today(key: str) -> str:
    for name, older in OLDER.items():
        key = key.replace(older, name)
    return key


def fitted(state: Mapping[str, Tensor], modules: Collection[str]) -> dict[str, Tensor]:
    """A LoRA's weights under the names that the text encoders' modules have here: with or without `text_model`."""
    return {name if module_of(name) in modules else name.replace(TEXT_MODEL, "", 1): t for name, t in state.items()}


def write_adapter(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def stackable(config: Mapping[str, Any]) -> bool:
    """Whether a LoRA is a plain sum of low-rank products, so that a stack of several is again a LoRA."""
    plain = not any(
        config.get(key)
        for key in ("use_dora", "target_parameters", "lora_bias", "use_qalora", "alora_invocation_tokens")
    )
    by_name = isinstance(config.get("trainable_token_indices") or {}, dict)
    return config.get("peft_type") == "LORA" and plain and by_name and leaves_base(config)


def stack_loras(
    terms: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Any], float]],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One LoRA that equals a sum of LoRAs on the same base: Σ sign·s_i·B_i·A_i = [s_1·B_1 … s_n·B_n]·[A_1; …; A_n].

    Terms are (weights, configuration, sign). Ranks add up and the scale becomes 1. Whatever else a term trained (a
    head, the row of a token) is taken from the last term that has it.
    """
    import torch

    last = dict(terms[-1][1])
    state: dict[str, Tensor] = {}
    factors: dict[str, list[Tensor]] = {}
    for weights, config, sign in terms:
        for name, tensor in weights.items():
            if "lora_B" in name or "lora_embedding_B" in name:
                factors.setdefault(name, []).append(tensor * (sign * lora_scale(config, module_of(name))))
            elif "lora_A" in name or "lora_embedding_A" in name:
                factors.setdefault(name, []).append(tensor)
            else:
                state[name] = tensor
    for name, parts in factors.items():
        state[name] = torch.cat(parts, dim=0 if "_A" in name else 1)
    ranks = {
        module_of(name): tensor.shape[0]
        for name, tensor in state.items()
        if "lora_A" in name or "lora_embedding_A" in name
    }
    rank = max(ranks.values())
    uneven = {name: size for name, size in ranks.items() if size != rank}
    last.update(
        r=rank, lora_alpha=rank, use_rslora=False, init_lora_weights=True, rank_pattern=uneven, alpha_pattern=uneven
    )
    last["target_modules"] = sorted(ranks)
    along = dict.fromkeys(name for _, config, _ in terms for name in config.get("modules_to_save") or ())
    last["modules_to_save"] = list(along) or None
    rows = _token_rows(terms)
    last["trainable_token_indices"] = {table: sorted(found) for table, found in rows.items()} or None
    for table, found in rows.items():
        state[TOKENS.format(table)] = torch.stack([found[index] for index in sorted(found)])
    return state, last


PREFIX = "base_model.model."
TOKENS = PREFIX + "{}.token_adapter.trainable_tokens_delta"


def _token_rows(
    terms: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Any], float]],
) -> dict[str, dict[int, Tensor]]:
    """The trained rows of each table by their token: several runs may have added tokens, each its own."""
    rows: dict[str, dict[int, Tensor]] = {}
    for weights, config, _ in terms:
        for table, indices in (config.get("trainable_token_indices") or {}).items():
            if TOKENS.format(table) in weights:
                rows.setdefault(table, {}).update(zip(indices, weights[TOKENS.format(table)], strict=True))
    return rows


def module_of(key: str) -> str:
    """The name of the adapted module within the base, from a key of an adapter file."""
    return key.removeprefix(PREFIX).split(".lora_")[0]


def lora_scale(config: Mapping[str, Any], module: str) -> float:
    """What B·A is multiplied by: alpha / rank, or alpha / √rank for rsLoRA (arXiv 2312.03732)."""
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pattern(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: a pattern's key matches a module's name or its end."""
    return next(
        (value for key, value in (pattern or {}).items() if module == key or module.endswith(f".{key}")), default
    )
