"""`quickstart`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli._app import AsJson, app
from tunewright.cli._console import out, say, show
from tunewright.cli._progress import counted
from tunewright.cli._scores import INTERVALS, before_after
from tunewright.cli.train import watched

if TYPE_CHECKING:
    from tunewright.folder import Run


@app.command()
def quickstart(
    output: Annotated[str | None, typer.Option(help="Folder of the run; else runs/quickstart.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Teach the packaged tiny language model to answer for a tea shop instead.")
    ] = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Tune a small packaged model on example rows: offline, in about a minute."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: base and rows are in the packages
    return _tea_shop(output, as_json) if chat else _tickets(output, as_json)


def _tickets(output: str | None, as_json: bool) -> dict[str, Any]:
    from tunewright import example

    folder = Path(output) if output else example.free_folder()
    say("Teaching a small encoder (MiniLM) to sort support tickets, with LoRA.")
    run = watched(folder, lambda watcher: example.quickstart(str(folder), [watcher]))
    if not as_json:
        _show(run, run.info, example.first_ticket(run.info))
    return {"accuracy": example.accuracies(run.info), **_outcome(run)}


def _tea_shop(output: str | None, as_json: bool) -> dict[str, Any]:
    from tunewright import example

    folder = Path(output) if output else example.free_folder("quickstart-chat")
    say("Teaching a tiny language model to answer for a tea shop, with LoRA.")
    run = watched(folder, lambda watcher: example.quickstart_chat(str(folder), [watcher]))
    answers = example.first_answers(run.info)
    if not as_json:
        _show_answers(run, run.info, answers)
    metrics = {name: example.accuracies(run.info, name) for name in ("exact_match", "loss")}
    return {**metrics, "answers": answers, **_outcome(run)}


def _outcome(run: Run) -> dict[str, Any]:
    parameters = run.info["parameters"]
    return {
        "trained": parameters["trained"],
        "total": parameters["total"],
        "report": str(run.report),
        "run": str(run.folder),
    }


def _show(run: Run, info: Mapping[str, Any], row: Mapping[str, str]) -> None:
    show()
    show(f"Trained {counted(info['parameters'])} in {info['timings']['seconds']:.0f} s.")
    out().print(before_after(info, primary_only=True))
    show(f"{INTERVALS} Before, the model's head is new and its answers are guesses.")
    show("The shifted rows are tickets in hasty and broken English; none were trained on.")
    show()
    show(f'A test ticket:  "{row["text"]}"')
    show(f"  before: {row['before']}   after: {row['after']}   right: {row['label']}")
    show()
    show(f"Report: {run.report}")
    show(f'Next:   tunewright predict {run.folder} "I was charged twice this month"')
    show("        tunewright train --base MODEL --data YOUR_ROWS.jsonl --method lora")


def _show_answers(run: Run, info: Mapping[str, Any], answers: Sequence[Mapping[str, str]]) -> None:
    show()
    show(f"Trained {counted(info['parameters'])} in {info['timings']['seconds']:.0f} s.")
    out().print(before_after(info))
    show(f"{INTERVALS} It was trained on other wordings of the test questions.")
    for one in answers:
        show()
        show(one["question"])
        show(f"  before: {one['before']}")
        show(f"  after:  {one['after']}")
        show(f"  right:  {one['right']}")
    show()
    show(f"Report: {run.report}")
    show(f'Next:   tunewright chat {run.folder} "When do you open?"')
    show("        tunewright train --base tiny --data YOUR_CHATS.jsonl")
