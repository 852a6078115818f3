"""Images side by side."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tunewright.evaluation.sheet import sheet


def test_every_image_stands_in_its_row_and_column() -> None:
    colours = [["red", "lime"], ["blue", "yellow"], ["black", "cyan"]]
    images = [[Image.new("RGB", (40, 20), colour) for colour in row] for row in colours]
    page = sheet(["one", "two " * 30, "three"], ["α = 0", "α = 1"], images, side=64)
    seen = np.asarray(page)
    found = {colour: np.argwhere((seen == Image.new("RGB", (1, 1), colour).getpixel((0, 0))).all(-1)).mean(0)
             for row in colours for colour in row if colour != "black"}  # fmt: skip
    assert found["red"][0] == found["lime"][0] < found["blue"][0] == found["yellow"][0] < found["cyan"][0]
    assert found["red"][1] == found["blue"][1] < found["lime"][1] == found["yellow"][1] == found["cyan"][1]
    gap = found["blue"][0] - found["red"][0]
    assert found["cyan"][0] - found["yellow"][0] > gap  # a long prompt takes several lines


def test_labels_are_written() -> None:
    plain = sheet([""], [""], [[Image.new("RGB", (8, 8), "white")]])
    page = sheet(["a wall"], ["α = 1"], [[Image.new("RGB", (8, 8), "white")]])
    assert plain.size == page.size
    dark = (np.asarray(page).min(-1) < 128).any(1)
    assert dark[:30].any() and dark[-30:].any() and not (np.asarray(plain) < 255).any()
