"""One recipe with several seeds: a folder of runs, one a seed, and one report over them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.engine.job import Watcher
from tunewright.engine.processes import Processes
from tunewright.errors import DataError
from tunewright.evaluation.report import write_report
from tunewright.evaluation.seeds import over_seeds, seed_folder
from tunewright.folder import INFO, Record, Run, occupied, refuse_used
from tunewright.launch import launch
from tunewright.recipe import Recipe, lasting, referring
from tunewright.run import refuse_other_recipe


def execute(recipe: Recipe, folder: Path, watchers: Sequence[Watcher] = (), resume: bool = False) -> Run:
    """Run a recipe with each of its seeds, one after the other, in FOLDER/seed-N.

    Where that was broken off it goes on, called again or resumed: seeds that are finished are kept.

    Raises:
        What the run of a seed raises; a recipe that is refused leaves nothing behind.
        DataError: the rows have changed from one seed to the next.
    """
    new = not folder.exists()
    resume = resume or _is_broken_off(folder)
    if not resume:
        refuse_used(folder)
    with occupied(folder, Processes()):
        record = Record(folder, first=True)
        if resume:
            refuse_other_recipe(recipe, record)
            record.update(status="running", finished=None, error=None)
        else:
            record.begin(recipe, _describe(recipe))
        began = time.perf_counter()
        try:
            for seed in recipe.training.seeds or ():
                _run_seed(recipe, seed, record, watchers)
        except BaseException as error:
            if not (resume or Run(folder).runs):
                _leave_nothing(folder, new)
            else:
                record.break_off(error, {"seconds": time.perf_counter() - began})
            raise
        record.end("finished", None, {"seconds": time.perf_counter() - began})
    return Run(folder)


def _run_seed(recipe: Recipe, seed: int, record: Record, watchers: Sequence[Watcher]) -> None:
    """Train one seed, or go on with it, and note what is known over the seeds."""
    folder = record.folder / seed_folder(seed)
    begun = (folder / INFO).is_file()
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)  # killed before its run began
    if not (begun and Run(folder).done):
        training = recipe.training.model_copy(update={"seed": seed, "seeds": None})
        own = recipe.model_copy(update={"training": training, "output": str(folder)})
        launch(referring(own, lambda name: _of_seed(name, seed)), folder, watchers, resume=begun)
    infos = [run.info for run in Run(record.folder).runs]
    _refuse_other_rows(infos)
    first = infos[0]
    keys = ("task", "base", "method", "parameters", "saved_as", "versions", "machine")
    record.update(**{key: first[key] for key in keys}, over_seeds=over_seeds(infos))
    write_report(record.folder)


def _of_seed(name: str, seed: int) -> str:
    """What a seed begins from, or is rewarded by: of a study of seeds the run of the same seed."""
    place = Path(name)
    known = (place / INFO).is_file() and seed in (Run(place).info.get("seeds") or ())
    return str(place / seed_folder(seed)) if known else name


def _refuse_other_rows(infos: Sequence[Mapping[str, Any]]) -> None:
    """All seeds read the same rows; which of them are held out for validation is drawn by the seed."""
    hashes = [{name: one["sha256"] for name, one in info["data"].items()} for info in infos]
    if any(one != hashes[0] for one in hashes):
        raise DataError("The rows have changed since the first seed was trained. Put them back, or start anew.")


def _is_broken_off(folder: Path) -> bool:
    return (folder / INFO).is_file() and bool(Run(folder).info.get("seeds")) and Run(folder).status != "finished"


def _describe(recipe: Recipe) -> dict[str, Any]:
    """What run.json says before the first seed is done."""
    return {
        "seeds": recipe.training.seeds,
        "task": recipe.task,
        "base": recipe.base,
        "method": recipe.method.model_dump(mode="json"),
        "recipe": lasting(recipe),
        "notices": [],
    }


def _leave_nothing(folder: Path, new: bool) -> None:
    """The recipe was refused by the first seed: all that the folder holds was made for it."""
    shutil.rmtree(folder)
    if not new:
        folder.mkdir()
