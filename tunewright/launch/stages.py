"""The runs of a chain, one after the other, each in a folder of its name."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tunewright.artifacts.export import export
from tunewright.chain import Chain, make_chain
from tunewright.engine.job import Watcher
from tunewright.errors import OutputError
from tunewright.folder import INFO, Run
from tunewright.launch import launch
from tunewright.recipe import read_document, referring

FILE = "chain.yaml"
MODEL = "model"


def is_chain(folder: Path) -> bool:
    return (folder / FILE).is_file()


def read_chain(folder: Path) -> Chain:
    return make_chain(read_document(folder / FILE))


def stage_runs(folder: Path) -> dict[str, Run]:
    """The runs that have begun, by the names of their stages."""
    names = read_chain(folder).stages
    return {name: Run(folder / name) for name in names if (folder / name / INFO).is_file()}


def execute(chain: Chain, folder: Path, watchers: Sequence[Watcher] = ()) -> Run:
    """Run every stage that is not done, and go on with one that was broken off. The run of the last stage.

    With `alpha` that point on the last stage's path is written to `FOLDER/model`.

    Raises:
        OutputError: the folder holds something else.
        What a stage raises: the stages before it are kept.
    """
    _claim(chain, folder)
    for name, recipe in chain.stages.items():
        place = folder / name
        begun = (place / INFO).is_file()
        if begun and Run(place).done:
            continue
        if not begun:
            shutil.rmtree(place, ignore_errors=True)  # killed before its run began
        here = referring(recipe, lambda other: str(folder / other) if other in chain.stages else other)
        whole = Run(place).recipe if begun else here.model_copy(update={"output": str(place)})
        launch(whole, place, watchers, resume=begun)
    if chain.alpha is not None and not (folder / MODEL).exists():
        export(f"{place}@{chain.alpha}", "merged", folder / MODEL)
    return Run(place)


def _claim(chain: Chain, folder: Path) -> None:
    """Write the chain into a new folder; one that has the same already goes on."""
    if is_chain(folder) and read_chain(folder).to_yaml() == chain.to_yaml():
        return
    if folder.exists() and any(folder.iterdir()):
        raise OutputError(
            f"{folder} holds {'another chain' if is_chain(folder) else 'files'} already. Name another output folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(chain.to_yaml(), encoding="utf-8")
