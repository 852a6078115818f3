"""`label`: weak supervision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tunewright.cli._app import AsJson, Device, app
from tunewright.cli._console import one_line, out, say, show, table
from tunewright.cli._progress import now_and_then
from tunewright.errors import counted

Document = dict[str, Any]
MOST_RULES = 30  # in a terminal; --json has them all


@app.command()
def label(
    rules: Annotated[
        str, typer.Argument(metavar="RULES", help="Rules: a JSONL file, or a Python file of functions, which is run.")
    ],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What data.labeling has: model=majority.")
    ] = None,
    data: Annotated[str, typer.Option(help="The rows to label: file, folder or hub name.")] = "",
    to: Annotated[str | None, typer.Option(metavar="FILE", help="New JSONL file for the labelled rows.")] = None,
    gold: Annotated[str, typer.Option(help="Column of true labels, if rows have one: only counted.")] = "label",
    device: Device = "auto",
    as_json: AsJson = False,
) -> Document:
    """Label rows by rules that vote, and say how far each can be trusted. Without --to nothing is written."""
    from tunewright.labeling import label as work
    from tunewright.recipe import apply_overrides

    if not data:
        raise typer.BadParameter("name the rows to label", param_hint="--data")
    document: Document = {}
    apply_overrides(document, options or [])
    watch = now_and_then(lambda rows: f"The rules have voted on {counted(rows, 'row')}.")
    found = work(rules, data, to, gold=gold, device=device, watch=watch, **document)
    if not as_json:
        _show(found)
    return found


def _show(found: Mapping[str, Any]) -> None:
    from tunewright.evaluation.rules import never_true, right, sums

    known = any("accuracy" in rule for rule in found["rules"])
    believed = any("believed" in rule for rule in found["rules"])
    titles = ["Rule", "Rows", "Overlap", "Conflict", *["Right"] * known, *["Believed"] * believed]
    reached = sorted((rule for rule in found["rules"] if rule["coverage"]), key=lambda rule: -rule["coverage"])
    rows = [
        (
            rule["rule"],
            *(_percent(rule[key]) for key in ("coverage", "overlap", "conflict")),
            *([right(rule)] if known else []),
            *([_percent(rule.get("believed"))] if believed else []),
        )
        for rule in reached[:MOST_RULES]
    ]
    out().print(table(titles, rows, clip=("Rule",)))
    if len(reached) > MOST_RULES:
        show(f"{len(reached) - MOST_RULES} rules reach fewer rows; --json lists them.", style="dim")
    idle = [rule["rule"] for rule in found["rules"] if not rule["coverage"]]
    if idle:
        more = f" and {len(idle) - 5} more" if len(idle) > 5 else ""
        show(f"{counted(len(idle), 'rule votes', 'rules vote')} on no row: {', '.join(idle[:5])}{more}.")
    show(sums(found))
    frequent = ", ".join(f"{name} {count:,.0f}" for name, count in found["labels"].items())
    show(f"Labels by {found['model']}: {frequent}.")
    for fight in found["fights"][:3]:
        votes = ", ".join(f"{rule}: {label}" for rule, label in fight["votes"].items())
        show(one_line(f"{fight['rows']:,} rows with votes against each other ({votes}), first {fight['first']}"))
    for notice in never_true(found):
        say(f"Note: {notice}")
    for name, failed in found["failed"].items():
        say(f"Note: {name} failed on {counted(failed['count'], 'row')} and abstains there: {failed['first'][0]}")
    if found["unread"]["count"]:
        say(f"Note: {counted(found['unread']['count'], 'row')} cannot be used: {found['unread']['first'][0]}")
    if "to" in found:
        show(f"{found['written']:,} rows are in {found['to']}.")


def _percent(share: float | None) -> str:
    from tunewright.evaluation.formats import ABSENT, percent

    return ABSENT if share is None else percent(share, 1)
