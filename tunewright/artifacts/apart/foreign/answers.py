"""What a model is asked and what it answers, whatever runs it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Row = Mapping[str, Any]
"""Token ids by the name of the input; or `image`: an image file, in base64; or a noisy latent, see `Diffusers`."""


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Attributes:
        logits: [T, V] for the last positions of each row of a language model; [C] for each row of a classifier; for
            a noisy latent all that a U-Net predicts, [C·H·W].
        texts: what greedy decoding gave behind each prompt, with the token that ended it.
        prompts: the token ids of each prompt.
        by: what ran the model.
        pixels: the hash of what each image was made into, see `hash_of`.
        labels: what the classes are called, in the order of the logits.
    """

    logits: list[np.ndarray]
    texts: list[list[int]]
    prompts: list[list[int]]
    by: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


class Reader(Protocol):
    """A loaded export. `logits` are [T, V] or [C]; `greedy` gives the tokens behind the prompt."""

    by: list[str]
    labels: list[str]
    processor: Any

    def logits(self, row: Row) -> np.ndarray: ...

    def greedy(self, tokens: list[int], length: int) -> list[int]: ...

    def prompt(self, asked: Mapping[str, Any]) -> list[int]: ...


def answers(reader: Reader, questions: Mapping[str, Any]) -> Answers:
    """Ask a model everything."""
    return Answers(
        logits_of(reader, questions),
        [reader.greedy(tokens, questions["new_tokens"]) for tokens in questions["prompts"] if questions["new_tokens"]],
        [reader.prompt(asked) for asked in questions["asked"]],
        reader.by,
        [hash_of(fed(reader.processor, row)["pixel_values"]) for row in questions["rows"] if "image" in row],
        reader.labels if questions["labels"] else [],
    )


def logits_of(reader: Reader, questions: Mapping[str, Any]) -> list[np.ndarray]:
    return [reader.logits(row)[-questions["positions"] :] for row in questions["rows"]]


def fed(processor: Any, row: Row) -> dict[str, np.ndarray]:
    """What a model is fed of a row, [1, ...]: its token ids, or the pixels that its processor makes of the image."""
    if "image" not in row:
        return {name: np.array([ids], dtype=np.int64) for name, ids in row.items()}
    from PIL import Image

    image: Image.Image = Image.open(BytesIO(base64.b64decode(row["image"])))
    if len(processor.image_mean or ()) == 1:
        image = image.convert("L")
    return {"pixel_values": np.asarray(processor(image, return_tensors="np")["pixel_values"], dtype=np.float32)}


def hash_of(pixels: np.ndarray) -> str:
    """Of the size and all values: the same libraries make the same pixels to the last bit."""
    return hashlib.sha256(str(pixels.shape[-3:]).encode() + pixels.astype(np.float32).tobytes()).hexdigest()


def read_processor(folder: Path, questions: Mapping[str, Any]) -> Any:
    """The tokenizer or image processor that lies in an export."""
    import transformers

    options = {"backend": "pil"} if questions["processor"] == "AutoImageProcessor" else {}
    return getattr(transformers, questions["processor"]).from_pretrained(folder, **options)


def named(config: Any) -> list[str]:
    """What a configuration calls the classes, in their order."""
    return [config.id2label[i] for i in sorted(config.id2label)]


def prompt_tokens(tokenizer: Any, asked: Mapping[str, Any]) -> list[int]:
    """A conversation by the tokenizer's chat template; a text, or a pair of texts, as it stands."""
    if "messages" in asked:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return list(tokenizer.apply_chat_template(asked["messages"], tools=asked["tools"], **options))
    cut = {"truncation": True, "max_length": asked["max_length"]} if asked.get("max_length") else {}
    return list(tokenizer(asked["text"], asked.get("text_pair"), **cut)["input_ids"])


def greedy(next_logits: Any, tokens: list[int], length: int, stop: Sequence[int]) -> list[int]:
    """The likeliest token, again and again, up to the first that ends the answer."""
    found: list[int] = []
    while len(found) < length and not (found and found[-1] in stop):
        found.append(int(next_logits([*tokens, *found]).argmax()))
    return found
