"""A run in a process of its own ends as it would have here, stops when it is told to, and tells how it was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.runs import apart as running
from tests.runs import left_behind, recipe
from tunewright.artifacts.load import load
from tunewright.errors import DataError, Interrupted
from tunewright.launch import apart, launch
from tunewright.launch._supervise import Killed


def test_it_ends_as_a_run_in_this_process_and_goes_on_where_it_was_stopped(tiny_base: Any, tmp_path: Path) -> None:
    document = recipe(tiny_base("llama"), tmp_path / "here", training={"snapshots": True, "keep": "last"})
    launch(document, tmp_path / "here")
    seen: list[dict[str, Any]] = []
    apart_from_here = document.model_copy(update={"output": str(tmp_path / "apart")})
    with pytest.raises(Interrupted):
        apart.execute(apart_from_here, tmp_path / "apart", [seen.append], stopped=lambda: len(seen) > 2)
    assert seen[0]["started"]["name"] == "apart"
    apart.execute(apart_from_here, tmp_path / "apart", resume=True)
    assert left_behind(tmp_path / "apart") == left_behind(tmp_path / "here")
    for run in ("apart", "here"):
        assert sorted(path.name for path in (tmp_path / run / "snapshots").iterdir()) == ["step-4", "step-8"]
    load(tmp_path / "apart" / "snapshots" / "step-4")
    weights = "adapter_model.safetensors"
    of_step, last = ((tmp_path / "apart" / place / weights).read_bytes() for place in ("snapshots/step-4", "model"))
    assert of_step != last == (tmp_path / "apart" / "snapshots" / "step-8" / weights).read_bytes()


def test_what_is_wrong_arrives_as_it_was_raised(tiny_base: Any, tmp_path: Path) -> None:
    bad = recipe(tiny_base("llama"), tmp_path / "run", data={"train": [{"prompt": "a", "completion": 3}]})
    with pytest.raises(DataError):
        apart.execute(bad, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_process_that_was_killed_is_told_from_a_run_that_failed(tiny_base: Any, tmp_path: Path) -> None:
    def kill() -> bool:
        for process in running() if (tmp_path / "run" / "run.json").exists() else []:
            process.kill()
        return False

    long = recipe(tiny_base("llama"), tmp_path / "run", training={"epochs": 500})
    with pytest.raises(Killed, match="signal 9"):
        apart.execute(long, tmp_path / "run", stopped=kill)


def test_what_the_caller_raises_ends_the_run(tiny_base: Any, tmp_path: Path) -> None:
    def lose() -> bool:
        if (tmp_path / "run" / "metrics.jsonl").exists():
            raise LookupError("the lease is lost")
        return False

    long = recipe(tiny_base("llama"), tmp_path / "run", training={"epochs": 500})
    with pytest.raises(LookupError):
        apart.execute(long, tmp_path / "run", stopped=lose)
    assert not running()
