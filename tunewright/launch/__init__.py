"""Where a run executes: in this process, or in several that torchrun starts on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.recipe import Recipe


def launch(recipe: Recipe, folder: Path, watchers: Sequence[Any] = (), resume: bool = False) -> Any:
    """Execute a recipe where it asks to be executed, with `training.seeds` once for each; the finished run."""
    if recipe.training.seeds:
        from tunewright.launch.seeds import execute
    elif recipe.training.processes > 1:
        from tunewright.launch.torchrun import execute
    else:
        from tunewright.run import execute
    return execute(recipe, folder, watchers, resume)
