"""What the storage has lost, or does not give now, and what was done without being heard of: nobody waits for ever."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.service.hosted import ROWS, Hosted, hosted
from tunewright.service import attempt as attempts
from tunewright.service import patience
from tunewright.service.attempt import Attempt
from tunewright.service.entities import Job, JobSpec, Status
from tunewright.service.errors import Refused, Swept, Unavailable
from tunewright.service.lease import Lease
from tunewright.service.patience import Patience, Waited
from tunewright.service.worker import Worker


@pytest.fixture
def service(tmp_path: Path) -> Hosted:
    return hosted(tmp_path / "service")


@pytest.fixture
def worker(service: Hosted, tmp_path: Path) -> Worker:
    return Worker(service.bringing, tmp_path / "scratch", 60)


def make_job(service: Hosted, status: Status = Status.QUEUED, tenant: str = "acme") -> Job:
    """A job whose file lies in the storage."""
    sent = service.ask("POST", "/v1/files", tenant, files={"file": ROWS}, data={"purpose": "fine-tune"}).json()
    job = service.store.jobs.create(tenant, JobSpec(model="tiny", training_file=sent["id"]))
    return job if status is Status.VALIDATING else service.store.jobs.move(job.id, status)


def lose_file(service: Hosted, job: Job) -> None:
    place = service.store.files.used(job.id, job.spec.training_file).place
    (service.root / "storage" / place).unlink()


def said(service: Hosted, job: Job) -> list[str]:
    return [event.message for event in service.store.jobs.news(job.tenant, job.id)]


def until(true: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Going:
    """Something of a worker in a thread."""

    def __init__(self, do: Callable[[], Any]) -> None:
        self.thread = threading.Thread(target=do, daemon=True)
        self.thread.start()

    def ended(self, seconds: float = 30) -> bool:
        self.thread.join(seconds)
        return not self.thread.is_alive()


# bytes that are lost


@pytest.mark.parametrize("status", [Status.VALIDATING, Status.QUEUED])
def test_a_job_whose_file_is_lost_fails_and_others_go_on(service: Hosted, worker: Worker, status: Status) -> None:
    job, other = make_job(service, status), make_job(service, status, "other")
    lose_file(service, job)
    take = worker._validate_next if status is Status.VALIDATING else worker._train_next
    assert Going(take).ended()
    failed = service.store.jobs.look(job.id)
    assert failed.status is Status.FAILED and failed.error and failed.error["code"] == "file_lost"
    assert failed.error["param"] == "training_file" and "Upload the file again" in failed.error["message"]
    assert str(service.root) not in failed.error["message"]
    claim = service.store.jobs.claim_validation if status is Status.VALIDATING else service.store.jobs.claim
    assert (claimed := claim("w", 60)) and claimed.id == other.id


def test_content_that_is_lost_is_an_error_and_no_answer_that_breaks_off(service: Hosted) -> None:
    job = make_job(service)
    done = service.belongings("acme")["done"]
    run = str(service.store.jobs.look(done).run)
    content, report = f"/v1/files/{job.spec.training_file}/content", f"/v1/fine_tuning/jobs/{done}/report"
    check = {"model": "tiny", "training_file": job.spec.training_file}
    asked: list[tuple[str, str, Any]] = [
        ("GET", content, None), ("GET", report, None), ("POST", "/v1/fine_tuning/alpha/check", check),
    ]  # fmt: skip
    assert service.ask("GET", content).content == ROWS and service.ask("GET", report).is_success
    storage = service.root / "storage"
    storage.rename(service.root / "away")
    for method, path, body in asked:
        answer = service.ask(method, path, json=body)
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) <= 120
    (service.root / "away").rename(storage)
    lose_file(service, job)
    (storage / run / "report.html").unlink()
    for method, path, body in asked:
        answer = service.ask(method, path, json=body)
        assert answer.status_code == 500 and answer.headers["x-should-retry"] == "false"
        assert "has lost" in answer.json()["error"]["message"] and str(service.root) not in answer.text


def test_a_state_that_is_lost_lets_the_training_begin_again(service: Hosted, tmp_path: Path) -> None:
    trying = _attempt(service, tmp_path)
    place = service.store.places.reserve("states")
    service.bringing.storage.put(f"{place}/.files.json", [b"no list"])
    service.store.jobs.progress(trying.job.id, trying.job.fence, saved=place)
    for lost in (place, "states/xx/gone"):
        trying.notes.clear()
        trying.job = service.store.jobs.look(trying.job.id)
        vars(trying.job)["saved"] = lost
        with trying.lease:
            trying._bring()
        (note,) = trying.notes
        assert "begins again" in note.message and note.level == "warn" and not trying.saved and trying.files
        trying = _attempt(service, tmp_path, trying.job)


# what is away


def test_a_storage_that_is_away_is_waited_for_and_told(
    service: Hosted, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job then goes on; here it fails at once, since its base has no weights."""
    monkeypatch.setattr(patience, "TOLD", 0.1)
    job = make_job(service)
    (service.root / "storage").rename(service.root / "away")
    going = Going(worker._train_next)
    until(lambda: any("The job waits" in message for message in said(service, job)))
    assert service.store.jobs.look(job.id).status is Status.RUNNING
    assert not any(str(service.root) in message for message in said(service, job))
    (service.root / "away").rename(service.root / "storage")
    assert going.ended(120) and "The job goes on." in said(service, job)
    failed = service.store.jobs.look(job.id)
    assert failed.status is Status.FAILED and failed.error and failed.error["code"] != "file_lost"


def test_it_is_not_waited_for_ever(service: Hosted, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job is given back, so that others have their turn, and fails when that did not help."""
    monkeypatch.setattr(patience, "LIMIT", 0.3)

    def away(*_: Any) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(service.bringing.storage, "open", away)
    job = make_job(service)
    for number in range(1, attempts.CLAIMS + 1):
        assert Going(worker._train_next).ended()
        now = service.store.jobs.look(job.id)
        assert now.status is (Status.QUEUED if number < attempts.CLAIMS else Status.FAILED)
    given = [message for message in said(service, job) if "given back" in message]
    assert len(given) == attempts.CLAIMS - 1 and "Input/output error" in given[0]
    assert now.error and now.error["code"] == "server_error" and "Input/output error" in now.error["message"]


def test_a_worker_that_leaves_does_not_wait_for_a_storage(
    service: Hosted, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LEAVING", 0.2)
    job = make_job(service)
    (service.root / "storage").rename(service.root / "away")
    going = Going(worker._train_next)
    until(lambda: service.store.jobs.look(job.id).status is Status.RUNNING)
    assert not going.ended(1.5)
    worker.leaving.set()
    assert going.ended(10) and service.store.jobs.look(job.id).status is Status.QUEUED


def test_time_does_not_pass_while_the_database_is_away(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else could do anything, and a training that has ended would be lost."""
    monkeypatch.setattr(patience, "LIMIT", 0.5)
    lease: Any = SimpleNamespace(silent=True, wait=time.sleep, job=SimpleNamespace(id="ftjob-x"))
    patiently, tries = Patience(lease, service.bringing.storage, pytest.fail, lambda: False), 0

    def do() -> int:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise Unavailable("away")
        return tries

    assert patiently(do) == 4
    lease.silent, tries = False, -10
    with pytest.raises(Waited):
        patiently(do)


# what was done, and not heard of


def _attempt(service: Hosted, tmp_path: Path, job: Job | None = None) -> Attempt:
    if job is None:
        make_job(service)
        job = service.store.jobs.claim("w", 600)
    assert job
    lease = Lease(service.store, job, 600, 1)
    return Attempt(job, service.bringing, tmp_path / "attempt", lease, "cpu", lambda: False)


@pytest.fixture
def trying(service: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    """An attempt whose run has come to step 5."""

    def copy_state(run: Path, folder: Path, *_: Any) -> int:
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"5")
        return 5

    monkeypatch.setattr(attempts, "copy_state", copy_state)
    monkeypatch.setattr(patience, "LIMIT", 3.0)
    return _attempt(service, tmp_path)


def unheard(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The first that is recorded is, and its worker does not hear of it. Returns what is recorded, as it comes."""
    progress, calls = service.store.jobs.progress, list[Any]()

    def record(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        progress(*arguments, **options)
        if len(calls) == 1:
            raise Unavailable("the connection broke while it was committed")

    monkeypatch.setattr(service.store.jobs, "progress", record)
    return calls


def test_a_state_whose_recording_was_not_heard_of_is_recorded(
    service: Hosted, trying: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = unheard(service, monkeypatch)
    trying._save()
    job = service.store.jobs.look(trying.job.id)
    assert len(calls) == 2 and trying.saved == 5 and job.saved and not (trying.folder / "state").exists()
    service.store.sweep(service.bringing.storage)
    assert service.bringing.storage.exists(f"{job.saved}/weights")


def test_a_state_that_was_swept_before_it_was_recorded_is_put_once_more(
    service: Hosted, trying: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress, places = service.store.jobs.progress, []

    def late(*arguments: Any, saved: str, **options: Any) -> Any:
        places.append(saved)
        if len(places) == 1:
            service.store.places.discard(saved)
            service.store.sweep(service.bringing.storage)
        return progress(*arguments, saved=saved, **options)

    monkeypatch.setattr(service.store.jobs, "progress", late)
    trying._save()
    assert len(set(places)) == 2 and service.store.jobs.look(trying.job.id).saved == places[1]
    assert service.bringing.storage.exists(f"{places[1]}/weights")


def test_events_that_were_written_unheard_are_not_written_twice(
    service: Hosted, trying: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = unheard(service, monkeypatch)
    trying._tell("There is no room.")
    trying._tell("There is room.")
    assert said(service, trying.job)[-2:] == ["There is no room.", "There is room."] and len(calls) == 2


def test_a_part_whose_answer_was_lost_may_be_sent_again(service: Hosted) -> None:
    """Else it would count twice, and the upload could never be completed."""
    asked = {"filename": "x", "purpose": "fine-tune", "bytes": len(ROWS)}
    upload = f"/v1/uploads/{service.ask('POST', '/v1/uploads', json=asked).json()['id']}"
    tries = [
        service.ask("POST", f"{upload}/parts", files={"data": ROWS}, headers={"x-stainless-retry-count": str(number)})
        for number in range(3)
    ]
    (part,) = {answer.json()["id"] for answer in tries}
    service.store.sweep(service.bringing.storage)
    assert len(service.stored("parts")) == 1
    assert service.ask("POST", f"{upload}/complete", json={"part_ids": [part]}).json()["status"] == "completed"


def test_a_place_that_was_swept_is_written_to_again_by_clients_too(service: Hosted) -> None:
    with pytest.raises(Swept) as error:
        service.store.files.add("acme", "x", "fine-tune", 1, "", "files/xx/never-reserved")
    assert isinstance(error.value, Refused) and error.value.status == 503 and error.value.headers["Retry-After"]
