"""What frozen first blocks compute, once for each row: later epochs and evaluations begin where training begins.

A row's states are what enters the first module that trains or draws chance: a block, or behind the blocks a layer of
the head. In a forward pass with kept states the frozen blocks hand through what they are given, and in front of that
module the states take its place. Masks, positions and all else that the model makes of its inputs stay its own.

Whether that is right is asked of the model itself, on two rows, before the first step: loss and gradient with kept
states must be those without, but for rounding. A model whose blocks need more of each other than one tensor is left as
it is.

Rows that share a step of the first epoch are computed together, as soon as one of them is needed. So an interrupted run
fills the cache again with the same bits, and the cache is no part of a checkpoint. They are not the bits of a run
without it: that computes a row beside others in each epoch, and matrix products round by what else is in the batch
(some 1e-7 of a state, in fp32). No grouping could be that of every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np

from tunewright.data.batches import Example, micro_batches
from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.engine.prefix_cut import Cut, Unkept, find_cut, frozen_blocks, reached
from tunewright.methods.base import enter_training, trained_parameters
from tunewright.tasks.base import PASS

if TYPE_CHECKING:
    from torch import Tensor

GIGABYTE = 10**9
ROUNDING = {"fp32": 1e-4, "bf16": 0.05, "fp16": 0.05}
"""How far loss and gradient may be off, relative to their size."""


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
    """The cache where it is of use, equal to rounding and not too large; a notice of it, or of why it is not."""
    frozen = frozen_blocks(job)
    if job.model.task.diffuses:  # where noise enters below all blocks, anew at each step
        return None, []
    if job.rewards:  # rows are prompts, and their answers are new at each step
        return None, []
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
    if job.train[0].parts:
        raise Unkept("answers to a prompt are computed together.")
    if job.config.activation_checkpointing:
        raise Unkept("activations are recomputed (training.activation_checkpointing).")
    rows = _two(job.train)
    if any(a is not b for a, b in zip(rows, job.model.task.vary(rows, np.random.default_rng(0)), strict=True)):
        raise Unkept("rows are varied at each step (by noise, or data.augment).")
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
    """Bytes of the states of all rows, which are as long as their rows or all of one size."""
    examples, row, own = [*job.train, *job.validation], rows[-1], states[-1]
    if own.ndim > 1 and len(own) == row.length:
        return sum(e.length for e in examples) * own.nbytes // row.length
    return len(examples) * own.nbytes


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
