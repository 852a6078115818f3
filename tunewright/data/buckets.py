"""Aspect-ratio buckets: sizes of about the same number of pixels, so that few of an image have to be cropped away.

As NovelAI described it (2022) and SDXL was trained (arXiv 2307.01952, appendix I).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

STEEPEST = 4
"""The most that a bucket's sides differ by."""

Size = tuple[int, int]
"""Width and height in pixels."""


@cache
def buckets(resolution: int, unit: int) -> tuple[Size, ...]:
    """Sizes of at most `resolution`² pixels whose sides are multiples of `unit`: each width with its largest height."""
    area, sides = resolution**2, range(unit, resolution * STEEPEST + 1, unit)
    found = [(width, area // width // unit * unit) for width in sides]
    return tuple((w, h) for w, h in found if h and max(w, h) <= STEEPEST * min(w, h))


def bucket(size: Size, resolution: int, unit: int) -> Size:
    """The bucket nearest in ratio; of equals the largest."""
    ratio = math.log(size[0] / size[1])
    return min(buckets(resolution, unit), key=lambda b: (round(abs(math.log(b[0] / b[1]) - ratio), 9), -b[0] * b[1]))


@dataclass(frozen=True)
class Fit:
    """An image made to cover a bucket, and what hangs over cropped away at both ends alike.

    Attributes:
        original, covering, target: the sizes of the image, of it as it covers the bucket, and of the bucket.
    """

    original: Size
    covering: Size
    target: Size

    @classmethod
    def of(cls, original: Size, target: Size) -> Fit:
        scale = max(target[0] / original[0], target[1] / original[1])
        covering = max(target[0], round(original[0] * scale)), max(target[1], round(original[1] * scale))
        return cls(original, covering, target)

    @property
    def corner(self) -> tuple[int, int]:
        """The left and top of what is kept, in pixels of the covering image."""
        return (self.covering[0] - self.target[0]) // 2, (self.covering[1] - self.target[1]) // 2

    def conditions(self, corner: tuple[int, int]) -> tuple[int, int, int, int, int, int]:
        """What SDXL is told: height and width of the original, top and left of the crop, height and width of it."""
        return (*self.original[::-1], *corner[::-1], *self.target[::-1])

    def apply(self, image: Image) -> Image:
        """Raises nothing: an image that is smaller than the bucket is enlarged."""
        from PIL.Image import Resampling

        left, top = self.corner
        covering = image.resize(self.covering, Resampling.LANCZOS)
        return covering.crop((left, top, left + self.target[0], top + self.target[1]))
