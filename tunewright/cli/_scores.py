"""Scores as tables: before beside after, or alone."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tunewright.cli._console import out, say, show, table, width_of

if TYPE_CHECKING:
    from tunewright.folder import Run

BROKEN_OFF = ("killed", "stopped", "failed")
DRAWN = 3
INTERVALS = "In brackets: 95 % intervals."


def how_to_resume(folder: Path) -> str:
    return f"tunewright resume {shlex.quote(str(folder))}"


def show_result(run: Run) -> None:
    """How a run ended: what was measured before and after, and where things are."""
    from tunewright.account import NOTHING

    info = run.info
    if info.get("over_seeds"):
        show()
        out().print(all_seeds(info))
        show("Mean ± standard deviation over the seeds.", style="dim")
    if info.get("evaluation"):
        show()
        out().print(before_after(info))
        show(INTERVALS, style="dim")
        _say_notes(info)
        _show_drawn(info)
    for notice in info.get("notices") or ():
        if notice.startswith(NOTHING):  # which nobody could say before
            say(f"Note: {notice}")
    show_places("Run", run.folder, run.status, run.report)


def show_places(what: str, folder: Path, status: str, report: Path | None) -> None:
    """Where a run or chain is, its report where one is written, and how to go on with what was broken off."""
    show()
    show(f"{what:<8} {folder}")
    if report and report.is_file():
        show(f"Report   {report}")
    if status in BROKEN_OFF:
        show(f"Go on    {how_to_resume(folder)}")


def before_after(info: Mapping[str, Any], primary_only: bool = False) -> Table:
    """A row for each evaluation set and metric."""
    from tunewright.evaluation.formats import metric_name
    from tunewright.evaluation.verdict import comparisons

    rows = []
    for compared in comparisons(info):
        scores = compared.after or compared.before
        names = [compared.metric] if primary_only else list(scores.metrics) if scores else []
        for name in names:
            before, after = (measured(name, compared.of(s, name)) for s in (compared.before, compared.after))
            change = compared.change(name) if compared.before and compared.after else ""
            rows.append((compared.name if name == names[0] else "", metric_name(name), before, after, str(change)))
    return _spacious(("Set", "Metric", "Before", "After", "Change"), rows, fixed=("Before", "After", "Change"))


def _spacious(titles: Sequence[str], rows: Sequence[Sequence[str]], fixed: Sequence[str]) -> Table:
    """A table of figures, with the intervals below their values where there is no room for them beside."""

    def made(rows: Sequence[Sequence[str]]) -> Table:
        return table(titles, rows, clip=("Set",), fixed=fixed)

    if width_of(made(rows)) <= out().width:
        return made(rows)
    return made([[row[0], row[1], *(cell.replace(" [", "\n[") for cell in row[2:])] for row in rows])


def of_stages(infos: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row for each stage of a chain and each set: the figure that answers whether it is better."""
    from tunewright.evaluation.stages import rows

    return table(("Stage", "Set", "Metric", "After"), rows(infos), clip=("Stage", "Set"), fixed=("After",))


def all_seeds(info: Mapping[str, Any]) -> Table:
    """A row for each evaluation set and metric, over the runs of several seeds."""
    from tunewright.evaluation.seeds import table as rows_of

    rows = [(name, metric, before, after, ", ".join(values)) for name, metric, before, after, values in rows_of(info)]
    return table(("Set", "Metric", "Before", "After", "Each seed"), rows, clip=("Set",), fixed=("Before", "After"))


def alone(scores: Mapping[str, Any]) -> Table:
    """A row for each metric of one evaluation."""
    from tunewright.evaluation.formats import metric_name, number
    from tunewright.evaluation.scores import Scores

    found = Scores.from_dict(scores).metrics
    rows = [(metric_name(name), measured(name, metric), number(metric.n)) for name, metric in found.items()]
    return table(("Metric", "Value", "Rows"), rows, fixed=("Value", "Rows"))


def primary(info: Mapping[str, Any]) -> str:
    """The figure of the first evaluation set that answers "is it good?", in a few characters."""
    from tunewright.evaluation.formats import value_of
    from tunewright.evaluation.seeds import spread_of
    from tunewright.evaluation.verdict import comparisons

    for one in (info.get("over_seeds") or {}).values():
        return f"{one['primary']} {spread_of(one['primary'], one['metrics'][one['primary']]['after'])}"
    for compared in comparisons(info):
        metric = compared.of(compared.after, compared.metric)
        if metric and metric.is_defined:
            return f"{compared.metric} {value_of(compared.metric, metric.value)}"
    return ""


def measured(name: str, metric: Any) -> str:
    """`91.0 % [86.2–94.2]`."""
    from tunewright.evaluation.formats import with_interval

    return with_interval(name, metric)


def _show_drawn(info: Mapping[str, Any]) -> None:
    """A few of the answers that a policy drew before and after."""
    samples = [
        one for found in info["evaluation"].values() for one in found.get("samples", []) if "reward_after" in one
    ]
    if samples:
        rows = [(one["input"], one.get("before", ""), one["after"]) for one in samples[:DRAWN]]
        show()
        out().print(table(("Prompt", "Before", "After"), rows, clip=("Prompt", "Before", "After")))


def _say_notes(info: Mapping[str, Any]) -> None:
    for name, measured_set in info["evaluation"].items():
        for note in measured_set.get("after", {}).get("notes", ()):
            say(f"{name}: {note}")
