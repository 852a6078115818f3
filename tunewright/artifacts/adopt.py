"""A LoRA that others made for a pipeline, in whatever convention, as an adapter like those of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.artifacts.card import Card
from tunewright.artifacts.fingerprint import fingerprint
from tunewright.artifacts.load import infer_task
from tunewright.errors import BaseModelError
from tunewright.methods import LoRA
from tunewright.methods._diffusers_file import LoraFile, as_diffusers, on_base, read_lora
from tunewright.methods._lora_file import PREFIX, write_adapter
from tunewright.tasks import task_class
from tunewright.tasks.text_to_image import model_of


def adopt(lora: Path, base: str, folder: Path) -> Path:
    """Write the LoRA in a file, or the folder with it, to a new folder, as an adapter of `base`.

    Raises BaseModelError where it is no LoRA, of no known convention, or was made for another base.
    """
    name = infer_task(base)
    model = task_class(name)().load(base, weights=False)
    if not model.task.diffuses:
        raise BaseModelError(f"{base} is for {name}. LoRA files are read for pipelines of diffusers'.")
    found = read_lora(lora, model_of(model.module).unet.config.layers_per_block)
    state = on_base(found, _shapes(model.module), str(lora))
    folder.mkdir()
    write_adapter(folder, {f"{PREFIX}{key}": tensor for key, tensor in state.items()}, _config(found, state, base))
    as_diffusers(folder)
    Card(name, base, LoRA().model_dump(mode="json"), base_sha256=fingerprint(base)).write(folder)
    return folder


def _shapes(module: Any) -> dict[str, tuple[int, ...]]:
    """Of the weights of all layers that a LoRA can be put on."""
    from torch import nn

    layers = ((n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d))
    return {name: tuple(layer.weight.shape) for name, layer in layers}


def _config(lora: LoraFile, state: dict[str, Any], base: str) -> dict[str, Any]:
    """PEFT's configuration, with each layer by its name in the base."""
    ending = ".lora_A.weight"
    named = [key.removesuffix(ending) for key in state if key.endswith(ending)]  # in the order of the file's layers
    alphas = dict(zip(named, map(lora.alpha, lora.modules), strict=True))
    ranks = {name: state[name + ending].shape[0] for name in named}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": next(iter(ranks.values())),
        "lora_alpha": next(iter(alphas.values())),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": sorted(named),
        "use_dora": any(config["use_dora"] for config in lora.configs.values()),
    }
