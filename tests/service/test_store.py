"""What the store keeps, on SQLite and on PostgreSQL: jobs and their statuses, files, models, keys."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from alembic.autogenerate import compare_metadata
from alembic.command import upgrade
from alembic.config import Config
from alembic.migration import MigrationContext

from tests.service.conftest import Clock
from tunewright.errors import TunewrightError
from tunewright.service import store as store_folder
from tunewright.service.entities import NEXT, Job, JobSpec, Note, Status
from tunewright.service.errors import Lost, Refused, Swept, Unavailable
from tunewright.service.storage import Storage
from tunewright.service.store import Result, Store, database
from tunewright.service.store.database import Database
from tunewright.service.store.tables import jobs as job_table
from tunewright.service.store.tables import metadata

AddFile = Callable[..., Any]


@pytest.fixture
def make_job(store: Store, add_file: AddFile) -> Callable[..., Job]:
    """A job that has come as far as `status`; the claims that it takes are those of worker w."""

    def make(status: Status = Status.VALIDATING, tenant: str = "acme", **spec: Any) -> Job:
        spec = {"model": "base", "training_file": spec.pop("file", None) or add_file(tenant).id, **spec}
        job = store.jobs.create(tenant, JobSpec(**spec))
        return to_status(store, job, status)

    return make


def to_status(store: Store, job: Job, status: Status) -> Job:
    roads = {
        Status.VALIDATING: [],
        Status.FAILED: [Status.FAILED],
        Status.CANCELLED: [Status.CANCELLED],
        Status.QUEUED: [Status.QUEUED],
        Status.PAUSED: [Status.QUEUED, Status.PAUSED],
    }
    for step in roads.get(status, [Status.QUEUED]):
        job = store.jobs.move(job.id, step)
    if status in (Status.RUNNING, Status.PAUSING, Status.SUCCEEDED):
        claimed = store.jobs.claim("w", 60)
        assert claimed is not None and claimed.id == job.id
        job = claimed if status is Status.RUNNING else store.jobs.move(job.id, status)
    return job


def refused(status: int, call: Callable[..., Any], *arguments: Any, **options: Any) -> Refused:
    with pytest.raises(Refused) as error:
        call(*arguments, **options)
    assert error.value.status == status
    return error.value


def finish(store: Store, job: Job) -> Job:
    result = Result(store.places.reserve("results"), 5, "1" * 64)
    run = store.places.reserve("runs")
    return store.jobs.finish(job.id, job.fence, base="base", task="text-generation", run=run, result=result)


# the database


def test_migrations_make_the_tables(store: Store) -> None:
    with store.database.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_models_of_an_older_database_name_what_they_were_tuned_from(database_url: str) -> None:
    database = Database(database_url)
    with database.write() as connection:
        config = Config()
        config.set_main_option("script_location", str(Path(store_folder.__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO tenants (n, id, created_at) VALUES (1, 'acme', 0)")
        rows = {"first": "base", "second": "ft:first"}
        for n, (name, begun) in enumerate(rows.items()):
            spec = json.dumps({"model": begun, "training_file": "f"})
            connection.exec_driver_sql(
                "INSERT INTO jobs (n, id, tenant, spec, status, created_at, resolved, result_files, fence, lost) "
                f"VALUES ({n}, '{name}', 'acme', '{spec}', 'succeeded', 0, '{{}}', '[]', 1, 0)"
            )
            connection.exec_driver_sql(
                "INSERT INTO models (n, id, tenant, job, base, task, place, created_at, stored) "
                f"VALUES ({n}, 'ft:{name}', 'acme', '{name}', 'base', 'text-generation', 'p/{name}', 0, true)"
            )
    store = Store(database_url)
    assert [model.tuned_from for model in store.models.page("acme")[0]] == [None, "ft:first"]
    store.close()
    database.engine.dispose()


def test_a_database_is_opened_again(database_url: str) -> None:
    first = Store(database_url)
    key, secret = first.keys.create("acme", "mine")
    second = Store(database_url)
    assert second.keys.by_secret(secret) == key
    first.close(), second.close()


def test_several_open_a_new_database_at_once(database_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        stores = list(pool.map(Store, [database_url] * 6))
    secret = stores[0].keys.create("acme", "mine")[1]
    assert all(store.keys.by_secret(secret) for store in stores)
    for store in stores:
        store.close()


def test_a_newer_database_is_refused(store: Store, database_url: str) -> None:
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(TunewrightError, match="newer version"):
        Store(database_url)


@pytest.mark.parametrize("url", ["sqlite://", "mysql://h/d", "nonsense", "sqlite:///:memory:"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(TunewrightError, match="--database"):
        Store(url)


def test_a_database_that_is_away_may_be_tried_again() -> None:
    error = refused(503, Store, "postgresql://nobody@127.0.0.1:1/none")
    assert 0 < int(error.headers["Retry-After"]) <= 120


def test_what_cannot_be_stored_is_refused(store: Store) -> None:
    assert refused(400, store.keys.create, "acme", "\ud800").type == "invalid_request_error"
    if store.database.postgresql:
        refused(400, store.jobs.get, "acme", "\0")


# jobs


def test_a_job_is_kept_as_it_was_made(store: Store, add_file: AddFile) -> None:
    spec = JobSpec(model="base", training_file=add_file().id, suffix="x", seed=3, metadata={"a": "ü"},
                   integrations=[{"type": "wandb"}], recipe={"method": {"lora": {"rank": 4}}})  # fmt: skip
    job = store.jobs.create("acme", spec)
    assert store.jobs.get("acme", job.id) == store.jobs.look(job.id) == job
    assert (job.spec, job.status, job.tenant, job.fence) == (spec, Status.VALIDATING, "acme", 0)
    assert job.id.startswith("ftjob-") and len(job.id) == 30
    assert refused(404, store.jobs.get, "other", job.id).code == "fine_tune_not_found"


def test_only_what_may_follow_follows(store: Store, make_job: Any) -> None:
    for status, to in itertools.product(Status, Status):
        job = make_job(status)
        before = store.jobs.news("acme", job.id)
        if to in NEXT[status]:
            assert store.jobs.move(job.id, to).status is store.jobs.get("acme", job.id).status is to
            assert len(store.jobs.news("acme", job.id)) == len(before) + 1
        else:
            refused(400, store.jobs.move, job.id, to)
            assert store.jobs.get("acme", job.id) == job and store.jobs.news("acme", job.id) == before
        if not store.jobs.get("acme", job.id).status.ended:
            store.jobs.cancel("acme", job.id)


def test_pause_and_resume(store: Store, make_job: Any) -> None:
    queued, running = make_job(Status.QUEUED), None
    assert store.jobs.pause("acme", queued.id).status is Status.PAUSED
    refused(400, store.jobs.pause, "acme", queued.id)
    refused(404, store.jobs.resume, "other", queued.id)
    assert store.jobs.resume("acme", queued.id).status is Status.QUEUED
    refused(400, store.jobs.resume, "acme", queued.id)
    running = store.jobs.claim("w", 60)
    assert running and store.jobs.pause("acme", running.id).status is Status.PAUSING
    assert store.jobs.pause("acme", running.id).status is Status.PAUSING
    assert store.jobs.beat(running.id, running.fence, 60) is Status.PAUSING
    store.jobs.move(running.id, Status.PAUSED, by=running.fence)
    assert store.jobs.claim("w", 60) is None
    store.jobs.resume("acme", running.id)
    again = store.jobs.claim("v", 60)
    assert again and (again.id, again.fence, again.started_at) == (running.id, running.fence + 1, running.started_at)


def test_a_job_is_paused_before_its_files_were_read(store: Store, make_job: Any) -> None:
    """They are read when it goes on: nothing is trained on unread."""
    job = make_job()
    reading = store.jobs.claim_validation("w", 60)
    assert reading and store.jobs.pause("acme", job.id).status is Status.PAUSED
    with pytest.raises(Lost):
        store.jobs.move(job.id, Status.QUEUED, by=reading.fence)
    assert store.jobs.claim_validation("w", 60) is None and store.jobs.claim("w", 60) is None
    assert store.jobs.resume("acme", job.id).status is Status.VALIDATING
    again = store.jobs.claim_validation("w", 60)
    assert again and store.jobs.claim("w", 60) is None
    store.jobs.move(job.id, Status.QUEUED, by=again.fence)
    store.jobs.pause("acme", job.id)
    assert store.jobs.resume("acme", job.id).status is Status.QUEUED, "they were read"


def test_what_was_recorded_may_be_recorded_again(store: Store, make_job: Any, tmp_path: Path) -> None:
    """As by a worker that was not told that its transaction was committed."""
    job, storage = make_job(Status.RUNNING), Storage(f"file://{tmp_path}/bytes")
    place, note = store.places.reserve("states"), Note("once")
    storage.put(place, [b"state"])
    for _ in range(2):
        assert store.jobs.progress(job.id, job.fence, saved=place, events=[note, "twice"]).saved == place
    store.sweep(storage)
    assert storage.exists(place)
    said = [event.message for event in store.jobs.news("acme", job.id)]
    assert (said.count("once"), said.count("twice")) == (1, 2)
    with pytest.raises(Swept):
        store.jobs.progress(job.id, job.fence, saved="states/xx/never-reserved")
    assert store.jobs.look(job.id).saved == place


def test_lists_below_a_job_have_an_order(store: Store, make_job: Any) -> None:
    first, second = make_job(Status.RUNNING), make_job()
    for step in (1, 2):
        store.jobs.add_checkpoint(first.id, first.fence, step=step, base="base", task="text-generation",
                                  place=store.places.reserve("models"), metrics={})  # fmt: skip
    jobs, more = store.jobs.page("acme", limit=1, order="asc")
    assert [job.id for job in jobs] == [first.id] and more
    assert [job.id for job in store.jobs.page("acme", after=first.id, order="asc")[0]] == [second.id]
    assert [one.step for one in store.jobs.checkpoints("acme", first.id, order="asc")[0]] == [1, 2]
    numbers = [event.n for event in store.jobs.events("acme", first.id, order="asc")[0]]
    assert numbers == sorted(numbers) and len(numbers) > 2


def test_cancel(store: Store, make_job: Any) -> None:
    job = make_job(Status.RUNNING)
    refused(404, store.jobs.cancel, "other", job.id)
    ended = store.jobs.cancel("acme", job.id)
    assert ended.status is Status.CANCELLED and ended.finished_at and ended.worker is None
    with pytest.raises(Lost):
        store.jobs.beat(job.id, job.fence, 60)
    with pytest.raises(Lost):
        finish(store, job)
    refused(400, store.jobs.cancel, "acme", job.id)


def test_pages_of_jobs(store: Store, make_job: Any) -> None:
    made = [make_job().id for _ in range(5)]
    foreign = make_job(tenant="other")
    first, more = store.jobs.page("acme", limit=3)
    assert [job.id for job in first] == made[:1:-1] and more
    second, more = store.jobs.page("acme", after=first[-1].id, limit=2)
    assert [job.id for job in second] == made[1::-1] and not more
    assert refused(400, store.jobs.page, "acme", after=foreign.id).param == "after"
    refused(400, store.jobs.page, "acme", after="ftjob-none")
    assert len(store.jobs.page("acme", limit=10**30)[0]) == 5


def test_jobs_by_metadata(store: Store, make_job: Any) -> None:
    both, one, none = make_job(metadata={"a": "1", "b": "2"}), make_job(metadata={"a": "1"}), make_job()

    def found(metadata: Any) -> list[str]:
        return [job.id for job in store.jobs.page("acme", metadata=metadata)[0]]

    assert found({"a": "1"}) == [one.id, both.id] and found({"a": "1", "b": "2"}) == [both.id]
    assert found({"a": "2"}) == [] and found("null") == [none.id] and len(found(None)) == 3


def test_a_request_sent_again_makes_one_job(store: Store, add_file: AddFile, clock: Clock) -> None:
    spec = JobSpec(model="base", training_file=add_file().id)
    first = store.jobs.create("acme", spec, request="h")
    assert store.jobs.create("acme", spec, request="h", retry=True) == first
    assert store.jobs.create("acme", spec, request="i", retry=True) != first
    second = store.jobs.create("acme", spec, request="h")
    assert second.id != first.id and store.jobs.create("acme", spec, request="h", retry=True) == second
    refused(404, store.jobs.create, "other", spec, request="h", retry=True)
    clock.now += 601
    assert store.jobs.create("acme", spec, request="h", retry=True).id not in (first.id, second.id)


def test_what_a_job_needs_must_be_there(store: Store, make_job: Any, add_file: AddFile) -> None:
    foreign = add_file("other").id
    assert refused(404, make_job, file=foreign).param == "training_file"
    assert refused(404, make_job, validation_file=foreign).param == "validation_file"
    assert refused(404, make_job, model="ft:base:acme::12345678").param == "model"
    assert store.jobs.page("acme") == ([], False)


def test_events_are_paged_and_followed(store: Store, make_job: Any) -> None:
    job = make_job(Status.RUNNING)
    notes = [Note(f"step {i}", type="metrics", data={"step": i, "train_loss": math.nan}) for i in range(10_000)]
    start = store.jobs.news("acme", job.id)[-1].n
    store.jobs.progress(job.id, job.fence, events=notes)
    seen, after, more = [], None, True
    while more:
        events, more = store.jobs.events("acme", job.id, after, limit=1500)
        seen += events
        after = events[-1].id
    steps = [event.data["step"] for event in seen if event.type == "metrics"]
    assert steps == list(range(10_000))[::-1] and len({event.id for event in seen}) == len(seen)
    assert seen[0].data["train_loss"] is None
    assert [e.message for e in store.jobs.news("acme", job.id, start, limit=2)] == ["step 0", "step 1"]
    other = make_job()
    refused(400, store.jobs.events, "acme", other.id, seen[0].id)
    refused(404, store.jobs.events, "other", job.id)
    refused(404, store.jobs.news, "other", job.id)


def test_a_job_succeeds_as_a_whole(store: Store, make_job: Any) -> None:
    job = make_job(Status.RUNNING, suffix="My Bot:v1@2")
    saved = store.places.reserve("states")
    store.jobs.progress(job.id, job.fence, saved=saved, resolved={"n_epochs": 3})
    done = finish(store, job)
    name = f"ft:base:acme:my-bot-v1-2:{job.id[6:14]}"
    assert (done.status, done.fine_tuned_model, done.saved, done.resolved) == (
        Status.SUCCEEDED, name, None, {"n_epochs": 3})  # fmt: skip
    model, (result,) = store.models.get("acme", name), done.result_files
    assert (model.job, model.place) == (job.id, done.run) and store.files.get("acme", result).bytes == 5
    last = [event.message for event in store.jobs.events("acme", job.id)[0][:2]]
    assert last == ["The job has succeeded.", f"The model was made: {name}"]
    with pytest.raises(Lost):
        finish(store, job)
    assert len(store.models.page("acme")[0]) == 1


def test_a_step_that_comes_again_is_the_same_checkpoint(store: Store, make_job: Any) -> None:
    job = make_job(Status.RUNNING)

    def add(step: int) -> Any:
        return store.jobs.add_checkpoint(job.id, job.fence, step=step, base="base", task="text-generation",
                                         place=store.places.reserve("models"), metrics={"loss": 1.5})  # fmt: skip

    first, second = add(10), add(20)
    assert add(10) == first and first.metrics == {"loss": 1.5}
    assert store.jobs.checkpoints("acme", job.id) == ([second, first], False)
    assert store.jobs.checkpoints("acme", job.id, after=second.id) == ([first], False)
    assert first.model == f"ft:base:acme::{job.id[6:14]}:ckpt-step-10"
    assert store.models.get("acme", first.model).job == job.id


def test_a_job_fails_for_a_reason(store: Store, make_job: Any) -> None:
    job = make_job()
    claimed = store.jobs.claim_validation("w", 60)
    assert claimed
    failed = store.jobs.fail(job.id, claimed.fence, "invalid_n_examples", "Too few.", "training_file")
    assert failed.error == {"code": "invalid_n_examples", "message": "Too few.", "param": "training_file"}
    event = store.jobs.events("acme", job.id, limit=1)[0][0]
    assert (event.level, event.message) == ("error", "Too few.")


# files


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/bytes")


def put(store: Store, storage: Storage, data: bytes, **options: Any) -> Any:
    place = store.places.reserve("files")
    size, sha256 = storage.put(place, [data])
    return store.files.add("acme", "a.jsonl", "fine-tune", size, sha256, place, **options)


def test_a_deleted_files_bytes_stay_while_jobs_need_them(store: Store, storage: Storage, make_job: Any) -> None:
    file = put(store, storage, b"rows")
    first, second = make_job(file=file.id, validation_file=file.id), make_job(file=file.id)
    store.files.delete("acme", file.id)
    refused(404, store.files.get, "acme", file.id)
    refused(404, store.files.delete, "acme", file.id)
    refused(404, make_job, file=file.id)
    assert store.files.used(first.id, file.id).place == file.place
    store.jobs.cancel("acme", first.id)
    store.sweep(storage)
    assert storage.open(file.place).read() == b"rows" and store.files.stored("acme") == 4
    store.jobs.cancel("acme", second.id)
    assert store.sweep(storage) == 1 and not storage.exists(file.place) and store.files.stored("acme") == 0
    refused(404, store.files.used, second.id, file.id)


def test_a_file_that_is_not_deleted_outlives_its_job(store: Store, storage: Storage, make_job: Any) -> None:
    file = put(store, storage, b"rows")
    store.jobs.cancel("acme", make_job(file=file.id).id)
    store.sweep(storage)
    assert storage.exists(file.place) and store.files.get("acme", file.id) == file
    store.files.delete("acme", file.id)
    store.sweep(storage)
    assert not storage.exists(file.place)


def test_files_expire(store: Store, storage: Storage, clock: Clock) -> None:
    file, lasting = put(store, storage, b"rows", expires_after=3600), put(store, storage, b"rows")
    clock.now += 3599
    assert store.sweep(storage) == 0 and store.files.get("acme", file.id).expires_at == int(clock.now) + 1
    clock.now += 1
    refused(404, store.files.get, "acme", file.id)
    assert [f.id for f in store.files.page("acme")[0]] == [lasting.id]
    store.sweep(storage)
    assert not storage.exists(file.place) and storage.exists(lasting.place)


def test_pages_go_on_after_a_file_that_was_deleted(store: Store, add_file: AddFile) -> None:
    files = [add_file() for _ in range(3)]
    store.files.delete("acme", files[1].id)
    assert [f.id for f in store.files.page("acme", after=files[1].id)[0]] == [files[0].id]
    assert [f.id for f in store.files.page("acme", order="asc")[0]] == [files[0].id, files[2].id]
    assert store.files.page("acme", purpose="batch") == ([], False)
    refused(404, store.files.delete, "other", files[0].id)


def test_what_was_put_but_never_added_is_swept(store: Store, storage: Storage, clock: Clock) -> None:
    place = store.places.reserve("files")
    storage.put(place, [b"half"])
    assert store.sweep(storage) == 0 and storage.exists(place)
    clock.now += 86_401
    assert store.sweep(storage) == 1 and not storage.exists(place)
    refused(503, store.files.add, "acme", "a", "batch", 4, "", place)


def test_a_place_that_is_being_swept_is_not_kept(
    store: Store, storage: Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that sweeps it may die in between: another one sweeps it an hour later."""
    place = store.places.reserve("files")
    storage.put(place, [b"late"])
    clock.now += 86_401
    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(storage, "delete", Mock(side_effect=ConnectionError))
        store.sweep(storage)
    refused(503, store.files.add, "acme", "a", "batch", 4, "", place)
    assert store.sweep(storage) == 0
    clock.now += 3600
    assert store.sweep(storage) == 1 and not storage.exists(place)


def test_the_quota_counts_what_is_stored(store: Store, add_file: AddFile) -> None:
    file = add_file(size=60, quota=100)
    store.uploads.create("acme", "b", "batch", 30, "text/plain", quota=100)
    assert refused(413, add_file, size=11, quota=100).code == "storage_limit_exceeded"
    assert store.files.stored("acme") == 90 and add_file("other", size=100, quota=100)
    store.files.delete("acme", file.id)
    assert add_file(size=70, quota=100)


def test_a_file_comes_in_parts(store: Store, storage: Storage) -> None:
    upload = store.uploads.create("acme", "a.jsonl", "fine-tune", 6, "text/plain", expires_after=7200)

    def add(data: bytes) -> Any:
        place = store.places.reserve("parts")
        storage.put(place, [data])
        return store.uploads.add_part("acme", upload.id, len(data), place)

    late, early = add(b"456"), add(b"123")
    refused(400, add, b"7")
    complete = store.uploads.complete
    refused(404, complete, "other", upload.id, [early.id, late.id], storage)
    refused(400, complete, "acme", upload.id, [early.id], storage)
    refused(400, complete, "acme", upload.id, [early.id, early.id], storage)
    assert refused(400, complete, "acme", upload.id, [early.id, late.id], storage, "0" * 32).param == "md5"
    md5 = "E10ADC3949BA59ABBE56E057F20F883E"
    done = complete("acme", upload.id, [early.id, late.id], storage, md5)
    assert done.status == "completed" and done.file and done.file.expires_at
    assert storage.open(done.file.place).read() == b"123456" and done.file.bytes == 6
    assert complete("acme", upload.id, [early.id, late.id], storage) == done == store.uploads.get("acme", upload.id)
    refused(400, complete, "acme", upload.id, [late.id, early.id], storage)
    refused(400, store.uploads.cancel, "acme", upload.id)
    store.sweep(storage)
    assert not storage.exists(early.place) and storage.exists(done.file.place) and store.files.stored("acme") == 6
    assert len(store.files.page("acme")[0]) == 1


@pytest.mark.parametrize("swept", [False, True])
def test_an_upload_that_is_completed_twice_at_once_is_one_file(
    store: Store, storage: Storage, monkeypatch: pytest.MonkeyPatch, swept: bool
) -> None:
    """The second request is done while the first one still puts the parts together."""
    upload = store.uploads.create("acme", "a.jsonl", "fine-tune", 3, "text/plain")
    place = store.places.reserve("parts")
    storage.put(place, [b"abc"])
    part, put, others = store.uploads.add_part("acme", upload.id, 3, place), storage.put, []

    def slowly(place: str, chunks: Any) -> Any:
        monkeypatch.setattr(storage, "put", put)
        others.append(store.uploads.complete("acme", upload.id, [part.id], storage))
        if swept:
            store.sweep(storage)
        return put(place, chunks)

    monkeypatch.setattr(storage, "put", slowly)
    assert store.uploads.complete("acme", upload.id, [part.id], storage) == others[0]
    store.sweep(storage)
    (file,) = store.files.page("acme")[0]
    assert storage.open(file.place).read() == b"abc" and not storage.exists(place)
    left = [path for path in Path(storage.root).rglob("*") if path.is_file()]
    assert len(left) == 1, "what the slower one wrote is gone"


def test_a_part_that_is_sent_again_is_the_same_part(store: Store) -> None:
    upload = store.uploads.create("acme", "a.jsonl", "fine-tune", 6, "text/plain")

    def add(sha256: str, retry: bool) -> Any:
        return store.uploads.add_part("acme", upload.id, 3, store.places.reserve("parts"), sha256, retry)

    first = add("a", False)
    assert add("a", True) == first
    second = add("a", False)
    assert second.id != first.id, "a file may say the same twice"
    refused(400, add, "b", True)


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_an_upload_ends(store: Store, storage: Storage, clock: Clock, how: str) -> None:
    upload = store.uploads.create("acme", "a", "batch", 3, "text/plain")
    part = store.uploads.add_part("acme", upload.id, 3, store.places.reserve("parts"))
    storage.put(part.place, [b"abc"])
    if how == "cancelled":
        assert store.uploads.cancel("acme", upload.id).status == how
    clock.now += 3600
    assert store.uploads.get("acme", upload.id).status == how
    refused(400, store.uploads.add_part, "acme", upload.id, 0, store.places.reserve("parts"))
    refused(400, store.uploads.complete, "acme", upload.id, [part.id], storage)
    store.sweep(storage)
    assert not storage.exists(part.place) and store.files.stored("acme") == 0


# models


def test_a_model_is_deleted_but_not_from_under_others(store: Store, storage: Storage, make_job: Any) -> None:
    """It is trained on by one job, whose model lies on top of it."""
    first = finish(store, make_job(Status.RUNNING))
    assert first.fine_tuned_model and first.run
    storage.put(first.run, [b"weights"])
    on_top = make_job(Status.RUNNING, model=first.fine_tuned_model)
    refused(404, store.models.delete, "other", first.fine_tuned_model)
    store.models.delete("acme", first.fine_tuned_model)
    refused(404, store.models.get, "acme", first.fine_tuned_model)
    refused(404, make_job, model=first.fine_tuned_model)
    second = finish(store, on_top)
    store.sweep(storage)
    assert storage.exists(first.run) and store.models.stored(first.fine_tuned_model)
    assert [model.id for model in store.models.page("acme")[0]] == [second.fine_tuned_model]
    assert second.fine_tuned_model
    gone = store.models.delete("acme", second.fine_tuned_model)
    assert {model.place for model in gone} == {first.run, second.run}
    store.sweep(storage)
    assert not storage.exists(first.run) and store.models.stored(first.fine_tuned_model) is None
    assert store.jobs.get("acme", first.id).run is None


def test_a_checkpoint_is_shared_with_another_tenant(store: Store, make_job: Any) -> None:
    job = make_job(Status.RUNNING)
    name = store.jobs.add_checkpoint(job.id, job.fence, step=1, base="base", task="text-generation",
                                     place=store.places.reserve("models"), metrics={}).model  # fmt: skip
    refused(404, store.models.get, "other", name)
    refused(404, store.models.permit, "other", name, ["other"])
    (given,) = store.models.permit("acme", name, ["other", "other"])
    assert store.models.permit("acme", name, ["other"]) == [given]
    assert store.models.permissions("acme", name) == ([given], False)
    assert store.models.get("other", name).tenant == "acme" and store.models.page("other") == ([], False)
    refused(404, store.models.delete, "other", name)
    refused(404, store.models.forbid, "acme", name, "cp_none")
    store.models.forbid("acme", name, given.id)
    refused(404, store.models.get, "other", name)


# keys


def test_a_secret_is_shown_once_and_kept_as_a_hash(store: Store, tmp_path: Path) -> None:
    key, secret = store.keys.create("acme", "laptop", ["files", "jobs"])
    assert secret.startswith("tw-") and len(secret) == 46
    assert store.keys.by_secret(secret) == key and key.scopes == {"files", "jobs"}
    assert store.keys.by_secret(secret[:-1]) is None and store.keys.by_secret("") is None
    assert store.keys.by_secret("\ud800") is None
    with store.database.read() as connection:
        kept = connection.exec_driver_sql("SELECT * FROM keys").all()
    assert secret not in str(kept) and secret[8:-4] not in str(kept)


def test_a_key_is_revoked(store: Store) -> None:
    key, secret = store.keys.create("acme", "laptop")
    refused(404, store.keys.revoke, "other", key.id)
    revoked = store.keys.revoke("acme", key.id)
    assert revoked.revoked_at and store.keys.revoke(None, key.id) == revoked
    assert (
        store.keys.by_secret(secret) is None and store.keys.list("acme") == [revoked] and not store.keys.list("other")
    )


def test_when_a_key_was_used_is_written_once_a_minute(store: Store, clock: Clock) -> None:
    secret, start = store.keys.create("acme", "laptop")[1], int(clock.now)

    def used() -> int | None:
        store.keys.by_secret(secret)
        return store.keys.list()[0].last_used_at

    assert used() == start
    clock.now += 59
    assert used() == start
    clock.now += 1
    assert used() == start + 60


@pytest.mark.parametrize("tenant, scopes", [("acme", ["everything"]), ("a:b", []), ("", []), ("../x", []), ("A", [])])
def test_impossible_keys_are_refused(store: Store, tenant: str, scopes: list[str]) -> None:
    refused(400, store.keys.create, tenant, "x", scopes)


@pytest.mark.parametrize("length, right", [(0, False), (1, True), (100, True), (101, False)])
def test_the_name_of_a_key_can_be_shown(store: Store, length: int, right: bool) -> None:
    if right:
        assert store.keys.create("acme", "n" * length)[0].name == "n" * length
    else:
        assert refused(400, store.keys.create, "acme", "n" * length).param == "name"
    assert len(store.keys.list()) == right


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("These are no rows. " * 100)
    (tmp_path / "folder").mkdir()
    for name, why in (
        ("none/x.db", "unable to open"),
        ("text", "file is not a database"),
        ("folder", "unable to open"),
    ):
        with pytest.raises(
            TunewrightError, match=f"{tmp_path / name} cannot be opened: {why}.*Name a folder"
        ) as caught:
            Store(f"sqlite:///{tmp_path / name}")
        assert not isinstance(caught.value, Unavailable), "it will not do later either"


def test_a_database_that_is_locked_will_do_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.1)
    url = f"sqlite:///{tmp_path}/x.db"
    Store(url).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable) as caught:
            Store(url)
        assert "locked" in str(caught.value.__cause__)


def test_the_log_tells_who_did_what(store: Store) -> None:
    for action in ("files.create", "jobs.create", "jobs.cancel"):
        store.audit("acme", "key_1", action, "object", "request")
    store.audit("other", None, "keys.create")
    newest = store.audit.entries("acme", limit=2)
    assert [entry.action for entry in newest] == ["jobs.cancel", "jobs.create"] and newest[0].key == "key_1"
    assert [entry.action for entry in store.audit.entries("acme", before=newest[-1].n)] == ["files.create"]


def test_numbers_grow_and_are_not_given_again(store: Store, make_job: Any) -> None:
    first = make_job()
    with store.database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    assert make_job().n > first.n and job_table.c.n.primary_key
