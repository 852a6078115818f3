"""`quickstart`."""

from __future__ import annotations

import os
from collections.abc import Mapping
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
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Tune a small packaged model on example rows: offline, in about a minute."""
    from tunewright import example

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched: base and rows are in the packages
    folder = Path(output) if output else example.free_folder()
    say("Teaching a small encoder (MiniLM) to sort support tickets, with LoRA.")
    run = watched(folder, lambda watcher: example.quickstart(str(folder), [watcher]))
    info = run.info
    if not as_json:
        _show(run, info, example.first_ticket(info))
    return {
        "accuracy": example.accuracies(info),
        "trained": info["parameters"]["trained"],
        "total": info["parameters"]["total"],
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
