"""Folders of diffusers' pipelines: their components, by `model_index.json`; safetensors only, no code of theirs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunewright.errors import BaseModelError, MissingExtra
from tunewright.tasks._pretrained import refuse_missing
from tunewright.tasks._quiet import quiet

INDEX = "model_index.json"
SIZE = "image_size.json"
"""Beside the weights: the resolution that they were trained with."""
PIPELINES = {
    "StableDiffusionPipeline": ("text_encoder",),
    "StableDiffusionXLPipeline": ("text_encoder", "text_encoder_2"),
}
"""The pipelines that can be tuned, and their text encoders in the order in which the U-Net is told what they say."""


@dataclass(frozen=True)
class Feed:
    """What it takes to feed a pipeline's U-Net, and to make images with it.

    Attributes:
        index: what `model_index.json` says.
        tokenizers: one for each text encoder.
        scheduler: how noise is mixed in, and taken out again.
        resolution: an image has about as many pixels as a square of this side.
        factor: pixels of an image's side for each position of its latent's.
        unit: an image's sides are multiples of so many pixels, so that the U-Net can halve its latent.
    """

    index: Mapping[str, Any]
    tokenizers: tuple[Any, ...]
    scheduler: Any
    resolution: int
    factor: int
    unit: int

    @property
    def encoders(self) -> tuple[str, ...]:
        return PIPELINES[self.index["_class_name"]]

    @property
    def zeros(self) -> bool:
        """Whether no caption is told by zeros: SDXL, unless it says otherwise."""
        return len(self.encoders) > 1 and bool(self.index.get("force_zeros_for_empty_prompt", True))

    def save_pretrained(self, folder: Path) -> None:
        """What of it an adapter has of its own: the rest is its base's."""
        (folder / SIZE).write_text(json.dumps({"resolution": self.resolution}) + "\n", encoding="utf-8")

    def as_in(self, folder: Path) -> Feed:
        """With what `save_pretrained` wrote, if anything."""
        if not (folder / SIZE).is_file():
            return self
        return replace(self, **json.loads((folder / SIZE).read_text(encoding="utf-8")))


def is_pipeline(base: str) -> bool:
    """Whether a folder here, or what was fetched from the hub under this name, is a pipeline of diffusers'."""
    return index_path(base) is not None


def index_path(base: str) -> Path | None:
    """The `model_index.json` of a base, in its folder or where the hub's files are."""
    if Path(base).exists():
        return found if (found := Path(base) / INDEX).is_file() else None
    from transformers.utils import cached_file

    try:
        there = cached_file(base, INDEX, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return Path(there) if there else None


def read_index(base: str) -> dict[str, Any]:
    """What a pipeline says of itself. Raises BaseModelError where it is none, or none that can be tuned."""
    refuse_missing(base)
    path = index_path(base)
    if path is None and not Path(base).exists():
        raise BaseModelError(
            f"{base} is neither a folder here nor a pipeline that could be fetched from the hub. Check the name and "
            "the connection, or give a local folder."
        )
    if path is None:
        raise BaseModelError(
            f"{base} is no pipeline of diffusers': it has no {INDEX}. Give the folder of one or its name on the hub."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        name = index["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{path} cannot be read as what diffusers writes: {error!r}") from error
    if name not in PIPELINES:
        raise BaseModelError(
            f"{base} is a {name if isinstance(name, str) else name[-1]}. Those with a U-Net for text to image can be "
            f"tuned: {' and '.join(PIPELINES)} (Stable Diffusion 1, 2 and XL)."
        )
    encoders = PIPELINES[name]
    wanted = ["unet", "vae", "scheduler", *encoders, *(e.replace("text_encoder", "tokenizer") for e in encoders)]
    if missing := [part for part in wanted if not (index.get(part) or [None])[0]]:
        raise BaseModelError(f"{base} lacks {', '.join(missing)}, says its {INDEX}: take the whole pipeline.")
    return dict(index)


def load_parts(base: str, index: Mapping[str, Any], dtype: str | None, weights: bool) -> dict[str, Any]:
    """The components that training needs, by name; without `weights` the models on the meta device.

    Raises BaseModelError that names the component which is missing, a pickle, or cannot be read.
    """
    diffusers = _diffusers()
    place = _fetched(base, index) if weights else base
    found: dict[str, Any] = {}
    for name, (library, kind) in ((n, p) for n, p in index.items() if isinstance(p, list) and n in PARTS):
        owner = diffusers if library == "diffusers" else __import__("transformers")
        with silence():
            loader = getattr(owner, kind, None) if library in ("diffusers", "transformers") else None
        if loader is None:
            raise BaseModelError(f"{base}: its {name} is a {library}.{kind}, which is not known here.")
        model = name.startswith(("unet", "vae", "text_encoder"))
        if Path(place).is_dir() and not any((Path(place) / name).glob("*.json")):  # a tokenizer would come out empty
            raise BaseModelError(f"{base}: {name} cannot be loaded: its folder is missing or empty. Fetch it again.")
        options = (
            {"use_safetensors": True, "output_loading_info": True, "torch_dtype": "float32" if name == "vae" else dtype}
            if model
            else {}
        )
        with silence(), _named(base, name):
            if model and not weights:
                found[name] = _shape(loader, place, name, library)
            else:
                found[name] = loader.from_pretrained(place, subfolder=name, **_dtyped(options), **_variant(place, name))
        if options and weights:
            found[name], account = found[name]
            if missing := sorted(account["missing_keys"]):  # which would be drawn at random
                raise BaseModelError(f"{base}: {name} lacks weights: {', '.join(missing[:3])}. Fetch it again.")
    return found


PARTS = ("unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def make_pipeline(index: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """A pipeline of diffusers' from its components; without the checker of its images, which is none of the weights."""
    with silence():  # diffusers imports what it needs at this moment, and tells what it would like to have
        kind = getattr(_diffusers(), index["_class_name"])
    options: dict[str, Any] = {
        key: value for key, value in index.items() if isinstance(value, bool) and not key.startswith("_")
    }
    if "XL" not in index["_class_name"]:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with silence():
        pipeline = kind(**parts, **options)
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


@contextmanager
def silence() -> Iterator[None]:
    """As `quiet`, and diffusers too."""
    _diffusers()
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtra("text-to-image", "diffusion") from error
    return diffusers


def _fetched(base: str, index: Mapping[str, Any]) -> str:
    """A folder with all that the pipeline needs: the base, or where its files from the hub lie."""
    if Path(base).is_dir():
        return base
    kind = getattr(_diffusers(), index["_class_name"])
    with silence(), _named(base, "its files"):
        return str(kind.download(base, use_safetensors=True, safety_checker=None))


def _variant(place: str, name: str) -> dict[str, str]:
    """Weights in half precision alone are read too; they have names of their own."""
    files = [path.name for path in (Path(place) / name).glob("*.safetensors")]
    half = bool(files) and all(".fp16." in file for file in files)
    return {"variant": "fp16"} if half else {}


def _dtyped(options: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    wanted = options.get("torch_dtype")
    return {**options, "torch_dtype": getattr(torch, wanted) if wanted else torch.float32} if options else {}


def _shape(loader: Any, place: str, name: str, library: str) -> Any:
    import torch

    with torch.device("meta"):
        if library == "diffusers":
            return loader.from_config(loader.load_config(place, subfolder=name))
        return loader(loader.config_class.from_pretrained(place, subfolder=name))


@contextmanager
def _named(base: str, part: str) -> Iterator[None]:
    """What goes wrong inside, with the name of the component and a remedy."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        folder = Path(base) / part
        pickles = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles and not list(folder.glob("*.safetensors")):
            raise BaseModelError(
                f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is loaded: "
                "refused. Convert it to safetensors on a machine you can lose, or take the safetensors revision."
            ) from error
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise BaseModelError(f"{base}: {part} cannot be loaded: {said}") from error
