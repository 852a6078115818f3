"""Rewards that are Python functions, by name: `path/to/file.py:name`, or `package.module:name`."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.data.python_files import THROWN, run_file
from tunewright.errors import DataError
from tunewright.grading.base import Reward

NAME = re.compile(r"(.+\.py|[^\W\d]\w*(\.\w+)*):[^\W\d]\w*")


def function_named(name: str) -> Reward:
    """The function that a name stands for; the file or module is run to find it.

    Raises DataError where there is none, or its file or module throws.
    """
    place, _, function = name.rpartition(":")
    found = _of_file(Path(place).expanduser()) if place.endswith(".py") else _of_module(place)
    if function not in found:
        close = difflib.get_close_matches(function, found, n=1)
        raise DataError(f"{place} has no {function}." + (f" Did you mean {close[0]}?" if close else ""))
    if not callable(found[function]):
        raise DataError(f"{name} is no function: it must take a list of samples and return a list of numbers.")
    reward: Reward = found[function]
    return reward


def _of_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(f"There is no Python file {path}.")
    return run_file(path)


def _of_module(name: str) -> Mapping[str, Any]:
    """The working directory is looked through too, behind what is installed."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        return vars(importlib.import_module(name))
    except ModuleNotFoundError as error:
        if f"{name}.".startswith(f"{error.name}."):
            raise DataError(
                f"There is no Python module {error.name} here or among those installed. Run from the folder that it "
                "lies in, install it, or name a file: path/to/file.py:function."
            ) from error
        raise DataError(f"{name} cannot be imported: {error}.") from error
    except THROWN as error:
        raise DataError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
