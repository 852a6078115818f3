"""Python files that the user named: rules, rewards. They run because they were named, and for no other reason."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from tunewright.errors import DataError

THROWN = (Exception, SystemExit)
"""What code of the user's may end with: its `sys.exit()` must not end the command as if all were well."""


def run_file(path: Path) -> dict[str, Any]:
    """What a Python file defines, by name. Raises DataError where it throws."""
    try:
        return runpy.run_path(str(path))
    except THROWN as error:
        raise DataError(f"{path} fails with {type(error).__name__}: {error}") from error
