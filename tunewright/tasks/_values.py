"""A value net: what a language model's answer can be expected to be worth, at each of its tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError
from tunewright.tasks._answers import branch_mask
from tunewright.tasks._logits import in_full
from tunewright.tasks._pretrained import load_config, load_weights
from tunewright.tasks._vocabulary import grow_vocabulary
from tunewright.tasks.base import Batch, Model

if TYPE_CHECKING:
    from torch import Tensor, nn


def new_critic(policy: Model) -> nn.Module:
    """The trunk of a policy's base with a new head that says 0. Raises BaseModelError where there is no such class."""
    import torch
    from transformers import AutoModelForSequenceClassification

    base = policy.base
    config = load_config(base)
    config.num_labels = 1
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise BaseModelError(_HEADLESS.format(base))
    module: Any = load_weights(AutoModelForSequenceClassification, base, config, dtype="float32")[0]
    if not hasattr(module, "score"):
        raise BaseModelError(_HEADLESS.format(base))
    torch.nn.init.zeros_(module.score.weight)
    grow_vocabulary(replace(policy, module=module))
    return module.eval()


_HEADLESS = "{} has no head that scores tokens, which ppo's value net needs. Use algorithm: grpo or rloo."


def values(critic: Any, batch: Batch) -> Tensor:
    """What is expected before each next token, [B, T], in fp32."""
    masked: dict[str, Any] = {} if batch.branch is None else {"attention_mask": branch_mask(critic, batch.branch)}
    hidden_BTH = critic.base_model(**batch.inputs, **masked, use_cache=False).last_hidden_state
    value_BT: Tensor = in_full(critic.score(hidden_BTH)[..., 0])
    return value_BT
