"""Where a model's frozen blocks end, and how it computes from there on: what the prefix cache stands on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tunewright.data.batches import Example
from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.methods.base import frozen_prefix, is_batch_norm
from tunewright.tasks.base import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Unkept(Exception):
    """Why nothing is kept, in words."""


def frozen_blocks(job: Job) -> list[nn.Module]:
    blocks = {id(block) for _, block in job.model.task.blocks(job.model.module)}
    return [module for module in frozen_prefix(job.model) if id(module) in blocks]


class _Reached(Exception):
    """Ends a forward pass that has come as far as it is needed."""

    def __init__(self, place: nn.Module, states: Tensor) -> None:
        self.place, self.states = place, states


def reached(job: Job, batch: Batch, places: Sequence[nn.Module], grad: bool = False) -> tuple[nn.Module, Tensor]:
    """Of these modules the one that is called first, and what enters it. Raises Unkept where none is called."""
    import torch

    def stop(place: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> NoReturn:
        raise _Reached(place, _given(given, named))

    with ExitStack() as hooks, torch.set_grad_enabled(grad), computing(job.precision, job.device):
        for place in places:
            hooks.callback(place.register_forward_pre_hook(stop, with_kwargs=True).remove)
        try:
            job.model.task.nll(job.model.module, batch)
        except _Reached as found:
            return found.place, found.states
    raise Unkept("none of what trains is called with a tensor.")


def find_cut(job: Job, batch: Batch) -> Cut:
    """Where the frozen blocks end for this model, which is in training mode.

    Raises:
        Unkept: there is chance in what is below, or something that trains, or rows are not kept apart.
    """
    import torch

    module, frozen = job.model.module, frozen_blocks(job)
    blocks = [block for _, block in job.model.task.blocks(module)]
    inside = {id(m) for block in blocks for m in block.modules()}
    alive = [block for block in blocks if block not in frozen]
    alive += [m for m in module.modules() if id(m) not in inside and _acts(m)]
    with torch.random.fork_rng(devices=[job.device] if job.device.type == "cuda" else []):
        torch.manual_seed(0)
        place, states = reached(job, batch, alive, grad=True)
        torch.manual_seed(1)
        again = reached(job, batch, [place])[1]
    if states.requires_grad or states.shape[:1] != batch.target.shape[:1] or not torch.equal(states, again):
        raise Unkept("what they compute depends on what trains, on chance, or on the other rows.")
    pixels = {name: x.shape[1:] for name, x in batch.inputs.items() if x.is_floating_point()}
    skipped = [*(_stem(job, inside) if pixels else []), *frozen]
    return Cut(place, _stand_ins(job, batch, place, skipped), pixels)


def _acts(module: nn.Module) -> bool:
    """Whether a module itself trains, draws chance, or normalizes by the rows beside."""
    from torch.nn.modules.dropout import _DropoutNd

    draws = module.training and (is_batch_norm(module) or (isinstance(module, _DropoutNd) and module.p > 0))
    return draws or any(p.requires_grad for p in module.parameters(recurse=False))


def _stem(job: Job, inside: set[int]) -> list[nn.Module]:
    """The outermost modules with parameters in front of the blocks: what reads pixels."""
    found: list[nn.Module] = []
    for module in frozen_prefix(job.model):
        within = any(module is m for outer in found for m in outer.modules())
        if id(module) not in inside and not within and any(True for _ in module.parameters()):
            found.append(module)
    return found


@dataclass(frozen=True)
class Cut:
    """A model's forward pass without what is frozen.

    Attributes:
        place: the module that the kept states enter.
        stand_ins: what is called in place of each frozen module.
        pixels: the shapes of inputs that only a replaced stem reads, by name.
    """

    place: nn.Module
    stand_ins: Mapping[nn.Module, StandIn]
    pixels: Mapping[str, Sequence[int]]

    @contextmanager
    def replaced(self, states_B: Tensor) -> Iterator[None]:
        """Inside, the model computes with these states from `place` on."""

        pending = [states_B]

        def put(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if not pending:  # some heads call one dropout twice
                return None
            states = pending.pop()
            if given:
                return (states, *given[1:]), named
            return given, {**named, next(iter(named)): states}

        with ExitStack() as undo:
            undo.callback(self.place.register_forward_pre_hook(put, with_kwargs=True).remove)
            for module, stand_in in self.stand_ins.items():
                undo.callback(_set_forward, module, vars(module).get("forward"))
                module.forward = stand_in.of(len(states_B))
            yield

    def without_pixels(self, example: Example) -> Example:
        """The row with zeros where nothing is read, so that no image is decoded."""
        blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in self.pixels.items()}
        return replace(example, inputs={**example.inputs, **blank}) if blank else example


@dataclass(frozen=True)
class StandIn:
    """What a frozen module gave once: where its input had the same shape now the input itself.

    Attributes:
        leaves: its tensors and other values, None in place of the tensors that are handed through.
        structure: how they were arranged.
    """

    leaves: Sequence[Any]
    structure: Any

    @classmethod
    def seen(cls, given: Tensor, output: Any) -> StandIn:
        from torch import Tensor
        from torch.utils._pytree import tree_flatten

        leaves, structure = tree_flatten(output)
        kept = [None if isinstance(x, Tensor) and x.shape == given.shape else x for x in leaves]
        return cls([x[:1].detach() if isinstance(x, Tensor) else x for x in kept], structure)

    def of(self, rows: int) -> Any:
        """Its forward for so many rows."""
        from torch import Tensor
        from torch.utils._pytree import tree_unflatten

        def forward(*given: Any, **named: Any) -> Any:
            here = _given(given, named)
            leaves = [x.expand(rows, *x.shape[1:]) if isinstance(x, Tensor) else x for x in self.leaves]
            return tree_unflatten([here if x is None else x for x in leaves], self.structure)

        return forward


def _stand_ins(job: Job, batch: Batch, place: nn.Module, skipped: Sequence[nn.Module]) -> Mapping[nn.Module, StandIn]:
    """From one forward pass up to `place`. What is not called before it needs none."""
    found: dict[nn.Module, StandIn] = {}

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        found[module] = StandIn.seen(_given(given, named), output)

    with ExitStack() as hooks:
        for module in skipped:
            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        reached(job, batch, [place])
    if not found:
        raise Unkept("none of them is called before what trains.")
    return found


def _given(given: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """The tensor that a module is called with: its first argument."""
    found = given[0] if given else next(iter(named.values()), None)
    if not hasattr(found, "detach"):
        raise Unkept("their first argument is no tensor.")
    return found


def _set_forward(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward
