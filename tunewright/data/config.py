"""The `data` section of a recipe: where the rows are and how they are read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict

from tunewright.data.augmentation import Augmentation
from tunewright.data.given import as_location
from tunewright.data.labeling.config import Labeling
from tunewright.data.pictures import as_text
from tunewright.options import Options
from tunewright.truth_values import TruthValue

Location = str | list[dict[str, Any]]
"""A path, a hub name ("owner/name" or "owner/name:split"), or the rows themselves."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
Reading = Literal["auto", "classes", "numbers"]
Overlength = Literal["fail", "truncate", "truncate_prompt", "drop", "split"]

LOCAL: JsonDict = {"local_only": True}


class DataConfig(Options):
    """Where the rows are, what they look like, and what happens to those that do not fit."""

    train: Location = Field(
        min_length=1,
        description="training rows: a file, a folder, a hub name (owner/name:split), or a list of rows",
        json_schema_extra=LOCAL,
    )
    validation: Location | Fraction | None = Field(
        None,
        description="validation rows, or the fraction of the training rows to hold out (1,000 rows at most); 0: none; "
        "null: 0.1, but none of fewer than 20 captioned images",
        json_schema_extra=LOCAL,
    )
    test: Location | dict[str, Location] | None = Field(
        None,
        description="rows for the final evaluation: one set, or several by name",
        json_schema_extra=LOCAL,
    )
    labeling: Labeling | None = Field(
        None, description="rules that label the training rows (weak supervision); none: rows bring their labels"
    )
    prior: Location | None = Field(
        None,
        description="captioned images of the class that the training images are a member of (DreamBooth): with each "
        "row one of them is learned, so that the class stays what it was",
        json_schema_extra=LOCAL,
    )
    prior_prompt: str | None = Field(
        None, description="in place of prior: the class in words; the base draws its images before the training"
    )
    prior_images: int = Field(200, ge=1, description="how many images the base draws of prior_prompt")
    format: Literal[
        "auto",
        "chat",
        "prompt_completion",
        "alpaca",
        "sharegpt",
        "preference",
        "ranking",
        "openai_preference",
        "violation",
        "rated",
        "prompt",
        "prompt_messages",
        "text",
        "classification",
        "image",
        "image_file",
        "captioned_image",
        "captioned_file",
    ] = Field("auto", description="what a row looks like; auto: found from its columns")
    columns: dict[str, str] = Field(
        default_factory=dict, description="standard column name -> name in the file, e.g. {text: review, label: stars}"
    )
    labels: Reading = Field(
        "auto", description="what labels are: classes, or numbers to regress on; auto: numbers if one has a fraction"
    )
    classes: list[str] | None = Field(
        None,
        min_length=2,
        description="all classes, in their order, where the training rows may lack some; none: those of the rows",
    )
    overlength: Literal["auto"] | Overlength = Field(
        "auto", description="rows longer than max_length; auto: split plain text, fail for everything else"
    )
    max_length: int | None = Field(None, ge=2, description="longest row in tokens; none: the model's own limit")
    on_bad_rows: Literal["fail", "skip"] = Field(
        "fail", description="rows that cannot be used: fail before training, or skip and report them"
    )
    loss_on: Literal["all", "last"] = Field(
        "all", description="assistant turns that are trained: all of them, or the last one"
    )
    chat_template: str | None = Field(
        None,
        description="path of a Jinja chat template, or 'plain' for the built-in one; none: the tokenizer's own",
        json_schema_extra=LOCAL,
    )
    augment: Augmentation | None = Field(
        None, description="how training images are varied: {} for mirroring and crops; none: as they are"
    )
    resolution: int | None = Field(
        None,
        ge=8,
        description="captioned images are resized to about the pixels of a square of this side, in the allowed sides "
        "nearest to their ratio; none: the model's own",
    )
    caption_dropout: float = Field(
        0.0, ge=0, lt=1, description="chance that a caption is left out, for classifier-free guidance (often 0.1)"
    )
    cache_latents: str | None = Field(
        None,
        description="folder in which what the VAE makes of images is kept, computed once",
        json_schema_extra=LOCAL,
    )
    cache_captions: str | None = Field(
        None,
        description="folder in which what the text encoders make of captions is kept, computed once",
        json_schema_extra=LOCAL,
    )
    special_tokens: list[str] = Field(
        default_factory=list, description="tokens to add to the tokenizer, each learned as a row of its own"
    )

    @field_validator("train", "validation", "test", "prior", mode="before")
    @classmethod
    def _can_be_written_down(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "test" and isinstance(value, dict):
            return {name: _written_down(rows, name) for name, rows in value.items()}
        none = value is None and info.field_name != "train"
        share = isinstance(value, int | float | TruthValue) and info.field_name == "validation"
        return value if none or share else _written_down(value)

    @model_validator(mode="after")
    def _one_prior(self) -> DataConfig:
        if self.prior and self.prior_prompt:
            raise ValueError("prior gives the images of the class, and prior_prompt has them drawn: choose one")
        if self.prior_images != type(self).model_fields["prior_images"].default and not self.prior_prompt:
            raise ValueError("prior_images counts the images that are drawn of prior_prompt: give that too")
        return self

    @model_validator(mode="after")
    def _what_can_be_kept(self) -> DataConfig:
        if self.cache_latents and self.augment:
            raise ValueError("cache_latents keeps images as they are, and augment varies them at each step: choose one")
        if self.cache_captions and self.caption_dropout:
            raise ValueError("cache_captions keeps every caption, and caption_dropout leaves some out: choose one")
        return self

    @field_validator("cache_latents", "cache_captions")
    @classmethod
    def _from_anywhere(cls, value: str | None) -> str | None:
        return value and str(Path(value).expanduser().absolute())

    @field_validator("test")
    @classmethod
    def _plain_names(cls, value: Any) -> Any:
        """The names become names of files, beside those of the training and validation rows."""
        bad = (
            [n for n in value if not re.fullmatch(r"[\w.-]+", n) or n in ("train", "validation", "prior")]
            if isinstance(value, dict)
            else []
        )
        if bad:
            raise ValueError(
                f"{', '.join(bad)}: a test set is named by letters and digits, not train, validation or prior"
            )
        return value

    @field_validator("special_tokens")
    @classmethod
    def _real_tokens(cls, value: list[str]) -> list[str]:
        if not all(value) or len(set(value)) < len(value):
            raise ValueError("tokens must differ from each other and not be empty")
        return value

    def test_sets(self) -> dict[str, Location]:
        """The evaluation sets by name; a single one is called "test"."""
        if self.test is None:
            return {}
        return dict(self.test) if isinstance(self.test, dict) else {"test": self.test}

    def overlength_for(self, kind: str) -> Overlength:
        """What to do with rows of this kind that are too long: plain text can be split without loss, answers cannot."""
        if self.overlength != "auto":
            return self.overlength
        return "split" if kind == "text" else "fail"


def _written_down(given: Any, name: str = "") -> Location:
    location = as_location(given, name)
    return location if isinstance(location, str) else [as_text(row) for row in location]
