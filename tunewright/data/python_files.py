"""Python files that the user named: rules, rewards. They run because they were named, and for no other reason."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from tunewright.errors import DataError


def run_file(path: Path) -> dict[str, Any]:
    """What a Python file defines, by name. Raises DataError where it throws."""
    try:
        return runpy.run_path(str(path))
    except Exception as error:
        raise DataError(f"{path} fails with {type(error).__name__}: {error}") from error
