"""The Python face: everything that the command line does, in one call each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.engine.loop import Watcher
from tunewright.launch import launch
from tunewright.recipe import Recipe, make_recipe
from tunewright.run import Run, new_folder, open_run


def train(recipe: Recipe | dict[str, Any] | None = None, *, watchers: Sequence[Watcher] = (), **fields: Any) -> Run:
    """Fine-tune a model: `tw.train(base=…, data=…, method=tw.LoRA(rank=16))`.

    Args:
        recipe: a whole recipe; or give its keys as arguments (base, task, data, method, objective, training, output).
        watchers: called with each line of metrics as it is written.

    Returns:
        The finished run: `run.model`, `run.report`, `run.info`.

    Raises:
        TunewrightError: bad input; says what to do.
        Interrupted: Ctrl-C; a checkpoint is written.
    """
    chosen = recipe if isinstance(recipe, Recipe) else make_recipe({**(recipe or {}), **_plain(fields)})
    return launch(chosen, Path(chosen.output) if chosen.output else new_folder(chosen), watchers)


def resume(where: str | Path, *, watchers: Sequence[Watcher] = ()) -> Run:
    """Go on with a run from its last checkpoint; it ends as it would have without the interruption."""
    run = open_run(where)
    return launch(run.recipe, run.folder, watchers, resume=True)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Configuration objects as documents, with only what was set, so that one parser sees all recipes alike."""
    return {
        name: {"type": value.type, **value.model_dump(exclude_unset=True)} if hasattr(value, "type")
        else value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value
        for name, value in fields.items()
    }
