"""`interpolate` and `soup`: models between and among those that were trained."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli._app import AsJson, Device, app
from tunewright.cli._console import out, show, table
from tunewright.cli._progress import now_and_then
from tunewright.cli._scores import INTERVALS, measured
from tunewright.cli.use import pairs

if TYPE_CHECKING:
    from tunewright.evaluation.robustness import Line

Document = dict[str, Any]
CHOSEN, ORACLE = "*", "†"
MOST_SHIFTS = 2
"""More shifts than this have no room in 80 characters: their mean and the worst of them stand for them."""


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
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="Where the files of --shift name their columns otherwise."),
    ] = None,
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
        columns=pairs(columns or [], "--columns"),
        device=device,
        watch=now_and_then(lambda count, of: f"Measured {count} of {of} points."),
    )
    if not as_json:
        _show_curve(run, found)
    return found


def _show_curve(run: str, found: Mapping[str, Any]) -> None:
    from tunewright.evaluation.robustness import lines, sentence
    from tunewright.evaluation.scores import Metric

    few = len(found["shifts"]) <= MOST_SHIFTS
    far = [measured("kl", Metric.from_dict(one)) for one in found.get("kl", ())]
    titles = ("α", found["reference"], *(found["shifts"] if few else ("mean shift", "worst shift")))
    rows = [(_marked(found, line.name), *_figures(found, line, few)) for line in lines(found)]
    if far:  # of a policy, at every α, not of the baselines behind them
        titles = (*titles, "KL from the start")
        kl = [one.replace(" [", "\n[") if len(titles) > MOST_SHIFTS + 1 else one for one in far]
        rows = [(*row, one) for row, one in zip_longest(rows, kl, fillvalue="")]
    out().print(table(titles, rows, fixed=titles[:1]))
    show(f"{INTERVALS} α = 0 is the {found['start_is']}, α = 1 the tuned model.", style="dim")
    show(f"{CHOSEN} chosen, on validation rows; {ORACLE} oracle: the best on the test rows.", style="dim")
    for line in lines(found):
        if line.name in found["baselines"] and line.role:
            show(f"{line.name}: {line.role}", style="dim")
    show()
    show(sentence(found))
    show(f"Picture  {run}/interpolation.svg")
    show(f"Report   {run}/report.html{'' if few else ', with each of the shifts'}")
    if "folder" in found:
        show(f"Written  {found['folder']}")


def _marked(found: Mapping[str, Any], name: str) -> str:
    """`0.4 *`: a point with its marks."""
    marks = {CHOSEN: found["chosen"]["alpha"], ORACLE: found["oracle"]}
    told = "".join(mark for mark, alpha in marks.items() if alpha is not None and name == f"{alpha:g}")
    return f"{name} {told}".rstrip()


def _figures(found: Mapping[str, Any], line: Line, few: bool) -> list[str]:
    """The cells of a line, with intervals below where there are three of them."""
    metric = found["metric"]
    if few:
        shown = [measured(metric, figure) for figure in line.sets.values()]
    else:
        assert line.worst is not None
        name, figure = line.worst
        value, *interval = measured(metric, figure).split(" [")
        worst = " [".join((f"{value} {name}", *interval))
        shown = [measured(metric, line.sets[found["reference"]]), measured(metric, line.mean), worst]
    return [cell.replace(" [", "\n[") for cell in shown] if len(shown) > MOST_SHIFTS else shown


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
