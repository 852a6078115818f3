"""Loading from a folder or the hub through transformers' auto classes: safetensors only, no code from the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.data.rendered import Limit
from tunewright.data.texts import is_address
from tunewright.errors import BaseModelError, MissingExtra, first_line
from tunewright.tasks._quiet import quiet
from tunewright.tasks.base import Model


def load_config(base: str) -> Any:
    """The configuration of a base. Raises BaseModelError where there is none, or where it asks for its own code."""
    from transformers import AutoConfig

    check_folder(base)
    with quiet():
        try:
            return AutoConfig.from_pretrained(base, trust_remote_code=False)
        except ImportError as error:
            raise MissingExtra(f"{base}, a timm model,", "timm") from error
        except (OSError, ValueError, KeyError) as error:
            raise BaseModelError(_missing(base, error)) from error


def load_tokenizer(base: str) -> Any:
    """The tokenizer that lies beside the weights."""
    from transformers import AutoTokenizer

    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BaseModelError(
                f"{base} has no tokenizer that can be read ({first_line(error)}). Put tokenizer.json and "
                "tokenizer_config.json beside the weights."
            ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise BaseModelError(f"The tokenizer of {base} has neither a padding nor an EOS token: set its pad_token.")
    tokenizer.padding_side = "right"
    return tokenizer


def load_image_processor(base: str) -> Any:
    """What makes pixels of images as the base knows them, with Pillow: the same whether torchvision is there or not."""
    from transformers import AutoImageProcessor

    with quiet():
        try:
            return AutoImageProcessor.from_pretrained(base, trust_remote_code=False, backend="pil")
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise BaseModelError(
                f"{base} does not say how images are prepared for it ({first_line(error)}). Put its "
                "preprocessor_config.json beside the weights."
            ) from error


def load_weights(auto_class: Any, base: str, config: Any, **options: Any) -> tuple[Any, dict[str, set[str]]]:
    """A model with its weights, and the account of what was missing or did not fit, by parameter name."""
    from safetensors import SafetensorError

    with quiet():
        try:
            return auto_class.from_pretrained(
                base, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise BaseModelError(_missing(base, error)) from error


def without_weights(auto_class: Any, config: Any) -> Any:
    """The model's shapes alone, on the meta device: counts parameters of any size in seconds.

    Raises BaseModelError where there is no such model of this kind.
    """
    import torch

    with quiet(), torch.device("meta"):
        try:
            return auto_class.from_config(config)
        except (ValueError, KeyError) as error:
            kind = auto_class.__name__.removeprefix("AutoModelFor")
            raise BaseModelError(
                f"{config.name_or_path or 'The base'} is of the type {config.model_type}, and transformers has no "
                f"{kind} for it ({first_line(error)}). Choose another base or task."
            ) from error


def stored_names(base: str) -> set[str]:
    """The names of the tensors in a folder's files, by their headers alone; none where the files are not here."""
    from safetensors import SafetensorError, safe_open

    found: set[str] = set()
    for path in sorted(Path(base).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= set(file.keys())
        except (OSError, SafetensorError) as error:
            raise BaseModelError(f"{path} cannot be read: {first_line(error)}") from error
    return found


def task_with_head(config: Any) -> str | None:
    """The task whose head transformers has for models of this kind: of an encoder of texts, that it classifies."""
    from transformers.models.auto import modeling_auto as auto

    heads: dict[str, Mapping[str, Any]] = {
        "image-classification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "text-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "text-generation": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    return next((task for task, kinds in heads.items() if config.model_type in kinds), None)


def check_folder(base: str) -> None:
    """Refuse what must not be loaded: missing folders, pickles, code that travels with the weights."""
    folder = Path(base)
    refuse_missing(base)
    if not folder.exists():
        return
    if not (folder / "config.json").is_file():
        raise BaseModelError(f"{base} is no model folder: it has no config.json.")
    names = {path.name for path in folder.iterdir()}
    pickles = sorted(
        name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")) and name != "training_args.bin"
    )
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise BaseModelError(
            f"{base} holds its weights as a pickle ({pickles[0]}), which can run code when it is loaded: refused. "
            "Convert it to safetensors on a machine you can lose, or take the safetensors revision."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise BaseModelError(f"{folder / 'config.json'} holds no configuration.")
    if "auto_map" in config and config.get("model_type") not in _known_types():
        raise BaseModelError(
            f"{base} brings its own Python code (auto_map in config.json). Tunewright does not run code from a base. "
            "Use a base whose architecture transformers knows."
        )


def refuse_missing(base: str) -> None:
    """Raises BaseModelError for an address, a point of a run, and the path of a folder that is not there."""
    if is_address(base):
        raise BaseModelError(
            f"{base} is an address. Name a model on the hub as owner/name, or download it and give its folder."
        )
    run, found, _ = base.rpartition("@")
    if found and not Path(base).exists() and Path(run).exists():
        raise BaseModelError(
            f"{base} is a point of a run. Write it as a model, and name that folder instead: "
            f"tunewright export {base} DIR --to merged"
        )
    if not Path(base).exists() and (base.startswith((".", "/", "~")) or base.count("/") > 1):
        raise BaseModelError(
            f"There is no folder {base}. Name a model folder, a run, or a model on the hub (owner/name)."
        )


def _known_types() -> set[str]:
    from transformers import CONFIG_MAPPING

    return set(CONFIG_MAPPING.keys())


def _missing(base: str, error: Exception) -> str:
    if Path(base).exists():
        return f"{base} cannot be loaded: {first_line(error)}"
    return (
        f"{base} is neither a folder here nor a model that could be fetched from the hub ({first_line(error)}). "
        "Check the name and the connection, or give a local folder."
    )


def longest_row(model: Model, wanted: int | None) -> Limit:
    """How long a row may be: what was asked for, else what the model was trained with, within its context."""
    context = context_length(model)
    return Limit(min(context, wanted or model.max_length or context), context)


def context_length(model: Model) -> int:
    """How many tokens model and tokenizer say they can hold."""
    config = model.module.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions:
        positions -= _reserved_positions(model.module)
    limits = [positions, model.processor.model_max_length]
    return int(min(limit for limit in limits if limit))


def _reserved_positions(module: Any) -> int:
    """RoBERTa and its kin count positions from behind the padding index, so that their table holds two rows less."""
    tables = (m for name, m in module.named_modules() if name.endswith("position_embeddings"))
    return next((m.padding_idx + 1 for m in tables if getattr(m, "padding_idx", None) is not None), 0)
