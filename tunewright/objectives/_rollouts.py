"""Answers that a policy has drawn, on their way to a loss: what is fixed of each, how it is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tunewright.data.batches import Example
from tunewright.data.groups import element, sharing

Arrays = dict[str, np.ndarray]


def answered(prompt: Example, tokens: Sequence[int]) -> Example:
    """A prompt with an answer, whose tokens alone have weight."""
    ids = np.concatenate([prompt.inputs["input_ids"], np.asarray(tokens, dtype=np.int64)])
    weight = np.concatenate([np.zeros(prompt.length - 1, dtype=np.float32), np.ones(len(tokens), dtype=np.float32)])
    return Example({"input_ids": ids[:-1]}, ids[1:], weight, prompt.source, len(ids) - 1)


def group(parts: Sequence[Example], source: str, width: int | None = None) -> Example:
    """The answers to one prompt as an element, which they share where a width is given and it pays (see `sharing`)."""
    made = element(parts, source)
    return sharing(made, width) if width and len(parts) > 1 else made


def fixing(example: Example, **values: Sequence[np.ndarray | float]) -> Example:
    """The element with these values of its parts: numbers, or one for each token of an answer."""
    parts = [
        replace(part, fixed={**part.fixed, **{name: _placed(part, value[i]) for name, value in values.items()}})
        for i, part in enumerate(example.parts)
    ]
    return replace(example, parts=tuple(parts))


def _placed(part: Example, value: np.ndarray | float) -> np.ndarray:
    """As fp32; what there is of each token of the answer, at its positions."""
    given = np.asarray(value, dtype=np.float32)
    if not given.ndim:
        return given
    placed_T = np.zeros(part.length, dtype=np.float32)
    placed_T[part.weight > 0] = given
    return placed_T


def of_tokens(part: Example, name: str) -> np.ndarray:
    """What was fixed of each token of an answer, in fp64."""
    return part.fixed[name][part.weight > 0].astype(np.float64)


def as_arrays(examples: Sequence[Example]) -> Arrays:
    """Elements as a few flat arrays, which a checkpoint can hold."""
    parts = [part for example in examples for part in example.parts]
    lengths = [part.length for part in parts]
    kept: Arrays = {
        "sizes": np.array([len(example.parts) for example in examples]),
        "shared": np.array([example.shared for example in examples]),
        "lengths": np.array(lengths),
        "tokens": np.concatenate([np.append(part.inputs["input_ids"], part.target[-1:]) for part in parts]),
        "weight": np.concatenate([part.weight for part in parts]),
    }
    for name, value in parts[0].fixed.items():
        values = [part.fixed[name] for part in parts]
        kept |= {f"position/{name}": np.concatenate(values)} if value.ndim else {f"number/{name}": np.stack(values)}
    return kept


def from_arrays(kept: Mapping[str, np.ndarray], sources: Sequence[str]) -> list[Example]:
    """The elements that `as_arrays` was given; a source for each."""
    lengths, sizes = kept["lengths"], kept["sizes"]
    ends = np.cumsum(lengths)[:-1]
    owners = np.repeat(np.arange(len(sizes)), sizes)
    tokens = np.split(kept["tokens"], np.cumsum(lengths + 1)[:-1])
    weights = np.split(kept["weight"], ends)
    fixed = {
        name.split("/", 1)[1]: np.split(values, ends) if name.startswith("position/") else list(values)
        for name, values in kept.items()
        if name.startswith(("position/", "number/"))
    }
    parts: list[list[Example]] = [[] for _ in sizes]
    for i, owner in enumerate(owners):
        own = {name: np.asarray(values[i]) for name, values in fixed.items()}
        part = Example(
            {"input_ids": tokens[i][:-1]}, tokens[i][1:], weights[i], sources[int(owner)], int(lengths[i]), fixed=own
        )
        parts[owner].append(part)
    made = [element(own, source) for own, source in zip(parts, sources, strict=True)]
    return [sharing(one) if shared else one for one, shared in zip(made, kept["shared"], strict=True)]
