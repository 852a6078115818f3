"""The parts of a captioned image's row: pixels, caption and chance. Each knows how it is drawn, and its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from tunewright.data.augmentation import Augmentation, Draw
from tunewright.data.buckets import Fit
from tunewright.data.pictures import Picture

Arrays = Mapping[str, np.ndarray]

GOLDEN = (5**0.5 - 1) / 2
MEASURED = 4
"""Timesteps at which a row is measured."""


class Part(Protocol):
    """What a row is made of. `arrays` are the arguments of `Diffusion` for it; `drawn` is it as one step sees it.

    What a part says `beside` its pixels or tokens is also said where these are computed beforehand.
    """

    def arrays(self) -> Arrays: ...

    def drawn(self, random: np.random.Generator) -> Self: ...


@dataclass(frozen=True)
class View:
    """An image in its bucket, varied where a step does so."""

    picture: Picture
    fit: Fit
    augment: Augmentation | None = None
    draw: Draw | None = None

    def arrays(self) -> Arrays:
        return {"pixels": self.pixels(), **self.beside()}

    def pixels(self) -> np.ndarray:
        """[3, H, W] in −1 … 1."""
        image = self.picture.pixels()
        cropped = self.draw is not None and self.draw.area is not None
        image = image if cropped else self.fit.apply(image)
        image = self.draw.apply(image, self.fit.target) if self.draw else image
        values_HW3 = np.asarray(image, dtype=np.float32) / 127.5 - 1
        return np.ascontiguousarray(values_HW3.transpose(2, 0, 1))

    def beside(self) -> Arrays:
        return {"sizes": np.array(self.fit.conditions(self._corner()), dtype=np.float32)}

    def _corner(self) -> tuple[int, int]:
        """The left and top of what is seen, in the image at its scale."""
        if self.draw is None:
            return self.fit.corner
        if self.draw.area is not None:
            return self.draw.corner(self.fit.original, self.fit.target)
        left, top = self.fit.corner
        return self.fit.covering[0] - self.fit.target[0] - left if self.draw.flip else left, top

    def drawn(self, random: np.random.Generator) -> View:
        return replace(self, draw=self.augment.draw(random)) if self.augment else self


@dataclass(frozen=True)
class Caption:
    """The tokens of a caption for each text encoder, [E, L], and of no caption, which it is with chance `dropout`."""

    tokens: np.ndarray
    empty: np.ndarray
    dropout: float = 0.0
    dropped: bool = False

    def arrays(self) -> Arrays:
        tokens = self.empty if self.dropped else self.tokens
        return {"tokens": tokens, **self.beside()}

    def beside(self) -> Arrays:
        return {"kept": np.array(not self.dropped, dtype=np.float32)}

    def drawn(self, random: np.random.Generator) -> Caption:
        return replace(self, dropped=bool(random.random() < self.dropout)) if self.dropout else self


@dataclass(frozen=True)
class Chance:
    """The K timesteps of a row, and the seed of the noise at each [K, C, H, W]: computed when it is needed."""

    seed: int
    at: tuple[int, ...]
    steps: int
    shape: tuple[int, int, int]

    @classmethod
    def fixed(cls, row: int, steps: int, shape: tuple[int, int, int]) -> Chance:
        """Of a row that is measured on: always the same, one in each part of the schedule.

        The error of an image differs more between timesteps than between models. Rows together cover all of them.
        """
        first = (row + 0.5) * GOLDEN % 1
        return cls(row, tuple(int((first + part) / MEASURED * steps) for part in range(MEASURED)), steps, shape)

    def arrays(self) -> Arrays:
        random, count = np.random.default_rng(self.seed), len(self.at)
        draws = {"noise": (count, *self.shape), "spread": self.shape, "offset": (count, self.shape[0], 1, 1)}
        found = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in draws.items()}
        return {**found, "step": np.array(self.at, dtype=np.int64)}

    def drawn(self, random: np.random.Generator) -> Chance:
        return replace(self, seed=int(random.integers(2**62)), at=(int(random.integers(self.steps)),))


def shape_of(inputs: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of a row's latent: rows of one shape can be stacked."""
    shape: tuple[int, int, int] = inputs["chance"].shape
    return shape
