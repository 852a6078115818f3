"""The tables. `migrations/` makes them; a test holds the two together.

Rows are never deleted where an id was given to a client: a page can be asked for after a file that is gone, and the
name of a model is never given out again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    text,
)

naming = {"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s",
          "fk": "fk_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"}  # fmt: skip
metadata = MetaData(naming_convention=naming)


def numbered(name: str, *columns: Any) -> Table:
    """A table whose rows stand in the order in which they were made, by `n`, and are asked for by `id`."""
    n = Column("n", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    id = Column("id", Text, nullable=False, unique=True)
    return Table(name, metadata, n, id, *columns, sqlite_autoincrement=True)


def column(name: str, type: Any = Text, *more: Any, **options: Any) -> Column[Any]:
    return Column(name, type, *more, nullable=False, **options)


def maybe(name: str, type: Any = Text) -> Column[Any]:
    return Column(name, JSON(none_as_null=True) if type is JSON else type)


tenants = numbered("tenants", column("created_at", BigInteger))

jobs = numbered(
    "jobs",
    column("tenant", Text, ForeignKey("tenants.id")),
    column("spec", JSON),
    column("status"),
    column("created_at", BigInteger),
    maybe("started_at", BigInteger),
    maybe("finished_at", BigInteger),
    maybe("estimated_finish", BigInteger),
    maybe("trained_tokens", BigInteger),
    column("resolved", JSON),
    maybe("error", JSON),
    maybe("fine_tuned_model"),
    column("result_files", JSON),
    column("fence", Integer),
    column("lost", Integer),
    maybe("worker"),
    maybe("saved"),
    maybe("run"),
    maybe("lease", Double),  # until when a worker holds it; none where nobody does
    maybe("claimed", Double),  # when it was last claimed
    maybe("request"),  # the hash of the request that made it
    maybe("unread", Boolean),  # it was paused before its files were read
    Index(None, "tenant", "n"),
    Index(None, "tenant", "status", "created_at", "n"),
    Index(None, "tenant", "claimed"),
    Index(None, "request"),
)

labels = Table(
    "labels",
    metadata,
    Column("job", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("key", Text, primary_key=True),
    column("value"),
)
"""The metadata of jobs, by which clients ask for them."""

events = numbered(
    "events",
    column("job", Text, ForeignKey("jobs.id")),
    column("created_at", BigInteger),
    column("message"),
    column("level"),
    column("type"),
    column("data", JSON),
    Index(None, "job", "n"),
)

checkpoints = numbered(
    "checkpoints",
    column("job", Text, ForeignKey("jobs.id")),
    column("model"),
    column("step", BigInteger),
    column("created_at", BigInteger),
    column("metrics", JSON),
    Index(None, "job", "n"),
    Index(None, "job", "step", unique=True),
)

files = numbered(
    "files",
    column("tenant", Text, ForeignKey("tenants.id")),
    column("filename"),
    column("purpose"),
    column("bytes", BigInteger),
    column("sha256"),
    column("created_at", BigInteger),
    column("place"),
    column("status"),
    maybe("status_details"),
    maybe("expires_at", BigInteger),
    maybe("deleted_at", BigInteger),
    column("stored", Boolean),  # a deleted file's bytes are kept while a job needs them
    Index(None, "tenant", "n"),
    Index("ix_files_due", "expires_at", sqlite_where=text("deleted_at IS NULL"),
          postgresql_where=text("deleted_at IS NULL")),
)  # fmt: skip

uploads = numbered(
    "uploads",
    column("tenant", Text, ForeignKey("tenants.id")),
    column("filename"),
    column("purpose"),
    column("bytes", BigInteger),
    column("mime_type"),
    column("created_at", BigInteger),
    column("expires_at", BigInteger),
    maybe("file_seconds", BigInteger),  # how long the file lives, once it is whole
    column("status"),
    maybe("file"),
    maybe("parts", JSON),  # their ids in the order in which they became the file
    Index(None, "tenant", "status"),
    Index(None, "status", "expires_at"),
)

parts = numbered(
    "parts",
    column("upload", Text, ForeignKey("uploads.id")),
    column("bytes", BigInteger),
    column("created_at", BigInteger),
    column("place"),
    maybe("sha256"),
    Index(None, "upload"),
)

models = numbered(
    "models",
    column("tenant", Text, ForeignKey("tenants.id")),
    column("job", Text, ForeignKey("jobs.id")),
    column("base"),
    maybe("tuned_from"),  # the tuned model that its job began from
    column("task"),
    column("place"),
    column("created_at", BigInteger),
    maybe("deleted_at", BigInteger),
    column("stored", Boolean),  # a deleted model's bytes are kept while a job or a later model needs them
    Index(None, "tenant", "n"),
    Index(None, "tuned_from"),
)

permissions = numbered(
    "permissions",
    column("checkpoint", Text, ForeignKey("models.id")),
    column("project"),
    column("created_at", BigInteger),
    maybe("deleted_at", BigInteger),
    Index(None, "checkpoint", "project"),
)

pins = Table(
    "pins",
    metadata,
    Column("object", Text, primary_key=True),
    Column("job", Text, ForeignKey("jobs.id"), primary_key=True),
    Index(None, "job"),
)
"""Files and models that a job which has not ended needs."""

rubbish = Table(
    "rubbish",
    metadata,
    Column("place", Text, primary_key=True),
    column("due", Double),
    column("taken", Boolean),  # its bytes are being deleted
    Index(None, "due"),
)
"""Places in the storage whose bytes are to go; one that is being written stands here until something refers to it."""

keys = numbered(
    "keys",
    column("tenant", Text, ForeignKey("tenants.id")),
    column("name"),
    column("scopes", JSON),
    column("hint"),
    column("hash", Text, unique=True),
    column("created_at", BigInteger),
    maybe("last_used_at", BigInteger),
    maybe("revoked_at", BigInteger),
    Index(None, "tenant", "n"),
)

audit = Table(
    "audit",
    metadata,
    Column("n", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    column("at", BigInteger),
    column("tenant"),
    maybe("key"),
    column("action"),
    maybe("object"),
    maybe("request"),
    Index(None, "tenant", "n"),
    sqlite_autoincrement=True,
)
