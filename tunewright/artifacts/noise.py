"""What a tuned pipeline and its export are both asked: what of noisy latents is noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunewright.artifacts.card import Card
from tunewright.artifacts.questions import BUILT_IN, SENTENCES, HeldOut
from tunewright.data.config import DataConfig
from tunewright.data.kinds import CaptionedImage
from tunewright.errors import DataError
from tunewright.tasks.base import Model
from tunewright.tasks.text_to_image import model_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 8


def noise_questions(model: Model, held_out: HeldOut | None, card: Card | None) -> dict[str, Any]:
    """The questions as a document: see `foreign.py`, which reads it.

    Held-out images are drowned in the noise, and at the timesteps, that they are measured with; without any, the
    captions are sentences and the latents noise alone. All have the size of the first one.

    Raises:
        DataError: rows without an image or a caption.
    """
    token = getattr(card.make_method(), "token", "") if card else ""  # of a textual inversion
    rows = _from_rows(model, held_out) if held_out else _plain(model, token)
    tokenizer = model.processor.tokenizers[0]
    options = {"truncation": True, "max_length": tokenizer.model_max_length}
    return {
        "rows_from": held_out.source if held_out else BUILT_IN,
        "base": model.base,
        "token": token,
        "rows": rows,
        "positions": 0,
        "asked": [{"text": row["text"], "max_length": tokenizer.model_max_length} for row in rows],
        "prompts": [list(tokenizer(row["text"], **options).input_ids) for row in rows],
        "new_tokens": 0,
        "stop": [],
        "pixels": [],
        "labels": 0,
    }


def _from_rows(model: Model, held_out: HeldOut) -> list[dict[str, Any]]:
    import torch

    if not isinstance(held_out.records[0], CaptionedImage):
        raise DataError(f"{held_out.source} holds no images with captions, which this model was trained on.")
    config = DataConfig(train="-", on_bad_rows="skip")
    whole = {f"{record.source}": record.text for record in held_out.records[:ROWS]}
    examples = model.task.encode(model, held_out.records[:ROWS], config).examples
    alike = [e for e in examples if e.inputs["chance"].shape == examples[0].inputs["chance"].shape]
    diffusion, rows = model_of(model.module), []
    for example in alike:
        given = {name: value for part in example.inputs.values() for name, value in part.arrays().items()}
        with torch.no_grad():
            moments = diffusion.moments(torch.from_numpy(given["pixels"])[None])[0]
        mean, std = moments.chunk(2)
        signal, noise = (float(table[int(given["step"])]) for table in (diffusion.signal_N, diffusion.noise_N))
        noisy = signal * (mean.numpy() + std.numpy() * given["spread"]) + noise * given["noise"]
        told = float(diffusion.told_N[int(given["step"])])
        rows.append(_row(noisy, told, whole[example.source], given["sizes"]))
    return rows


def _plain(model: Model, token: str) -> list[dict[str, Any]]:
    import numpy as np

    feed, told_N = model.processor, model_of(model.module).told_N
    side = feed.resolution // feed.unit * feed.unit
    shape = (model_of(model.module).unet.config.in_channels, side // feed.factor, side // feed.factor)
    sizes = np.array([side, side, 0, 0, side, side], dtype=np.float32)
    rows = []
    for i, text in enumerate(SENTENCES[:ROWS]):
        noisy = np.random.default_rng(i).standard_normal(shape, dtype=np.float32)
        rows.append(_row(noisy, float(told_N[i * len(told_N) // ROWS]), f"{token} {text}".strip(), sizes))
    return rows


def _row(noisy: NDArray[Any], told: float, text: str, sizes: NDArray[Any]) -> dict[str, Any]:
    return {"noisy": noisy.tolist(), "told": told, "text": text, "sizes": sizes.tolist()}
