"""A run whose base has moved: it says so, is told where the base is now, and is used as ever."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tunewright as tw
from tests.tiny import completions, make_base
from tunewright.errors import BaseModelError, OutputError

SHORT: dict[str, Any] = {"training": {"max_steps": 2, "checkpoint_every": 1}, "evaluation": {"before": False}}


def trained(base: Path, run: Path, **recipe: Any) -> Path:
    data = {"train": completions(6), "validation": 0}
    return tw.train(base=base, data=data, output=run, **{**SHORT, **recipe}).folder


def stopped(run: Path) -> Path:
    """As if the run had been killed after its first step."""
    document = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**document, "status": "stopped"}))
    shutil.rmtree(run / "model")
    shutil.rmtree(max((run / "checkpoints").glob("step-*")))
    return run


def answers(run: Path | str) -> torch.Tensor:
    model = tw.load(run)
    with torch.no_grad():
        return model.module(torch.arange(8)[None]).logits


USES: dict[str, Callable[[Path], Any]] = {
    "load": tw.load,
    "start": lambda run: tw.load(run, alpha=0),
    "between": lambda run: tw.load(run, alpha=0.5),
    "chat": lambda run: tw.chat(run, "a", max_new_tokens=1),
    "evaluate": lambda run: tw.evaluate(run, completions(2), evaluation={"generate": 0}),
    "export": lambda run: tw.export(run, "merged", run.with_name("out")),
    "go on": lambda run: tw.train(base=run, data=completions(6), output=run.with_name("next"), **SHORT),
    "dry run": lambda run: tw.dry_run({"base": run, "data": completions(6)}),
    "resume": lambda run: tw.resume(stopped(run)),
}


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at `run`, whose base was at `base` and is at `new` now; `other` has other weights."""
    place = tmp_path_factory.mktemp("moved")
    make_base(place / "base", "llama")
    make_base(place / "other", "llama", intermediate_size=24)
    trained(place / "base", place / "run")
    (place / "base").rename(place / "new")
    return place


@pytest.mark.parametrize("use", USES)
def test_a_run_whose_base_has_moved_is_told_where_it_is(use: str, moved: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(moved / "run", tmp_path / "run"))
    with pytest.raises(BaseModelError) as raised:
        USES[use](run)
    assert str(raised.value) == (
        f"{run} was trained on {moved / 'base'}, which is not there. Put it back, or say where it is now: "
        f"tunewright relocate {run} --base FOLDER"
    )
    run = Path(shutil.copytree(moved / "run", tmp_path / "again"))
    assert tw.relocate(run, moved / "new") == run
    USES[use](run)
    assert str(moved / "base") not in (run / "run.json").read_text() + (run / "recipe.yaml").read_text()


def test_a_base_with_other_weights_is_refused_and_nothing_is_changed(moved: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(moved / "run", tmp_path / "run"))
    before = (run / "run.json").read_text()
    (tmp_path / "empty").mkdir()
    for base, said in ((moved / "other", "are not those of"), (tmp_path / "empty", "holds no weights"),
                       (tmp_path / "nowhere", "There is no folder"), ("nowhere", "holds no weights")):  # fmt: skip
        with pytest.raises(BaseModelError, match=said):
            tw.relocate(run, base)
    with pytest.raises(BaseModelError, match="names a base"):
        tw.relocate(moved / "new", moved / "new")
    assert (run / "run.json").read_text() == before


def test_load_with_a_folder_as_base_says_what_to_do(moved: Path) -> None:
    with pytest.raises(BaseModelError, match=r"if its base has moved, say so once: tunewright relocate .*/run --base"):
        tw.load(moved / "run", base=moved / "new")


def test_an_adapter_and_runs_that_went_on(tmp_path: Path) -> None:
    """A run that began from another knows two places: of that run, and of the weights below both."""
    first = trained(make_base(tmp_path / "base", "llama"), tmp_path / "first")
    second = trained(first, tmp_path / "second")
    whole = trained(tmp_path / "base", tmp_path / "whole", method="full")
    third = trained(whole, tmp_path / "third")
    adapter = Path(shutil.copytree(second / "model", tmp_path / "adapter"))
    before = {run: answers(run) for run in (second, third, adapter)}
    for old, new in (("base", "new base"), ("first", "new first"), ("whole", "new whole")):
        (tmp_path / old).rename(tmp_path / new)
    with pytest.raises(BaseModelError, match="was trained on"):  # the run that it began from is relocated first
        tw.relocate(second, tmp_path / "new first")
    for name, base in (
        ("new first", "new base"),
        ("second", "new first"),
        ("third", "new whole"),
        ("adapter", "new base"),
    ):
        tw.relocate(tmp_path / name, tmp_path / base)
    assert all(torch.equal(answers(run), logits) for run, logits in before.items())
    assert tw.open_run(second).recipe.base == str(tmp_path / "new first")
    for run in (second, third):
        tw.resume(stopped(run))
        assert torch.equal(answers(run), before[run])


def test_a_run_that_trains_is_left_alone(moved: Path, tmp_path: Path) -> None:
    import fcntl

    run = Path(shutil.copytree(moved / "run", tmp_path / "run"))
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="in use"):
            tw.relocate(run, moved / "new")
