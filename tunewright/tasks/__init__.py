"""One file a task. `TASKS` finds them by name; a new file is a new task."""

from __future__ import annotations

import importlib
from typing import Any

MODULES = {
    "text-generation": "text_generation",
    "text-classification": "text_classification",
    "image-classification": "image_classification",
    "text-to-image": "text_to_image",
}


def task_class(name: str) -> Any:
    """The class of a task by its name, imported only now."""
    module = importlib.import_module(f"tunewright.tasks.{MODULES[name]}")
    return module.TASK
