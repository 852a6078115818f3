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
    found = [
        Snippet("Python", f"import tunewright as tw\n\nmodel = tw.load({folder!r})"),
        Snippet("Command line", f"tunewright predict {shlex.quote(folder)} --input rows.jsonl"),
    ]
    auto_class = AUTO_CLASSES.get(str(run.get("task")))
    if auto_class and run.get("saved_as") == "peft":
        found.append(Snippet("PEFT and transformers", _peft(auto_class, str(run.get("base")), model, _labels(run))))
    if auto_class and run.get("saved_as") == "transformers":
        found.append(
            Snippet("transformers", f"from transformers import {auto_class}\n\n{_from_pretrained(auto_class, model)}")
        )
    return found


def _peft(auto_class: str, base: str, model: str, labels: int) -> str:
    """PEFT does not record the size of a new head: the base must be given it, or the saved head does not fit."""
    size = f", num_labels={labels}" if labels and auto_class != "AutoModelForCausalLM" else ""
    return (
        f"from peft import PeftModel\nfrom transformers import {auto_class}\n\n"
        f"base = {auto_class}.from_pretrained({base!r}{size})\nmodel = PeftModel.from_pretrained(base, {model!r})"
    )


def _from_pretrained(auto_class: str, model: str) -> str:
    return f"model = {auto_class}.from_pretrained({model!r})"


def _labels(run: Mapping[str, Any]) -> int:
    """How many labels the training rows have; 0 where that is not recorded."""
    return len(((run.get("data") or {}).get("train") or {}).get("label_counts") or {})
