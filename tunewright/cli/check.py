"""`check`: what a recipe would do and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from tunewright.cli._app import AsJson, app
from tunewright.cli._console import out, printable, show, table
from tunewright.cli._progress import say_trained
from tunewright.cli.train import Base, RecipeArguments, Weights, compose, each_stage
from tunewright.errors import counted

Document = dict[str, Any]
SHOWN = 600  # characters of a row
TRAINED = "bold green"


@app.command()
def check(
    arguments: RecipeArguments = None,
    base: Base = None,
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Training rows: file, folder or hub name.")] = None,
    method: Annotated[str | None, typer.Option(help="Which parameters train.")] = None,
    as_json: AsJson = False,
) -> Document:
    """Check a recipe and its rows, and foresee time and memory from a few steps. Trains nothing, leaves nothing."""
    document = compose(arguments or [], {"base": base, "weights": weights, "data.train": data, "method": method})
    from tunewright.rehearsal import check as find_out

    found = find_out(document)
    if not as_json:
        each_stage(found, _show)
    return found


def _show(found: Document) -> None:
    from tunewright.evaluation.formats import number

    say_trained(found["parameters"], f"{found['task']} with {found['method']} on {found['base']}", out())
    for notice in found["notices"]:
        show(f"Note: {notice}")
    show()
    named = {"rows": "Rows", "tokens": "Tokens", "trained_tokens": "Trained", "median": "Median", "longest": "Longest"}
    keys = [key for key in named if all(key in facts for facts in found["data"].values())]
    rows = [(name, *(number(facts[key]) for key in keys)) for name, facts in found["data"].items()]
    out().print(table(("Set", *(named[key] for key in keys)), rows, clip=("Set",)))
    for line in _repeated(found["repeats"], found["data"]["train"]["kind"]):
        out().print(line)
    show()
    for row in found["preview"]:
        _show_row(row)
    _show_forecast(found)


def _repeated(found: Document, kind: str) -> Iterator[str]:
    """What stands twice, in a line each."""
    exactly, what = ("byte for byte", "image") if kind in ("image", "captioned_image") else ("word for word", "text")
    kinds = {
        f"stand in the training rows before, {exactly}": found["duplicates"]["exact"],
        f"are nearly like an earlier training row{_mirrored(found['duplicates']['near'])}": found["duplicates"]["near"],
        f"have the {what} of an earlier training row, and another label": found["contradictions"],
    }
    lines = [f"train: {_counted(one)} {said}{_first(one)}" for said, one in kinds.items() if one["count"]]
    for name, leaks in found["leaks"].items():
        if leaks["exact"]["count"]:
            lines.append(f"{name}: {_counted(leaks['exact'])} are trained on, {exactly}{_first(leaks['exact'])}")
        if leaks["near"]["count"]:
            near = leaks["near"]
            lines.append(f"{name}: {_counted(near)} are nearly like a training row{_mirrored(near)}{_first(near)}")
    yield from lines or ["No row stands twice, and none that is measured on is trained on."]
    if found["sampled"]:
        yield "Nearly equal rows were looked for among 20,000 rows of each set."


def _counted(repeats: Mapping[str, Any]) -> str:
    return f"{repeats['count']:,} of {repeats['rows']:,} rows"


def _mirrored(repeats: Mapping[str, Any]) -> str:
    return f", {repeats['mirrored']:,} of them mirrored" if repeats.get("mirrored") else ""


def _first(repeats: Mapping[str, Any]) -> str:
    from tunewright.evaluation.formats import row_name

    one, other, alike = repeats["pairs"][0]
    return f" ({row_name(one)} and {row_name(other)}{f', {alike:.0%} alike' if alike < 1 else ''})"


def _show_row(row: Mapping[str, Any]) -> None:
    """A row as the model sees it; what trains is coloured, and stands in ⟦ ⟧ where there is no colour."""
    from rich.text import Text

    from tunewright.evaluation.formats import row_name

    console = out()
    text = Text(f"{row_name(row['source'])}  ", style="dim")
    room = SHOWN
    for piece, weight in row["pieces"]:
        shown = printable(piece[:room])
        room -= len(shown)
        marked = shown if console.color_system or not weight else f"⟦{shown}⟧"
        text.append(marked, style=TRAINED if weight else "default")
    text.append(" …" if room <= 0 else "")
    console.print(text)


def _show_forecast(found: Document) -> None:
    from tunewright.evaluation.formats import duration, percent, size

    cost = found["forecast"]
    show()
    if "time" in cost:
        time = cost["time"]
        phases = sorted(time["phases"].items(), key=lambda pair: -pair[1])
        longest = ", ".join(f"{name} {duration(seconds)}" for name, seconds in phases[:3])
        spent = f"{duration(time['seconds'])} ± {percent(time['error'], 0)}"
        show(f"Time    {spent} for {counted(found['steps'], 'step')}, after loading")
        show(f"        ({longest})")
    memory = cost["memory"]
    peak = (
        f"{size(memory['peak'])} ± {percent(memory['error'], 0)}"
        if "error" in memory
        else f"over {size(memory['peak'])}"
    )
    show(f"Memory  {peak} of {size(memory['available'])} that are free")
    if "disk" in cost:
        show(f"Disk    {size(cost['disk']['needed'])} of {size(cost['disk']['free'])} that are free")
    show()
    _show_verdict(found["advice"])


def _show_verdict(advice: Sequence[str]) -> None:
    if not advice:
        show("It fits.")
        return
    show("It does not fit. What would help:", style="red")
    for line in advice:
        out().print(f"- {line}")
