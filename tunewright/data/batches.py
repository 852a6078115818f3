"""Which rows make a step, and which of them share a forward pass: pure functions of lengths and a seed.

There is no iterator and so no iterator state: the rows of step n follow from `(seed, n)`, which is what makes
resuming exact. Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

POOL = 64
"""Steps whose rows are sorted by length together: enough to remove nearly all padding, few enough to stay random."""


@dataclass(frozen=True, slots=True)
class Example:
    """One encoded row.

    Attributes:
        inputs: the model's arguments without the batch dimension, e.g. `input_ids` [T]; arrays, or what numpy can make
            one of when it is needed.
        target: what the model should answer: token ids [T], a class index [1], or a distribution, labels or value [C].
        weight: the loss weight of each position [T], [1] or [C]; 0 means that nothing is computed there.
        source: where the row came from, "train.jsonl:17".
        length: positions that the row costs; rows of similar length share a batch.
        prior: whether it shows the class of what is learned, with a loss of its own; None where no rows do.
        parts: the rows that make this one, such as the answers to a prompt; then inputs and target are empty.
        shared: positions with which all parts begin, and that are computed once for all of them.
        fixed: what an objective has fixed of the row before the step: numbers [], or one for each position [T].
    """

    inputs: dict[str, Any]
    target: np.ndarray
    weight: np.ndarray
    source: str
    length: int
    prior: bool | None = None
    parts: tuple[Example, ...] = ()
    shared: int = 0
    fixed: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def trained(self) -> int:
        """Positions with weight."""
        return int(np.count_nonzero(self.weight))


def epoch_plan(
    lengths: Sequence[int], epoch: int, seed: int, batch: int = 1, batch_tokens: int | None = None, least: int = 1
) -> list[list[int]]:
    """The steps of one epoch, each a list of row numbers: shuffled, rows of similar length together.

    Rows are shuffled, sorted by length within pools of about `POOL` steps, cut into steps of `batch` rows (or of at
    most `batch_tokens` positions), and the steps shuffled. In the first epoch the step with the longest row comes
    first, so that a run that cannot fit into memory fails at once and not after an hour.

    Args:
        least: where steps have so many rows, what is left over at the end and is fewer joins the step before it.
    """
    length_N = np.asarray(lengths)
    generator = np.random.default_rng([seed, epoch])
    order_N = generator.permutation(len(length_N))
    per_step = batch if batch_tokens is None else max(1, batch_tokens // max(1, int(length_N.mean())))
    steps: list[list[int]] = []
    for start in range(0, len(order_N), POOL * per_step):
        pool = order_N[start : start + POOL * per_step]
        pool = pool[np.argsort(-length_N[pool], kind="stable")]
        if batch_tokens is None:
            steps += [pool[i : i + batch].tolist() for i in range(0, len(pool), batch)]
        else:
            steps += list(split_by_tokens(pool.tolist(), lengths, batch_tokens))
    if len(steps) > 1 and len(steps[-1]) < least <= len(steps[-2]):
        rest = steps.pop()
        steps[-1] += rest
    steps = [steps[i] for i in generator.permutation(len(steps))]
    if epoch == 0:
        longest = max(range(len(steps)), key=lambda i: max(lengths[row] for row in steps[i]))
        steps.insert(0, steps.pop(longest))
    return steps


def split_by_tokens(rows: Sequence[int], lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cut `rows` into groups whose padded size, rows × longest, is at most `budget`; a longer row stands alone."""
    group: list[int] = []
    longest = 0
    for row in rows:
        longest = max(longest, lengths[row])
        if group and longest * (len(group) + 1) > budget:
            yield group
            group, longest = [], lengths[row]
        group.append(row)
    if group:
        yield group


def micro_batches(
    rows: Sequence[int], lengths: Sequence[int], budget: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """This rank's share of one step, in groups that each fit one forward pass, longest rows first.

    Neither the grouping nor the number of ranks changes the gradient: sums are divided by counts of the whole step.
    """
    ordered = sorted(rows, key=lambda row: -lengths[row])
    return list(split_by_tokens(ordered[rank::world], lengths, budget))


def pack(examples: Sequence[Example]) -> Example:
    """Several rows of token positions as one; `position_ids` start anew at each, so that attention tells them apart.

    A position that would look from one row's end into the next row does not exist: targets are already shifted.
    """
    inputs = {name: np.concatenate([e.inputs[name] for e in examples]) for name in examples[0].inputs}
    inputs["position_ids"] = np.concatenate([np.arange(e.length) for e in examples])
    return replace(
        examples[0],
        inputs=inputs,
        target=np.concatenate([e.target for e in examples]),
        weight=np.concatenate([e.weight for e in examples]),
        source=", ".join(e.source for e in examples),
        length=sum(e.length for e in examples),
    )


def pad(arrays: Sequence[np.ndarray], value: float) -> np.ndarray:
    """Stack [T_i] arrays into [B, T], filled on the right."""
    length = max(len(a) for a in arrays)
    padded_BT = np.full((len(arrays), length), value, dtype=arrays[0].dtype)
    for row, array in zip(padded_BT, arrays, strict=True):
        row[: len(array)] = array
    return padded_BT
