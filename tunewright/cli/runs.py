"""`runs`, `show` and `relocate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli._app import AsJson, app
from tunewright.cli._console import out, show, table
from tunewright.cli._progress import rows_used, say_trained
from tunewright.cli._scores import INTERVALS, of_stages, primary, show_places, show_result
from tunewright.errors import counted

if TYPE_CHECKING:
    from tunewright.folder import Run

Document = dict[str, Any]


@app.command()
def runs(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where to look.")] = "runs",
    as_json: AsJson = False,
) -> Document:
    """List the runs and chains in a folder, newest first."""
    from tunewright.folder import list_runs
    from tunewright.launch.stages import list_chains

    found = [*map(_line, list_runs(Path(folder))), *map(_chain_line, list_chains(Path(folder)))]
    found.sort(key=lambda line: line["started"] or "", reverse=True)
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


def _chain_line(folder: Path) -> Document:
    """A chain as `_line` tells a run: by its last stage, and since its first."""
    from tunewright.launch.stages import read_chain, stage_runs, status_of

    runs, stages = stage_runs(folder), list(read_chain(folder).stages)
    lines = [_line(run) for run in runs.values()]
    last = lines[-1] if lines else dict.fromkeys(("task", "base", "started", "finished", "method"))
    done = len(runs) == len(stages)
    return {
        **last,
        "run": str(folder),
        "status": status_of(folder),
        "started": lines[0]["started"] if lines else None,
        "result": last["result"] if done else "",
        "stages": stages,
    }


def _show_runs(found: list[Document], folder: str) -> None:
    from tunewright.evaluation.formats import moment

    if not found:
        show(f"There are no runs in {folder}.")
        return
    how = [f"{len(f['stages'])} stages" if "stages" in f else f["method"] for f in found]
    rows = [
        (Path(f["run"]).name, f["status"], method, f["result"], moment(f["started"]))
        for f, method in zip(found, how, strict=True)
    ]
    titles = ("Run", "Status", "Method", "Result", "Started (UTC)")
    out().print(table(titles, rows, clip=titles))


@app.command("show")
def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.")], as_json: AsJson = False
) -> Document:
    """Say what a run trained, on what, and with which result; of a chain, of each of its stages."""
    from tunewright.folder import open_run
    from tunewright.launch.stages import is_chain

    if is_chain(Path(run)):
        return _show_chain(Path(run), as_json)
    opened = open_run(run)
    info = opened.info
    if not as_json:
        (_show_seeds if info.get("seeds") else _show_info)(opened, info)
    return {"run": str(opened.folder), "report": _written(opened.report), "info": info}


def _show_chain(folder: Path, as_json: bool) -> Document:
    from tunewright.evaluation.formats import moment
    from tunewright.launch.stages import read_chain, stage_runs, status_of

    runs, stages, status = stage_runs(folder), read_chain(folder).stages, status_of(folder)
    last = list(runs.values())[-1] if runs else None
    if not as_json:
        show(f"{counted(len(stages), 'stage')}: {status}")
        lines = {name: _line(run) for name, run in runs.items()}
        titles = ("Stage", "Status", "Method", "Result", "Started (UTC)")
        rows = [
            (name, one["status"], one["method"], one["result"], moment(one["started"]))
            if (one := lines.get(name))
            else (name, "not begun", recipe.method.type, "", "")
            for name, recipe in stages.items()
        ]
        out().print(table(titles, rows, clip=titles))
        if any(run.info.get("error") for run in runs.values()):
            show(f"Error: {next(run.info['error'] for run in runs.values() if run.info.get('error'))}")
        if runs:
            show()
            out().print(of_stages({name: run.info for name, run in runs.items()}))
            show(INTERVALS, style="dim")
        show_places("Chain", folder, status, last.report if last else None)
    return {
        "run": str(folder),
        "status": status,
        "report": _written(last.report) if last else None,
        "stages": {name: runs[name].info if name in runs else None for name in stages},
    }


def _written(report: Path) -> str | None:
    """A report by its name, once it is there."""
    return str(report) if report.is_file() else None


def _show_seeds(run: Run, info: Mapping[str, Any]) -> None:
    from tunewright.evaluation.formats import moment

    show(f"{info['task']} with {_options(info['method'])} on {info['base']}, {len(info['seeds'])} seeds")
    show(f"{run.status}: {moment(info['started'])} UTC")
    for one in run.runs:
        show(f"{one.folder}: {one.status}  {primary(one.info)}")
    if info.get("error"):
        show(f"Error: {info['error']}")
    show_result(run)


def _show_info(run: Run, info: Mapping[str, Any]) -> None:
    from tunewright.evaluation.formats import duration, moment

    say_trained(info["parameters"], f"{info['task']} with {_options(info['method'])} on {info['base']}", out())
    for name, found in info["data"].items():
        tokens = f", {counted(found['tokens'], 'token')}" if "tokens" in found else ""
        sizes = f"{_rows(found)}{tokens}"
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
    show_result(run)


def _rows(found: Mapping[str, Any]) -> str:
    """How many rows of a set are used, and of how many that were read: the tokens are those of the first."""
    read, used = found["rows"] + found.get("bad_rows", 0), rows_used(found)
    return counted(read, "row") if used == read else f"{used:,} of {counted(read, 'row')}"


def _options(method: Mapping[str, Any]) -> str:
    shown = ", ".join(
        f"{key} {value}" for key, value in method.items() if key in ("rank", "alpha", "last", "first", "width")
    )
    return f"{method['type']} ({shown})" if shown else str(method["type"])


@app.command()
def relocate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run, or of an adapter.")],
    base: Annotated[str, typer.Option(help="Where its base is now: a folder, or the run that it began from.")],
    as_json: AsJson = False,
) -> Document:
    """Say where the base of a run is now. Its weights must be those that the run began with."""
    from tunewright.relocation import relocate as work

    folder = work(run, base)
    if not as_json:
        show(f"{folder} names {base} as its base from now on.")
    return {"run": str(folder), "base": base}
