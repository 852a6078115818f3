"""Rows that belong together, such as the answers to one prompt, as one example: an *element*.

The parts of an element are plain examples, and that is how they are computed. Where a model allows it they share what
they begin with: the element is then one sequence, the common beginning once and behind it a branch for each part.
Positions go on in each branch as they would in the part alone, and no branch sees another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tunewright.data.batches import Example


def element(parts: Sequence[Example], source: str) -> Example:
    """These rows as one, each computed for itself. It costs as many positions as its rows do, padded."""
    weight = np.concatenate([part.weight for part in parts])
    length = len(parts) * max(part.length for part in parts)
    return Example({}, weight[:0], weight, source, length, parts=tuple(parts))


def sharing(example: Example, width: int | None = None) -> Example:
    """The element with its common beginning computed once: the positions that are fed alike and carry no weight.

    Args:
        width: the model's hidden size; the element then stays as it is where that costs less, as it does with many long
            answers to a short prompt: a row of all of them has more pairs of positions to attend to.
    """
    ids = [part.inputs["input_ids"] for part in example.parts]
    shortest = min(len(one) for one in ids)
    alike = np.all([one[:shortest] == ids[0][:shortest] for one in ids], axis=0)
    idle = np.all([part.weight[:shortest] == 0 for part in example.parts], axis=0)
    shared = int(np.argmin(np.append(alike & idle, False)))
    together = shared + sum(part.length - shared for part in example.parts)
    if width is not None:
        apart = sum(_cost(part.length, width) for part in example.parts)
        if _cost(together, width, masked=True) > apart:
            return example
    return replace(example, shared=shared, length=together)


def _cost(length: int, width: int, masked: bool = False) -> float:
    """Of a row in a transformer's block, in units of 4 · width: 24 · width² a position (four projections, and two
    layers of four times the width), 4 · width a pair. A causal kernel skips half of the pairs, one with a mask none.
    """
    return length * (6 * width + (length if masked else length / 2))


@dataclass(frozen=True)
class Joined:
    """An element as one sequence of T positions.

    Attributes:
        inputs: `input_ids` and `position_ids`, each [T].
        branch: 0 where all parts begin alike, then 1, 2, … for the parts [T].
        fixed: what was fixed of each position [T], by name.
    """

    inputs: dict[str, np.ndarray]
    branch: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    fixed: dict[str, np.ndarray]


def joined(example: Example) -> Joined:
    """The common beginning, and behind it the rest of each part."""
    parts, shared = example.parts, example.shared
    counts = [shared, *(part.length - shared for part in parts)]

    def laid_out(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([arrays[0][:shared], *(array[shared:] for array in arrays)])

    places = [np.arange(part.length) for part in parts]
    per_position = [name for name, value in parts[0].fixed.items() if value.ndim]
    return Joined(
        {"input_ids": laid_out([p.inputs["input_ids"] for p in parts]), "position_ids": laid_out(places)},
        np.repeat(np.arange(len(parts) + 1), counts),
        laid_out([p.target for p in parts]),
        laid_out([p.weight for p in parts]),
        {name: laid_out([p.fixed[name] for p in parts]) for name in per_position},
    )


def ends_of(examples: Sequence[Example]) -> np.ndarray:
    """Where the parts of each element but the last end, among those of all."""
    return np.cumsum([len(example.parts) for example in examples])[:-1]
