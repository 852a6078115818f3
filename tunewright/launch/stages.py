"""The runs of a chain, one after the other, each in a folder of its name."""

from __future__ import annotations

import gc
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path

from tunewright.artifacts.export import export
from tunewright.chain import Chain, make_chain, named, supposed
from tunewright.engine.job import Watcher
from tunewright.engine.loop import ready
from tunewright.errors import OutputError, TunewrightError
from tunewright.evaluation.report import write_report
from tunewright.evaluation.stages import STAGES, figures
from tunewright.folder import INFO, Run, free_folder
from tunewright.launch import launch
from tunewright.recipe import Recipe, read_document, referring
from tunewright.run import rehearsed

FILE = "chain.yaml"
MODEL = "model"


def is_chain(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_chain(folder: Path) -> Chain:
    return make_chain(read_document(folder / FILE))


def list_chains(parent: Path) -> list[Path]:
    """The chains right below a folder. A chain.yaml that cannot be read is somebody else's."""
    found = []
    for path in sorted(parent.glob(f"*/{FILE}")):
        with suppress(TunewrightError):
            read_chain(path.parent)
            found.append(path.parent)
    return found


def status_of(folder: Path) -> str:
    """That of a chain: of the stage that it has come to; `stopped` between two."""
    runs, stages = stage_runs(folder), read_chain(folder).stages
    said = next((run.status for run in runs.values() if not run.done), "finished")
    return "stopped" if said == "finished" and len(runs) < len(stages) else said


def stage_runs(folder: Path) -> dict[str, Run]:
    """The runs that have begun, by the names of their stages."""
    names = read_chain(folder).stages
    return {name: Run(folder / name) for name in names if (folder / name / INFO).is_file()}


def execute(chain: Chain, folder: Path, watchers: Sequence[Watcher] = ()) -> Run:
    """Run every stage that is not done, and go on with one that was broken off. The run of the last stage.

    Before anything is trained all stages are checked, as far as they can be without those before them. Where the
    folder has a chain of which some stages are other ones now, those before the first of these are kept; what others
    have left is put aside, and a watcher is told {"notice": …}. With `alpha` that point on the last stage's path is
    written to `FOLDER/model`.

    Raises:
        OutputError: the folder holds something else, or a stage that would be put aside is being trained.
        What a stage raises: the stages before it are kept.
    """
    aside = _changed(chain, folder)
    _look_ahead(chain, folder, aside)
    with _nothing_left(folder):
        for notice in _claim(chain, folder, aside):
            for watcher in watchers:
                watcher({"notice": notice})
        for name, recipe in chain.stages.items():
            place = folder / name
            begun = _begun(place)
            if begun and Run(place).done:
                continue
            if not begun:
                shutil.rmtree(place, ignore_errors=True)  # killed before its run began
            here = referring(recipe, lambda other: str(folder / other) if other in chain.stages else other)
            whole = Run(place).recipe if begun else here.model_copy(update={"output": str(place)})
            launch(whole, place, watchers, resume=begun)
    _tell_the_last(folder, Run(place))
    if chain.alpha is not None and not (folder / MODEL).exists():
        export(f"{place}@{chain.alpha}", "merged", folder / MODEL)
    return Run(place)


def _tell_the_last(folder: Path, last: Run) -> None:
    """The report of the last run has the figures of all stages too."""
    told = figures({name: run.info for name, run in stage_runs(folder).items()})
    (last.folder / STAGES).write_text(json.dumps(told, indent=1), encoding="utf-8")
    write_report(last.folder)


def _begun(place: Path) -> bool:
    return (place / INFO).is_file()


def _changed(chain: Chain, folder: Path) -> list[str]:
    """What a chain that was here before has left of the stages from the first one on that is another one now.

    Raises OutputError where the folder holds something else than a chain, or one of these is being trained.
    """
    if not is_chain(folder):
        if folder.exists() and any(folder.iterdir()):
            raise OutputError(f"{folder} holds files already. Name another output folder.")
        return []
    before = read_chain(folder)
    if before.to_yaml() == chain.to_yaml():
        return []
    pairs = zip(_documents(before).items(), _documents(chain).items(), strict=False)
    kept = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(before.stages), len(chain.stages)))
    names = dict.fromkeys([*list(before.stages)[kept:], *list(chain.stages)[kept:]])
    left = [name for name in [*names, MODEL] if (folder / name).exists()]
    for name in left:
        if _begun(folder / name) and Run(folder / name).status == "running":
            raise OutputError(f"{folder / name} is in use by another process that is training.")
    return left


def _documents(chain: Chain) -> Mapping[str, str]:
    return {name: recipe.to_yaml() for name, recipe in chain.stages.items()}


def _look_ahead(chain: Chain, folder: Path, aside: Sequence[str]) -> None:
    """Read, check and load what later stages need, so that their faults are known before hours of training.

    The first that is to run does that itself; it is looked at here only where something would be put aside for it.
    """
    waiting = [name for name in chain.stages if name in aside or not _begun(folder / name)]
    first = next((name for name in chain.stages if name in waiting or not Run(folder / name).done), None)
    for name in waiting:
        if name == first and not aside:
            continue
        with naming(chain, name), tempfile.TemporaryDirectory(prefix="tunewright-check-") as place:
            ready(rehearsed(supposed(chain, name), Path(place))[1], rehearsal=True)
        gc.collect()  # a model refers to itself


@contextmanager
def naming(chain: Chain, stage: str) -> Iterator[None]:
    """Errors say which stage they are of; and which stage may be meant by a model that is not there."""
    try:
        yield
    except TunewrightError as error:
        meant = [
            close for name in _unknown(chain.stages[stage], chain) for close in get_close_matches(name, chain.stages)
        ]
        hint = f" Is the stage {meant[0]} meant?" if meant else ""
        error.args = (f"The stage {stage}: {error}{hint}",)
        raise


def _unknown(recipe: Recipe, chain: Chain) -> list[str]:
    """The models that a recipe names and that are neither stages nor here."""
    return [name for name in named(recipe) if name not in chain.stages and not Path(name).exists()]


@contextmanager
def _nothing_left(folder: Path) -> Iterator[None]:
    """A chain whose first stage is refused leaves nothing behind."""
    made = not folder.exists()
    try:
        yield
    except BaseException:
        if is_chain(folder) and not any(path.is_dir() for path in folder.iterdir()):
            (folder / FILE).unlink()
            with suppress(OSError):
                if made:
                    folder.rmdir()
        raise


def _claim(chain: Chain, folder: Path, aside: Sequence[str]) -> list[str]:
    """Write the chain into its folder, and put aside what is no longer part of it. What is to be said of that."""
    folder.mkdir(parents=True, exist_ok=True)
    moved = {name: (folder / name).rename(free_folder(folder / f"{name}.before")) for name in aside}
    (folder / FILE).write_text(chain.to_yaml(), encoding="utf-8")
    kept = [name for name in chain.stages if _begun(folder / name)]
    if not moved:
        return []
    said = f"kept: {', '.join(kept)}" if kept else "no stage is as it was"
    places = ", ".join(f"{name} to {place.name}" for name, place in moved.items())
    return [f"The chain in {folder} has changed; {said}. Put aside: {places}."]
