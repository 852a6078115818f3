"""`evaluation:` in a recipe: what is measured before and after training."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from tunewright.options import Options


class EvaluationConfig(Options):
    """What is measured on the test sets, before and after. Without a test set the validation rows serve."""

    before: bool = Field(True, description="Measure the base too, so that the report can say what changed.")
    samples: int = Field(
        8, ge=0, description="Rows shown in the report; in text-to-image captions drawn before and after, at most four."
    )
    generate: int = Field(
        32, ge=0, description="Rows that a language model answers, for exact match and ROUGE; the first are shown."
    )
    max_new_tokens: int = Field(128, ge=1, description="Longest generated answer, in tokens.")
    prompts: list[str] = Field(
        [],
        description="Prompts of sample pictures in place of captions, drawn at each evaluation too: always the same "
        "noise.",
    )
    image_steps: int = Field(30, ge=1, description="How often the U-Net is asked for a sample picture.")
    pattern: str | None = Field(
        None, description="Regular expression for the part of an answer that counts, e.g. '#### (.+)'."
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from error
        return value
