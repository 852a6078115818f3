"""The base of a vLLM server, and which of the service's bases that is: it would answer for any without a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx

from tunewright.artifacts.load import shape_of
from tunewright.errors import TunewrightError


@dataclass(frozen=True)
class Served:
    """What a vLLM server says of its base.

    Attributes:
        names: by which it can be asked for (`--served-model-name`), one at least.
        root: the folder or the name on the hub that the server was started with.
        length: positions that a prompt and its answer may fill together.
    """

    names: tuple[str, ...]
    root: str
    length: int


def served_at(url: str) -> Served:
    """What the server at this address has. Raises TunewrightError where none answers."""
    try:
        found = httpx.get(f"{url.rstrip('/')}/v1/models", timeout=10).raise_for_status().json()["data"]
        bases = [one for one in found if not one.get("parent")]
        first = bases[0]
        return Served(
            tuple(str(one["id"]) for one in bases), str(first.get("root") or first["id"]), int(first["max_model_len"])
        )
    except (httpx.HTTPError, httpx.InvalidURL, LookupError, ValueError, TypeError, AttributeError) as error:
        raise TunewrightError(f"No vLLM server answers at {url}: {error!r}. Start it first.") from error


def ours(served: Served, bases: Mapping[str, Path]) -> tuple[str, ...]:
    """The bases that the server's is: of its name, else in its folder, else called as on the hub; and runs on it.

    Raises TunewrightError where it is none of them.
    """
    root = Path(served.root).expanduser()
    called = [name for name in bases if name in served.names]
    below = {name: Path(shape_of(str(folder))).resolve() for name, folder in bases.items()}
    there = [name for name in bases if below[name] == root.resolve()]
    # another folder on this machine that is called alike may hold another model
    alike = [] if root.is_dir() else [name for name in bases if name == PurePosixPath(served.root).name]
    if found := called or there or alike:
        return tuple(name for name in bases if below[name] in {below[one] for one in found})
    raise TunewrightError(
        f"The vLLM server has the base {' or '.join(served.names)} (from {served.root}), which is none of the bases "
        f"here: {', '.join(bases)}. Name its folder with --models, or one of these with vLLM's --served-model-name."
    )
