"""`runs` and `show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli._app import AsJson, app
from tunewright.cli._console import out, show, table
from tunewright.cli._progress import say_trained
from tunewright.cli._scores import primary, show_result
from tunewright.errors import counted

if TYPE_CHECKING:
    from tunewright.folder import Run

Document = dict[str, Any]


@app.command()
def runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to look.")] = "runs",
    as_json: AsJson = False,
) -> Document:
    """List the runs in a folder, newest first."""
    from tunewright.folder import list_runs

    found = [_line(run) for run in list_runs(Path(folder))]
    if not as_json:
        _show_runs(found, folder)
    return {"runs": found}


def _line(run: Run) -> Document:
    info = run.info
    keys = ("task", "base", "started", "finished")
    return {
        "run": str(run.folder),
        "status": run.status,
        **{key: info.get(key) for key in keys},
        "method": info.get("method", {}).get("type"),
        "result": primary(info),
    }


def _show_runs(found: list[Document], folder: str) -> None:
    from tunewright.evaluation.formats import moment

    if not found:
        show(f"There are no runs in {folder}.")
        return
    rows = [(Path(f["run"]).name, f["status"], f["method"], f["result"], moment(f["started"])) for f in found]
    titles = ("Run", "Status", "Method", "Result", "Started (UTC)")
    out().print(table(titles, rows, clip=titles))


@app.command("show")
def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.")], as_json: AsJson = False
) -> Document:
    """Say what a run trained, on what, and with which result."""
    from tunewright.folder import open_run

    opened = open_run(run)
    info = opened.info
    if not as_json:
        (_show_seeds if info.get("seeds") else _show_info)(opened, info)
    return {"run": str(opened.folder), "report": str(opened.report), "info": info}


def _show_seeds(run: Run, info: Mapping[str, Any]) -> None:
    from tunewright.evaluation.formats import moment

    show(f"{info['task']} with {_options(info['method'])} on {info['base']}, {len(info['seeds'])} seeds")
    show(f"{run.status}: {moment(info['started'])} UTC")
    for one in run.runs:
        show(f"{one.folder}: {one.status}  {primary(one.info)}")
    if info.get("error"):
        show(f"Error: {info['error']}")
    show_result(str(run.folder), info, str(run.report))


def _show_info(run: Run, info: Mapping[str, Any]) -> None:
    from tunewright.evaluation.formats import duration, moment

    say_trained(info["parameters"], f"{info['task']} with {_options(info['method'])} on {info['base']}", out())
    for name, found in info["data"].items():
        tokens = f", {counted(found['tokens'], 'token')}" if "tokens" in found else ""
        sizes = f"{counted(found['rows'], 'row')}{tokens}"
        show(f"{name}: {sizes}, from {found['location']}")
    timing = f", {duration(info['timings']['seconds'])}" if info.get("timings") else ""
    steps = f", {counted(info['steps'], 'step')}" if info.get("steps") else ""
    show(f"{run.status}: {moment(info['started'])} UTC{steps}{timing}")
    if info.get("weights"):
        show(f"Kept: {info['weights']}")
    if info.get("error"):
        show(f"Error: {info['error']}")
    for notice in info["notices"]:
        show(f"Note: {notice}")
    show_result(str(run.folder), info, str(run.report))


def _options(method: Mapping[str, Any]) -> str:
    shown = ", ".join(
        f"{key} {value}" for key, value in method.items() if key in ("rank", "alpha", "last", "first", "width")
    )
    return f"{method['type']} ({shown})" if shown else str(method["type"])
