"""What frozen first blocks compute, once for each row: later epochs and evaluations begin where training begins.

A row's states are what enters the first module that trains or draws chance: a block, or behind the blocks a layer of
the head. In a forward pass with kept states the frozen blocks hand through what they are given, and in front of that
module the states take its place. Masks, positions and all else that the model makes of its inputs stay its own.

Whether that is right is asked of the model itself, on two rows, before the first step: loss and gradient with kept
states must be those without. A model whose blocks need more of each other than one tensor is left as it is.

Rows that share a step of the first epoch are computed together, as soon as one of them is needed. So an interrupted run
fills the cache again with the same bits, and the cache is no part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from tunewright.data.batches import Example, micro_batches
from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.methods.base import enter_training, frozen_prefix, is_batch_norm, trained_parameters
from tunewright.tasks.base import PASS, Batch

if TYPE_CHECKING:
    from torch import Tensor, nn

GIGABYTE = 10**9
ROUNDING = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.05}
"""How far loss and gradient may be off, relative to their size."""


class Unkept(Exception):
    """Why nothing is kept, in words."""


class PrefixCache:
    """The states of all rows, filled as rows are needed.

    Attributes:
        size: bytes that the states of all rows take.
        filled: bytes of those that are there.
    """

    def __init__(self, job: Job, cut: Cut) -> None:
        self.job, self.cut = job, cut
        self.states: dict[int, Tensor] = {}
        self.groups = {id(e): group for group in _groups(job) for e in group}
        self.size = self.filled = 0

    def fill(self, examples: Sequence[Example]) -> None:
        """Compute the states of these rows, and of those that belong with them, where they are not there yet."""
        for example in examples:
            if id(example) not in self.states:
                group = self.groups[id(example)]
                found = {id(e): states for e, states in zip(group, self._computed(group), strict=True)}
                self.filled += sum(states.nbytes for states in found.values())
                self.states.update(found)

    @contextmanager
    def feeding(self, examples: Sequence[Example]) -> Iterator[list[Example]]:
        """Inside, the model computes from the states of these rows on, fed with what is given."""
        self.fill(examples)
        states_B = _padded([self.states[id(e)] for e in examples]).to(self.job.device)
        with self.cut.replaced(states_B):
            yield [self.cut.without_pixels(e) for e in examples]

    def _computed(self, group: Sequence[Example]) -> list[Tensor]:
        batch = self.job.model.task.collate(group).to(self.job.device)
        return _rows(reached(self.job, batch, [self.cut.place])[1], group)


def prefix_cache(job: Job) -> tuple[PrefixCache | None, list[str]]:
    """The cache where it is of use, exact and not too large; a notice of it, or of why it is not."""
    frozen = _frozen_blocks(job)
    if not (frozen and job.config.prefix_cache and job.plan[-1][0] > 1):
        return None, []
    try:
        cache = _proven(job)
    except Unkept as reason:
        return None, [f"Frozen blocks ({len(frozen)}) are computed anew in each epoch: {reason}"]
    size = f"{cache.size / GIGABYTE:.2f} GB" if cache.size > GIGABYTE else f"{cache.size / 10**6:.1f} MB"
    if cache.size > job.config.prefix_cache * GIGABYTE:
        return None, [
            f"Frozen blocks ({len(frozen)}) are computed anew in each epoch: to keep what they compute takes {size}. "
            "Where there is so much memory, set training.prefix_cache to it."
        ]
    return cache, [f"Frozen blocks ({len(frozen)}): what they compute is kept for later epochs ({size})."]


@contextmanager
def feeding(cache: PrefixCache | None, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """What the model is to be fed for these rows, and inside it computes from there on."""
    if cache is None:
        yield examples
        return
    with cache.feeding(examples) as fed:
        yield fed


def _frozen_blocks(job: Job) -> list[nn.Module]:
    blocks = {id(block) for _, block in job.model.task.blocks(job.model.module)}
    return [module for module in frozen_prefix(job.model) if id(module) in blocks]


def _groups(job: Job) -> Iterator[list[Example]]:
    """The rows that are computed together: a function of rows and recipe alone."""
    for rows in job.epoch(0):
        yield from ([job.train[i] for i in group] for group in micro_batches(rows, job.lengths, PASS))
    lengths = [e.length for e in job.validation]
    yield from ([job.validation[i] for i in group] for group in micro_batches(range(len(lengths)), lengths, PASS))


# What is asked of the model


def _proven(job: Job) -> PrefixCache:
    """Raises Unkept where states cannot be kept, or would not be the same."""
    if job.config.packing:
        raise Unkept("rows share sequences (training.packing).")
    if job.config.activation_checkpointing:
        raise Unkept("activations are recomputed (training.activation_checkpointing).")
    rows = _two(job.train)
    if any(a is not b for a, b in zip(rows, job.model.task.vary(rows, np.random.default_rng(0)), strict=True)):
        raise Unkept("rows are varied at each step (data.augment).")
    enter_training(job.model, job.method)
    batch = job.model.task.collate(rows).to(job.device)
    cache = PrefixCache(job, find_cut(job, batch))
    alone = [cache._computed([row])[0] for row in rows]
    job.model.module.eval()
    plain = _loss_and_gradient(job, rows)
    with (
        suppress(RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError),
        _holding(cache, rows, alone),
    ):
        if _alike(plain, _loss_and_gradient(job, rows, cache), ROUNDING[job.precision]):
            cache.size = _size(job, rows, alone)
            return cache
    raise Unkept("for this model that is not the same as to keep what they compute.")


@contextmanager
def _holding(cache: PrefixCache, rows: Sequence[Example], states: Sequence[Tensor]) -> Iterator[None]:
    """Inside, these are the states of these rows, each computed alone."""
    cache.states = {id(row): each for row, each in zip(rows, states, strict=True)}
    try:
        yield
    finally:
        cache.states = {}


def _two(examples: Sequence[Example]) -> list[Example]:
    """The shortest row that counts, and one of middle length."""
    order = sorted((e for e in examples if e.trained), key=lambda e: e.length)
    return [order[0], order[len(order) // 2]] if len(order) > 1 else order


def _loss_and_gradient(job: Job, rows: Sequence[Example], cache: PrefixCache | None = None) -> tuple[Tensor, ...]:
    """In eval mode; the gradient as one vector."""
    import torch

    with feeding(cache, rows) as fed:
        batch = job.model.task.collate(fed).to(job.device)
        with computing(job.precision, job.device):
            terms = job.objective.terms(job.model.task, job.model.module, batch)
        loss = torch.stack([term.coefficient * term.total for term in terms.values() if term.coefficient]).sum()
    parameters = list(trained_parameters(job.model.module).values())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return loss.detach(), torch.cat([g.flatten().float() for g in found if g is not None])


def _alike(one: tuple[Tensor, ...], other: tuple[Tensor, ...], rounding: float) -> bool:
    return all(a.shape == b.shape and (a - b).norm() <= rounding * a.norm() for a, b in zip(one, other, strict=True))


def _size(job: Job, rows: Sequence[Example], states: Sequence[Tensor]) -> int:
    """Bytes of the states of all rows, which are longer where a row is or all of one size."""
    examples = [*job.train, *job.validation]
    if len({s.shape for s in states}) == 1:
        return len(examples) * states[0].nbytes
    return round(sum(e.length for e in examples) * states[-1].nbytes / rows[-1].length)


# Where the model is cut


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

    module, frozen = job.model.module, _frozen_blocks(job)
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


# Rows of one batch, apart and together


def _rows(states: Tensor, group: Sequence[Example]) -> list[Tensor]:
    """The states of each row without its padding, in the memory of the CPU."""
    padded = states.ndim > 2 and states.shape[1] == max(e.length for e in group)
    cut = [own[: e.length] if padded else own for e, own in zip(group, states, strict=True)]
    return [own.detach().cpu().clone() for own in cut]


def _padded(states: Sequence[Tensor]) -> Tensor:
    """With zeros on the right, where the model's own padding was."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    alike = len({each.shape for each in states}) == 1
    return torch.stack(list(states)) if alike else pad_sequence(list(states), batch_first=True)
