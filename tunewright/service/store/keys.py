"""API keys, of which only a hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable

from sqlalchemy import RowMapping, insert, or_, select, update

from tunewright.service.entities import SCOPES, Key
from tunewright.service.errors import Refused, missing
from tunewright.service.ids import new_id
from tunewright.service.store.audit import Actor, record
from tunewright.service.store.database import Database, entity, one
from tunewright.service.store.tables import keys, tenants

TENANT = r"[a-z0-9][a-z0-9._-]{0,62}"
LONGEST_NAME = 100
"""Characters of a key's name."""
MINUTE = 60


class Keys:
    """Who may do what. A tenant is there from its first key or its first object on."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def create(
        self, tenant: str, name: str, scopes: Iterable[str] = SCOPES, actor: Actor | None = None
    ) -> tuple[Key, str]:
        """A new key, and its secret, which cannot be had again. Refused (400): an impossible name, scope or tenant."""
        scopes = sorted(set(scopes))
        if unknown := sorted(set(scopes) - set(SCOPES)):
            raise Refused(400, f"scopes: {', '.join(unknown)} is none of {', '.join(SCOPES)}.", param="scopes")
        if not re.fullmatch(TENANT, tenant):
            raise Refused(400, "tenant: at most 63 small letters, digits, and . _ - within.", param="tenant")
        if not 1 <= len(name) <= LONGEST_NAME:
            raise Refused(400, f"name: {len(name)} characters, and it takes 1 to {LONGEST_NAME}.", param="name")
        secret = f"tw-{secrets.token_urlsafe(32)}"
        with self.database.write() as connection:
            now = int(self.database.now(connection))
            self.database.insert_new(connection, tenants, id=tenant, created_at=now)
            values = {"id": new_id("key_"), "tenant": tenant, "name": name, "scopes": scopes, "created_at": now,
                      "hint": f"{secret[:5]}…{secret[-4:]}", "hash": hashed(secret)}  # fmt: skip
            made = as_key(connection.execute(insert(keys).values(**values).returning(keys)).mappings().one())
            record(connection, now, actor or Actor(tenant), "keys.create", made.id)
            return made, secret

    def by_secret(self, secret: str) -> Key | None:
        """The key of this secret, unless it was revoked. When it was used is written at most once a minute."""
        wanted = hashed(secret)
        with self.database.read() as connection:
            row = one(connection, keys, keys.c.hash == wanted)
            now = int(self.database.now(connection))
        if row is None or not hmac.compare_digest(row["hash"], wanted) or row["revoked_at"]:
            return None
        if (row["last_used_at"] or 0) <= now - MINUTE:
            old = or_(keys.c.last_used_at.is_(None), keys.c.last_used_at <= now - MINUTE)
            with self.database.write() as connection:
                connection.execute(update(keys).where(keys.c.n == row["n"], old).values(last_used_at=now))
        return as_key(row)

    def revoked(self, secret: str) -> Key | None:
        """The key of this secret that was revoked, if there is one."""
        with self.database.read() as connection:
            row = one(connection, keys, keys.c.hash == hashed(secret), keys.c.revoked_at.is_not(None))
        return None if row is None else as_key(row)

    def list(self, tenant: str | None = None) -> list[Key]:
        """Of a tenant, or of all; the oldest first, revoked ones too."""
        query = select(keys).order_by(keys.c.n)
        with self.database.read() as connection:
            rows = connection.execute(query if tenant is None else query.where(keys.c.tenant == tenant)).mappings()
            return [as_key(row) for row in rows]

    def revoke(self, tenant: str | None, id: str, actor: Actor | None = None) -> Key:
        """It opens nothing from now on. `tenant`: whose it must be; None: anybody's."""
        mine = [keys.c.id == id] if tenant is None else [keys.c.id == id, keys.c.tenant == tenant]
        with self.database.write() as connection:
            row = one(connection, keys, *mine, lock=True)
            if row is None:
                raise missing("key", id)
            now = int(self.database.now(connection))
            revoked = row["revoked_at"] or now
            record(connection, now, actor or Actor(row["tenant"]), "keys.revoke", id)
            change = update(keys).where(keys.c.n == row["n"]).values(revoked_at=revoked).returning(keys)
            return as_key(connection.execute(change).mappings().one())


def hashed(secret: str) -> str:
    """SHA-256 is enough for a secret of 256 random bits, which nobody can guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def as_key(row: RowMapping) -> Key:
    return entity(Key, row, scopes=frozenset(row["scopes"]))
