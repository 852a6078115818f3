"""`compare`: is one model better than another, and where is it worse?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tunewright.cli._app import AsJson, Device, app, named_as_options
from tunewright.cli._console import out, say, show, table
from tunewright.cli.use import pairs
from tunewright.errors import counted

Document = dict[str, Any]


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, model folder, hub name, or RUN@0.5: a point at α.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The candidate: is B better than A?")],
    data: Annotated[str | None, typer.Option(help="Rows; by default the test sets that the runs share.")] = None,
    slice: Annotated[
        list[str] | None,
        typer.Option(metavar="column=NAME|NAME=REGEX", help="Rows to look at apart: by a column, or by their text."),
    ] = None,
    to: Annotated[str | None, typer.Option(metavar="FILE", help="Write it as a page, such as compare.html.")] = None,
    require: Annotated[
        str | None, typer.Option(help="better or not-worse: exit with 3 where B is not, for a gate.")
    ] = None,
    general: Annotated[
        str | None, typer.Option(help="Text of all kinds: what has a language model forgotten of it?")
    ] = None,
    forgetting: Annotated[
        bool, typer.Option("--forgetting", help="Have the base answer the prompts: what is lost of its answers?")
    ] = False,
    samples: Annotated[int, typer.Option(min=0, help="Rows to show that flipped, each way.")] = 5,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="Where --data names its columns otherwise."),
    ] = None,
    format: Annotated[str, typer.Option(help="What a row of --data looks like; auto: by its columns.")] = "auto",
    overlength: Annotated[
        str, typer.Option(help="For rows of --data that are too long: fail, truncate, drop or split.")
    ] = "auto",
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longest row of --data, in tokens; none: the models' own.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> Document:
    """Compare two models on the same rows: better, worse, or cannot tell; and where."""
    from tunewright import comparison

    with named_as_options("format", "overlength", "max_length"):
        found = comparison.compare(
            a,
            b,
            data,
            slices=slice or [],
            to=to,
            require=require,
            general=general,
            forgetting=forgetting,
            samples=samples,
            columns=pairs(columns or [], "--columns"),
            format=format,
            overlength=overlength,
            max_length=max_length,
            device=device,
        )
    if not as_json:
        _show(found)
    return found


def _show(found: Mapping[str, Any]) -> None:
    from tunewright.evaluation.contrast import figures

    show(f"A  {found['a']}")
    show(f"B  {found['b']}")
    show()
    rows = [(name, *figures(one)) for name, one in found["sets"].items()]
    out().print(table(("Set", "Rows", "Metric", "A", "B", "B − A", ""), rows, fixed=("A", "B")))
    show("In brackets: 95 % intervals of the difference, paired by row.", style="dim")
    if found["forgetting"]:
        show()
        rows = [(name, *figures(one)) for name, one in found["forgetting"].items()]
        titles = ("Forgetting", "Rows", "Metric", "A", "B", "B − A", "")
        out().print(table(titles, rows, fixed=("Metric", "A", "B")))
    for name, one in found["sets"].items():
        _show_parts(name, one)
        _show_calibration(name, one)
        _show_flipped(name, one)
    show()
    out().print(found["verdict"], style="bold")
    for each in found["worse"]:
        out().print(f"Worse: {each}")
    for note in found["notes"]:
        say(f"Note: {note}")
    if "page" in found:
        show()
        show(f"Page  {found['page']}")
    if "met" in found:
        say(f"Required: {found['require']}. {'Met.' if found['met'] else 'Not met.'}")


def _show_parts(name: str, one: Mapping[str, Any]) -> None:
    from tunewright.evaluation.contrast import figures

    for title, parts in (("Class", one["classes"]), ("Slice", one["slices"])):
        if parts:
            show()
            rows = [(label, *figures(part)) for label, part in parts.items()]
            titles = (f"{title} of {name}", "Rows", "Metric", "A", "B", "B − A", "")
            out().print(table(titles, rows, clip=titles[:1], fixed=("Metric", "A", "B")))


def _show_calibration(name: str, one: Mapping[str, Any]) -> None:
    from tunewright.evaluation.contrast import calibration_figures

    if one["calibration"]:
        a, b, changed = calibration_figures(one["calibration"])
        show()
        show(f"Calibration error on {name}: A {a}, B {b}")
        show(f"  B − A: {changed}")


def _show_flipped(name: str, one: Mapping[str, Any]) -> None:
    from tunewright.evaluation.formats import row_name

    for way in ("worse", "better"):
        flipped = one["flipped"][way]
        if flipped["shown"]:
            show()
            how_many = counted(flipped["rows"], "row is", "rows are")
            show(f"{name}: {how_many} {way} with B, the first {len(flipped['shown'])}")
            rows = [
                (row_name(row["source"]), row["input"], row["reference"] or "", row["a"], row["b"])
                for row in flipped["shown"]
            ]
            titles = ("Row", "Text", "Right", "A", "B")
            out().print(table(titles, rows, clip=titles))
