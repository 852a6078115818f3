"""What a method has written, counted again: a library can leave tensors out without a word, as that of shards does."""

from __future__ import annotations

import math
from pathlib import Path

from tunewright.errors import OutputError


def refuse_loss(folder: Path, weights: int) -> None:
    """Raises OutputError where the files in `folder` hold fewer than `weights` numbers, or none. Reads headers only."""
    found = sum(map(_numbers_in, folder.rglob("*.safetensors")))
    if found < max(1, weights):
        raise OutputError(
            f"The model was not written whole: {found:,} of its {weights:,} weights were, and are removed again. "
            "Something that shards or patches it left out the others. Checkpoints are kept: mend that, then resume "
            "or export again."
        )


def _numbers_in(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = file.keys()
        return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
