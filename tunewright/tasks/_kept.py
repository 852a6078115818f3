"""What a diffusion model's frozen parts make of images and captions, computed once and kept on disk.

A file is found by what it was made of: the image's bytes and how it was fitted, or a caption's tokens; and weights.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.errors import RecipeError
from tunewright.tasks._captioned import Arrays, Caption, View

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Kept:
    """What was computed once of an image or a caption, in a safetensors file."""

    path: Path
    of: View | Caption

    def arrays(self) -> Arrays:
        from safetensors.numpy import load_file

        return {**load_file(self.path), **self.of.beside()}

    def drawn(self, random: np.random.Generator) -> Kept:
        return self


class Keeper:
    """Latents and captions of one model, each with a folder where it is to be kept.

    Of a latent the mean and deviation are kept, so that each step draws from it as it does without a cache.

    Raises RecipeError where captions would be kept of text encoders that train.
    """

    def __init__(self, module: Any, latents: str | None, captions: str | None, device: Any) -> None:
        self.module, self.device = module.to(device), device
        self.latents, self.captions = latents and Path(latents), captions and Path(captions)
        encoders = [module.get_submodule(name) for name in module.names] if captions else []
        if any(p.requires_grad for encoder in encoders for p in encoder.parameters()):
            raise RecipeError(
                "data.cache_captions keeps what text encoders said once, and here they train: choose one."
            )
        self.vae = digest(module.vae) if latents else ""
        self.encoders = digest(*encoders) if captions else ""

    def view(self, view: View) -> View | Kept:
        return _kept(self.latents, (self.vae, view.picture.sha256, view.fit), lambda: self._moments(view), view)

    def caption(self, caption: Caption) -> Caption | Kept:
        key = (self.encoders, caption.tokens.tolist())
        return _kept(self.captions, key, lambda: self._states(caption), caption)

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


def _kept(folder: Any, key: tuple[Any, ...], compute: Callable[[], Arrays], of: Any) -> Any:
    """What is kept under a key, computed if it is not there; the part itself without a folder.

    The file is whole or absent, and processes that write it at once write the same.
    """
    from safetensors.numpy import save_file

    if not folder:
        return of
    path = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        save_file(dict(compute()), draft)
        draft.replace(path)
    return Kept(path, of)
