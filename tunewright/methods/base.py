"""A method: which parameters train, and what is added to the model for it.

A method is its own configuration: a frozen pydantic model whose fields are the hyperparameters and whose methods are
the behaviour. It decides once, in `attach`, by setting `requires_grad`; everything else (optimizer, checkpoint, what
stays in eval mode) reads that.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunewright.errors import MethodError
from tunewright.options import Options
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn


class Method(Options):
    """Which parameters train, and what is added.

    Class attributes:
        learning_rate: a good rate at hidden size 4096; `learning_rate: auto` scales it to the model's own, where the
            task has no rate of its own for the method.
        scaled: whether it does; else the rate is good at every size.
        saved_as: `transformers` (the whole model), `peft` (PEFT's format), `adapter` (safetensors + JSON) or
            `embeddings` (diffusers' textual inversion).
        trains_new_tokens: whether rows that were added to the vocabulary train and are saved.
    """

    learning_rate: ClassVar[float]
    scaled: ClassVar[bool] = True
    saved_as: ClassVar[str]
    trains_new_tokens: ClassVar[bool] = False
    type: str

    def extend(self, model: Model) -> None:
        """Add, in place, to what rows are encoded with: a method that teaches a new token."""

    def check_rows(self, records: Sequence[Any]) -> None:
        """Raise DataError for training rows that the method cannot learn from."""

    @abstractmethod
    def attach(self, model: Model, seed: int = 0) -> None:
        """Prepare `model` for training, in place: wrap it where something is added, and say what trains.

        Raises:
            MethodError: the method cannot be applied to this model.
        """

    @abstractmethod
    def save(self, model: Model, folder: Path) -> None:
        """Write what `restore` needs, in the ecosystem's format, with the processor."""

    @abstractmethod
    def restore(self, model: Model, folder: Path) -> None:
        """Put what `save` wrote onto a freshly loaded base, in place."""

    def merge(self, model: Model) -> None:
        """Fold what was added into the weights, in place. A method that adds nothing has nothing to do."""

    def off(self, model: Model) -> AbstractContextManager[None]:
        """Inside, the model computes what the run started from. Raises MethodError where that is not exact."""
        raise MethodError(f"{self.type} changes the base's own weights: switching it off does not give back the start.")

    def scale(self, model: Model, alpha: float) -> None:
        """Let what was added count `alpha` times, 0 < alpha < 1, in place. Raises MethodError where that is no path."""
        raise MethodError(f"{self.type} adds nothing that could be scaled.")

    @property
    def moves_statistics(self) -> bool:
        """Whether the running statistics of batch norms that train follow the rows."""
        return True

    def packs(self) -> bool:
        """Whether rows may share one sequence: not where the method puts something in front of it."""
        return True

    def rate_factor(self, name: str) -> float:
        """Factor on the learning rate of the parameter `name`."""
        return 1.0


def train_only(module: nn.Module, names: set[str]) -> None:
    """Set `requires_grad` for just the named parameters."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)


def trained_parameters(module: nn.Module) -> dict[str, Any]:
    """The parameters that train, by name; tied ones once."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def enter_training(model: Model, method: Method) -> None:
    """Training mode, except for what is frozen and must not move or add noise.

    Held in eval mode: all that comes before the first trained block, and every batch norm (of any dimension) without a
    trained parameter, whose running statistics would otherwise follow the new data although nothing "trains" there;
    all of them where the method freezes statistics. Instance norms that keep statistics always are, so that these do
    not depend on how a step is cut or dealt out.
    """
    model.module.train()
    for module in frozen_prefix(model):
        module.eval()
    moving = {id(norm) for norm in moving_norms(model.module, method)}
    for module in model.module.modules():
        if hasattr(module, "running_mean") and id(module) not in moving:
            module.eval()


def is_batch_norm(module: nn.Module) -> bool:
    """Whether it normalizes by the rows of a step: torch's of any dimension, and whatever else moves statistics so."""
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.instancenorm import _InstanceNorm

    moves = all(hasattr(module, name) for name in ("running_mean", "running_var", "momentum"))
    return isinstance(module, _BatchNorm) or (moves and not isinstance(module, _InstanceNorm))


def moving_norms(module: nn.Module, method: Method) -> list[nn.Module]:
    """The batch norms that normalize by the rows of a step, so that its rows must go through them together."""
    norms = [m for m in module.modules() if method.moves_statistics and is_batch_norm(m)]
    return [m for m in norms if any(p.requires_grad for p in m.parameters(recurse=False))]  # an adapter may hang on it


def frozen_prefix(model: Model) -> Iterator[nn.Module]:
    """The modules in front of the first trained parameter, blocks and embeddings; none if anything there trains."""
    blocks = [block for _, block in model.task.blocks(model.module)]
    leading = next((i for i, block in enumerate(blocks) if _trains(block)), len(blocks))
    if not blocks:
        return
    inside = {id(m) for block in blocks for m in block.modules()}
    for module in model.module.modules():
        if id(module) == id(blocks[0]):
            break
        if id(module) in inside or any(id(m) in inside for m in module.modules()):
            continue  # a parent of the trunk
        if _trains(module):
            return
        yield module
    yield from blocks[:leading]


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def plain_name(name: str) -> str:
    """A parameter's name in the model without what a method wrapped around it."""
    inner = name.removeprefix("base_model.model.").removeprefix("base_model.")
    return inner.replace(".modules_to_save.default", "").replace(".base_layer", "")


def parameter_count(module: nn.Module) -> int:
    """How many parameters there are, tied ones once, without those in whose place PEFT trains a copy."""
    return sum(p.numel() for name, p in module.named_parameters() if ".original_module." not in name)


def trained_count(module: nn.Module) -> int:
    return sum(p.numel() for p in trained_parameters(module).values())


def trained_groups(module: nn.Module) -> list[str]:
    """What trains, in a few lines a person can read: names with their numbers folded, shapes, how often."""
    seen: dict[tuple[str, tuple[int, ...]], int] = {}
    for name, parameter in trained_parameters(module).items():
        folded = re.sub(r"(?<=\.)\d+(?=\.)", "*", name.removeprefix("base_model.model.").replace(".default", ""))
        key = (folded, tuple(parameter.shape))
        seen[key] = seen.get(key, 0) + 1
    return [f"{name}: {count} × {'×'.join(map(str, shape)) or 'scalar'}" for (name, shape), count in seen.items()]
