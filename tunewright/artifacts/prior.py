"""Images of the class that a subject belongs to, drawn by the base before it is tuned (arXiv 2208.12242).

RUN/start/prior/
  0000.png, …      each says in itself how it was drawn
  metadata.jsonl   their captions, once all are there
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tunewright.artifacts.fingerprint import fingerprint
from tunewright.data.config import DataConfig
from tunewright.data.records import Records, load_records
from tunewright.engine.device import computing
from tunewright.engine.job import Watcher
from tunewright.errors import RecipeError
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from PIL.Image import Image

TOLD = "tunewright"
METADATA = "metadata.jsonl"
STEPS = 30
"""How often the U-Net is asked for an image of the class."""


class Computing(NamedTuple):
    """Where images are drawn, and in which precision."""

    device: Any
    precision: str


def refuse_no_prior(model: Model) -> None:
    """Raises RecipeError for a model that makes no images."""
    if not hasattr(model.task, "images"):
        raise RecipeError("data.prior is for text-to-image and for objective: rl. Leave it out.")


def drawn_prior(
    model: Model, data: DataConfig, seed: int, computed: Computing, folder: Path, tell: Watcher = lambda line: None
) -> Records:
    """The images in `folder`, with their caption. Those that are not there yet are drawn first, and written one by one.

    Image n begins with the noise of `seed` + n, so that the same images are drawn again.

    Args:
        tell: is told how many there are, as {"drawn": 3, "of": 200}.
    """
    prompt, count = str(data.prior_prompt), data.prior_images
    how = {"prompt": prompt, "base": fingerprint(model.base), "adapters": [str(path) for path in model.adapters]}
    told = {f"{number:04}.png": json.dumps({**how, "seed": seed + number}) for number in range(count)}
    left = [name for name in told if _told(folder / name) != told[name]]
    if left:
        folder.mkdir(parents=True, exist_ok=True)
        for draft in folder.glob(".*.draft"):  # of a process that was killed
            draft.unlink()
        model.module.to(computed.device)
        tell({"drawn": count - len(left), "of": count})
    while left:
        some, left = left[: together(computed.device)], left[together(computed.device) :]
        seeds = [seed + int(name.removesuffix(".png")) for name in some]
        with computing(computed.precision, computed.device):
            images = model.task.images(  # type: ignore[attr-defined]
                model, [prompt] * len(some), seed=seeds, steps=STEPS, together=len(some)
            )
        for name, image in zip(some, images, strict=True):
            _write(image, folder / name, told[name])
        tell({"drawn": count - len(left), "of": count})
    return _records(folder, list(told), data)


def stand_in(model: Model, data: DataConfig, seed: int, computed: Computing, folder: Path) -> Records:
    """One grey image in place of those of `drawn_prior`, where it is only to be seen what learning from them takes."""
    from PIL import Image as Pillow

    folder.mkdir()
    Pillow.new("RGB", (64, 64), "grey").save(folder / "0000.png")
    return _records(folder, ["0000.png"], data)


def _records(folder: Path, names: list[str], data: DataConfig) -> Records:
    """The images as rows, once all are there."""
    lines = [json.dumps({"file_name": name, "text": data.prior_prompt}) for name in names]
    text, path = "\n".join(lines) + "\n", folder / METADATA
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # other processes may be reading it
        path.write_text(text, encoding="utf-8")
    return load_records(str(folder), data.model_copy(update={"format": "auto", "columns": {}}))


def together(device: Any) -> int:
    """How many images share a forward pass: on a CPU one, as more take longer by as many, and are lost together."""
    return 4 if device.type == "cuda" else 1


def _told(path: Path) -> str | None:
    """How an image says that it was drawn."""
    from PIL import Image as Pillow

    if not path.is_file():
        return None
    with Pillow.open(path) as image:
        return image.info.get(TOLD)


def _write(image: Image, path: Path, told: str) -> None:
    """Whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(TOLD, told)
    draft = path.with_name(f".{path.name}.draft")
    image.save(draft, "PNG", pnginfo=info)
    draft.replace(path)
