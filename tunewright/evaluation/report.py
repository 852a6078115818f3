"""`report.html`: one page that says whether the tuned model is better, and everything that a reader may ask next.

The page holds all that it shows: no script, no image, no font, no address from which anything is loaded. It is made
from the run's own files and from nothing else, in whatever state they are. What they hold is not trusted: rows of data,
model output and names are escaped, and the page forbids scripts and requests besides.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tunewright.errors import OutputError
from tunewright.evaluation import charts, curves, formats, gallery, sections, seeds, stages
from tunewright.evaluation.loading import snippets
from tunewright.evaluation.rules import table
from tunewright.evaluation.verdict import comparisons, verdict
from tunewright.methods import METHODS
from tunewright.objectives import OBJECTIVES

REPORT = "report.html"


@dataclass(frozen=True)
class RunFiles:
    """What a run has written so far; empty where a file is missing. `unread` names the files that cannot be read."""

    folder: Path
    run: dict[str, Any]
    steps: list[dict[str, Any]]
    timings: list[dict[str, Any]]
    recipe: str
    unread: tuple[str, ...]


def write_report(run_folder: Path) -> Path:
    """Write `RUN/report.html` from `RUN/run.json`, `metrics.jsonl`, `timings.jsonl` and `recipe.yaml`.

    Works at any time: for a run that is under way, has failed, was stopped, or has written nothing yet.

    Returns:
        The path of the page. An older page is replaced in one step, so a reader never sees half of one.

    Raises:
        OutputError: `run_folder` is not a folder, or the page cannot be written.
    """
    if not run_folder.is_dir():
        raise OutputError(f"there is no run folder {run_folder}; give the folder that a run has written")
    return write_page(render(read_run(run_folder)), run_folder / REPORT)


def write_page(page: str, path: Path) -> Path:
    """Write a page, or replace it in one step. Raises OutputError where it cannot be written."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error}; free space or make the folder writable") from error
    return path


def read_run(folder: Path) -> RunFiles:
    run = _read_json(folder / "run.json")
    return RunFiles(
        folder,
        run or {},
        [row for row in _read_lines(folder / "metrics.jsonl") if isinstance(row.get("step"), int)],
        list(_read_lines(folder / "timings.jsonl")),
        _read_text(folder / "recipe.yaml"),
        ("run.json",) if run is None and (folder / "run.json").exists() else (),
    )


def render(files: RunFiles) -> str:
    """The page as text."""
    if files.run.get("seeds"):
        return fill("seeds.html.jinja", _context_of_seeds(files))
    return fill("report.html.jinja", _context(files))


def fill(template: str, context: dict[str, Any]) -> str:
    """A template beside this file, with its gaps filled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = ("number", "percent", "duration", "moment", "spoken", "unbroken")
    environment.filters.update({name: getattr(formats, name) for name in filters})
    return environment.get_template(template).render({"drawing": charts, **context})


def _context(files: RunFiles) -> dict[str, Any]:
    run, sets = files.run, comparisons(files.run)
    pictures = gallery.cards(_read_json(files.folder / gallery.PICTURES))
    prompts = _read_texts(files.folder / "samples" / "prompts.json")
    last_step = max((row["step"] for row in files.steps), default=None)
    main_curves, more_curves = curves.curves(files.steps, sets)
    return {
        "run": run,
        "name": run.get("name") or files.folder.resolve().name,
        "unread": files.unread,
        "last_step": last_step,
        "verdict": verdict(run, last_step),
        "evaluation": [sections.evaluation_table(compared) for compared in sets],
        "main_curves": main_curves,
        "more_curves": more_curves,
        "confusions": sections.confusions(sets),
        "pictures": pictures,
        "drawn": sections.drawn(prompts, files.folder / "samples"),
        "answers": curves.drawn_answers(files.steps),
        "samples": [] if pictures else sections.samples(run),
        "parameters": run.get("parameters") or {},
        "saved_as": sections.saved_as(run),
        "method": sections.chosen(run, "method", METHODS),
        "objective": sections.chosen(run, "objective", OBJECTIVES),
        "data": sections.data_table(run.get("data") or {}),
        "stages": _stages(files.folder),
        "rules": table(_read_json(files.folder / "labeling.json")),
        "previews": sections.previews(run),
        "recipe": files.recipe,
        "robustness": sections.robustness(_read_json(files.folder / "interpolation.json"), files.folder),
        "snippets": snippets(run, files.folder, *prompts[:1]),
        "versions": sections.settings(run.get("versions")),
        "machine": sections.settings(run.get("machine")),
        "timings": run.get("timings") or {},
        "speed": sections.speed(files.timings, run.get("data") or {}),
    }


def _context_of_seeds(files: RunFiles) -> dict[str, Any]:
    """The report over the runs of several seeds: each has a report of its own."""
    run = files.run
    folders = {seed: seeds.seed_folder(seed) for seed in run["seeds"]}
    statuses = {
        seed: (_read_json(files.folder / name / "run.json") or {}).get("status") for seed, name in folders.items()
    }
    return {
        "run": run,
        "name": run.get("name") or files.folder.resolve().name,
        "sentence": seeds.in_words(run),
        "rows": list(seeds.table(run)),
        "stages": _stages(files.folder),
        "measured": [seed for one in list((run.get("over_seeds") or {}).values())[:1] for seed in one["seeds"]],
        "runs": [(seed, name, statuses[seed]) for seed, name in folders.items()],
        "method": sections.settings(run.get("method")),
        "versions": sections.settings(run.get("versions")),
        "machine": sections.settings(run.get("machine")),
        "recipe": files.recipe,
        "timings": run.get("timings") or {},
    }


def _stages(folder: Path) -> list[tuple[str, str, str, str]]:
    return list(stages.rows(_read_json(folder / stages.STAGES) or {}))


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no JSON object: the file is missing, or somebody has broken it."""
    try:
        found = json.loads(_read_text(path))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _read_texts(path: Path) -> list[str]:
    """A list of texts; none where there is no such file, or somebody has broken it."""
    try:
        found = json.loads(_read_text(path))
    except ValueError:
        return []
    return [str(text) for text in found] if isinstance(found, list) else []


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file. The last line of a run that is under way, or was killed, may be half written."""
    for line in _read_text(path).splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
