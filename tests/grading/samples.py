"""Samples to grade."""

from __future__ import annotations

from typing import Any

from tunewright.grading import Sample


def sample(text: str, tokens: int = 3, prompt: str = "What is 2 + 2?", **item: Any) -> Sample:
    return Sample(text=text, item=item, prompt=prompt, tokens=tokens, ended=True)
