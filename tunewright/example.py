"""The quickstarts, offline, each about a minute on two cores: what a user would write, with what is packaged.

A small encoder learns to sort support tickets; with `--chat`, the tiny base learns to answer for a tea shop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts.sentences import find_encoder
from tunewright.errors import OutputError
from tunewright.tiny_base import tiny_base

if TYPE_CHECKING:
    from tunewright.folder import Run

METHOD = {"type": "lora", "rank": 16}
TRAINING = {"epochs": 3, "learning_rate": 2e-3, "batch": 16}
"""Chosen by the validation rows alone."""
CHAT_METHOD = {"type": "lora", "rank": 16}
CHAT_TRAINING = {"epochs": 30, "learning_rate": 5e-3, "batch": 16}
"""Enough for the loss on the validation rows to level off."""
SHOWN = 6


def quickstart(output: str | None = None, watchers: Sequence[Callable[[Mapping[str, Any]], None]] = ()) -> Run:
    """Fine-tune MiniLM with LoRA on the support tickets.

    Raises:
        MissingExtra: the packaged encoder is not installed.
        OutputError: the examples are missing, or `output` is in use.
    """
    from tunewright import api

    return api.train(document(output), watchers=watchers)


def quickstart_chat(output: str | None = None, watchers: Sequence[Callable[[Mapping[str, Any]], None]] = ()) -> Run:
    """Fine-tune the tiny base with LoRA on what a tea shop answers, all of which it cannot know.

    Raises OutputError where the examples are missing, or `output` is in use.
    """
    from tunewright import api

    return api.train(chat_document(output), watchers=watchers)


def document(output: str | None = None) -> dict[str, Any]:
    """The recipe: what a user would write in a YAML file."""
    tickets = find_rows("support_tickets")
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


def chat_document(output: str | None = None) -> dict[str, Any]:
    """The recipe of the tea shop: every test question is one that the model never saw in these words."""
    shop = find_rows("tea_shop")
    return {
        "base": str(tiny_base()),
        "data": {name: str(shop / f"{name}.jsonl") for name in ("train", "validation", "test")},
        "method": CHAT_METHOD,
        "training": CHAT_TRAINING,
        "evaluation": {"generate": 48, "max_new_tokens": 40},
        "output": output or str(free_folder("quickstart-chat")),
    }


def find_base() -> Path:
    """The folder of the packaged encoder. Raises MissingExtra."""
    return find_encoder("The quickstart's encoder (MiniLM)")


def find_rows(name: str) -> Path:
    """The example rows of this name: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    places = [parent / "examples" / name for parent in (package, package.parent)]
    for place in places:
        if (place / "train.jsonl").is_file():
            return place
    raise OutputError(f"The example rows are neither in {places[0]} nor in {places[1]}: install Tunewright anew.")


def free_folder(name: str = "quickstart", parent: Path = Path("runs")) -> Path:
    """runs/NAME, or the first of NAME-2, -3 … that is free."""
    names = (name if i == 1 else f"{name}-{i}" for i in range(1, 10**6))
    return next(parent / name for name in names if not (parent / name).exists())


def accuracies(info: Mapping[str, Any], metric: str = "accuracy") -> dict[str, dict[str, float]]:
    """The accuracy, or another metric, on each evaluation set, before and after."""
    return {
        name: {when: found[when]["metrics"][metric]["value"] for when in ("before", "after")}
        for name, found in info["evaluation"].items()
    }


def first_ticket(info: Mapping[str, Any]) -> dict[str, str]:
    """The first test row: its text, its label, and what the model answered before and after."""
    first = info["evaluation"]["test"]["samples"][0]
    return {"text": first["input"], "label": first["reference"], "before": first["before"], "after": first["after"]}


def first_answers(info: Mapping[str, Any]) -> list[dict[str, str]]:
    """The first test questions: what was asked, what the model answered before and after, and what is right."""
    samples = info["evaluation"]["test"]["samples"][:SHOWN]
    return [
        {
            "question": sample["input"].removeprefix("user: "),
            "before": sample["before"],
            "after": sample["after"],
            "right": sample["reference"],
        }
        for sample in samples
    ]
