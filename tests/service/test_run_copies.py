"""A run is copied as it is at one moment, whatever it goes on to write, and says nothing of where things lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunewright.service.run_copies import copy_finished, copy_state, without_places


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    for step in (3, 6):
        (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (run / "checkpoints" / f"step-{step}" / "state.safetensors").write_bytes(b"weights")
    (run / "model").mkdir()
    (run / "model" / "adapter_model.safetensors").write_bytes(b"adapter")
    (run / "checkpoints" / ".step-9.draft").mkdir()
    (run / "metrics.jsonl").write_text("{}\n")
    (run / ".lock").touch()
    (run / "report.html").write_text(f"from {tmp_path}/bases/tiny, tuned on {tmp_path}/cache/ab12")
    return run


def test_a_state_is_what_it_was(run: Path, tmp_path: Path) -> None:
    assert copy_state(run, tmp_path / "state", {}, tmp_path) == 6
    (run / "metrics.jsonl").write_text("{}\n{}\n")
    (run / "checkpoints" / "step-3" / "state.safetensors").unlink()
    found = {
        path.relative_to(tmp_path / "state").as_posix() for path in (tmp_path / "state").rglob("*") if path.is_file()
    }
    assert found == {
        "checkpoints/step-3/state.safetensors", "checkpoints/step-6/state.safetensors", "metrics.jsonl", "places.json"
    }  # fmt: skip
    assert (tmp_path / "state" / "metrics.jsonl").read_text() == "{}\n"
    assert copy_state(tmp_path / "never begun", tmp_path / "state", {}, tmp_path) == 0


def test_what_is_kept_names_bases_as_clients_do(run: Path, tmp_path: Path) -> None:
    bases = {"tiny": tmp_path / "bases" / "tiny"}
    copy_finished(run, run / "model", tmp_path / "kept", bases, tmp_path / "cache")
    assert not (tmp_path / "kept" / "checkpoints").exists()
    assert (tmp_path / "kept" / "model" / "adapter_model.safetensors").read_bytes() == b"adapter"
    assert (tmp_path / "kept" / "report.html").read_text() == "from tiny, tuned on ab12"
    assert without_places(f"{tmp_path}/x/rows.jsonl:3: empty", bases, tmp_path / "x") == "rows.jsonl:3: empty"
