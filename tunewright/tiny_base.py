"""The tiny base: a language model of under 4 MB that comes with the package, so that things can be tried offline.

What it can do, and how it was made, is in `tiny/README.md`; `examples/tiny_base/` makes it.
"""

from __future__ import annotations

from pathlib import Path

NAME = "tiny"


def tiny_base() -> Path:
    """The folder of the tiny base, which transformers loads as it stands."""
    return Path(__file__).parent / NAME


def in_package(base: str) -> str:
    """The base, or where the name "tiny" stands for the packaged one its folder: a folder of that name comes first."""
    return str(tiny_base()) if base == NAME and not Path(NAME).exists() else base
