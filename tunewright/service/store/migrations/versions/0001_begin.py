"""All tables, as they were in the beginning."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def some(type: Any, *names: str) -> list[Any]:
    return [sa.Column(name, type(), nullable=False) for name in names]


def maybe(type: Any, *names: str) -> list[Any]:
    return [sa.Column(name, type(), nullable=True) for name in names]


def table(name: str, *columns: Any, refers: dict[str, str] | None = None, unique: tuple[str, ...] = ("id",)) -> None:
    """A table numbered by `n`, with `id` where it is unique."""
    keys = [
        sa.ForeignKeyConstraint([column], [target], name=f"fk_{name}_{column}")
        for column, target in (refers or {}).items()
    ]
    op.create_table(
        name,
        sa.Column("n", NUMBER, autoincrement=True, nullable=False),
        *(some(sa.Text, "id") if "id" in unique else []),
        *columns,
        sa.PrimaryKeyConstraint("n", name=f"pk_{name}"),
        *(sa.UniqueConstraint(column, name=f"uq_{name}_{column}") for column in unique),
        *keys,
        sqlite_autoincrement=True,
    )


def index(name: str, *columns: str, unique: bool = False) -> None:
    op.create_index(f"ix_{name}_{'_'.join(columns)}", name, list(columns), unique=unique)


def upgrade() -> None:
    text, integer, big, json, double = sa.Text, sa.Integer, sa.BigInteger, sa.JSON, sa.Double
    table("tenants", *some(big, "created_at"))

    table("jobs", *some(text, "tenant"), *some(json, "spec"), *some(text, "status"), *some(big, "created_at"),
          *maybe(big, "started_at", "finished_at", "estimated_finish", "trained_tokens"), *some(json, "resolved"),
          *maybe(json, "error"), *maybe(text, "fine_tuned_model"), *some(json, "result_files"),
          *some(integer, "fence", "lost"), *maybe(text, "worker", "saved", "run"),
          *maybe(double, "lease", "claimed"), *maybe(text, "request"), refers={"tenant": "tenants.id"})  # fmt: skip
    for columns in (("tenant", "n"), ("tenant", "status", "created_at", "n"), ("tenant", "claimed"), ("request",)):
        index("jobs", *columns)
    op.create_table(
        "labels",
        *some(text, "job", "key", "value"),
        sa.PrimaryKeyConstraint("job", "key", name="pk_labels"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_labels_job"),
    )
    table("events", *some(text, "job"), *some(big, "created_at"), *some(text, "message", "level", "type"),
          *some(json, "data"), refers={"job": "jobs.id"})  # fmt: skip
    index("events", "job", "n")
    table("checkpoints", *some(text, "job", "model"), *some(big, "step", "created_at"), *some(json, "metrics"),
          refers={"job": "jobs.id"})  # fmt: skip
    index("checkpoints", "job", "n")
    index("checkpoints", "job", "step", unique=True)

    table("files", *some(text, "tenant", "filename", "purpose"), *some(big, "bytes"), *some(text, "sha256"),
          *some(big, "created_at"), *some(text, "place", "status"), *maybe(text, "status_details"),
          *maybe(big, "expires_at", "deleted_at"), *some(sa.Boolean, "stored"),
          refers={"tenant": "tenants.id"})  # fmt: skip
    index("files", "tenant", "n")
    there = sa.text("deleted_at IS NULL")
    op.create_index("ix_files_due", "files", ["expires_at"], sqlite_where=there, postgresql_where=there)
    table("uploads", *some(text, "tenant", "filename", "purpose"), *some(big, "bytes"), *some(text, "mime_type"),
          *some(big, "created_at", "expires_at"), *maybe(big, "file_seconds"), *some(text, "status"),
          *maybe(text, "file"), *maybe(json, "parts"), refers={"tenant": "tenants.id"})  # fmt: skip
    index("uploads", "tenant", "status")
    index("uploads", "status", "expires_at")
    table("parts", *some(text, "upload"), *some(big, "bytes", "created_at"), *some(text, "place"),
          refers={"upload": "uploads.id"})  # fmt: skip
    index("parts", "upload")

    table("models", *some(text, "tenant", "job", "base", "task", "place"), *some(big, "created_at"),
          *maybe(big, "deleted_at"), *some(sa.Boolean, "stored"),
          refers={"tenant": "tenants.id", "job": "jobs.id"})  # fmt: skip
    index("models", "tenant", "n")
    index("models", "base")
    table("permissions", *some(text, "checkpoint", "project"), *some(big, "created_at"), *maybe(big, "deleted_at"),
          refers={"checkpoint": "models.id"})  # fmt: skip
    index("permissions", "checkpoint", "project")
    op.create_table(
        "pins",
        *some(text, "object", "job"),
        sa.PrimaryKeyConstraint("object", "job", name="pk_pins"),
        sa.ForeignKeyConstraint(["job"], ["jobs.id"], name="fk_pins_job"),
    )
    index("pins", "job")
    op.create_table(
        "rubbish",
        *some(text, "place"),
        *some(double, "due"),
        *some(sa.Boolean, "taken"),
        sa.PrimaryKeyConstraint("place", name="pk_rubbish"),
    )
    index("rubbish", "due")

    table("keys", *some(text, "tenant", "name"), *some(json, "scopes"), *some(text, "hint", "hash"),
          *some(big, "created_at"), *maybe(big, "last_used_at", "revoked_at"), refers={"tenant": "tenants.id"},
          unique=("id", "hash"))  # fmt: skip
    index("keys", "tenant", "n")
    table("audit", *some(big, "at"), *some(text, "tenant"), *maybe(text, "key"), *some(text, "action"),
          *maybe(text, "object", "request"), unique=())  # fmt: skip
    index("audit", "tenant", "n")
