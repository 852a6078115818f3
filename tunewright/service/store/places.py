"""Which places in the storage are wanted. What happens to the bytes follows what is written in the database.

A place is reserved before its bytes are written, kept in the transaction that first refers to it, and dropped in the
one that no longer does. Whatever is reserved and never kept, or dropped, is swept away.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, update

from tunewright.service.errors import Swept
from tunewright.service.ids import random_text
from tunewright.service.storage import Storage
from tunewright.service.store.database import Database
from tunewright.service.store.tables import rubbish

DAY, HOUR = 86_400, 3_600


class Places:
    """Places that wait for their bytes, or for the loss of them."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def reserve(self, kind: str) -> str:
        """A new place below the folder `kind`. What is put there is swept away unless it is kept within a day."""
        place = f"{kind}/{random_text(2).lower()}/{random_text()}"
        with self.database.write() as connection:
            due = self.database.now(connection) + DAY
            connection.execute(insert(rubbish).values(place=place, due=due, taken=False))
        return place

    def discard(self, place: str) -> None:
        """A reserved place is not needed after all."""
        with self.database.write() as connection:
            connection.execute(update(rubbish).where(rubbish.c.place == place).values(due=0))

    def sweep(self, storage: Storage) -> int:
        """Delete the bytes of what is due. Returns how many places were deleted; at most a thousand at once."""
        with self.database.write() as connection:
            now = self.database.now(connection)
            query = select(rubbish.c.place).where(rubbish.c.due <= now).order_by(rubbish.c.due).limit(1000)
            due = connection.scalars(query.with_for_update(skip_locked=True)).all()
            # taken first, and again an hour later should this process die: nothing may be kept from here on
            connection.execute(update(rubbish).where(rubbish.c.place.in_(due)).values(taken=True, due=now + HOUR))
        for place in due:
            storage.delete(place)
            with self.database.write() as connection:
                connection.execute(delete(rubbish).where(rubbish.c.place == place))
        return len(due)


def keep(connection: Connection, place: str) -> None:
    """Something refers to the place from now on. Raises Swept where it is reserved no longer, for good."""
    kept = connection.execute(delete(rubbish).where(rubbish.c.place == place, rubbish.c.taken.is_(False)))
    if not kept.rowcount:
        raise Swept(place)


def drop(connection: Connection, place: str) -> None:
    """Nothing refers to the place any more."""
    connection.execute(insert(rubbish).values(place=place, due=0, taken=False))
