"""Databases for the tests: a file of SQLite, and a PostgreSQL server of this process that is thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from tunewright.service.ids import random_text
from tunewright.service.store import Store

DATABASES = ("sqlite", "postgresql")


def postgresql_binaries() -> Path | None:
    found = shutil.which("pg_ctl")
    places = [Path(found).parent] if found else []
    return next(iter(places + sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a server on a socket in a temporary folder."""
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed (pg_ctl is not on the PATH)")
    # a socket's path may have about a hundred characters: not in pytest's folder
    folder = Path(tempfile.mkdtemp(prefix="tw-pg-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to be root
        shutil.chown(folder, "nobody")
        user = {"user": "nobody", "group": os.stat(folder).st_gid, "extra_groups": []}

    def call(program: str, *arguments: str) -> None:
        done = subprocess.run([binaries / program, *arguments], capture_output=True, text=True, cwd=folder, **user)
        assert done.returncode == 0, done.stdout + done.stderr

    data = str(folder / "data")
    options = f"-k {folder} -c listen_addresses= -c fsync=off -c max_connections=200"
    try:
        call("initdb", "-D", data, "-A", "trust", "-U", "tunewright", "-E", "UTF8", "--locale=C", "--no-sync")
        call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield f"postgresql://tunewright@/postgres?host={folder}"
        call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a new, empty database; on PostgreSQL a schema, which is made and dropped sooner."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/tunewright.db"
        return
    server, schema = request.getfixturevalue("postgresql"), f"t{random_text(12).lower()}"
    engine = create_engine(server.replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        yield f"{server}&options=-csearch_path%3D{schema}"
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = Store(database_url)
    yield store
    store.close()


class Clock:
    """Takes the place of a database's clock, to let hours pass."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self, *_: Any) -> float:
        return self.now


@pytest.fixture
def clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(store.database, "now", clock)
    return clock


@pytest.fixture
def add_file(store: Store) -> Callable[..., Any]:
    """Add a file without bytes to a tenant."""

    def add(tenant: str = "acme", size: int = 10, **options: Any) -> Any:
        return store.files.add(
            tenant, "rows.jsonl", "fine-tune", size, "0" * 64, store.places.reserve("files"), **options
        )

    return add
