"""Files and models that jobs need: their bytes stay until the last of these jobs has ended, deleted or not."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, Table, delete, exists, insert, select, update

from tunewright.service.entities import JobSpec
from tunewright.service.errors import Refused, missing
from tunewright.service.store.database import one
from tunewright.service.store.places import drop
from tunewright.service.store.tables import files, jobs, models, permissions, pins

TRAINS = "fine-tune"
"""The purpose of files that are trained on, and validated with."""


def pin(connection: Connection, tenant: str, job: str, spec: JobSpec, now: float) -> None:
    """Hold what a new job needs. Raises Refused: 404 where it is not there, 400 where a file is for something else."""
    wanted = {name: param for param in ("training_file", "validation_file") if (name := getattr(spec, param))}
    for name in sorted(wanted):
        row = one(connection, files, files.c.id == name, files.c.tenant == tenant, lock=True)
        if row is None or row["deleted_at"] or (row["expires_at"] or now + 1) <= now:
            raise missing("file", name, "file_not_found", wanted[name])
        refuse_other_purpose(name, row["purpose"], wanted[name])
    if spec.model.startswith("ft:"):
        row = one(connection, models, models.c.id == spec.model, usable(tenant), lock=True)
        if row is None:
            raise missing("model", spec.model, "model_not_found", "model")
        wanted[spec.model] = "model"
    connection.execute(insert(pins), [{"object": name, "job": job} for name in sorted(wanted)])


def refuse_other_purpose(file: str, purpose: str, param: str) -> None:
    """Raises Refused (400) for a file that was not uploaded to be trained on."""
    if purpose != TRAINS:
        raise Refused(
            400, f"The file {file} was uploaded with purpose {purpose}: upload it with purpose {TRAINS}.",
            "invalid_file_purpose", param,
        )  # fmt: skip


def unpin(connection: Connection, job: str) -> None:
    """The job has ended. What was deleted meanwhile, and nobody else needs, loses its bytes."""
    held = connection.scalars(select(pins.c.object).where(pins.c.job == job)).all()
    connection.execute(delete(pins).where(pins.c.job == job))
    release(connection, held)


def release(connection: Connection, names: Iterable[str]) -> list[str]:
    """Drop the bytes of those that are deleted and that no job needs, nor a model that was tuned from it.

    Returns which they were, with earlier models that only these needed.
    """
    gone = []
    for name in sorted(set(names)):
        table = models if name.startswith("ft:") else files
        row = one(connection, table, table.c.id == name, lock=True)
        if row is None or not row["deleted_at"] or not row["stored"] or _needed(connection, table, name):
            continue
        drop(connection, row["place"])
        connection.execute(update(table).where(table.c.id == name).values(stored=False))
        gone.append(name)
        if table is models:
            connection.execute(update(jobs).where(jobs.c.run == row["place"]).values(run=None))
            gone += release(connection, [row["tuned_from"]] if row["tuned_from"] else [])
    return gone


def _needed(connection: Connection, table: Table, name: str) -> bool:
    later = models.c.tuned_from == name, models.c.stored
    return bool(connection.scalar(select(exists().where(pins.c.object == name)))) or (
        table is models and bool(connection.scalar(select(exists().where(*later))))
    )


def usable(tenant: str) -> ColumnElement[bool]:
    """The condition that a tenant may use a model: it is its own, or a checkpoint that it was permitted to use."""
    permitted = exists().where(
        permissions.c.checkpoint == models.c.id, permissions.c.project == tenant, permissions.c.deleted_at.is_(None)
    )
    return models.c.deleted_at.is_(None) & ((models.c.tenant == tenant) | permitted)
