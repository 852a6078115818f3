"""A sample, a reward, and the check of what a reward returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from tunewright.data.python_files import THROWN
from tunewright.errors import DataError, TunewrightError, counted


@dataclass(frozen=True)
class Sample:
    """What a policy answered.

    Attributes:
        text: the answer.
        item: the columns of the row that the prompt came from.
        prompt: what was asked, as text.
        tokens: the length of the answer in tokens.
        ended: whether the answer ended by itself; else it was cut at the longest length allowed.
        messages: the prompt as messages and the tools that came with it, where it is a conversation.
        source: where the row came from, "train.jsonl:17".
    """

    text: str
    item: Mapping[str, Any]
    prompt: str
    tokens: int
    ended: bool
    messages: tuple[list[dict[str, Any]], Any] | None = None
    source: str = ""


Reward = Callable[[Sequence[Sample]], list[float]]
"""Samples → a number for each, in their order; more is better."""


def place(index: int, sample: Sample) -> str:
    """How errors call a sample: `sample 3 (train.jsonl:17, prompt 'What is 2 + 2?')`."""
    start = " ".join(sample.prompt.split())
    row = f"{sample.source}, " if sample.source else ""
    return f"sample {index + 1} ({row}prompt {start if len(start) <= 60 else start[:59] + '…'!r})"


def checked(name: str, reward: Reward, samples: Sequence[Sample]) -> list[float]:
    """What a reward says of the samples, as finite floats.

    An array or tensor is taken as well as a list, and True as 1.

    Raises:
        DataError: the reward throws, returns something else than one number a sample, or a number that is not finite;
            it names the reward, and every sample that it is wrong of.
    """
    try:
        values = reward(list(samples))  # what a reward does to its list is its own affair
    except TunewrightError:
        raise
    except THROWN as error:
        where = _failing(reward, samples)
        raise DataError(f"The reward {name} fails with {type(error).__name__}{where}: {error}") from error
    found = _listed(name, values, len(samples))
    faults = [
        f"{place(index, sample)}: {value!r:.80}"
        for index, (value, sample) in enumerate(zip(found, samples, strict=True))
        if not isinstance(value, Real) or not math.isfinite(value)
    ]
    if faults:
        raise DataError(f"The reward {name} must give a finite number for each sample, and it gives:", faults)
    return [float(value) for value in found]


def _failing(reward: Reward, samples: Sequence[Sample]) -> str:
    """The first sample that a reward fails on by itself, in words; nothing where it fails only on several."""
    for index, sample in enumerate(samples):
        try:
            reward([sample])
        except THROWN:
            return f" for {place(index, sample)}"
    return ""


def _listed(name: str, values: Any, wanted: int) -> list[Any]:
    found = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(found, list | tuple):
        raise DataError(
            f"The reward {name} returns {found!r:.80}, a {type(values).__name__}: it is given a list of samples, and "
            "must return a list with a number for each."
        )
    if len(found) != wanted:
        raise DataError(
            f"The reward {name} returns {counted(len(found), 'number')} for {counted(wanted, 'sample')}: it must "
            "return one for each, in their order."
        )
    return list(found)
