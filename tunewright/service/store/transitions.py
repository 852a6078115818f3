"""How a job goes from one status to another: the one place that does it, with its event in the same transaction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, insert, select, update

from tunewright.service.entities import NEXT, Event, Job, JobSpec, Note, Status
from tunewright.service.errors import Lost, Refused, missing
from tunewright.service.store.database import entity, one
from tunewright.service.store.pins import unpin
from tunewright.service.store.places import drop, keep
from tunewright.service.store.tables import events, jobs

HELD = (Status.RUNNING, Status.PAUSING)
"""While a worker runs it. One in VALIDATING is held while its contents are read."""

WORDS = {
    Status.VALIDATING: "Its files are being validated.",
    Status.QUEUED: "The files are valid: the job waits in the queue.",
    Status.RUNNING: "The job runs.",
    Status.PAUSING: "The job is being paused.",
    Status.PAUSED: "The job is paused.",
    Status.SUCCEEDED: "The job has succeeded.",
    Status.FAILED: "The job has failed.",
    Status.CANCELLED: "The job was cancelled.",
}
AGAIN = "The job waits in the queue again."

TOLD = {"trained_tokens", "estimated_finish", "resolved", "saved", "error", "fine_tuned_model", "result_files", "run"}
"""What a worker may write besides the status."""


def as_job(row: RowMapping) -> Job:
    return entity(
        Job,
        row,
        spec=JobSpec.model_validate(row["spec"]),
        status=Status(row["status"]),
        result_files=tuple(row["result_files"]),
    )


def find(connection: Connection, id: str, *where: Any, lock: bool = False) -> RowMapping:
    """The row of a job. Raises Refused (404)."""
    row = one(connection, jobs, jobs.c.id == id, *where, lock=lock)
    if row is None:
        raise missing("fine-tuning job", id, "fine_tune_not_found")
    return row


def held(connection: Connection, id: str, fence: int) -> RowMapping:
    """The row of a job, locked, for the worker that holds it. Raises Lost where it does not."""
    row = one(connection, jobs, jobs.c.id == id, lock=True)
    if row is None or row["fence"] != fence or row["lease"] is None:
        raise Lost(f"{id} is no longer held by claim {fence}.")
    return row


def move(
    connection: Connection, now: float, row: RowMapping, to: Status, note: Note | str | None = None, **changes: Any
) -> Job:
    """Give a job, whose row is locked, its next status, and write the event.

    A job that nobody has to work on is held by nobody, and one that has ended lets go of all that it needed.

    Raises:
        Refused (400): the status cannot follow.
    """
    status = Status(row["status"])
    if to not in NEXT[status]:
        raise Refused(400, f"The job {row['id']} is {status}: it cannot become {to}.", "invalid_status")
    values: dict[str, Any] = {"status": to, **recorded(connection, row, changes)}
    if to not in HELD:
        values |= {"lease": None, "worker": None}
    if to is Status.QUEUED:
        values["lost"] = 0
    if Status.VALIDATING in (status, to):
        values["unread"] = to is Status.PAUSED or None
    if to.ended:
        values |= {"finished_at": int(now), "estimated_finish": None, "saved": None}
        if saved := changes.get("saved") or row["saved"]:
            drop(connection, saved)
    row = change(connection, row, values)
    words = AGAIN if to is Status.QUEUED and status is not Status.VALIDATING else WORDS[to]
    write_events(connection, now, row["id"], [note or Note(words, "error" if to is Status.FAILED else "info")])
    if to.ended:
        unpin(connection, row["id"])
    return as_job(row)


def change(connection: Connection, row: RowMapping, values: dict[str, Any]) -> RowMapping:
    """Write columns of a job; the row as it is then."""
    statement = update(jobs).where(jobs.c.n == row["n"]).values(**values).returning(jobs)
    return connection.execute(statement).mappings().one()


def recorded(connection: Connection, row: RowMapping, changes: dict[str, Any]) -> dict[str, Any]:
    """The columns that a worker writes. A newly saved state takes the place of the one before, which is dropped.

    The same one again changes nothing: who was not told that it was recorded writes it once more.
    """
    assert changes.keys() <= TOLD, f"not for a worker to write: {sorted(changes.keys() - TOLD)}"
    values = dict(changes)
    if values.get("saved") and values["saved"] != row["saved"]:
        keep(connection, values["saved"])
        values["lost"] = 0
        if row["saved"]:
            drop(connection, row["saved"])
    return values


def write_events(connection: Connection, now: float, job: str, notes: Iterable[Note | str]) -> None:
    """In the order of the notes. The job's row is locked, so that the events of a job become visible in their order."""
    rows = [
        {"id": note.id, "job": job, "created_at": int(now), "message": note.message, "level": note.level,
         "type": note.type, "data": finite(note.data)}
        for note in (Note(n) if isinstance(n, str) else n for n in notes)
    ]  # fmt: skip
    for start in range(0, len(rows), 500):
        connection.execute(insert(events), rows[start : start + 500])


def unwritten(connection: Connection, notes: Iterable[Note | str]) -> list[Note | str]:
    """Those that are not events yet: who was not told that they were written writes them once more."""
    given = list(notes)
    ids = [note.id for note in given if isinstance(note, Note)]
    known: set[str] = set()
    for start in range(0, len(ids), 500):
        known |= set(connection.scalars(select(events.c.id).where(events.c.id.in_(ids[start : start + 500]))))
    return [note for note in given if not (isinstance(note, Note) and note.id in known)]


def finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no word for what is not a number, or infinite: None."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


def as_event(row: RowMapping) -> Event:
    return entity(Event, row)
