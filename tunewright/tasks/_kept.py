"""What a diffusion model's frozen parts make of images and captions, computed once and kept on disk.

A file is found by what it was made of: the image's bytes and how it was fitted, or a caption's tokens; and weights. It
holds a checksum of its arrays, and one that is damaged is computed anew.
"""

from __future__ import annotations

import hashlib
import uuid
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.errors import DataError, OutputError, RecipeError, counted
from tunewright.tasks._captioned import Arrays, Caption, View

if TYPE_CHECKING:
    from torch import nn


CHECKSUM = "crc32"
SHOWN = 3  # damaged files that a notice names


@dataclass(frozen=True)
class Kept:
    """What was computed once of an image or a caption, in a safetensors file."""

    path: Path
    of: View | Caption

    def arrays(self) -> Arrays:
        return {**_read(self.path), **self.of.beside()}

    def drawn(self, random: np.random.Generator) -> Kept:
        return self


class Keeper:
    """Latents and captions of one model, each with a folder where it is to be kept.

    Of a latent the mean and deviation are kept, so that each step draws from it as it does without a cache.
    `damaged` lists the files that were there and could not be used.

    Args:
        stand_in: let what is computed of one image stand for all of its shape, and one caption for all: it takes as
            long to read and to train on, and that is all that a forecast needs.

    Raises RecipeError where captions would be kept of text encoders that train.
    """

    def __init__(
        self, module: Any, latents: str | None, captions: str | None, device: Any, *, stand_in: bool = False
    ) -> None:
        self.module, self.device, self.stand_in = module.to(device), device, stand_in
        self.damaged: list[Path] = []
        self.whole: set[Path] = set()
        self.latents, self.captions = (Path(folder) if folder else None for folder in (latents, captions))
        encoders = [module.get_submodule(name) for name in module.names] if captions else []
        if any(p.requires_grad for encoder in encoders for p in encoder.parameters()):
            raise RecipeError(
                "data.cache_captions keeps what text encoders said once, and here they train: choose one."
            )
        self.vae = digest(module.vae) if latents else ""
        self.encoders = digest(*encoders) if captions else ""

    def view(self, view: View) -> View | Kept:
        of = (view.fit.target,) if self.stand_in else (view.picture.sha256, view.fit)
        return self._kept(self.latents, (self.vae, *of), lambda: self._moments(view), view)

    def caption(self, caption: Caption) -> Caption | Kept:
        of = () if self.stand_in else (caption.tokens.tolist(),)
        return self._kept(self.captions, (self.encoders, *of), lambda: self._states(caption), caption)

    def notices(self) -> list[str]:
        """What became of damaged files, in a sentence."""
        if not self.damaged:
            return []
        found = counted(len(self.damaged), "kept file is damaged and was", "kept files are damaged and were")
        more = " …" if len(self.damaged) > SHOWN else ""
        return [f"{found} computed anew: {', '.join(map(str, self.damaged[:SHOWN]))}{more}"]

    def _kept(self, folder: Path | None, key: tuple[Any, ...], compute: Callable[[], Arrays], of: Any) -> Any:
        """What is kept under a key, computed if it is not there whole; the part itself without a folder."""
        if not folder:
            return of
        path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.safetensors"
        if path not in self.whole and not _is_whole(path):
            self.damaged += [path] if path.exists() else []
            _write(compute(), path)
        self.whole.add(path)
        return Kept(path, of)

    def _moments(self, view: View) -> Arrays:
        import torch

        found = self.module.moments(torch.from_numpy(view.pixels())[None].to(self.device))
        return {"moments": found[0].cpu().numpy()}

    def _states(self, caption: Caption) -> Arrays:
        import torch

        with torch.no_grad():
            states, pooled = self.module.embeddings(torch.from_numpy(caption.tokens)[None].to(self.device))
        return {"states": states[0].float().cpu().numpy(), "pooled": pooled[0].float().cpu().numpy()}


def digest(*modules: nn.Module) -> str:
    """SHA-256 over all weights: what they compute changes with any of them."""
    import torch

    found = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _read(path: Path) -> Arrays:
    """The arrays of a file. Raises DataError where it is damaged or gone."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = (file.metadata() or {}).get(CHECKSUM)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}): start again, and it is computed anew.") from error
    if said != _checksum(arrays):
        raise DataError(f"{path} is damaged: start again, and it is computed anew.")
    return arrays


def _is_whole(path: Path) -> bool:
    try:
        return bool(_read(path))
    except DataError:
        return False


def _write(arrays: Arrays, path: Path) -> None:
    """Whole or not at all; processes and threads that write the same file at once do not meet. Raises OutputError."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    draft = path.with_suffix(f".{uuid.uuid4().hex}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(arrays), draft, {CHECKSUM: _checksum(arrays)})
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        if draft.exists():
            draft.unlink()
        raise OutputError(
            f"{path.parent} cannot be written ({error}): choose another folder for data.cache_latents and "
            "data.cache_captions, or leave them out."
        ) from error


def _checksum(arrays: Arrays) -> str:
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).tobytes(), zlib.crc32(name.encode(), found))
    return f"{found:08x}"
