"""What to change where a run does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

from tunewright.evaluation.formats import number, size
from tunewright.forecast.forecast import Forecast
from tunewright.recipe import Recipe

ROUNDED = 64  # positions


def advice(recipe: Recipe, found: Forecast, longest: int, trained: int) -> list[str]:
    """Sentences, the least intrusive change first; none where it fits.

    Args:
        longest: positions of the longest row, below which no forward pass can go.
        trained: parameters that train.
    """
    return list(_advice(recipe, found, longest, trained)) if not found.fits else []


def _advice(recipe: Recipe, found: Forecast, longest: int, trained: int) -> Iterator[str]:
    steps, training = found.steps, recipe.training
    left = found.room - steps.fixed
    if left > 0 and steps.per_position:
        positions = int(left / 1.1 / steps.per_position) // ROUNDED * ROUNDED
        if positions >= longest:
            yield (
                f"training.micro_batch_tokens: {positions} fits: forward passes of fewer positions, the same steps and "
                "gradients."
            )
        elif positions:
            yield (
                f"Not even the longest row ({number(longest)} tokens) fits by itself: data.max_length: {positions} "
                "with data.overlength: drop or truncate would."
            )
    if not training.activation_checkpointing:
        yield "training.activation_checkpointing: true keeps less of each forward pass, for about a third more time."
    yield from fixed_advice(recipe, trained)


def fixed_advice(recipe: Recipe, trained: int) -> Iterator[str]:
    """What makes the part smaller that does not depend on the rows."""
    training = recipe.training
    kept = 4 * (3 + (training.ema is not None)) * trained
    if recipe.method.saved_as == "transformers":
        yield (
            f"method: lora trains some percent of the parameters: of {size(kept)} for gradients and the optimizer "
            "little remains."
        )
    if training.optimizer == "adamw" and kept > 2**28:
        yield f"training.optimizer: adafactor or adamw8bit keeps less than AdamW's {size(8 * trained)}."


def least_needed(recipe: Recipe, total: int, trained: int) -> int:
    """Bytes that a run holds at the least: weights, gradients and the optimizer's two moments, in fp32.

    Weights that do not train may be in two bytes each, where the run computes in bf16.
    """
    beside = 12 if recipe.training.optimizer == "adamw" else 4
    halves = recipe.training.precision == "bf16" and recipe.method.saved_as != "transformers"
    return (2 if halves else 4) * total + beside * trained


def refusal(needed: int, room: int) -> str:
    return f"It needs at least {size(needed)} for weights, gradients and the optimizer, and {size(room)} are free."
