"""Workers: what is killed, paused, cancelled or without room ends as if nothing had been, or leaves nothing behind."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import apart
from tests.service.hosted import Echo, Hosted
from tests.service.machine import LONG, MANY, Machine
from tunewright.artifacts.interpolate import load
from tunewright.service.app import make_app
from tunewright.service.attempt import Attempt
from tunewright.service.entities import Status
from tunewright.service.inference.protocol import Effect, Finding


@pytest.fixture
def machine(tiny_base: Callable[..., str], tmp_path: Path) -> Machine:
    return Machine(tmp_path, "here", tiny_base("llama"))


def test_what_was_killed_paused_or_given_back_ends_with_the_same_weights_on_another_machine(
    machine: Machine, tiny_base: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hear = Attempt._hear

    def leave(attempt: Attempt, line: Any) -> None:
        """The worker leaves as soon as the run has begun."""
        worker.leaving.set()
        hear(attempt, line)

    other = Machine(tmp_path, "there", tiny_base("llama"))
    expected, killed = machine.broken_off()
    with other.work() as worker:
        done = other.ended(killed)
        assert done.fence > 1 and other.weights(done) == expected
        paused = machine.job(epochs=LONG, rows=MANY)
        other.until(paused, lambda job: job.saved)
        other.parts.store.jobs.pause("acme", paused.id)
        held = other.until(paused, lambda job: job.status is Status.PAUSED)
        assert held.saved
        monkeypatch.setattr(Attempt, "_hear", leave)
        other.parts.store.jobs.resume("acme", paused.id)
        other.until(paused, lambda job: worker.leaving.is_set() and job.status is not Status.RUNNING)
    monkeypatch.undo()
    assert other.parts.store.jobs.look(paused.id).status is Status.QUEUED, "a worker that leaves gives back"
    with machine.work():
        assert machine.weights(machine.ended(paused)) == expected
    assert not list(machine.settings.scratch.iterdir()), "what the killed worker left is gone"
    steps = [
        event.data["step"] for event in machine.parts.store.jobs.news("acme", paused.id) if event.type == "metrics"
    ]
    assert set(steps) == set(range(1, 40 * LONG + 1))


def test_what_is_cancelled_stops_and_leaves_nothing(machine: Machine) -> None:
    job = machine.job(epochs=50)
    with machine.work():
        machine.until(job, lambda now: now.saved)
        machine.parts.store.jobs.cancel("acme", job.id)
        end = time.monotonic() + 30
        while left := apart():
            assert time.monotonic() < end, left
            time.sleep(0.1)
        last = machine.parts.store.jobs.events("acme", job.id)[0][0]
        assert machine.ended(job).status is Status.CANCELLED
        second = machine.job()
        machine.ended(second)
    assert machine.parts.store.jobs.events("acme", job.id)[0][0] == last
    assert not list(machine.settings.scratch.iterdir())


def test_a_run_that_is_killed_goes_on_and_a_model_can_be_tuned_further(machine: Machine) -> None:
    first = machine.job(epochs=10)
    with machine.work():
        machine.until(first, lambda now: now.saved)
        for process in apart():
            process.kill()
        done = machine.ended(first)
        said = [event.message for event in machine.parts.store.jobs.news("acme", first.id)]
        assert any("It is started again" in message for message in said)
        assert done.status is Status.SUCCEEDED and done.fine_tuned_model
        further = machine.ended(machine.job(done.fine_tuned_model))
    assert further.fine_tuned_model and further.fine_tuned_model.startswith("ft:tiny:acme::")
    assert machine.parts.store.models.get("acme", further.fine_tuned_model).base == "tiny"
    load(machine.parts.run(machine.parts.store.models.get("acme", further.fine_tuned_model)), alpha=0.5)
    checkpoints, _ = machine.parts.store.jobs.checkpoints("acme", further.id)
    assert [one.step for one in checkpoints] == [8, 4]
    load(machine.parts.run(machine.parts.store.models.get("acme", checkpoints[0].model)), alpha=0.5)


def test_a_model_that_was_tuned_from_a_deleted_one_keeps_its_path(
    machine: Machine, tiny_base: Callable[..., str], tmp_path: Path
) -> None:
    """All weights of both were trained: the later one's start lies in the earlier one's files."""
    other, store = Machine(tmp_path, "there", tiny_base("llama")), machine.parts.store
    with machine.work():
        first = machine.ended(machine.job(method="full")).fine_tuned_model
        second = machine.ended(machine.job(str(first), method="full")).fine_tuned_model
    model = store.models.get("acme", str(second))
    expected = load(machine.parts.run(model), alpha=0.5).module.state_dict()
    service = Hosted(tmp_path, make_app(machine.parts, Echo(), machine.settings), machine.parts)
    assert service.ask("DELETE", f"/v1/models/{first}").status_code == 200
    assert service.ask("GET", f"/v1/models/{first}").status_code == 404
    store.sweep(machine.parts.storage)
    for where in (machine, other):
        found = load(where.parts.run(model), alpha=0.5).module.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    for left in store.models.page("acme")[0]:  # checkpoints of both too
        assert service.ask("DELETE", f"/v1/models/{left.id}").status_code == 200
    store.sweep(machine.parts.storage)
    assert not list(machine.settings.cache.iterdir()) and not service.stored("models")


def test_a_deleted_model_leaves_all_machines_when_its_last_job_has_ended(
    machine: Machine, tiny_base: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, store = Machine(tmp_path, "there", tiny_base("llama")), machine.parts.store
    with machine.work():
        first = str(machine.ended(machine.job()).fine_tuned_model)
    job = machine.job(first)
    for where in (machine, other):
        where.parts.run(store.models.get("acme", first))
    service = Hosted(tmp_path, make_app(machine.parts, Echo(), machine.settings), machine.parts)
    assert service.ask("DELETE", f"/v1/models/{first}").status_code == 200

    def held() -> list[int]:
        return [len(list(where.settings.cache.iterdir())) for where in (machine, other)]

    machine.parts.forget_deleted()
    assert held() == [1, 1], "the job needs it"
    store.jobs.cancel("acme", job.id)
    assert store.models.stored(first) is None
    for place, works, left in (("app", service.served, [0, 1]), ("worker", other.work, [0, 0])):
        monkeypatch.setattr(f"tunewright.service.{place}.SECONDS_BETWEEN_SWEEPS", 0.05)
        with works():
            end = time.monotonic() + 20
            while held() != left:
                assert time.monotonic() < end
                time.sleep(0.05)


def test_a_training_that_changes_nothing_is_told(machine: Machine) -> None:
    unchanged, changed = machine.job(training={"learning_rate": 1e-30}), machine.job()
    with machine.work():
        assert machine.ended(unchanged).status is machine.ended(changed).status is Status.SUCCEEDED
    told = [
        [event.message for event in machine.parts.store.jobs.news("acme", job.id) if "changed nothing" in event.message]
        for job in (unchanged, changed)
    ]
    assert len(told[0]) == 1 and "exactly as tiny does" in told[0][0] and not told[1]


@pytest.mark.parametrize("how", ["no effect", "broken"])
def test_a_job_fails_whose_model_would_not_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """`no effect` is made up here: `test_effect.py` looks at how it is found."""

    def damage(attempt: Attempt) -> None:
        if attempt._begun and attempt.run.done:
            next((attempt.run.folder / "model").glob("*.safetensors")).write_bytes(b"no weights")

    if how == "broken":
        monkeypatch.setattr(Attempt, "_publish_snapshots", damage)
    else:
        monkeypatch.setattr("tunewright.service.attempt.look_apart", lambda *_: Finding(Effect.LOST))
    job, store = machine.job(), machine.parts.store
    with machine.work():
        end = time.monotonic() + 60
        while not (now := store.jobs.look(job.id)).status.ended:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert now.status is Status.FAILED and now.error and now.error["code"] == "server_error"
    assert ("cannot be loaded" if how == "broken" else "have no effect") in now.error["message"]
    assert now.fine_tuned_model is None and str(machine.settings.place) not in now.error["message"]


def test_a_worker_that_leaves_does_not_wait_for_a_look(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has half a minute: what was trained is kept, and whether it shows remains unknown."""
    looking = threading.Event()

    def look(model: Any, task: str, device: str, enough: Callable[[], bool]) -> Finding:
        assert device == machine.settings.device
        looking.set()
        end = time.monotonic() + 20
        while not enough():
            assert time.monotonic() < end
            time.sleep(0.05)
        return Finding(Effect.UNKNOWN)

    monkeypatch.setattr("tunewright.service.attempt.look_apart", look)
    job = machine.job()
    with machine.work():
        assert looking.wait(300)
        assert machine.parts.store.jobs.look(job.id).status is Status.RUNNING
    assert machine.parts.store.jobs.look(job.id).status is Status.SUCCEEDED


def test_a_full_storage_is_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    put, full = machine.parts.storage.put, threading.Event()
    full.set()

    def no_room(place: str, chunks: Any) -> Any:
        if full.is_set() and not place.startswith("files"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(place, chunks)

    monkeypatch.setattr(machine.parts.storage, "put", no_room)
    job = machine.job()
    with machine.work():
        machine.until(job, lambda now: now.estimated_finish or now.resolved)
        time.sleep(1)
        assert machine.parts.store.jobs.look(job.id).status is Status.RUNNING
        full.clear()
        assert machine.ended(job).status is Status.SUCCEEDED


def test_a_job_waits_for_a_worker_that_has_its_base(
    machine: Machine, tiny_base: Callable[..., str], tmp_path: Path
) -> None:
    other = Machine(tmp_path, "there", tiny_base("llama"))
    del other.parts.bases["tiny"]  # type: ignore[attr-defined]
    job = machine.job()
    with other.work() as worker:
        machine.until(job, lambda now: job.id in worker.lacking)
        assert machine.until(job, lambda now: now.status is Status.QUEUED)
    with machine.work():
        assert machine.ended(job).status is Status.SUCCEEDED
    said = [event.message for event in machine.parts.store.jobs.news("acme", job.id)]
    assert sum("has no base" in message for message in said) == 1


def test_files_that_kill_their_readers_fail(machine: Machine) -> None:
    job = machine.job()
    store = machine.parts.store
    for _ in range(4):
        assert store.jobs.claim_validation("dies", 0.05)
        time.sleep(0.1)
    with machine.work():
        end = time.monotonic() + 60
        while (now := store.jobs.look(job.id)).status is not Status.FAILED:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert now.error and now.error["code"] == "invalid_training_file" and "silent" in now.error["message"]
