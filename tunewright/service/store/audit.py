"""The log of what was done with keys: written by the transaction that does it, so that it is never without its line."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from tunewright.service.store.database import Database, entity
from tunewright.service.store.tables import audit


@dataclass(frozen=True)
class Actor:
    """Who does something: a key of a tenant (its id, never its secret; None for the command line), in a request."""

    tenant: str
    key: str | None = None
    request: str | None = None


@dataclass(frozen=True)
class Entry:
    """A line of the audit log: which key of which tenant did what to which object, in which request."""

    n: int
    at: int
    tenant: str
    key: str | None
    action: str
    object: str | None
    request: str | None


class Audit:
    """What was done, by whom. Nothing here is ever changed."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def __call__(
        self, tenant: str, key: str | None, action: str, object: str | None = None, request: str | None = None
    ) -> None:
        """A line of its own, for what is no change of the database: an action such as `refused`."""
        with self.database.write() as connection:
            record(connection, self.database.now(connection), Actor(tenant, key, request), action, object)

    def entries(self, tenant: str, before: int | None = None, limit: int = 100) -> list[Entry]:
        """The newest first; those before number `before`."""
        query = select(audit).where(audit.c.tenant == tenant).order_by(audit.c.n.desc()).limit(limit)
        with self.database.read() as connection:
            rows = connection.execute(query if before is None else query.where(audit.c.n < before)).mappings()
            return [entity(Entry, row) for row in rows]


def record(connection: Connection, now: float, actor: Actor | None, action: str, object: str | None) -> None:
    """Write a line in the transaction of what is done, such as `jobs.cancel`. Nothing where nobody asked for it."""
    if actor is not None:
        values = {"at": int(now), "tenant": actor.tenant, "key": actor.key, "request": actor.request}
        connection.execute(insert(audit).values(**values, action=action, object=object))
