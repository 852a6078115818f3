"""The path between a run's start and its end: θ(α) = (1 − α)·θ₀ + α·θ₁ (WiSE-FT, arXiv 2109.01903), with exact ends.

What was added is scaled where it was added; weights that trained in place are blended with the start's, in fp32, one
tensor of the start at a time. At α = 0 and 1 nothing is computed, so that a NaN at one end never reaches the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts.load import below_adapter, card_of_adapter, is_adapter, put_on, use_module, weights_folder
from tunewright.artifacts.load import load as load_end
from tunewright.artifacts.save import refuse_place, save
from tunewright.artifacts.start import Start, start_of, state_of
from tunewright.errors import RecipeError
from tunewright.methods import Full, Method
from tunewright.methods._lora_file import CONFIG as PEFT_CONFIG
from tunewright.methods._lora_file import PREFIX, TOKENS, read_adapter, stack_loras, write_adapter
from tunewright.methods._peft import is_blended, merge_adapter
from tunewright.methods.adapter import WEIGHTS as ADAPTER_WEIGHTS
from tunewright.methods.base import plain_name
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import Tensor


def load(
    where: str | PathLike[str], device: str = "cpu", task: str | None = None, alpha: float = 1.0, base: Any = None
) -> Model:
    """A model as it was trained, ready to predict: `.module` is the torch module, in eval mode.

    Args:
        where: a run, an adapter's folder, a model's folder, or a name on the hub.
        device: a torch device.
        task: needed only where a model's folder does not tell.
        alpha: the point on the path from the run's start (0) to its end (1).
        base: the torch module that a run or folder is made of, or its factory, where the run's record does not lead to
            it; its weights are those of the run.

    Raises:
        BaseModelError, MethodError: there is no model, its parts do not fit together, or there is no such path.
    """
    check_alpha(alpha)
    if base is not None:
        use_module(where, base)
    if alpha == 1:
        return load_end(where, device, task)
    start = start_of(where)
    model = start.model() if alpha == 0 else between(start, where, alpha)
    model.module.to(device).eval()
    return model


def write_point(
    where: str | PathLike[str], alpha: float, folder: Path, settle: Callable[[Model], None] | None = None
) -> Path:
    """Write the model at `alpha` to a new folder: an adapter where scaling says it all, else the whole model.

    Args:
        settle: what is done to a model between the ends first, such as to measure its batch norms anew.

    Raises OutputError where the folder is not empty.
    """
    refuse_place(folder)
    model = load(where, alpha=alpha)
    method: Method = Full()
    if alpha > 0 and is_adapter(weights_folder(where)):
        method = card_of_adapter(weights_folder(where)).make_method()
    if is_blended(model.module):
        model, method = load_end(where), Full()
        merge_adapter(model)
        blend(dict(state_of(model.module)), start_of(where).tensors(model.module), alpha)
    if settle and 0 < alpha < 1:
        settle(model)
    save(model, method, folder)
    return folder


def check_alpha(alpha: float) -> None:
    """Raises RecipeError for a point that is not on the path."""
    if not isinstance(alpha, Real):
        raise RecipeError(f"alpha is a number between 0 and 1, not {alpha!r}.")
    if not 0 <= alpha <= 1:
        raise RecipeError(f"alpha {alpha} is not between 0 (where the run started) and 1 (the tuned model).")


def between(start: Start, where: str | PathLike[str], alpha: float) -> Model:
    """The model at 0 < alpha < 1."""
    weights = weights_folder(where)
    if not is_adapter(weights):
        model = load_end(where)
        blend(dict(state_of(model.module)), start.tensors(model.module), alpha)
        return model
    model = below_adapter(weights)
    start.overlay(model)
    along = _along(model, start, weights)
    if start.adapter and not (start.adapter / PEFT_CONFIG).is_file():  # bottleneck adapters that went on
        put_on(model, weights)
        along = _read(start.adapter)[0]
    elif start.adapter:
        _put_on_both(model, start.adapter, weights, alpha)
    else:
        put_on(model, weights)
        card_of_adapter(weights).make_method().scale(model, alpha)
    here = {_key(name): tensor for name, tensor in state_of(model.module) if ".original_module." not in name}
    blend(here, iter(along.items()), alpha)
    return model


def blend(parameters: Mapping[str, Tensor], start: Iterator[tuple[str, Tensor]], alpha: float) -> None:
    """Move each named tensor to (1 − α)·start + α·itself, in place and in fp32. Integers stay those of the end."""
    import torch

    with torch.no_grad():
        for name, tensor in start:
            here = parameters[name]
            if here.is_floating_point():
                here.copy_(torch.lerp(tensor.to(here.device).float(), here.float(), alpha))


def _along(model: Model, start: Start, weights: Path) -> dict[str, Tensor]:
    """What an adapter's file replaces (a head, a norm, the rows of tokens), as it was at the start."""
    import torch

    earlier, rows_then = _read(start.adapter) if start.adapter else ({}, {})
    state, rows_now = _read(weights)
    here = dict(state_of(model.module))
    found = {name: earlier.get(name, here[name].detach()).clone() for name in state if name in here}
    for table, indices in rows_now.items():
        name = TOKENS.format(table).removeprefix(PREFIX)
        then = dict(zip(rows_then.get(table, ()), earlier.get(name, ()), strict=True))
        found[name] = torch.stack([then.get(i, here[f"{table}.weight"].detach()[i]) for i in indices])
    return found


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The tensors of an adapter's file by the base's parameter names, and the rows of tokens that train."""
    from safetensors.torch import load_file

    if not (folder / PEFT_CONFIG).is_file():
        return load_file(folder / ADAPTER_WEIGHTS) if (folder / ADAPTER_WEIGHTS).is_file() else {}, {}
    state, config = read_adapter(folder)
    rows = config.get("trainable_token_indices")
    return {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}, rows if isinstance(rows, dict) else {}


def _put_on_both(model: Model, earlier: Path, weights: Path, alpha: float) -> None:
    """A LoRA that was stacked on another: (1 − α)·Δ₀ + α·Δ₁ is again a LoRA over the same base."""
    with tempfile.TemporaryDirectory() as place:
        write_adapter(Path(place), *stack_loras([(*read_adapter(earlier), 1 - alpha), (*read_adapter(weights), alpha)]))
        put_on(model, Path(place))


def _key(name: str) -> str:
    """A wrapped parameter's name as the adapter's file has it, without PEFT's prefix."""
    return plain_name(name).removesuffix(".default")
