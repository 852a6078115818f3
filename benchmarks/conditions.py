"""Pictures under other conditions: noise, blur, contrast, brightness, grey. The same for the same picture and seed."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

Condition = Callable[[Image.Image, np.random.Generator], Image.Image]


def noisy(image: Image.Image, chance: np.random.Generator, sigma: float = 0.1) -> Image.Image:
    """Gaussian noise added to each value, with this standard deviation where white is 1."""
    values = np.asarray(image, dtype=np.float64) / 255
    spoilt = values + chance.normal(0, sigma, values.shape)
    return Image.fromarray((spoilt.clip(0, 1) * 255).round().astype(np.uint8))


def _steady(change: Callable[[Image.Image], Image.Image]) -> Condition:
    return lambda image, chance: change(image)


CONDITIONS: dict[str, Condition] = {
    "noise": noisy,
    "clean": _steady(lambda image: image),
    "blur": _steady(lambda image: image.filter(ImageFilter.GaussianBlur(0.8))),
    "contrast": _steady(lambda image: ImageEnhance.Contrast(image).enhance(0.5)),
    "brightness": _steady(lambda image: ImageEnhance.Brightness(image).enhance(1.6)),
    "grey": _steady(lambda image: image.convert("L").convert("RGB")),
}
"""Noise of σ = .1; a blur of 0.8 pixels; half of the contrast; 1.6 of the brightness; no colours."""


def pictures(table: Path, condition: str, seed: int = 0) -> list[dict[str, Any]]:
    """The rows of a Parquet table of pictures under a condition, as PNG: {"image": bytes, "label": name}."""
    import pyarrow.parquet as pq

    rows = []
    for i, row in enumerate(pq.read_table(table).to_pylist()):
        image = Image.open(BytesIO(row["image"]["bytes"])).convert("RGB")
        file = BytesIO()
        CONDITIONS[condition](image, np.random.default_rng([seed, i])).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": row["label"]})
    return rows
