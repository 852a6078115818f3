"""A value net: what a language model's answer can be expected to be worth, at each of its tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError
from tunewright.tasks._answers import branch_mask
from tunewright.tasks._pretrained import load_config, load_weights
from tunewright.tasks.base import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


def new_critic(base: str) -> nn.Module:
    """The trunk of a base with a new head that says 0. Raises BaseModelError where there is no such class."""
    import torch
    from transformers import AutoModelForSequenceClassification

    config = load_config(base)
    config.num_labels = 1
    module: Any = load_weights(AutoModelForSequenceClassification, base, config, dtype="float32")[0]
    if not hasattr(module, "score"):
        raise BaseModelError(f"{base} has no head that scores tokens, which ppo's value net needs. Use grpo or rloo.")
    torch.nn.init.zeros_(module.score.weight)
    return module.eval()


def values(critic: Any, batch: Batch) -> Tensor:
    """What is expected before each next token, [B, T], in fp32."""
    masked: dict[str, Any] = {} if batch.branch is None else {"attention_mask": branch_mask(critic, batch.branch)}
    hidden_BTH = critic.base_model(**batch.inputs, **masked, use_cache=False).last_hidden_state
    value_BT: Tensor = critic.score(hidden_BTH)[..., 0].float()
    return value_BT
