"""Images that are nearly the same: resized, saved anew, a little cropped or in other colours.

A difference hash (Krawetz 2013) in three values: whether each patch of 9 × 9 grey ones is lighter than its neighbours,
darker, or the same. Two are compared by their cosine, 1 for the same pattern.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tunewright.data.pictures import Picture
from tunewright.errors import DataError

PATCHES = 9
SAME = 2
"""Levels of 255 by which neighbours may differ and count as the same, since compression moves them so far."""
BLOCK = 1_000


def pattern(picture: Picture) -> np.ndarray:
    """The pattern of light and dark, [144] of length 1; zeros for one colour and for what cannot be read."""
    from PIL import Image

    try:
        image = picture.pixels().convert("L").resize((PATCHES, PATCHES), Image.Resampling.BOX)
    except DataError:
        return np.zeros(2 * PATCHES * (PATCHES - 1), dtype=np.float32)
    grey = np.asarray(image, dtype=np.int16)
    steps = np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
    signs = np.where(abs(steps) > SAME, np.sign(steps), 0).astype(np.float32)
    return signs / max(1.0, float(np.linalg.norm(signs)))


def most_alike(pictures: Sequence[Picture], among: Sequence[Picture] | None = None) -> Iterator[tuple[int, float]]:
    """For each picture the number of the one that is most like it, and their cosine: -1 and 0 where there is none.

    Args:
        among: where it is looked for; by default among the earlier ones of the same.
    """
    patterns = _patterns(pictures)
    others = patterns if among is None else _patterns(among)
    for first in range(0, len(patterns), BLOCK):
        cosines = patterns[first : first + BLOCK] @ others.T
        if among is None:
            cosines = np.tril(cosines, first - 1)
        for row in cosines:
            best = int(row.argmax()) if len(row) else -1
            yield (best, float(row[best])) if len(row) and row[best] > 0 else (-1, 0.0)


def _patterns(pictures: Sequence[Picture]) -> np.ndarray:
    found = [pattern(picture) for picture in pictures]
    return np.stack(found) if found else np.zeros((0, 2 * PATCHES * (PATCHES - 1)), dtype=np.float32)
