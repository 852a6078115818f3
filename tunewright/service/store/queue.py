"""The table of jobs as a queue: who may work on what, until when.

A claim is a lease: it ends unless its worker renews it by a heartbeat, and then the job is anybody's again, and goes on
before others begin. Each claim has a higher fence than the one before; all that a worker writes is written only while
its fence is the newest and the job still held. So a worker that was merely slow cannot write over what its successor
did.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, or_, select, update

from tunewright.service.entities import Job, Note, Status
from tunewright.service.errors import Lost
from tunewright.service.store.database import Database
from tunewright.service.store.tables import jobs, tenants
from tunewright.service.store.transitions import HELD, as_job, change, move, write_events

AGE = (jobs.c.created_at, jobs.c.n)
"""The order of a tenant's jobs. By `n` alone PostgreSQL would walk along the primary key, past all that have ended."""

EAGER = 10
"""Claims of a job up to which it goes on before others begin. One that loses its workers again and again, whether it
gets on meanwhile or not, then waits for its tenant's turn, so that it keeps nobody from beginning."""


class Queue:
    """Jobs that wait for a worker, and those that lost theirs."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, worker: str, seconds: float, but: Collection[str] = ()) -> Job | None:
        """The next job to run, held by `worker` for so long; None where there is nothing to do.

        Jobs whose worker fell silent come first (RUNNING, to go on from `saved`; or PAUSING, to be paused), as long as
        they were claimed less than `EAGER` times. Then the tenant with the fewest running jobs has its turn, of these
        the one that was served the longest ago, and within a tenant its silent jobs come before the queued ones, by
        age. Workers that claim at the same instant do not wait for each other, and so may both count a tenant's jobs
        before either has begun one.

        Args:
            but: jobs that this worker cannot run.
        """
        with self.database.write() as connection:
            now = self.database.now(connection)
            able = jobs.c.id.not_in(but)
            silent, queued = and_(ready(HELD, now), able), and_(ready((Status.QUEUED,), now), able)
            for waiting in ([and_(silent, jobs.c.fence < EAGER)], [silent, queued]):
                if row := self._first(connection, waiting, HELD, now):
                    return self._take(connection, row, worker, now, seconds)
        return None

    def claim_validation(self, worker: str, seconds: float) -> Job | None:
        """The next job whose files are to be read, in the same order."""
        with self.database.write() as connection:
            now = self.database.now(connection)
            row = self._first(connection, [ready((Status.VALIDATING,), now)], (Status.VALIDATING,), now)
            return self._take(connection, row, worker, now, seconds) if row else None

    def beat(self, id: str, fence: int, seconds: float) -> Status:
        """Hold a job for so long from now; its status, which may have become PAUSING. Raises Lost."""
        with self.database.write() as connection:
            lease = self.database.now(connection) + seconds
            mine = jobs.c.id == id, jobs.c.fence == fence, jobs.c.lease.is_not(None)
            status = connection.scalar(update(jobs).where(*mine).values(lease=lease).returning(jobs.c.status))
        if status is None:
            raise Lost(f"{id} is no longer held by claim {fence}.")
        return Status(status)

    def _first(
        self, connection: Connection, waiting: list[ColumnElement[bool]], busy: Sequence[Status], now: float
    ) -> Any:
        """The row of the job whose turn it is, locked: of a tenant first one for which the first condition holds."""
        for tenant in connection.execute(ranking(waiting, busy, now)):
            for condition in waiting:
                row = self._next(connection, tenant, condition)
                if row is not None:
                    return row
        return None

    def _next(self, connection: Connection, tenant: Row[Any], condition: ColumnElement[bool]) -> Any:
        query = select(jobs).where(jobs.c.tenant == tenant.id, condition).order_by(*AGE).limit(1)
        return connection.execute(query.with_for_update(skip_locked=True)).mappings().one_or_none()

    def _take(self, connection: Connection, row: Any, worker: str, now: float, seconds: float) -> Job:
        was_held = row["lease"] is not None
        held = {"worker": worker, "lease": now + seconds, "claimed": now, "fence": row["fence"] + 1,
                "started_at": row["started_at"], "lost": row["lost"] + was_held}  # fmt: skip
        if row["status"] == Status.QUEUED:
            held["started_at"] = row["started_at"] or int(now)
            move(connection, now, row, Status.RUNNING)
        elif row["status"] in HELD:
            write_events(connection, now, row["id"], [Note("Its worker fell silent: another goes on.", "warn")])
        return as_job(change(connection, row, held))


def ready(statuses: tuple[Status, ...], now: float) -> ColumnElement[bool]:
    """The condition that a job waits for a worker."""
    status = jobs.c.status.in_(statuses) if len(statuses) > 1 else jobs.c.status == statuses[0]
    return and_(status, or_(jobs.c.lease.is_(None), jobs.c.lease < now))


def ranking(waiting: list[ColumnElement[bool]], busy: Sequence[Status], now: float) -> Select[Any]:
    """Tenants with jobs that wait, in the order of their turns. Every look into `jobs` is one into an index."""
    mine = jobs.c.tenant == tenants.c.id
    firsts = [select(jobs.c.n).where(mine, c).order_by(*AGE).limit(1).scalar_subquery() for c in waiting]
    held = select(func.count()).select_from(jobs).where(mine, jobs.c.status.in_(busy), jobs.c.lease >= now)
    served = select(func.coalesce(func.max(jobs.c.claimed), 0)).where(mine).scalar_subquery()
    first = (func.coalesce(*firsts) if len(firsts) > 1 else firsts[0]).label("first")
    ranked = select(tenants.c.id, first, held.scalar_subquery().label("held"), served.label("served")).subquery()
    turn = (ranked.c[name] for name in ("held", "served", "first"))
    return select(ranked.c.id).where(ranked.c.first.is_not(None)).order_by(*turn)
