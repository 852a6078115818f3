"""Activations that are computed again in the backward pass, and not kept: less memory for more time."""

from __future__ import annotations

from tunewright.errors import BaseModelError
from tunewright.tasks.base import Model


def recompute_activations(model: Model) -> None:
    """Raises BaseModelError for an architecture that cannot."""
    try:
        model.module.gradient_checkpointing_enable({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        raise BaseModelError(
            "This model cannot recompute activations. Set training.activation_checkpointing: false."
        ) from error
