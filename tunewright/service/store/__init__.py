"""What the service keeps, in a database. Every method is one transaction, and may be called by any thread or process.

`tenant` stands wherever a client asks: what belongs to another one is not found (404).
"""

from __future__ import annotations

from pathlib import Path

from alembic.command import upgrade
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import select

from tunewright.errors import TunewrightError
from tunewright.service.storage import Storage
from tunewright.service.store.audit import Actor, Audit
from tunewright.service.store.database import Database
from tunewright.service.store.files import Files, Uploads
from tunewright.service.store.jobs import Jobs, Result
from tunewright.service.store.keys import Keys
from tunewright.service.store.models import Models
from tunewright.service.store.places import Places

__all__ = ["Actor", "Result", "Store"]


class Store:
    """The database at an address, brought up to date.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`.

    Raises:
        TunewrightError: no such kind of database, one that cannot be opened, or one that a newer version made.
        Unavailable: it does not answer.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.places = Places(self.database)
        self.jobs = Jobs(self.database)
        self.files = Files(self.database)
        self.uploads = Uploads(self.database, self.places)
        self.models = Models(self.database)
        self.keys = Keys(self.database)
        self.audit = Audit(self.database)
        self._migrate()

    def sweep(self, storage: Storage) -> int:
        """Delete what has expired, and bytes that nobody needs; to be called now and then. Returns how many things."""
        return self.files.expire() + self.places.sweep(storage)

    def ping(self) -> None:
        """Raises Unavailable where the database does not answer."""
        with self.database.read() as connection:
            connection.execute(select(1))

    def close(self) -> None:
        self.database.engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        with self.database.opening(), self.database.write() as connection:
            self.database.alone(connection, "migrations")
            config.attributes["connection"] = connection
            try:
                upgrade(config, "head")
            except CommandError as error:
                raise TunewrightError(f"A newer version made the database: update this one. ({error})") from error
