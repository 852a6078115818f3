"""A database as the store uses it: transactions that read or write, its clock, and pages of rows.

SQLite: one writer at a time, who waits for its turn before it reads (BEGIN IMMEDIATE), so that two never wait for each
other; readers see the state before. PostgreSQL: rows are locked as they are read for writing, jobs before files and
models, and files and models in the order of their ids.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import Connection, Engine, RowMapping, Select, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, InterfaceError, OperationalError
from structlog import get_logger

from tunewright.errors import MissingExtra, TunewrightError, first_line
from tunewright.service.errors import Refused, Unavailable

log = get_logger()

MOST = 10_000
PATIENCE = 30
"""How many seconds a transaction waits for another one."""

T = TypeVar("T")


class Database:
    """SQLite or PostgreSQL at an address."""

    def __init__(self, url: str) -> None:
        self.engine, self.file = make_engine(url), file_of(url)
        self.postgresql = self.engine.dialect.name == "postgresql"

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with answering(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: all of it happens, or nothing where something is raised."""
        with answering(), self.engine.connect() as connection:
            connection = connection.execution_options(writes=True)
            with connection.begin():
                yield connection

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Inside, it is asked for the first time. Raises TunewrightError where its file will not do later either."""
        try:
            yield
        except (Unavailable, DatabaseError) as error:
            cause = getattr(error.__cause__ if isinstance(error, Unavailable) else error, "orig", error)
            if self.file is None or "locked" in str(cause):
                raise
            raise TunewrightError(
                f"The database {self.file} cannot be opened: {cause}. Name a folder with --home, or a file with "
                "--database, that can be written; where a path begins at the root, sqlite:////… has four strokes."
            ) from error

    def now(self, connection: Connection) -> float:
        """Seconds since 1970 by the database's clock, which all machines share; SQLite has one machine, and its."""
        if self.postgresql:
            return float(connection.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0)
        return time.time()

    def alone(self, connection: Connection, name: str) -> None:
        """Wait until no other transaction that asked for the same name goes on. On SQLite it is the only one anyway."""
        if self.postgresql:
            connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))

    def insert_new(self, connection: Connection, table: Table, **values: Any) -> None:
        """Insert a row unless there is one of its name."""
        insert = postgresql.insert if self.postgresql else sqlite.insert
        connection.execute(insert(table).values(**values).on_conflict_do_nothing())


def make_engine(url: str) -> Engine:
    """Raises TunewrightError for an address that is no database, or not one that keeps anything."""
    try:
        address = make_url(url)
    except ArgumentError as error:
        raise TunewrightError(f"--database: {first_line(error)}") from error
    kind = address.get_backend_name()
    if kind == "postgres":
        kind = "postgresql"
    if kind == "sqlite" and address.database not in (None, "", ":memory:"):
        engine = create_engine(address.set(drivername="sqlite"), pool_size=10, max_overflow=30,
                               connect_args={"timeout": PATIENCE, "check_same_thread": False})  # fmt: skip
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if kind == "postgresql":
        try:
            engine = create_engine(
                address.set(drivername="postgresql+psycopg"), pool_size=10, max_overflow=30, pool_pre_ping=True,
                connect_args={"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10},
            )  # fmt: skip
        except ModuleNotFoundError as error:
            raise MissingExtra("A PostgreSQL database", "postgres") from error
        event.listen(engine, "connect", _prepare_postgresql)
        return engine
    raise TunewrightError("--database takes sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME.")


def file_of(url: str) -> Path | None:
    """The file of an SQLite database; None for one on a server, or what is no address of a database."""
    try:
        address = make_url(url)
    except ArgumentError:
        return None
    return Path(address.database) if address.get_backend_name() == "sqlite" and address.database else None


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    deadline = time.monotonic() + PATIENCE
    while True:  # the first of several processes turns it on, and meanwhile the others are not made to wait but refused
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _prepare_postgresql(connection: Any, _: Any) -> None:
    """Who falls silent in the middle of a transaction must not hold its rows for ever."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = '{PATIENCE}s'")
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
    connection.commit()


@contextmanager
def answering() -> Iterator[None]:
    """What a database or its driver raises, in our words."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        log.warning("the database does not answer", error=first_line(error.orig or error))  # type: ignore[arg-type]
        raise Unavailable("The database cannot do this just now, and the log says why. Ask again soon.") from error
    except (DataError, UnicodeEncodeError, OverflowError) as error:
        raise Refused(400, "The request holds a character or a number that cannot be stored.") from error


def entity(kind: type[T], row: RowMapping, **changes: Any) -> T:
    """A row as what is kept: the columns are called as its fields are."""
    return kind(**{f.name: row[f.name] for f in fields(kind) if f.name not in changes}, **changes)  # type: ignore[arg-type]


def page(
    connection: Connection,
    table: Table,
    mine: Sequence[Any],
    after: str | None,
    limit: int,
    filters: Sequence[Any] = (),
    order: Literal["asc", "desc"] = "desc",
) -> tuple[Sequence[RowMapping], bool]:
    """A page of rows, and whether there are more.

    Args:
        mine: conditions that hold for every row that the client may know of, deleted ones too.
        after: the id of the row before the first one of the page.
        filters: what it asks for among them.
        order: desc: newest first.

    Raises:
        Refused: `after` is none of its rows.
    """
    assert mine, "a page is always somebody's"
    query: Select[Any] = select(table).where(*mine, *filters)
    if after is not None:
        n = connection.scalar(select(table.c.n).where(table.c.id == after, *mine))
        if n is None:
            raise Refused(400, f"after: there is no {after} in this list.", "invalid_value", "after")
        query = query.where(table.c.n < n if order == "desc" else table.c.n > n)
    limit = max(1, min(limit, MOST))
    query = query.order_by(table.c.n.desc() if order == "desc" else table.c.n).limit(limit + 1)
    rows = connection.execute(query).mappings().all()
    return rows[:limit], len(rows) > limit


def one(connection: Connection, table: Table, *where: Any, lock: bool = False) -> RowMapping | None:
    """The row for which all conditions hold; locked until the transaction ends where it is to be written."""
    query = select(table).where(*where)
    return connection.execute(query.with_for_update() if lock else query).mappings().one_or_none()
