"""The quickstart: a small packaged encoder learns to sort support tickets, offline, in about a minute on two cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts.sentences import find_encoder
from tunewright.errors import OutputError

if TYPE_CHECKING:
    from tunewright.folder import Run

METHOD = {"type": "lora", "rank": 16}
TRAINING = {"epochs": 3, "learning_rate": 2e-3, "batch": 16}
"""Chosen by the validation rows alone."""


def quickstart(output: str | None = None, watchers: Sequence[Callable[[Mapping[str, Any]], None]] = ()) -> Run:
    """Fine-tune MiniLM with LoRA on the support tickets.

    Raises:
        MissingExtra: the packaged encoder is not installed.
        OutputError: the examples are missing, or `output` is in use.
    """
    from tunewright import api

    return api.train(document(output), watchers=watchers)


def document(output: str | None = None) -> dict[str, Any]:
    """The recipe: what a user would write in a YAML file."""
    tickets = find_tickets()
    sets = {name: str(tickets / f"{name}.jsonl") for name in ("train", "validation", "test", "shifted")}
    return {
        "base": str(find_base()),
        "task": "text-classification",
        "data": {
            "train": sets["train"],
            "validation": sets["validation"],
            "test": {n: sets[n] for n in ("test", "shifted")},
        },
        "method": METHOD,
        "training": TRAINING,
        "output": output or str(free_folder()),
    }


def find_base() -> Path:
    """The folder of the packaged encoder. Raises MissingExtra."""
    return find_encoder("The quickstart's encoder (MiniLM)")


def find_tickets() -> Path:
    """The example rows: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    places = [parent / "examples" / "support_tickets" for parent in (package, package.parent)]
    for place in places:
        if (place / "train.jsonl").is_file():
            return place
    raise OutputError(f"The example rows are neither in {places[0]} nor in {places[1]}: install Tunewright anew.")


def free_folder(parent: Path = Path("runs")) -> Path:
    """runs/quickstart, or the first of quickstart-2, -3 … that is free."""
    names = ("quickstart" if i == 1 else f"quickstart-{i}" for i in range(1, 10**6))
    return next(parent / name for name in names if not (parent / name).exists())


def accuracies(info: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The accuracy on each evaluation set, before and after."""
    return {
        name: {when: found[when]["metrics"]["accuracy"]["value"] for when in ("before", "after")}
        for name, found in info["evaluation"].items()
    }


def first_ticket(info: Mapping[str, Any]) -> dict[str, str]:
    """The first test row: its text, its label, and what the model answered before and after."""
    first = info["evaluation"]["test"]["samples"][0]
    return {"text": first["input"], "label": first["reference"], "before": first["before"], "after": first["after"]}
