"""The queue: whose turn it is, leases that run out, fences, and crowds of workers that die."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import insert, text

from tests.service.conftest import Clock
from tunewright.service.entities import Job, JobSpec, Status
from tunewright.service.errors import Lost, Refused
from tunewright.service.store import Result, Store
from tunewright.service.store.queue import AGE, EAGER, ranking, ready
from tunewright.service.store.tables import jobs as job_table
from tunewright.service.store.transitions import HELD

AddFile = Callable[..., Any]


@pytest.fixture
def queued(store: Store, add_file: AddFile) -> Callable[..., Job]:
    """A job that waits in the queue of a tenant."""
    return lambda tenant="acme": queue_one(store, tenant, add_file(tenant).id)


def queue_one(store: Store, tenant: str, file: str) -> Job:
    job = store.jobs.create(tenant, JobSpec(model="base", training_file=file))
    return store.jobs.move(job.id, Status.QUEUED)


def finish(store: Store, job: Job) -> Job:
    result = Result(store.places.reserve("results"), 1, "")
    run = store.places.reserve("runs")
    return store.jobs.finish(job.id, job.fence, base="base", task="text-generation", run=run, result=result)


def claim(store: Store, seconds: float = 60) -> Job:
    job = store.jobs.claim("w", seconds)
    assert job is not None
    return job


# turns


def test_the_oldest_comes_first(store: Store, queued: Any) -> None:
    made = [queued().id for _ in range(3)]
    assert [claim(store).id for _ in made] == made and store.jobs.claim("w", 60) is None


def test_one_tenants_jobs_do_not_keep_anothers_waiting(store: Store, queued: Any, clock: Clock) -> None:
    """With three workers, each of which begins the next job when its own has ended."""
    for tenant in "aaaaabbc":
        queued(tenant)
    taken = []
    for _ in range(3):
        clock.now += 1
        taken.append(claim(store, 1000))
    assert [job.tenant for job in taken] == ["a", "b", "c"]
    for expected in "abaaa":
        clock.now += 1
        finish(store, taken.pop(0))
        taken.append(claim(store, 1000))
        assert taken[-1].tenant == expected
    for job in taken:
        finish(store, job)
    assert store.jobs.claim("w", 60) is None


def test_tenants_take_turns_at_one_worker(store: Store, queued: Any, clock: Clock) -> None:
    for tenant in "aaabbc":
        queued(tenant)
    seen = ""
    for _ in range(6):
        clock.now += 1
        seen += finish(store, claim(store)).tenant
    assert seen == "abcaba"


def test_the_tenant_with_the_fewest_running_jobs_comes_first(store: Store, queued: Any, clock: Clock) -> None:
    for tenant in "aab":
        queued(tenant)
    first = claim(store, 1000)
    clock.now += 1
    finish(store, claim(store, 1000))  # b was served last, but has nothing running
    queued("b")
    assert first.tenant == "a" and claim(store, 1000).tenant == "b"


def test_validations_take_turns_too(store: Store, add_file: AddFile, clock: Clock) -> None:
    for tenant in "aab":
        store.jobs.create(tenant, JobSpec(model="base", training_file=add_file(tenant).id))
    seen = []
    for _ in range(3):
        clock.now += 1
        job = store.jobs.claim_validation("w", 1000)
        assert job and job.status is Status.VALIDATING
        seen.append(job.tenant)
        store.jobs.move(job.id, Status.QUEUED, by=job.fence)
    assert seen == ["a", "b", "a"] and store.jobs.claim_validation("w", 60) is None


# leases and fences


@pytest.mark.parametrize("pausing", [False, True])
def test_a_silent_workers_job_goes_to_another(store: Store, queued: Any, clock: Clock, pausing: bool) -> None:
    queued()
    first = claim(store, 60)
    saved = store.places.reserve("states")
    store.jobs.progress(first.id, first.fence, saved=saved)
    if pausing:
        store.jobs.pause("acme", first.id)
    clock.now += 59
    store.jobs.beat(first.id, first.fence, 60)
    clock.now += 59
    assert store.jobs.claim("v", 60) is None
    clock.now += 2
    second = store.jobs.claim("v", 60)
    assert second and (second.id, second.fence, second.worker, second.saved) == (first.id, 2, "v", saved)
    assert second.status is (Status.PAUSING if pausing else Status.RUNNING) and (first.lost, second.lost) == (0, 1)
    late: list[Callable[[], Any]] = [
        lambda: store.jobs.beat(first.id, first.fence, 60),
        lambda: store.jobs.progress(first.id, first.fence, events=["late"]),
        lambda: store.jobs.move(first.id, Status.QUEUED, by=first.fence),
        lambda: store.jobs.fail(first.id, first.fence, "c", "m"),
        lambda: store.jobs.add_checkpoint(first.id, first.fence, step=1, base="b", task="t", metrics={},
                                          place=store.places.reserve("models")),
        lambda: finish(store, first),
    ]  # fmt: skip
    before = store.jobs.news("acme", first.id)
    for write in late:
        with pytest.raises(Lost):
            write()
    assert store.jobs.look(first.id) == second and store.jobs.news("acme", first.id) == before
    store.jobs.progress(second.id, second.fence, saved=store.places.reserve("states"))
    assert store.jobs.look(second.id).lost == 0


def test_work_under_way_goes_on_before_others_begin(store: Store, queued: Any, clock: Clock) -> None:
    """Of those that lost their worker, too, the tenants take turns."""
    for tenant in "aab":
        queued(tenant)
    for expected in "aba":
        clock.now += 1
        assert claim(store, 60).tenant == expected
    clock.now += 100
    queued("c")
    assert [claim(store, 1000).tenant for _ in range(4)] == ["b", "a", "a", "c"]


@pytest.mark.parametrize("saves", [False, True])
def test_a_job_that_loses_its_worker_again_and_again_waits_for_its_turn(
    store: Store, queued: Any, clock: Clock, saves: bool
) -> None:
    deadly = queued("a")
    taken = []
    for _ in range(2 * EAGER):
        queued("b")
        clock.now += 1
        job = claim(store, 60)
        taken.append(job.tenant)
        if job.id == deadly.id:
            if saves:
                store.jobs.progress(job.id, job.fence, saved=store.places.reserve("states"))
            clock.now += 100
        else:
            finish(store, job)
    assert taken == ["a"] * EAGER + ["b", "a"] * (EAGER // 2)


def test_a_worker_that_was_slow_goes_on_if_nobody_came(store: Store, queued: Any, clock: Clock) -> None:
    queued()
    job = claim(store, 60)
    clock.now += 100
    assert store.jobs.beat(job.id, job.fence, 60) is Status.RUNNING and store.jobs.claim("v", 60) is None


def test_a_job_that_was_given_back_is_no_longer_held(store: Store, queued: Any) -> None:
    queued()
    job = claim(store)
    given = store.jobs.move(job.id, Status.QUEUED, by=job.fence)
    assert given.worker is None and given.fence == job.fence
    with pytest.raises(Lost):
        store.jobs.beat(job.id, job.fence, 60)
    with pytest.raises(Lost):
        store.jobs.progress(job.id, job.fence, events=["late"])
    assert claim(store).fence == job.fence + 1


def test_a_validation_is_leased(store: Store, add_file: AddFile, clock: Clock) -> None:
    job = store.jobs.create("acme", JobSpec(model="base", training_file=add_file().id))
    first = store.jobs.claim_validation("w", 60)
    assert first and first.id == job.id and store.jobs.claim_validation("v", 60) is None
    clock.now += 61
    second = store.jobs.claim_validation("v", 60)
    assert second and second.fence == first.fence + 1 and store.jobs.claim("w", 60) is None
    with pytest.raises(Lost):
        store.jobs.move(job.id, Status.QUEUED, by=first.fence)
    store.jobs.move(job.id, Status.QUEUED, by=second.fence)
    with pytest.raises(Lost):
        store.jobs.progress(job.id, second.fence, events=["late"])


def test_states_that_were_saved_before_are_swept(store: Store, queued: Any) -> None:
    from tunewright.service.storage import Storage

    storage = Storage("memory://states-of-a-queue")
    queued()
    job = claim(store)
    places = [store.places.reserve("states") for _ in range(2)]
    for place in places:
        storage.put(place, [b"x"])
        store.jobs.progress(job.id, job.fence, saved=place)
    store.sweep(storage)
    assert [storage.exists(place) for place in places] == [False, True]
    store.jobs.cancel("acme", job.id)
    store.sweep(storage)
    assert not storage.exists(places[1])


# many at once


def test_threads_claim_each_job_once(store: Store, queued: Any) -> None:
    made = {queued(tenant).id for tenant in "abc" * 7}
    with ThreadPoolExecutor(8) as pool:
        claimed = [job for job in pool.map(lambda i: store.jobs.claim(f"w{i}", 60), range(30)) if job]
    assert {job.id for job in claimed} == made and len(claimed) == len(made)


def test_claims_pass_by_a_locked_job(store: Store, queued: Any) -> None:
    """On PostgreSQL, where another transaction may hold a row; on SQLite it would have to wait."""
    if not store.database.postgresql:
        pytest.skip("SQLite has one writer")
    locked, free = queued(), queued()
    with store.database.write() as connection:
        connection.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": locked.id})
        assert claim(store).id == free.id


def test_a_crowd_that_dies_finishes_every_job_once(store: Store, database_url: str, queued: Any) -> None:
    """Five processes at a time, new ones for those that were killed. Events in their order show who wrote when."""
    for tenant in "aaaaabbbcc":
        queued(tenant)
    path, started = str(Path(__file__).with_name("crowd.py")), 0

    def start() -> subprocess.Popen[bytes]:
        nonlocal started
        started += 1
        return subprocess.Popen([sys.executable, path, database_url, str(started)])

    crowd = [start() for _ in range(5)]
    try:
        while crowd:
            process = crowd.pop(0)
            code = process.wait(timeout=120)
            assert code in (0, -signal.SIGKILL)
            if code:
                crowd.append(start())
    finally:
        for process in crowd:
            process.kill()
    ended = [job for tenant in "abc" for job in store.jobs.page(tenant)[0]]
    assert len(ended) == 10 and {job.status for job in ended} == {Status.SUCCEEDED}
    for job in ended:
        events = store.jobs.news(job.tenant, job.id)
        fences = [event.data["fence"] for event in events if event.data]
        assert fences == sorted(fences), "an older claim wrote after a newer one"
        writers = {(event.data["fence"], event.data["by"]) for event in events if event.data}
        assert max(Counter(fence for fence, _ in writers).values()) == 1, "two held the same claim"
        assert [event.message for event in events].count("The job has succeeded.") == 1
        assert events[-1].message == "The job has succeeded." and len(job.result_files) == 1
    assert len({model.id for tenant in "abc" for model in store.models.page(tenant)[0]}) == 10


# any order of calls


class AnyOrder(RuleBasedStateMachine):
    """Clients and workers in any order, beside the plainest model of what must hold: a table of who holds what."""

    store: Store
    clock: Clock
    file: str

    @initialize()
    def begin(self) -> None:
        for job in self.store.jobs.page("acme", limit=1000)[0]:
            if not job.status.ended:
                self.store.jobs.cancel("acme", job.id)
        self.status: dict[str, Status] = {}
        self.lease: dict[str, float] = {}
        self.fence: dict[str, int] = {}
        self.claims: list[Job] = []
        self.unread: set[str] = set()

    @rule()
    def create(self) -> None:
        job = self.store.jobs.create("acme", JobSpec(model="base", training_file=self.file))
        self.status[job.id], self.fence[job.id] = job.status, 0

    @rule(seconds=st.sampled_from([1, 30, 100]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    def over(self, id: str) -> bool:
        return self.lease.get(id, 0) < self.clock.now

    @rule(validates=st.booleans())
    def claim(self, validates: bool) -> None:
        call = self.store.jobs.claim_validation if validates else self.store.jobs.claim
        job = call("w", 50)
        lost = [id for id, s in self.status.items() if s in HELD and self.over(id)]
        waiting = [id for id, s in self.status.items() if s is Status.QUEUED]
        if validates:
            waiting, lost = [id for id, s in self.status.items() if s is Status.VALIDATING and self.over(id)], []
        expected = next(iter(lost or waiting), None)
        assert (job and job.id) == expected
        if job:
            self.fence[job.id] += 1
            assert job.fence == self.fence[job.id]
            self.lease[job.id] = self.clock.now + 50
            if self.status[job.id] is Status.QUEUED:
                self.status[job.id] = Status.RUNNING
            self.claims.append(job)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), what=st.sampled_from(["beat", "give back", "pause", "finish", "fail", "progress"]))
    def work(self, data: Any, what: str) -> None:
        """With any claim that there ever was."""
        job = data.draw(st.sampled_from(self.claims))
        id, jobs = job.id, self.store.jobs
        to = {"give back": Status.QUEUED, "pause": Status.PAUSED, "finish": Status.SUCCEEDED, "fail": Status.FAILED}
        calls: dict[str, Callable[[], Any]] = {
            "beat": lambda: jobs.beat(id, job.fence, 50),
            "progress": lambda: jobs.progress(id, job.fence, events=["x"], trained_tokens=job.fence),
            "finish": lambda: finish(self.store, job),
            "fail": lambda: jobs.fail(id, job.fence, "c", "m"),
        }
        call = calls.get(what) or (lambda: jobs.move(id, to[what], by=job.fence))
        if job.fence != self.fence[id] or id not in self.lease:
            with pytest.raises(Lost):
                call()
        elif what in to and to[what] not in allowed(self.status[id]):
            with pytest.raises(Refused):
                call()
        else:
            call()
            if what in to:
                self.become(id, to[what])
            elif what == "beat":
                self.lease[id] = self.clock.now + 50

    @precondition(lambda self: self.status)
    @rule(data=st.data(), what=st.sampled_from(["cancel", "pause", "resume"]))
    def ask(self, data: Any, what: str) -> None:
        id = data.draw(st.sampled_from(sorted(self.status)))
        status = self.status[id]
        table = {
            "cancel": {s: Status.CANCELLED for s in Status if not s.ended},
            "pause": {Status.VALIDATING: Status.PAUSED, Status.QUEUED: Status.PAUSED,
                      Status.RUNNING: Status.PAUSING, Status.PAUSING: Status.PAUSING},
            "resume": {Status.PAUSED: Status.VALIDATING if id in self.unread else Status.QUEUED},
        }[what]  # fmt: skip
        call = getattr(self.store.jobs, what)
        if status in table:
            assert call("acme", id).status is table[status]
            self.become(id, table[status])
        else:
            with pytest.raises(Refused):
                call("acme", id)

    def become(self, id: str, status: Status) -> None:
        if self.status[id] is Status.VALIDATING and status is Status.PAUSED:
            self.unread.add(id)
        elif status is Status.VALIDATING:
            self.unread.discard(id)
        self.status[id] = status
        if status not in HELD:
            self.lease.pop(id, None)

    @invariant()
    def the_store_says_the_same(self) -> None:
        if hasattr(self, "status"):
            kept = {job.id: job for job in self.store.jobs.page("acme", limit=1000)[0] if job.id in self.status}
            assert {id: job.status for id, job in kept.items()} == self.status
            assert {id: job.fence for id, job in kept.items()} == self.fence


def allowed(status: Status) -> set[Status]:
    """Written out once more, from the words of the API."""
    ends = {Status.FAILED, Status.CANCELLED}
    return {
        Status.VALIDATING: {Status.QUEUED, Status.PAUSED, *ends},
        Status.RUNNING: {Status.QUEUED, Status.PAUSED, Status.PAUSING, Status.SUCCEEDED, *ends},
        Status.PAUSING: {Status.PAUSED, Status.SUCCEEDED, *ends},
    }[status]


def test_clients_and_workers_in_any_order(store: Store, add_file: AddFile, clock: Clock) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    file = add_file().id  # failures are not made smaller: that takes minutes
    machine = type("Machine", (AnyOrder,), {"store": store, "clock": clock, "file": file})
    quick = settings(max_examples=15, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate],
                     suppress_health_check=list(HealthCheck))  # fmt: skip
    run_state_machine_as_test(machine, settings=quick)


# how much a claim reads


def test_a_claim_looks_only_at_jobs_that_wait(store: Store, add_file: AddFile) -> None:
    """Behind 20,000 jobs that have ended wait 5,000: every look into the table is one into an index of those."""
    queue_one(store, "a", add_file("a").id), add_file("b")
    with store.database.write() as connection:
        row = dict(connection.execute(job_table.select()).mappings().one())
        row |= {"n": None, "tenant": "b", "status": Status.CANCELLED}
        rows = [row | {"n": 10 + i, "id": f"ftjob-{i}", "tenant": "ab"[i % 2]} for i in range(25_000)]
        for i in range(0, 25_000, 1000):
            status = Status.QUEUED if i >= 20_000 else Status.SUCCEEDED
            connection.execute(insert(job_table), [row | {"status": status} for row in rows[i : i + 1000]])
        connection.execute(text("ANALYZE"))
    waiting = [ready(HELD, 1e9), ready((Status.QUEUED,), 1e9)]
    silent: list[Any] = [ready(HELD, 1e9) & (job_table.c.fence < EAGER)]
    next_one = job_table.select().where(job_table.c.tenant == "b", waiting[1]).order_by(*AGE).limit(1)
    explain = "EXPLAIN " if store.database.postgresql else "EXPLAIN QUERY PLAN "
    with store.database.read() as connection:
        for query in (ranking(silent, HELD, 1e9), ranking(waiting, HELD, 1e9), next_one):
            words = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
            plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + words))
            looks = [line for line in plan.splitlines() if re.search(r"(on|SEARCH|SCAN) (jobs|ix_jobs)", line)]
            assert looks and all("ix_jobs_tenant_" in line and "SCAN" not in line for line in looks), plan
    assert claim(store).tenant == "a" and claim(store).id == "ftjob-20001"
