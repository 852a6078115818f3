"""Several images side by side on one sheet: a row a prompt, a column a model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

GAP, BACK, INK = 8, "white", "black"


def sheet(rows: Sequence[str], columns: Sequence[str], images: Sequence[Sequence[Image]], side: int = 256) -> Image:
    """One image with labels above the columns and beneath the rows.

    Args:
        images: by row and column; each is shown at most `side` pixels wide and high.
    """
    from matplotlib import get_data_path
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    size = max(11, side // 16)
    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)  # Pillow's own has no Greek
    width = GAP + len(columns) * (side + GAP)
    texts = [textwrap.wrap(text, max(8, int((width - 2 * GAP) / (size * 0.62)))) or [""] for text in rows]
    line = int(size * 1.4)
    heights = [side + len(text) * line + GAP for text in texts]
    page = Pillow.new("RGB", (width, GAP + line + sum(heights)), BACK)
    pen = ImageDraw.Draw(page)
    lefts = [GAP + i * (side + GAP) for i in range(len(columns))]
    for left, label in zip(lefts, columns, strict=True):
        pen.text((left, GAP // 2), label, INK, font)
    top = GAP + line
    for text, found, height in zip(texts, images, heights, strict=True):
        for left, image in zip(lefts, found, strict=True):
            small = _fitted(image, side)
            page.paste(small, (left + (side - small.width) // 2, top + (side - small.height) // 2))
        pen.text((GAP, top + side), "\n".join(text), INK, font, spacing=line - size)
        top += height
    return page


def _fitted(image: Image, side: int) -> Image:
    """As large as it fits into the square; tiny ones are enlarged, without being made smooth."""
    from PIL.Image import Resampling

    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.convert("RGB").resize(size, Resampling.NEAREST if factor >= 2 else Resampling.LANCZOS)
