"""Images as one step sees them: mirrored, cropped and resized, in other colours, mixed with another. By Pillow.

What is drawn are a few numbers, from the generator of the step; pixels are computed from them when they are needed. So
an augmentation depends neither on how a step is cut into forward passes nor on what was computed before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from tunewright.options import Options

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

RATIO = 4 / 3
"""The most that a crop is stretched by, as in the Inception networks (arXiv 1409.4842)."""
BICUBIC = 3  # as Pillow counts its filters
Size = tuple[int, int]
"""Width and height in pixels."""


class Augmentation(Options):
    """How training images are varied anew at each step. Images that are measured on never are."""

    flip: float = Field(0.5, ge=0, le=1, description="chance that an image is mirrored left to right")
    crop: float = Field(
        0.6,
        gt=0,
        le=1,
        description="smallest share of an image that a random crop keeps, if its sides fit; 1: no crops",
    )
    colour: float = Field(
        0.0, ge=0, lt=1, description="brightness, contrast and saturation are multiplied by 1 ± up to this much"
    )
    mixup: float = Field(
        0.0, ge=0, description="a of the Beta(a, a) in which two images and labels are mixed (arXiv 1710.09412); 0: not"
    )

    def draw(self, random: np.random.Generator) -> Draw:
        """What happens to one image."""
        flip = bool(random.random() < self.flip)
        area = random.uniform(self.crop, 1.0)
        ratio = math.exp(random.uniform(-math.log(RATIO), math.log(RATIO)))
        place = float(random.random()), float(random.random())
        factors = tuple(float(f) for f in random.uniform(1 - self.colour, 1 + self.colour, 3))
        return Draw(flip, area if self.crop < 1 else None, ratio, place, factors if self.colour else ())

    def draw_share(self, random: np.random.Generator) -> float:
        """The share of the first of two images that are mixed, at least a half."""
        share = float(random.beta(self.mixup, self.mixup))
        return max(share, 1 - share)


@dataclass(frozen=True)
class Draw:
    """What was drawn for one image.

    Attributes:
        area: the share of the image that a crop keeps; None: no crop.
        ratio: the crop's width over its height, relative to what it is resized to.
        place: where the crop lies in what is left over, across and down.
        factors: of brightness, contrast and saturation.
    """

    flip: bool
    area: float | None
    ratio: float
    place: tuple[float, float]
    factors: tuple[float, ...]

    def apply(self, image: Image, size: Size, filter: int = BICUBIC) -> Image:
        """The image varied; a crop comes out in `size`, resized by one of Pillow's filters."""
        from PIL import Image, ImageEnhance, ImageOps

        if self.area is not None:
            image = image.resize(size, Image.Resampling(filter), box=self.box(image.size, size))
        if self.flip:
            image = ImageOps.mirror(image)
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhance, factor in zip(kinds, self.factors, strict=False):
            image = enhance(image).enhance(factor)
        return image

    def box(self, original: Size, target: Size) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the crop in an image: as large as its ratio lets it be in a narrow one."""
        assert self.area is not None
        ratio = self.ratio * target[0] / target[1]
        pixels = self.area * original[0] * original[1]
        wide, high = math.sqrt(pixels * ratio), math.sqrt(pixels / ratio)
        within = min(1.0, original[0] / wide, original[1] / high)
        wide, high = wide * within, high * within
        left, top = (max(0.0, p * (o - c)) for p, o, c in zip(self.place, original, (wide, high), strict=True))
        return left, top, min(left + wide, original[0]), min(top + high, original[1])

    def corner(self, original: Size, target: Size) -> tuple[int, int]:
        """Left and top of the crop, in pixels of the whole image at the crop's scale, mirrored where the crop is."""
        left, top, right, bottom = self.box(original, target)
        before = original[0] - right if self.flip else left
        return round(before * target[0] / (right - left)), round(top * target[1] / (bottom - top))
