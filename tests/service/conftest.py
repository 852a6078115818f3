"""For the tests: a file of SQLite, and a PostgreSQL server and an object store of this process that are thrown away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from tests.service.postgresql import binaries, server
from tests.service.s3 import BUCKET, S3, s3_server
from tunewright.service.ids import random_text
from tunewright.service.store import Store

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a server on a socket in a temporary folder."""
    if binaries() is None:
        pytest.skip("PostgreSQL is not installed (pg_ctl is not on the PATH)")
    with server() as running:
        yield running.url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a new, empty database; on PostgreSQL a schema, which is made and dropped sooner."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/tunewright.db"
        return
    address, schema = request.getfixturevalue("postgresql"), f"t{random_text(12).lower()}"
    engine = create_engine(address.replace("://", "+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
        yield f"{address}&options=-csearch_path%3D{schema}"
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


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3]:
    for needed in ("s3fs", "moto", "flask_cors"):
        pytest.importorskip(needed)
    with s3_server() as running:
        yield running


@pytest.fixture
def s3(_s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An object store, which this process reaches by its environment."""
    from tunewright.service.s3 import S3Store

    for name, value in _s3.environment.items():
        monkeypatch.setenv(name, value)
    S3Store.clear_instance_cache()  # one may have been told other keys
    return _s3


@pytest.fixture
def s3_url(s3: S3) -> str:
    """The address of a folder in it that is new."""
    return f"s3://{BUCKET}/{random_text(12)}"
