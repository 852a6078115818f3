"""A run's folder: what it says of itself, who may write into it, and where the runs are."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from tunewright.artifacts.load import load
from tunewright.engine import checkpoint
from tunewright.engine.processes import Processes
from tunewright.errors import CheckpointError, OutputError
from tunewright.evaluation.report import write_report
from tunewright.evaluation.seeds import seed_folder
from tunewright.recipe import Recipe, make_recipe, read_document
from tunewright.tasks.base import Model

INFO, RECIPE, LOCK = "run.json", "recipe.yaml", ".lock"


@dataclass(frozen=True)
class Run:
    """A run's folder: the object stands for its path wherever a run is named."""

    folder: Path

    def __fspath__(self) -> str:
        return str(self.folder)

    __str__ = __fspath__

    @property
    def info(self) -> dict[str, Any]:
        """What run.json says now."""
        return json.loads((self.folder / INFO).read_text(encoding="utf-8"))

    @property
    def status(self) -> str:
        """running, finished, stopped, failed; `killed` where run.json says running and no process holds the folder."""
        said = self.info.get("status", "unknown")
        return "killed" if said == "running" and not _held(self.folder / LOCK) else said

    @property
    def done(self) -> bool:
        """Whether it is finished and has its model still; with `training.seeds` whether all its runs are."""
        runs = self.runs
        whole = all(run.done for run in runs) if runs else (self.folder / "model").is_dir()
        return self.status == "finished" and whole

    @cached_property
    def model(self) -> Model:
        """The tuned model, loaded from the run's folder when first asked for."""
        return load(self.folder)

    @property
    def runs(self) -> list[Run]:
        """With `training.seeds` the runs of the seeds that have begun, in their order; else none."""
        folders = [self.folder / seed_folder(seed) for seed in self.info.get("seeds", ())]
        return [Run(folder) for folder in folders if _is_record(folder / INFO)]

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


@dataclass(frozen=True)
class Record:
    """Writes what a run says of itself. Of several processes only the first one writes."""

    folder: Path
    first: bool

    @property
    def info(self) -> dict[str, Any]:
        return Run(self.folder).info

    def begin(self, recipe: Recipe, info: Mapping[str, Any]) -> None:
        """Write the resolved recipe, and run.json for the first time."""
        if self.first:
            (self.folder / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
            _write_json(self.folder / INFO, {"name": self.folder.name, "status": "running", "started": _now(), **info})

    def update(self, **values: Any) -> None:
        if self.first:
            _write_json(self.folder / INFO, {**self.info, **values})

    def end(self, status: str, error: str | None, spent: Mapping[str, float]) -> None:
        """Note how the run, or this part of it, ended; add up the seconds; and make the report of what there is."""
        if self.first:
            timings = self.info.get("timings", {})
            timings |= {name: round(timings.get(name, 0.0) + seconds, 2) for name, seconds in spent.items()}
            self.update(status=status, finished=_now(), error=error, timings=timings)
            write_report(self.folder)

    def break_off(self, error: BaseException, spent: Mapping[str, float]) -> None:
        """Note what ended the run too early: `stopped` by the user, or `failed`."""
        with suppress(OutputError):  # a full disk takes no last words either
            if isinstance(error, KeyboardInterrupt):
                self.end("stopped", None, spent)
            else:
                self.end("failed", str(error) or type(error).__name__, spent)


def refuse_used(folder: Path) -> None:
    """A folder that holds anything is never written over, but one with images of the class, which were drawn for a run
    that had not begun, takes that run. Raises OutputError.
    """
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - {LOCK, *_drawn(folder)}):
        begun = (folder / INFO).is_file()
        hint = f" To go on with it: tunewright resume {folder}" if begun and Run(folder).status != "finished" else ""
        raise OutputError(f"{folder} holds {'a run' if begun else 'files'} already. Name another output folder.{hint}")


def _drawn(folder: Path) -> set[str]:
    """The name of `start/` in a folder where there is nothing else in it than images of the class."""
    return {"start"} if [path.name for path in folder.glob("start/*")] == ["prior"] else set()


def refuse_lost(run: Run) -> None:
    """Raise CheckpointError where a finished run has lost its weights: to go on would be to train it again, unasked."""
    for one in run.runs or [run]:
        if one.status == "finished" and not one.done and not checkpoint.steps(one.folder / "checkpoints"):
            raise CheckpointError(
                f"The finished run {one.folder} has neither its model/ nor its checkpoints/ any more: its weights are "
                f"lost. To train it again: tunewright train {one.folder / RECIPE} output=NEW_FOLDER"
            )


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
            # the system lets go of it when the process ends, however it ends
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(f"{folder} is in use by another process that is training.") from error
        yield


def _held(lock: Path) -> bool:
    """Whether a process holds the lock."""
    import fcntl

    try:
        with lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def new_folder(recipe: Recipe, parent: Path = Path("runs")) -> Path:
    """A free folder under runs/, named after base and method."""
    return free_folder(parent / f"{re.sub(r'[:#]', '-', Path(recipe.base).name)}-{recipe.method.type}".lower())


def free_folder(wanted: Path) -> Path:
    """The wanted folder where it does not exist, or else with the first number behind its name that is free."""
    numbered = (wanted.with_name(f"{wanted.name}-{i}") if i > 1 else wanted for i in range(1, 10**6))
    return next(path for path in numbered if not path.exists())


def open_run(where: str | PathLike[str]) -> Run:
    """A run by its folder. Raises OutputError where there is none."""
    folder = Path(where)
    if not _is_record(folder / INFO):
        raise OutputError(
            f"{folder} is no run: it has no {INFO} that can be read. `tunewright runs` lists those there are."
        )
    return Run(folder)


def list_runs(parent: Path) -> list[Run]:
    """The runs right below a folder, newest first."""
    found = [Run(path.parent) for path in parent.glob(f"*/{INFO}") if _is_record(path)]
    return sorted(found, key=lambda run: run.info.get("started", ""), reverse=True)


def _is_record(path: Path) -> bool:
    """Whether a run.json is one of ours: other programs have files of that name."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(found, dict) and not {"status", "started"}.isdisjoint(found)
    except (OSError, ValueError):
        return False


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
