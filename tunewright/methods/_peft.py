"""What the methods share whose adapters PEFT defines: wrapping, the file format, and adapters on top of adapters."""

from __future__ import annotations

import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunewright.errors import MethodError
from tunewright.methods.base import Method
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import Tensor, nn

PEFT_TASKS = {"text-generation": "CAUSAL_LM", "text-classification": "SEQ_CLS"}
BESIDE = ("gaussian", "eva", "orthogonal")  # ways to begin a LoRA that take nothing out of the base
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class PeftMethod(Method):
    """An adapter that PEFT knows, saved so that PEFT's own `from_pretrained` loads it."""

    saved_as: ClassVar[str] = "peft"

    @abstractmethod
    def peft_config(self, model: Model) -> Any:
        """PEFT's configuration for this model."""

    def attach(self, model: Model, seed: int = 0) -> None:
        import torch
        from peft import get_peft_model

        config = self.peft_config(model)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            try:
                wrapped = get_peft_model(model.module, config)
            except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError) as error:
                raise MethodError(f"PEFT cannot apply {config.peft_type.value} to this model: {error}") from error
        config.base_model_name_or_path = model.base
        model.module = wrapped

    def save(self, model: Model, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.module.save_pretrained(folder, save_embedding_layers=False)
        model.processor.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form

    def restore(self, model: Model, folder: Path) -> None:
        attach_folder(model, folder)

    def merge(self, model: Model) -> None:
        merge_adapter(model)

    @contextmanager
    def off(self, model: Model) -> Iterator[None]:
        config = model.module.active_peft_config
        if not leaves_base({"bias": "none", "init_lora_weights": True, **vars(config)}):
            raise MethodError("This adapter changed the base's own weights: switching it off does not give the start.")
        if config.is_prompt_learning and not hasattr(model.module, "prepare_inputs_for_generation"):
            raise MethodError("PEFT cannot switch off the virtual tokens of a classifier.")  # PEFT 0.21 fails there
        with model.module.disable_adapter():
            yield


def leaves_base(config: Mapping[str, Any]) -> bool:
    """Whether an adapter leaves the base's weights alone: trained biases, PiSSA and others of its kind do not."""
    init = config.get("init_lora_weights", True)
    return config.get("bias", "none") == "none" and (isinstance(init, bool) or init in BESIDE)


def attach_folder(model: Model, folder: Path) -> None:
    """Put the PEFT adapter that lies in `folder` onto a base, in place. Raises MethodError where it does not fit."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            model.module = PeftModel.from_pretrained(model.module, str(folder))
        except (ValueError, RuntimeError, TypeError, OSError) as error:
            raise MethodError(f"The adapter in {folder} does not fit {model.base}: {error}") from error
    missing = [str(w.message) for w in seen if "missing adapter keys" in str(w.message)]
    if missing:
        raise MethodError(f"The adapter in {folder} does not fit {model.base}: {missing[0]}")


def merge_adapter(model: Model) -> None:
    """Fold a PEFT adapter into the weights, in place; PEFT wrappers are gone afterwards."""
    if not hasattr(model.module, "merge_and_unload"):
        raise MethodError("This kind of adapter (prompt or prefix) cannot be merged into the weights.")
    _unwrap_along(model.module)
    try:
        model.module = model.module.merge_and_unload()
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise MethodError(f"This kind of adapter cannot be merged into the weights: {error}") from error


def _unwrap_along(module: nn.Module) -> None:
    """Put modules that trained along into their places: PEFT itself only does that where they have a `weight`."""
    from peft.utils import ModulesToSaveWrapper

    wrapped = [(name, m) for name, m in module.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    for name, wrapper in wrapped:
        module.set_submodule(name, wrapper.modules_to_save[wrapper.active_adapters[0]])


def linear_layers(module: nn.Module) -> list[str]:
    """The names of all linear layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, Conv1D))]


def linear_names(module: nn.Module) -> list[str]:
    """The last parts of the names of linear layers, once each: what a user would name as targets."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear_layers(module)))


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of a PEFT adapter, without a model."""
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS), json.loads((folder / CONFIG).read_text(encoding="utf-8"))


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


TOKENS = "base_model.model.{}.token_adapter.trainable_tokens_delta"


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
    return key.removeprefix("base_model.model.").split(".lora_")[0]


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
