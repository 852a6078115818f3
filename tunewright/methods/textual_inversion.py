"""`textual_inversion`: a new word for what a few images show; nothing but its embedding trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from tunewright.data.kinds import CaptionedImage
from tunewright.errors import DataError, MethodError, counted
from tunewright.methods._saved import refuse_loss
from tunewright.methods.base import Method, train_only
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn

EMBEDS = "learned_embeds.safetensors"
CLIPS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What the embeddings of SDXL's two text encoders are called in a file."""


class TextualInversion(Method):
    """New rows in the text encoders' embeddings, for a token that stands in the captions (Gal et al. 2022,
    arXiv 2208.01618). They begin as the embedding of a word that comes near.

    Several vectors are as many tokens behind each other; a caption names the first. Saved as diffusers'
    `load_textual_inversion` reads it; of SDXL, whose two text encoders have a row each, as `clip_l` and `clip_g`.
    The automatic rate is the paper's for one image a step on one GPU, whatever the width of the models.
    """

    learning_rate: ClassVar[float] = 5e-3
    scaled: ClassVar[bool] = False
    saved_as: ClassVar[str] = "embeddings"
    type: Literal["textual_inversion"] = "textual_inversion"
    token: str = Field(description="The new token, as it stands in the captions, such as <my-cat>.")
    word: str = Field(min_length=1, description="A word that comes near: its embedding is the beginning.")
    vectors: int = Field(1, ge=1, description="Rows of the embedding that the token is worth.")

    @field_validator("token")
    @classmethod
    def _one_token(cls, value: str) -> str:
        if not value or any(letter.isspace() for letter in value):
            raise ValueError("token is one word without spaces, such as <my-cat>")
        return value

    def extend(self, model: Model) -> None:
        """Tokenizers learn the token, and tables get its rows."""
        from tunewright.methods._new_rows import NewRows

        if not model.task.diffuses:
            raise MethodError(f"textual_inversion is for text-to-image, and this is {model.task.name}.")
        for encoder, tokenizer in self._encoders(model):
            table, first = encoder.get_input_embeddings(), len(tokenizer)
            ids = self._word(tokenizer)
            known = [name for name in self._names() if name in tokenizer.get_vocab()]
            if known:
                raise MethodError(f"{model.base} knows {known[0]} already. Choose another token.")
            tokenizer.add_tokens(self._names())
            start_VD = table.weight.detach()[[ids[i % len(ids)] for i in range(self.vectors)]].float()
            encoder.set_input_embeddings(NewRows(table, start_VD, first))

    def check_rows(self, records: Sequence[Any]) -> None:
        captions = [record.text for record in records if isinstance(record, CaptionedImage)]
        if captions and not any(self.token in text for text in captions):
            raise DataError(
                f"No caption names {self.token}, so there is nothing for it to learn: a photo of {self.token}"
            )

    def attach(self, model: Model, seed: int = 0) -> None:
        train_only(model.module, {n for n, p in model.module.named_parameters() if id(p) in _rows(model.module)})

    def save(self, model: Model, folder: Path) -> None:
        from safetensors.torch import save_file

        found = [table.rows.detach().cpu().float().contiguous() for table in _tables(model.module)]
        names = [self.token] if len(found) == 1 else [CLIPS[name] for name in model.processor.encoders]
        save_file(dict(zip(names, found, strict=True)), folder / EMBEDS)
        refuse_loss(folder, sum(rows.numel() for rows in found))
        model.processor.save_pretrained(folder)

    def restore(self, model: Model, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        state = load_file(folder / EMBEDS)
        names = [self.token] if len(state) == 1 else [CLIPS[name] for name in model.processor.encoders]
        tables = list(_tables(model.module))
        if {n: t.shape for n, t in zip(names, (t.rows for t in tables), strict=False)} != {
            n: t.shape for n, t in state.items()
        }:
            raise MethodError(f"{folder / EMBEDS} was trained on another base than {model.base}.")
        with torch.no_grad():
            for name, table in zip(names, tables, strict=True):
                table.rows.copy_(state[name])

    def merge(self, model: Model) -> None:
        join_rows(model)

    def scale(self, model: Model, alpha: float) -> None:
        """From the embedding of the word to that of the token."""
        import torch

        with torch.no_grad():
            for table in _tables(model.module):
                table.rows.copy_(torch.lerp(table.start_VD, table.rows, alpha))

    def _names(self) -> list[str]:
        """The tokens of the vectors, as diffusers numbers them."""
        return [self.token, *(f"{self.token}_{i}" for i in range(1, self.vectors))]

    def _encoders(self, model: Model) -> Iterator[tuple[Any, Any]]:
        """The text encoders, each with its tokenizer."""
        feed = model.processor
        for name, tokenizer in zip(feed.encoders, feed.tokenizers, strict=True):
            yield model.module.get_submodule(name), tokenizer

    def _word(self, tokenizer: Any) -> list[int]:
        ids = tokenizer(self.word, add_special_tokens=False).input_ids
        if not 0 < len(ids) <= self.vectors:
            raise MethodError(
                f"word: {self.word} is {counted(len(ids), 'token')} here, and there is room for {self.vectors}. Choose "
                "a shorter word, or more vectors."
            )
        return list(ids)


def join_rows(model: Model) -> None:
    """Make one table of each that has new rows, in place."""
    for name in model.processor.encoders:
        encoder = model.module.get_submodule(name)
        table = encoder.get_input_embeddings()
        if hasattr(table, "joined"):
            encoder.set_input_embeddings(table.joined())
            encoder.config.vocab_size = encoder.get_input_embeddings().num_embeddings


def _tables(module: nn.Module) -> Iterator[Any]:
    """The tables with new rows, in the order of the text encoders."""
    return (m for m in module.modules() if hasattr(m, "joined"))


def _rows(module: nn.Module) -> set[int]:
    return {id(table.rows) for table in _tables(module)}


METHOD = TextualInversion
