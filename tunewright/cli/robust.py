"""`interpolate` and `soup`: models between and among those that were trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tunewright.cli._app import AsJson, Device, app
from tunewright.cli._console import out, show, table
from tunewright.cli._scores import INTERVALS, measured
from tunewright.cli.use import pairs

Document = dict[str, Any]
ABREAST, MOST_FIXED = (
    3,
    5,
)  # columns from which on intervals stand below, and up to which those have room in 80 characters


@app.command()
def interpolate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run.")],
    shift: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Rows of another kind; the run's further test sets are shifts anyway."),
    ] = None,
    alphas: Annotated[str, typer.Option(help="Points: first:last:step, or numbers with commas.")] = "0:1:0.1",
    choose: Annotated[str, typer.Option(help="balanced, reference, or a number.")] = "balanced",
    to: Annotated[str | None, typer.Option(metavar="DIR", help="New folder for the model at the chosen α.")] = None,
    batch_norm: Annotated[
        str, typer.Option(help="Statistics between the ends: interpolate, or recompute on training rows.")
    ] = "interpolate",
    device: Device = "auto",
    as_json: AsJson = False,
) -> Document:
    """Measure a run between its start (α = 0) and its end (α = 1), and choose the best point (WiSE-FT)."""
    from tunewright import robust

    found = robust.interpolate(
        run,
        shifts=pairs(shift or [], "--shift"),
        alphas=alphas,
        choose=choose,
        to=to,
        batch_norm=batch_norm,
        device=device,
    )
    if not as_json:
        _show_curve(run, found)
    return found


def _show_curve(run: str, found: Mapping[str, Any]) -> None:
    from tunewright.evaluation.robustness import sentence
    from tunewright.evaluation.robustness import table as curve_table

    columns, points = curve_table(found)
    figure = measured if len(columns) < ABREAST else _below
    rows = [(name, *(figure(found["metric"], m) for m in figures), role) for name, figures, role in points]
    out().print(table(("α", *columns, ""), rows, fixed=columns if len(columns) <= MOST_FIXED else ()))
    show(f"{INTERVALS} α was chosen on validation rows; the oracle knew the test rows.", style="dim")
    show()
    show(sentence(found))
    show(f"Picture  {run}/interpolation.svg")
    if "folder" in found:
        show(f"Written  {found['folder']}")


def _below(name: str, metric: Any) -> str:
    """A figure with its interval below it, for tables of many columns."""
    return measured(name, metric).replace(" [", "\n[")


@app.command()
def soup(
    runs: Annotated[list[str], typer.Argument(metavar="RUN …", help="Runs that began alike.")],
    to: Annotated[str, typer.Option(metavar="DIR", help="New folder for the mean of their weights.")],
    as_json: AsJson = False,
) -> Document:
    """Average several runs of one start into one model (model soups)."""
    from tunewright import robust

    folder = robust.soup(runs, to)
    if not as_json:
        show(f"Written to {folder}")
    return {"folder": str(folder), "runs": list(runs)}
