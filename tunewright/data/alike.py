"""Images that are nearly the same: resized, saved anew, cropped at the edges, mirrored, in other colours.

A difference hash (Krawetz 2013) that keeps how large the differences are: the steps from each patch of 9 × 9 grey ones
to the next, by their root. Two are compared by their cosine, 1 for the same pattern, the better of as it stands and
mirrored. Photos of different things hardly ever reach `NEAR`; drawings on plain ground and images that are all of one
kind (digits, X-rays) do all the time, so that these must reach `STRICT`.

Measured on 396 photos of ants and bees, with copies saved as JPEG: found are all that were resized by half, mirrored,
in grey or in more contrast, 99.7 % of those brighter or darker by 30 %, 99.5 % of those cropped to 95 % of width and
height, 78 % of those cropped to 90 %, 68 % of those that lack 5 % at one corner; and no pair of different ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tunewright.data.pictures import Picture
from tunewright.errors import DataError

NEAR, STRICT = 0.8, 0.97
PATCHES = 9
SAME = 2
"""Levels of 255 by which neighbours may differ and count as the same, since compression moves them so far."""
PLAIN = 0.45
"""Share of neighbours that are the same from which on an image is a drawing on plain ground."""
CROWD = 3
"""An image that is near to more than so many others is one of a kind, rather than a copy."""
BLOCK = 500


class Near(NamedTuple):
    """The number of an image, how alike it is, and whether mirrored."""

    row: int
    cosine: float
    mirrored: bool


@dataclass(frozen=True)
class Patterns:
    """Of N images the steps from patch to patch, [N, 144] of length 1 (or 0: of one colour, or unreadable)."""

    upright_ND: np.ndarray
    mirrored_ND: np.ndarray
    plain_N: np.ndarray

    @cached_property
    def strict(self) -> np.ndarray:
        """Which must reach `STRICT`, [N]."""
        crowded = [_crowded(cosines) for _, cosines, _ in _blocks(self, self)]
        return self.plain_N | np.concatenate([*crowded, np.zeros(0, bool)])


def patterns(pictures: Sequence[Picture]) -> Patterns:
    """The patterns of images, each of which is decoded for it."""
    grey_NHW = np.array([_patches(picture) for picture in pictures], np.float32).reshape(-1, PATCHES, PATCHES)
    steps_ND = _steps(grey_NHW)
    return Patterns(_unit(steps_ND), _unit(_steps(grey_NHW[:, :, ::-1])), (steps_ND == 0).mean(1) > PLAIN)


def near(pictures: Patterns, among: Patterns | None = None) -> Iterator[Near | None]:
    """For each image the one that is most like it, if it is near.

    Args:
        among: where it is looked for; by default among the earlier ones of the same.
    """
    others = pictures if among is None else among
    for first, cosines, mirrored in _blocks(pictures, others):
        strict = pictures.plain_N[first : first + BLOCK] | _crowded(cosines)
        cosines[(cosines < STRICT) & (strict[:, None] | others.strict)] = 0
        cosines = cosines if among is not None else np.tril(cosines, first - 1)
        for row, turned in zip(cosines, mirrored, strict=True):
            best = int(row.argmax()) if len(row) else 0
            found = len(row) and row[best] >= NEAR
            yield Near(best, float(row[best]), bool(turned[best])) if found else None


def _patches(picture: Picture) -> np.ndarray:
    from PIL import Image

    try:
        return np.asarray(picture.pixels().convert("L").resize((PATCHES, PATCHES), Image.Resampling.BOX))
    except DataError:
        return np.zeros((PATCHES, PATCHES))


def _steps(grey_NHW: np.ndarray) -> np.ndarray:
    """The roots of the differences between neighbours, as far as they are beyond `SAME`, with their sign."""
    count, size = len(grey_NHW), 2 * PATCHES * (PATCHES - 1)
    steps_ND = np.stack([np.diff(grey_NHW, axis=1), np.diff(grey_NHW, axis=2).swapaxes(1, 2)], 1).reshape(count, size)
    return np.sign(steps_ND) * np.sqrt(np.maximum(abs(steps_ND) - SAME, 0))


def _unit(steps_ND: np.ndarray) -> np.ndarray:
    return steps_ND / np.maximum(np.linalg.norm(steps_ND, axis=1, keepdims=True), 1)


def _crowded(cosines: np.ndarray) -> np.ndarray:
    return np.asarray((cosines >= NEAR).sum(1) > CROWD)


def _blocks(pictures: Patterns, others: Patterns) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Rows of the matrix of cosines, and where they are of the mirrored image: (number of the first row, two blocks).

    An image is not compared with itself.
    """
    for first in range(0, len(pictures.upright_ND), BLOCK):
        rows = slice(first, first + BLOCK)
        upright, mirrored = (ND[rows] @ others.upright_ND.T for ND in (pictures.upright_ND, pictures.mirrored_ND))
        cosines = np.maximum(upright, mirrored)
        if pictures is others:
            cosines[np.arange(len(cosines)), first + np.arange(len(cosines))] = 0
        yield first, cosines, mirrored > upright
