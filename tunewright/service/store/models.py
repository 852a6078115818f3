"""Tuned models by their names, which are given once, and who may use their checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, insert, select, update

from tunewright.service.entities import Permission, TunedModel
from tunewright.service.errors import missing
from tunewright.service.ids import new_id
from tunewright.service.store.audit import Actor, record
from tunewright.service.store.database import Database, entity, one, page
from tunewright.service.store.pins import release, usable
from tunewright.service.store.places import keep
from tunewright.service.store.tables import models, permissions


class Models:
    """What jobs made, their checkpoints too. One that is another tenant's is not found, unless it was permitted."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def get(self, tenant: str, id: str) -> TunedModel:
        """The model or checkpoint of this name, if the tenant may use it."""
        with self.database.read() as connection:
            row = one(connection, models, models.c.id == id, usable(tenant))
        if row is None:
            raise missing("model", id, "model_not_found", "model")
        return entity(TunedModel, row)

    def stored(self, id: str) -> TunedModel | None:
        """Of any tenant, deleted or not, if its bytes are still there: what another model was trained on top of."""
        with self.database.read() as connection:
            row = one(connection, models, models.c.id == id, models.c.stored)
        return None if row is None else entity(TunedModel, row)

    def places(self) -> Sequence[str]:
        """Of all models whose bytes are still there."""
        with self.database.read() as connection:
            return connection.scalars(select(models.c.place).where(models.c.stored)).all()

    def page(
        self, tenant: str, after: str | None = None, limit: int = 10_000, order: Literal["asc", "desc"] = "asc"
    ) -> tuple[list[TunedModel], bool]:
        with self.database.read() as connection:
            mine = [models.c.tenant == tenant]
            rows, more = page(connection, models, mine, after, limit, [models.c.deleted_at.is_(None)], order)
        return [entity(TunedModel, row) for row in rows], more

    def delete(self, tenant: str, id: str, actor: Actor | None = None) -> list[TunedModel]:
        """It answers no more; its bytes go when no job and no later model needs them. Its name is not given again.

        Returns the models whose bytes go now: this one, and deleted ones that only it still needed.
        """
        with self.database.write() as connection:
            row, now = self._mine(connection, tenant, id, lock=True), int(self.database.now(connection))
            record(connection, now, actor, "models.delete", id)
            values = {"deleted_at": now}
            connection.execute(update(models).where(models.c.n == row["n"]).values(**values))
            gone = release(connection, [id])
            rows = connection.execute(select(models).where(models.c.id.in_(gone))).mappings()
            return [entity(TunedModel, row) for row in rows]

    def permit(
        self, tenant: str, checkpoint: str, projects: Sequence[str], actor: Actor | None = None
    ) -> list[Permission]:
        """Other tenants may use a checkpoint. One that may already keeps its permission."""
        with self.database.write() as connection:
            self._mine(connection, tenant, checkpoint, lock=True)
            now = int(self.database.now(connection))
            record(connection, now, actor, "checkpoints.permit", checkpoint)
            return [self._permit(connection, checkpoint, project, now) for project in dict.fromkeys(projects)]

    def permissions(
        self,
        tenant: str,
        checkpoint: str,
        after: str | None = None,
        limit: int = 10,
        project: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> tuple[list[Permission], bool]:
        with self.database.read() as connection:
            self._mine(connection, tenant, checkpoint)
            filters: list[ColumnElement[bool]] = [permissions.c.deleted_at.is_(None)]
            if project is not None:
                filters.append(permissions.c.project == project)
            mine = [permissions.c.checkpoint == checkpoint]
            rows, more = page(connection, permissions, mine, after, limit, filters, order)
        return [entity(Permission, row) for row in rows], more

    def forbid(self, tenant: str, checkpoint: str, id: str, actor: Actor | None = None) -> None:
        """Take a permission back."""
        with self.database.write() as connection:
            self._mine(connection, tenant, checkpoint)
            mine = permissions.c.id == id, permissions.c.checkpoint == checkpoint, permissions.c.deleted_at.is_(None)
            now = int(self.database.now(connection))
            if not connection.execute(update(permissions).where(*mine).values(deleted_at=now)).rowcount:
                raise missing("permission", id)
            record(connection, now, actor, "checkpoints.forbid", checkpoint)

    def _mine(self, connection: Connection, tenant: str, id: str, lock: bool = False) -> RowMapping:
        mine = models.c.id == id, models.c.tenant == tenant, models.c.deleted_at.is_(None)
        row = one(connection, models, *mine, lock=lock)
        if row is None:
            raise missing("model", id, "model_not_found")
        return row

    def _permit(self, connection: Connection, checkpoint: str, project: str, now: int) -> Permission:
        same = permissions.c.checkpoint == checkpoint, permissions.c.project == project
        row = one(connection, permissions, *same, permissions.c.deleted_at.is_(None))
        if row is None:
            values = {"id": new_id("cp_"), "checkpoint": checkpoint, "project": project, "created_at": now}
            row = connection.execute(insert(permissions).values(**values).returning(permissions)).mappings().one()
        return entity(Permission, row)


def insert_model(
    connection: Connection,
    now: float,
    id: str,
    tenant: str,
    job: str,
    base: str,
    begun: str,
    task: str,
    place: str,
) -> None:
    """The place was reserved. `begun`: the model that its job began from."""
    keep(connection, place)
    values = {"id": id, "tenant": tenant, "job": job, "base": base, "task": task, "place": place,
              "created_at": int(now), "stored": True,
              "tuned_from": begun if begun.startswith("ft:") else None}  # fmt: skip
    connection.execute(insert(models).values(**values))
