"""How to load what a run saved, as snippets to copy: with Tunewright, and with PEFT or transformers alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
}
"""The transformers class of each task that has one."""


USES = {
    "text-generation": ("chat", "'What do you do?'"),
    "text-classification": ("predict", "['A text to classify']"),
    "image-classification": ("predict", "['photo.jpg']"),
}
"""What each task's model is asked with: the function of `tunewright`, which is also the command, and a question."""


@dataclass(frozen=True)
class Snippet:
    title: str
    code: str


def snippets(run: Mapping[str, Any], run_folder: Path) -> list[Snippet]:
    """The ways to load the model of a run.

    Args:
        run: run.json; `saved_as`, `task` and `base` decide which libraries can read the model.
        run_folder: written into the snippets as given.
    """
    folder, model = run_folder.as_posix(), (run_folder / "model").as_posix()
    task = str(run.get("task"))
    found = []
    if task in USES:
        verb, question = USES[task]
        found = [
            Snippet("Python", f"import tunewright as tw\n\nmodel = tw.load({folder!r})\ntw.{verb}(model, {question})"),
            Snippet("Command line", f"tunewright {verb} {shlex.quote(folder)}"),
        ]
    auto_class = None if _has_prompt_head(run) else AUTO_CLASSES.get(task)
    if auto_class and run.get("saved_as") == "peft":
        found.append(Snippet("PEFT and transformers", _peft(auto_class, str(run.get("base")), model, _classes(run))))
    if auto_class and run.get("saved_as") == "transformers":
        found.append(
            Snippet("transformers", f"from transformers import {auto_class}\n\n{_from_pretrained(auto_class, model)}")
        )
    return found


def _has_prompt_head(run: Mapping[str, Any]) -> bool:
    """Whether the head began as one of prompts, which is of no class of transformers'."""
    return any("prompt_head" in str(name) for name in (run.get("parameters") or {}).get("names") or [])


def _peft(auto_class: str, base: str, model: str, classes: int) -> str:
    """PEFT does not record the size of a new head: the base must be given it, or the saved head does not fit."""
    size = f", num_labels={classes}" if classes and auto_class != "AutoModelForCausalLM" else ""
    return (
        f"from peft import PeftModel\nfrom transformers import {auto_class}\n\n"
        f"base = {auto_class}.from_pretrained({base!r}{size})\nmodel = PeftModel.from_pretrained(base, {model!r})"
    )


def _from_pretrained(auto_class: str, model: str) -> str:
    return f"model = {auto_class}.from_pretrained({model!r})"


def _classes(run: Mapping[str, Any]) -> int:
    """How many outputs the head has; 0 where that is not recorded."""
    if run.get("kind") == "regression":
        return 1
    return len(run.get("labels") or ((run.get("data") or {}).get("train") or {}).get("label_counts") or {})
