"""A recipe becomes a run: a folder that says what was trained, on what, with which result, and how to load it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tunewright.artifacts.load import load
from tunewright.artifacts.save import save
from tunewright.engine.device import computing
from tunewright.engine.job import Job, Watcher
from tunewright.engine.loop import Outcome
from tunewright.engine.loop import train as run_loop
from tunewright.engine.processes import Processes, join
from tunewright.engine.track import tracker
from tunewright.errors import DataError, Interrupted, OutputError
from tunewright.evaluation.evaluate import evaluate
from tunewright.evaluation.report import write_report
from tunewright.methods.base import trained_count, trained_groups
from tunewright.prepare import Prepared, describe_data, prepare, preview, write_bad_rows
from tunewright.recipe import Recipe, make_recipe, read_document
from tunewright.tasks.base import Model

INFO, RECIPE, LOCK = "run.json", "recipe.yaml", ".lock"
PACKAGES = ("tunewright", "torch", "transformers", "peft", "tokenizers", "numpy")


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def info(self) -> dict[str, Any]:
        """What run.json says now."""
        return json.loads((self.folder / INFO).read_text(encoding="utf-8"))

    @cached_property
    def model(self) -> Model:
        """The tuned model, loaded from the run's folder when first asked for."""
        return load(self.folder)

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    @property
    def recipe(self) -> Recipe:
        return make_recipe(read_document(self.folder / RECIPE))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A line a step, and a line an evaluation."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def execute(recipe: Recipe, folder: Path, watchers: Sequence[Watcher] = (), resume: bool = False) -> Run:
    """Run a recipe in this process (one of several where torchrun started it), from the start or the last checkpoint.

    Raises:
        TunewrightError: what the user can mend; run.json then says `failed`, and nothing else was begun.
        Interrupted: stopped by the user with a checkpoint; run.json says `stopped`.
    """
    processes = join()
    if processes.first and not resume:
        refuse_used(folder)
    with occupied(folder, processes):
        prepared = _prepare(recipe, folder, processes)
        writer = Writer(folder, processes)
        if not resume:
            writer.begin(prepared)
        try:
            return _train(prepared, writer, watchers, processes, resume)
        except BaseException as error:
            status = "stopped" if isinstance(error, Interrupted) else "failed"
            with suppress(OutputError):  # a full disk takes no last words either
                writer.end(status, str(error) or type(error).__name__)
            if isinstance(error, OSError):
                raise OutputError(f"{folder} cannot be written to: {error}. Mend that and resume.") from error
            raise


def _prepare(recipe: Recipe, folder: Path, processes: Processes) -> Prepared:
    """The first process before the others, which find what it wrote of the start. Leaves nothing behind if it fails."""
    start = folder / "start" / "base"
    if not processes.first:
        processes.wait()
        return prepare(recipe, start, processes.rank)
    try:
        prepared = prepare(recipe, start)
    except BaseException:
        if not (folder / INFO).exists():
            shutil.rmtree(folder)
        raise
    processes.wait()
    return prepared


def _train(prepared: Prepared, writer: Writer, watchers: Sequence[Watcher], processes: Processes, resume: bool) -> Run:
    recipe, folder = prepared.recipe, writer.folder
    began = time.perf_counter(), time.process_time()
    for watcher in watchers if processes.first else ():
        watcher({"started": writer.info})
    if resume:
        _refuse_changes(prepared, writer.info)
    elif recipe.evaluation.before and processes.first:
        writer.update(evaluation=measure(prepared, {}, "before"))
    job = Job(
        prepared.model,
        recipe.method,
        recipe.objective,
        recipe.training,
        prepared.examples("train"),
        prepared.examples("validation"),
        folder,
        prepared.device,
        prepared.precision,
        processes,
        [
            *watchers,
            *(
                tracker(name, folder, recipe.model_dump(mode="json"))
                for name in recipe.training.track
                if processes.first
            ),
        ],
    )
    outcome = run_loop(job, resume)
    if processes.first:
        _finish(prepared, outcome, writer, began)
    return Run(folder)


def _finish(prepared: Prepared, outcome: Outcome, writer: Writer, began: tuple[float, float]) -> None:
    save(prepared.model, prepared.recipe.method, writer.folder / "model")
    writer.update(
        steps=outcome.steps,
        weights=outcome.weights,
        best=outcome.best,
        notices=[*writer.info["notices"], *outcome.notices],
        evaluation=measure(prepared, writer.info.get("evaluation", {}), "after"),
        timings={
            "seconds": round(time.perf_counter() - began[0], 2),
            "cpu_seconds": round(time.process_time() - began[1], 2),
        },
    )
    writer.end("finished")


def measure(prepared: Prepared, found: Mapping[str, Any], when: str) -> dict[str, Any]:
    """Scores and samples of the model as it is now on every evaluation set, beside what was found before."""
    result = {name: dict(values) for name, values in found.items()}
    prepared.model.module.to(prepared.device)
    for name in prepared.evaluation_sets():
        records = prepared.rows.sets()[name].records
        with computing(prepared.precision, prepared.device):
            scores, samples = evaluate(prepared.model, prepared.examples(name), records, prepared.recipe.evaluation)
        entry = result.setdefault(name, {})
        entry[when] = scores.to_dict()
        earlier = {sample["source"]: sample for sample in entry.get("samples", [])}
        entry["samples"] = [{**earlier.get(s["source"], {}), **_as(s, when)} for s in samples]
    return result


def _as(sample: Mapping[str, Any], when: str) -> dict[str, Any]:
    return {**{key: value for key, value in sample.items() if key != "output"}, when: sample["output"]}


class Writer:
    """Keeps run.json, recipe.yaml and the report. Only the first process writes."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder, self.first = folder, processes.first

    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / INFO).read_text(encoding="utf-8"))

    def begin(self, prepared: Prepared) -> None:
        if not self.first:
            return
        recipe, model = prepared.recipe, prepared.model
        trained, total = trained_count(model.module), prepared.total
        (self.folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        write_bad_rows(prepared, self.folder / "bad_rows")
        _write_json(
            self.folder / INFO,
            {
                "name": self.folder.name,
                "status": "running",
                "task": recipe.task,
                "kind": getattr(model.task, "kind", None),
                "labels": getattr(model.task, "labels", None),
                "base": model.base,
                "method": recipe.method.model_dump(mode="json"),
                "objective": recipe.objective.model_dump(mode="json"),
                "started": _now(),
                "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
                "machine": _machine(prepared),
                "parameters": {
                    "total": total,
                    "trained": trained,
                    "share": trained / total,
                    "names": trained_groups(model.module),
                },
                "saved_as": recipe.method.saved_as,
                "notices": prepared.notices,
                "data": describe_data(prepared),
                "preview": preview(prepared),
            },
        )

    def update(self, **values: Any) -> None:
        if self.first:
            _write_json(self.folder / INFO, {**self.info, **values})

    def end(self, status: str, error: str | None = None) -> None:
        """Note how the run ended, and make the report of what there is."""
        if self.first:
            self.update(status=status, finished=_now(), error=error)
            write_report(self.folder)


def refuse_used(folder: Path) -> None:
    """A folder that holds anything is never written over. Raises OutputError."""
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        hint = f" To go on with it: tunewright resume {folder}" if (folder / INFO).is_file() else ""
        raise OutputError(f"{folder} is in use. Name another output folder.{hint}")


@contextmanager
def occupied(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the folder for this run, so that no second one writes into it. Raises OutputError where one does."""
    if not processes.first:
        yield
        return
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("w")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error}") from error
    with handle:
        try:
            fcntl.flock(
                handle, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system lets go of it when the process ends, however it ends
        except OSError as error:
            raise OutputError(f"{folder} is in use by another process that is training.") from error
        yield


def new_folder(recipe: Recipe, parent: Path = Path("runs")) -> Path:
    """A free folder under runs/, named after base and method."""
    stem = f"{Path(recipe.base).name}-{recipe.method.type}".lower()
    numbers = (f"{stem}-{i}" if i > 1 else stem for i in range(1, 10**6))
    return next(parent / name for name in numbers if not (parent / name).exists())


def open_run(where: str | Path) -> Run:
    """A run by its folder. Raises OutputError where there is none."""
    folder = Path(where)
    if not (folder / INFO).is_file():
        raise OutputError(f"{folder} is no run: it has no {INFO}. `tunewright runs` lists those there are.")
    return Run(folder)


def list_runs(parent: Path) -> list[Run]:
    """The runs right below a folder, newest first."""
    found = [Run(path.parent) for path in parent.glob(f"*/{INFO}")]
    return sorted(found, key=lambda run: run.info.get("started", ""), reverse=True)


def _refuse_changes(prepared: Prepared, info: Mapping[str, Any]) -> None:
    """A run goes on only with the data it began with. Raises DataError that names what differs."""
    for name, now in describe_data(prepared).items():
        before = info["data"].get(name, {})
        if before.get("sha256") != now["sha256"]:
            raise DataError(
                f"The rows of {name} ({now['location']}) are not those that this run began with. Start a new run."
            )


def _machine(prepared: Prepared) -> dict[str, Any]:
    import torch

    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": str(prepared.device),
        "precision": prepared.precision,
        "processes": prepared.recipe.training.processes,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str:
    return version(package)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Written beside and renamed: a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise OutputError(f"{path} could not be written: {error}") from error
