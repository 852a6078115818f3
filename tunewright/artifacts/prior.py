"""Images of the class that a subject belongs to, drawn by the base before it is tuned (arXiv 2208.12242)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunewright.artifacts.save import beside
from tunewright.data.config import DataConfig
from tunewright.data.records import Records, load_records
from tunewright.errors import RecipeError
from tunewright.tasks.base import Model


def refuse_no_prior(model: Model) -> None:
    """Raises RecipeError for a model that makes no images."""
    if not hasattr(model.task, "images"):
        raise RecipeError(f"data.prior is for text-to-image, and this is {model.task.name}. Leave it out.")


def drawn_prior(model: Model, data: DataConfig, seed: int, device: Any, folder: Path) -> Records:
    """The images that `folder` holds, with their caption; they are drawn first where it does not exist.

    Image n begins with the noise of `seed` + n, so that the same images are drawn again.
    """
    assert data.prior_prompt
    if not folder.exists():
        model.module.to(device)
        with beside(folder) as draft:
            lines = []
            for number in range(data.prior_images):
                (image,) = model.task.images(model, [data.prior_prompt], seed=seed + number)  # type: ignore[attr-defined]
                image.save(draft / f"{number:04}.png")
                lines.append(json.dumps({"file_name": f"{number:04}.png", "text": data.prior_prompt}))
            (draft / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            draft.rename(folder)
    return load_records(str(folder), data.model_copy(update={"format": "auto", "columns": {}}))
