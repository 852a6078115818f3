"""Curves at W&B: what a client asked for arrives where the owner allows it, and no job ever fails for it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.service.served import CHAT, Served, ended, jsonl, served
from tunewright.service import curves as curves_module
from tunewright.service.curves import FORBIDDEN, Curves

pytest.importorskip("wandb")
ASKED = [{"type": "wandb", "wandb": {"project": "tea-shop", "name": "first-try", "tags": ["tea"], "entity": "acme"}}]
SPEC = SimpleNamespace(integrations=ASKED, model="tiny", suffix=None, method=SimpleNamespace(type="supervised"))
JOB: Any = SimpleNamespace(id="ftjob-1", spec=SPEC)


def tuned(service: Served, **more: Any) -> Any:
    client = service.client()
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    made = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, seed=1, hyperparameters={"n_epochs": 1, "batch_size": 4}, **more
    )
    return ended(client, made)


def said(service: Served, job: Any) -> list[str]:
    return [event.message for event in service.client().fine_tuning.jobs.list_events(job.id)]


def test_what_was_asked_for_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an account it stays in a folder; nothing in it tells of the machine."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    with served(tmp_path / "home", [], "--wandb") as service:
        job = tuned(service, integrations=ASKED)
        assert job.status == "succeeded" and FORBIDDEN not in said(service, job)
        assert tuned(service).status == "succeeded"
    (file,) = (tmp_path / "home" / "wandb").glob(f"offline-run-*-{job.id}/*.wandb")
    written = file.read_bytes()
    for wanted in (b"tea-shop", b"first-try", b"acme", b"tea", b"train_loss", b"n_epochs"):
        assert wanted in written
    for untold in (str(tmp_path).encode(), b"torch", Path(sys.executable).name.encode()):
        assert untold not in written
    assert not list((file.parent / "files").iterdir())


def test_nothing_is_sent_unless_the_owner_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with served(tmp_path / "home", []) as service:
        job = tuned(service, integrations=ASKED)
        assert job.status == "succeeded" and FORBIDDEN in said(service, job)
        assert job.integrations[0].wandb.project == "tea-shop"
    assert not (tmp_path / "home" / "wandb").exists()


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_what_wandb_cannot_do_is_told_once(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no way to api.wandb.ai")

    run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    setattr(run, broken, fail)
    init = fail if broken == "init" else lambda **_: run
    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict, api=SimpleNamespace(api_key=""))
    )
    told: list[str] = []
    curves = Curves(JOB, tmp_path, told.append)
    curves.begin({"n_epochs": 1})
    curves.add(1, {"train_loss": 1.0}), curves.add(2, {"train_loss": 0.5})
    curves.end()
    curves.add(3, {"train_loss": 0.4})
    assert told == ["W&B has no more of its curves: RuntimeError"]


def test_a_job_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    library = SimpleNamespace(init=lambda **_: over.wait(60), Settings=dict, api=SimpleNamespace(api_key=""))
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setattr(curves_module, "SECONDS", 0.1)
    began, curves = time.monotonic(), Curves(JOB, tmp_path, lambda _: None)
    curves.begin({}), curves.add(1, {"train_loss": 1.0}), curves.end()
    assert time.monotonic() - began < 30
    over.set()


def test_a_missing_library_is_named_before_anything_starts(tmp_path: Path) -> None:
    hide = (
        "import sys; sys.modules['wandb'] = None; sys.argv[0] = 'tunewright'; from tunewright.cli import main; main()"
    )
    command = [sys.executable, "-c", hide, "serve", "--port", "0", "--home", str(tmp_path / "home"), "--wandb"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode and "tunewright[track]" in found.stderr and not (tmp_path / "home").exists()
