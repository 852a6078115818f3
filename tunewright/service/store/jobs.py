"""Jobs: made and asked for by clients, and written by the worker that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, exists, func, insert, select

from tunewright.service.entities import Checkpoint, Event, Job, JobSpec, Note, Status
from tunewright.service.errors import Refused
from tunewright.service.ids import model_name, new_id
from tunewright.service.store.audit import Actor, record
from tunewright.service.store.database import entity, one, page
from tunewright.service.store.files import insert_file
from tunewright.service.store.models import insert_model
from tunewright.service.store.pins import pin
from tunewright.service.store.queue import Queue
from tunewright.service.store.tables import checkpoints, events, jobs, labels, tenants
from tunewright.service.store.transitions import (
    as_event,
    as_job,
    change,
    find,
    finite,
    held,
    move,
    recorded,
    unwritten,
    write_events,
)

Order = Literal["asc", "desc"]
"""asc: the oldest first."""
WINDOW = 600
"""For how many seconds a request that is sent again gives the job that it made before."""


@dataclass(frozen=True)
class Result:
    """The table of a finished run, which lies in the storage already and becomes a file of the tenant."""

    place: str
    bytes: int
    sha256: str
    filename: str = "step_metrics.csv"


class Jobs(Queue):
    """What is trained, was trained, and is to be trained. Another tenant's job is not found."""

    # for clients

    def create(
        self,
        tenant: str,
        spec: JobSpec,
        request: str | None = None,
        retry: bool = False,
        actor: Actor | None = None,
    ) -> Job:
        """A new job, whose files are to be validated.

        Args:
            request: a hash of the key and the body.
            retry: the client says that it has sent this before: if it made a job a moment ago, that is the answer.

        Raises:
            Refused (404): a file or a tuned model is not there.
        """
        with self.database.write() as connection:
            now = self.database.now(connection)
            if request is not None:
                self.database.alone(connection, request)
                before = self._made_by(connection, tenant, request, now) if retry else None
                if before is not None:
                    return as_job(before)
            self.database.insert_new(connection, tenants, id=tenant, created_at=int(now))
            made = self._insert(connection, tenant, spec, request, now)
            record(connection, now, actor, "jobs.create", made.id)
            return made

    def get(self, tenant: str, id: str) -> Job:
        with self.database.read() as connection:
            return as_job(find(connection, id, jobs.c.tenant == tenant))

    def page(
        self,
        tenant: str,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | Literal["null"] | None = None,
        order: Order = "desc",
    ) -> tuple[list[Job], bool]:
        """Some, and whether there are more. `metadata`: with all these labels; "null": with none at all."""
        with self.database.read() as connection:
            rows, more = page(connection, jobs, [jobs.c.tenant == tenant], after, limit, labelled(metadata), order)
        return [as_job(row) for row in rows], more

    def cancel(self, tenant: str, id: str, actor: Actor | None = None) -> Job:
        """At once, also where it runs: its worker finds out by its next heartbeat. Refused (400) once it has ended."""
        with self.database.write() as connection:
            row, now = find(connection, id, jobs.c.tenant == tenant, lock=True), self.database.now(connection)
            record(connection, now, actor, "jobs.cancel", id)
            return move(connection, now, row, Status.CANCELLED)

    def pause(self, tenant: str, id: str, actor: Actor | None = None) -> Job:
        """One that does not run yet is paused at once; a running one after its next saved state."""
        with self.database.write() as connection:
            row, now = find(connection, id, jobs.c.tenant == tenant, lock=True), self.database.now(connection)
            record(connection, now, actor, "jobs.pause", id)
            if row["status"] == Status.PAUSING:
                return as_job(row)
            return move(connection, now, row, Status.PAUSING if row["status"] == Status.RUNNING else Status.PAUSED)

    def resume(self, tenant: str, id: str, actor: Actor | None = None) -> Job:
        """It is queued; or its files are validated, where it was paused before they were."""
        with self.database.write() as connection:
            row, now = find(connection, id, jobs.c.tenant == tenant, lock=True), self.database.now(connection)
            if row["status"] != Status.PAUSED:
                raise Refused(400, f"The job {id} is {row['status']}, not paused.", "invalid_status")
            record(connection, now, actor, "jobs.resume", id)
            to = Status.VALIDATING if row["unread"] else Status.QUEUED
            return move(connection, now, row, to)

    def events(
        self, tenant: str, id: str, after: str | None = None, limit: int = 20, order: Order = "desc"
    ) -> tuple[list[Event], bool]:
        """Some of them, and whether there are more."""
        rows, more = self._below(events, tenant, id, after, limit, order)
        return [as_event(row) for row in rows], more

    def news(self, tenant: str, id: str, n: int = 0, limit: int = 1000) -> list[Event]:
        """Events after number `n`, the oldest first: what is new to one who follows the job."""
        with self.database.read() as connection:
            find(connection, id, jobs.c.tenant == tenant)
            query = select(events).where(events.c.job == id, events.c.n > n).order_by(events.c.n).limit(limit)
            return [as_event(row) for row in connection.execute(query).mappings()]

    def checkpoints(
        self, tenant: str, id: str, after: str | None = None, limit: int = 10, order: Order = "desc"
    ) -> tuple[list[Checkpoint], bool]:
        """Some of them, and whether there are more."""
        rows, more = self._below(checkpoints, tenant, id, after, limit, order)
        return [entity(Checkpoint, row) for row in rows], more

    def open(self, tenant: str) -> int:
        """How many of the tenant's jobs have not ended."""
        going = [status for status in Status if not status.ended]
        query = select(func.count()).where(jobs.c.tenant == tenant, jobs.c.status.in_(going))
        with self.database.read() as connection:
            return int(connection.scalar(query) or 0)

    # for those who run the service

    def counts(self) -> dict[Status, int]:
        """How many jobs of all tenants stand where."""
        query = select(jobs.c.status, func.count()).group_by(jobs.c.status)
        with self.database.read() as connection:
            return {Status(status): count for status, count in connection.execute(query)}

    # for workers

    def look(self, id: str) -> Job:
        """Of any tenant."""
        with self.database.read() as connection:
            return as_job(find(connection, id))

    def move(
        self,
        id: str,
        to: Status,
        *,
        by: int | None = None,
        tenant: str | None = None,
        event: Note | str | None = None,
        **columns: Any,
    ) -> Job:
        """Give a job its next status, and write its event.

        Args:
            by: the fence of the worker that holds it.
            tenant: whose job it must be.
            columns: `trained_tokens`, `estimated_finish`, `resolved`, `saved`, `error`.

        Raises:
            Lost: the worker no longer holds it.
            Refused: there is no such job (404), or the status cannot follow (400).
        """
        mine = [] if tenant is None else [jobs.c.tenant == tenant]
        with self.database.write() as connection:
            row = find(connection, id, *mine, lock=True) if by is None else held(connection, id, by)
            return move(connection, self.database.now(connection), row, to, event, **columns)

    def progress(self, id: str, fence: int, *, events: Iterable[Note | str] = (), **columns: Any) -> Job:
        """Write what a worker has to tell: events, and columns as in `move`. Raises Lost.

        `saved` is a place of the storage that was reserved; the state that was saved before goes. The same call again
        changes nothing.
        """
        with self.database.write() as connection:
            row = held(connection, id, fence)
            if columns:
                row = change(connection, row, recorded(connection, row, columns))
            write_events(connection, self.database.now(connection), id, unwritten(connection, events))
            return as_job(row)

    def add_checkpoint(
        self, id: str, fence: int, *, step: int, base: str, task: str, place: str, metrics: Mapping[str, float]
    ) -> Checkpoint:
        """A state that answers as a model from now on. Raises Lost.

        A run that went on from an older state comes to the same step again: then the first one stays.
        """
        with self.database.write() as connection:
            row, now = held(connection, id, fence), self.database.now(connection)
            known = one(connection, checkpoints, checkpoints.c.job == id, checkpoints.c.step == step)
            if known is not None:
                return entity(Checkpoint, known)
            name = model_name(base, row["tenant"], row["spec"]["suffix"], id, step)
            insert_model(connection, now, name, row["tenant"], id, base, row["spec"]["model"], task, place)
            values = {"id": new_id("ftckpt_"), "job": id, "model": name, "step": step, "created_at": int(now)}
            statement = insert(checkpoints).values(**values, metrics=finite(metrics)).returning(checkpoints)
            made = connection.execute(statement).mappings().one()
            write_events(connection, now, id, [f"A checkpoint was made at step {step}: {name}"])
            return entity(Checkpoint, made)

    def finish(self, id: str, fence: int, *, base: str, task: str, run: str, result: Result, **columns: Any) -> Job:
        """The job has succeeded: its model, the file with its results, and its status, all at once. Raises Lost.

        Args:
            base: the model that answers together with what was trained.
            run: the place where the run lies. It and that of `result` were reserved.
            columns: as in `move`.
        """
        with self.database.write() as connection:
            row, now = held(connection, id, fence), self.database.now(connection)
            name = model_name(base, row["tenant"], row["spec"]["suffix"], id)
            file = insert_file(connection, now, row["tenant"], result.filename, "fine-tune-results", result.bytes,
                               result.sha256, result.place)  # fmt: skip
            write_events(connection, now, id, [f"The model was made: {name}"])
            columns |= {"fine_tuned_model": name, "result_files": [file.id], "run": run}
            # before the job lets go of a tuned model that this one lies on top of
            insert_model(connection, now, name, row["tenant"], id, base, row["spec"]["model"], task, run)
            return move(connection, now, row, Status.SUCCEEDED, **columns)

    def fail(self, id: str, fence: int, code: str, message: str, param: str | None = None, **columns: Any) -> Job:
        """The job has failed, for a reason that its owner can read. Raises Lost."""
        error = {"code": code, "message": message, "param": param}
        note = Note(message, "error", data={"code": code})
        return self.move(id, Status.FAILED, by=fence, event=note, error=error, **columns)

    # inside

    def _made_by(self, connection: Connection, tenant: str, request: str, now: float) -> RowMapping | None:
        recent = jobs.c.tenant == tenant, jobs.c.request == request, jobs.c.created_at >= int(now) - WINDOW
        query = select(jobs).where(*recent).order_by(jobs.c.n.desc()).limit(1)
        return connection.execute(query).mappings().one_or_none()

    def _insert(self, connection: Connection, tenant: str, spec: JobSpec, request: str | None, now: float) -> Job:
        id = new_id("ftjob-")
        values = {"id": id, "tenant": tenant, "spec": spec.model_dump(mode="json"), "status": Status.VALIDATING,
                  "created_at": int(now), "resolved": {}, "result_files": [], "fence": 0, "lost": 0,
                  "request": request}  # fmt: skip
        row = connection.execute(insert(jobs).values(**values).returning(jobs)).mappings().one()
        pin(connection, tenant, id, spec, now)
        if spec.metadata:
            connection.execute(insert(labels), [{"job": id, "key": k, "value": v} for k, v in spec.metadata.items()])
        write_events(connection, now, id, [f"The job was created: {id}", "Its files are being validated."])
        return as_job(row)

    def _below(self, table: Table, tenant: str, id: str, after: str | None, limit: int, order: Order) -> Any:
        with self.database.read() as connection:
            find(connection, id, jobs.c.tenant == tenant)
            return page(connection, table, [table.c.job == id], after, limit, order=order)


def labelled(metadata: Mapping[str, str] | Literal["null"] | None) -> list[ColumnElement[bool]]:
    """The conditions that a job's metadata has these pairs, or none at all."""
    if metadata == "null":
        return [~exists().where(labels.c.job == jobs.c.id)]
    pairs = metadata.items() if isinstance(metadata, Mapping) else ()
    return [exists().where(labels.c.job == jobs.c.id, labels.c.key == k, labels.c.value == v) for k, v in pairs]
