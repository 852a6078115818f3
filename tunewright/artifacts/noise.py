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

LEVELS = 8
"""At so many noise levels, from the first to the last timestep, models are asked: they do not answer alike at all."""


def noise_questions(model: Model, held_out: HeldOut | None, card: Card | None) -> dict[str, Any]:
    """The questions as a document: see `apart/foreign`, which reads it.

    Held-out images are drowned in noise, each at another level, and again from the first one where they are fewer than
    `LEVELS`; without any, the captions are sentences and the latents noise alone. All have the size of the first one.

    Raises:
        DataError: rows without an image or a caption.
    """
    token = getattr(card.make_method(), "token", "") if card else ""  # of a textual inversion
    rows = _from_rows(model, held_out) if held_out else _plain(model, token)
    tokenizer = model.processor.tokenizers[0]
    options = {"truncation": True, "max_length": tokenizer.model_max_length}
    return {
        "rows_from": held_out.source if held_out else BUILT_IN,
        "unit": "noise levels",
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
    records = held_out.records[:LEVELS]
    whole = {f"{record.source}": record.text for record in records}
    examples = model.task.encode(model, records, config).examples
    alike = [e for e in examples if e.inputs["chance"].shape == examples[0].inputs["chance"].shape]
    diffusion, steps, rows = model_of(model.module), _steps(model), []
    for i, step in enumerate(steps):
        example = alike[i % len(alike)]
        given = {name: value for part in example.inputs.values() for name, value in part.arrays().items()}
        with torch.no_grad():
            moments = diffusion.moments(torch.from_numpy(given["pixels"])[None])[0]
        mean = moments.chunk(2)[0].numpy()
        signal, noise = (float(table[step]) for table in (diffusion.signal_N, diffusion.noise_N))
        noisy = signal * mean + noise * _noise(i, mean.shape)
        rows.append(_row(noisy, float(diffusion.told_N[step]), whole[example.source], given["sizes"]))
    return rows


def _steps(model: Model) -> list[int]:
    """The places of `LEVELS` timesteps in the schedule, evenly spread."""
    count = len(model_of(model.module).told_N)
    return [(2 * i + 1) * count // (2 * LEVELS) for i in range(LEVELS)]


def _noise(number: int, shape: tuple[int, ...]) -> NDArray[Any]:
    import numpy as np

    return np.random.default_rng(number).standard_normal(shape, dtype=np.float32)


def _plain(model: Model, token: str) -> list[dict[str, Any]]:
    import numpy as np

    feed, told_N = model.processor, model_of(model.module).told_N
    side = feed.resolution // feed.unit * feed.unit
    shape = (model_of(model.module).unet.config.in_channels, side // feed.factor, side // feed.factor)
    sizes = np.array([side, side, 0, 0, side, side], dtype=np.float32)
    return [
        _row(_noise(i, shape), float(told_N[step]), f"{token} {SENTENCES[i]}".strip(), sizes)
        for i, step in enumerate(_steps(model))
    ]


def _row(noisy: NDArray[Any], told: float, text: str, sizes: NDArray[Any]) -> dict[str, Any]:
    return {"noisy": noisy.tolist(), "told": told, "text": text, "sizes": sizes.tolist()}
