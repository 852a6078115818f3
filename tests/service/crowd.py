"""A worker of a crowd: it claims, beats, writes, gives back, finishes, goes silent and dies, as chance has it.

Started as `crowd.py URL SEED`; it leaves with 0 when every job has ended, and dies by SIGKILL before. Every event that
it writes carries its fence.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from contextlib import suppress

from tunewright.service.entities import Job, Note, Status
from tunewright.service.errors import Lost, Refused
from tunewright.service.store import Result, Store

LEASE = 0.3


def main(url: str, seed: int) -> None:
    chance, store = random.Random(seed), Store(url)
    name = f"{os.getpid()}"
    while any(not job.status.ended for tenant in ("a", "b", "c") for job in store.jobs.page(tenant, limit=1000)[0]):
        with suppress(Lost, Refused):  # Refused: told to pause meanwhile; Unavailable is one of them
            validate(store, store.jobs.claim_validation(name, LEASE), chance)
            work(store, store.jobs.claim(name, LEASE), chance)
        time.sleep(chance.random() * 0.02)


def validate(store: Store, job: Job | None, chance: random.Random) -> None:
    if job is not None:
        accident(chance)
        store.jobs.move(job.id, Status.QUEUED, by=job.fence, event=note(job, "valid"))


def work(store: Store, job: Job | None, chance: random.Random) -> None:
    if job is None:
        return
    store.jobs.progress(job.id, job.fence, events=[note(job, "began")])
    for _ in range(chance.randrange(4)):
        accident(chance)
        if store.jobs.beat(job.id, job.fence, LEASE) is Status.PAUSING:
            store.jobs.move(job.id, Status.PAUSED, by=job.fence, event=note(job, "paused"))
            store.jobs.resume(job.tenant, job.id)
            return
        saved = store.places.reserve("states")
        store.jobs.progress(job.id, job.fence, events=[note(job, "step")], saved=saved)
        if chance.random() < 0.1:
            store.jobs.pause(job.tenant, job.id)
    if chance.random() < 0.2:
        store.jobs.move(job.id, Status.QUEUED, by=job.fence, event=note(job, "given back"))
        return
    run, table = store.places.reserve("runs"), store.places.reserve("results")
    accident(chance)
    store.jobs.progress(job.id, job.fence, events=[note(job, "finishing")])
    store.jobs.finish(job.id, job.fence, base="base", task="t", run=run, result=Result(table, 1, ""))


def accident(chance: random.Random) -> None:
    """Now and then it dies, or is silent for longer than its lease and then goes on as if nothing had been."""
    happens = chance.random()
    if happens < 0.03:
        os.kill(os.getpid(), signal.SIGKILL)
    if happens < 0.1:
        time.sleep(LEASE * 1.5)


def note(job: Job, message: str) -> Note:
    return Note(message, data={"fence": job.fence, "by": os.getpid()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
