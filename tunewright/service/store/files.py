"""Files and uploads of tenants. Their bytes lie in the storage; here stands where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, RowMapping, func, insert, or_, select, update

from tunewright.service.entities import File, Part, Upload
from tunewright.service.errors import Refused, missing
from tunewright.service.ids import new_id
from tunewright.service.storage import Storage
from tunewright.service.store.audit import Actor, record
from tunewright.service.store.database import Database, entity, one, page
from tunewright.service.store.pins import release
from tunewright.service.store.places import HOUR, Places, drop, keep
from tunewright.service.store.tables import files, parts, pins, tenants, uploads


class Files:
    """Files that are whole. One that is deleted or has expired is not found; a job that needs it still finds it."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def add(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        bytes: int,
        sha256: str,
        place: str,
        *,
        expires_after: int | None = None,
        quota: int | None = None,
        actor: Actor | None = None,
    ) -> File:
        """A file whose bytes lie at a place that was reserved.

        Args:
            expires_after: seconds from now.
            quota: how many bytes the tenant may store in all.

        Raises:
            Refused (413): it has no room for so many.
        """
        with self.database.write() as connection:
            now = self.database.now(connection)
            self.database.insert_new(connection, tenants, id=tenant, created_at=int(now))
            check_room(connection, tenant, bytes, quota)
            expires = None if expires_after is None else int(now) + expires_after
            made = insert_file(connection, now, tenant, filename, purpose, bytes, sha256, place, expires)
            record(connection, now, actor, "files.create", made.id)
            return made

    def get(self, tenant: str, id: str) -> File:
        with self.database.read() as connection:
            return as_file(find_file(connection, tenant, id, self.database.now(connection)))

    def used(self, job: str, id: str) -> File:
        """A file that a job needs, deleted or not."""
        with self.database.read() as connection:
            pinned = select(pins.c.object).where(pins.c.job == job, pins.c.object == id)
            row = one(connection, files, files.c.id.in_(pinned))
        if row is None:
            raise missing("file", id, "file_not_found")
        return as_file(row)

    def page(
        self,
        tenant: str,
        after: str | None = None,
        limit: int = 10_000,
        purpose: str | None = None,
        order: Literal["asc", "desc"] = "desc",
    ) -> tuple[list[File], bool]:
        with self.database.read() as connection:
            filters = list(alive(self.database.now(connection)))
            if purpose is not None:
                filters.append(files.c.purpose == purpose)
            rows, more = page(connection, files, [files.c.tenant == tenant], after, limit, filters, order)
        return [as_file(row) for row in rows], more

    def delete(self, tenant: str, id: str, actor: Actor | None = None) -> None:
        """For the client it is gone at once; its bytes go when no job needs them any more."""
        with self.database.write() as connection:
            now = self.database.now(connection)
            delete_file(connection, find_file(connection, tenant, id, now, lock=True), now)
            record(connection, now, actor, "files.delete", id)

    def mark(self, id: str, status: Literal["processed", "error"], details: str | None = None) -> None:
        """What was found when its contents were read."""
        with self.database.write() as connection:
            connection.execute(update(files).where(files.c.id == id).values(status=status, status_details=details))

    def stored(self, tenant: str) -> int:
        """How many bytes the tenant's files and unfinished uploads take."""
        with self.database.read() as connection:
            return stored(connection, tenant)

    def expire(self) -> int:
        """Delete the files, and end the uploads, whose time is over. Returns how many; at most a thousand of each."""
        with self.database.write() as connection:
            now = self.database.now(connection)
            query = select(files).where(files.c.deleted_at.is_(None), files.c.expires_at <= now).order_by(files.c.id)
            due = connection.execute(query.limit(1000).with_for_update()).mappings().all()
            for row in due:
                delete_file(connection, row, now)
            late = uploads.c.status == "pending", uploads.c.expires_at <= now
            over = connection.execute(select(uploads).where(*late).limit(1000).with_for_update()).mappings().all()
            for row in over:
                end_upload(connection, row["id"], "expired")
        return len(due) + len(over)


class Uploads:
    """Files that come in parts, within an hour."""

    def __init__(self, database: Database, places: Places) -> None:
        self.database, self.places = database, places

    def create(
        self,
        tenant: str,
        filename: str,
        purpose: str,
        bytes: int,
        mime_type: str,
        *,
        expires_after: int | None = None,
        quota: int | None = None,
        actor: Actor | None = None,
    ) -> Upload:
        """An upload of so many bytes in all. `expires_after`, `quota`: as for the file that it becomes."""
        with self.database.write() as connection:
            now = self.database.now(connection)
            self.database.insert_new(connection, tenants, id=tenant, created_at=int(now))
            check_room(connection, tenant, bytes, quota)
            values = {"id": new_id("upload_"), "tenant": tenant, "filename": filename, "purpose": purpose,
                      "bytes": bytes, "mime_type": mime_type, "created_at": int(now), "expires_at": int(now) + HOUR,
                      "file_seconds": expires_after, "status": "pending"}  # fmt: skip
            row = connection.execute(insert(uploads).values(**values).returning(uploads)).mappings().one()
            record(connection, now, actor, "uploads.create", row["id"])
            return as_upload(row, None, now)

    def get(self, tenant: str, id: str) -> Upload:
        with self.database.read() as connection:
            return self._read(connection, find_upload(connection, tenant, id))

    def add_part(
        self, tenant: str, id: str, bytes: int, place: str, sha256: str | None = None, retry: bool = False
    ) -> Part:
        """Bytes at a place that was reserved. Refused (400) where the upload has ended, or would be too large.

        Args:
            retry: the client says that it has sent these before: a part of the same bytes is then the answer, at a
                place of its own.
        """
        with self.database.write() as connection:
            now = self.database.now(connection)
            row = find_upload(connection, tenant, id, lock=True)
            must_be_pending(row, now)
            if retry and sha256 and (before := sent_before(connection, id, bytes, sha256)):
                return before
            have = connection.scalar(select(func.sum(parts.c.bytes)).where(parts.c.upload == id)) or 0
            if have + bytes > row["bytes"]:
                raise Refused(400, f"The parts of {id} would be more than the {row['bytes']} bytes of the upload.")
            keep(connection, place)
            part = Part(new_id("part_"), id, bytes, int(now), place)
            connection.execute(insert(parts).values(**vars(part), sha256=sha256))
            return part

    def complete(
        self,
        tenant: str,
        id: str,
        part_ids: Sequence[str],
        storage: Storage,
        md5: str | None = None,
        actor: Actor | None = None,
    ) -> Upload:
        """Make the file of these parts, in this order. The same request again, or at once, gives the same file.

        Args:
            md5: of the whole file, in hex.

        Raises:
            Refused (400): a part is not one of this upload, the bytes are not as many as was said, or not those.
        """
        with self.database.read() as connection:
            row = find_upload(connection, tenant, id)
            if made_of(row, part_ids):
                return self._read(connection, row)
            must_be_pending(row, self.database.now(connection))
            chosen = chosen_parts(connection, row, part_ids)
        place = self.places.reserve("files")
        found = hashlib.md5(usedforsecurity=False)
        try:
            bytes, sha256 = storage.put(place, joined(storage, chosen, found))
            if md5 is not None and md5.lower() != found.hexdigest():
                raise Refused(400, f"md5: the file has {found.hexdigest()}, not {md5}.", "invalid_value", "md5")
            done = self._complete(tenant, id, part_ids, bytes, sha256, place, actor)
        except FileNotFoundError:  # another request has made the file, and the parts were swept while they were read
            self.places.discard(place)
            with self.database.read() as connection:
                if not made_of(row := find_upload(connection, tenant, id), part_ids):
                    raise
                return self._read(connection, row)
        except BaseException:
            self.places.discard(place)
            raise
        if done.file is None or done.file.place != place:
            self.places.discard(place)
        return done

    def cancel(self, tenant: str, id: str, actor: Actor | None = None) -> Upload:
        with self.database.write() as connection:
            row, now = find_upload(connection, tenant, id, lock=True), self.database.now(connection)
            must_be_pending(row, now)
            end_upload(connection, id, "cancelled")
            record(connection, now, actor, "uploads.cancel", id)
            return self._read(connection, find_upload(connection, tenant, id))

    def _complete(
        self, tenant: str, id: str, part_ids: Sequence[str], bytes: int, sha256: str, place: str, actor: Actor | None
    ) -> Upload:
        """The file at this place; or the one that another request has made of the same parts meanwhile."""
        with self.database.write() as connection:
            now = self.database.now(connection)
            row = find_upload(connection, tenant, id, lock=True)
            if made_of(row, part_ids):
                return self._read(connection, row)
            must_be_pending(row, now)
            expires = None if row["file_seconds"] is None else int(now) + row["file_seconds"]
            file = insert_file(connection, now, tenant, row["filename"], row["purpose"], bytes, sha256, place, expires)
            end_upload(connection, id, "completed", file=file.id, parts=list(part_ids))
            record(connection, now, actor, "uploads.complete", id)
            return self._read(connection, find_upload(connection, tenant, id))

    def _read(self, connection: Connection, row: RowMapping) -> Upload:
        file = one(connection, files, files.c.id == row["file"]) if row["file"] else None
        return as_upload(row, None if file is None else as_file(file), self.database.now(connection))


def as_file(row: RowMapping) -> File:
    return entity(File, row)


def as_upload(row: RowMapping, file: File | None, now: float) -> Upload:
    late = row["status"] == "pending" and row["expires_at"] <= now
    return entity(Upload, row, file=file, status="expired" if late else row["status"])


def alive(now: float) -> tuple[Any, ...]:
    return files.c.deleted_at.is_(None), or_(files.c.expires_at.is_(None), files.c.expires_at > now)


def find_file(connection: Connection, tenant: str, id: str, now: float, lock: bool = False) -> RowMapping:
    row = one(connection, files, files.c.id == id, files.c.tenant == tenant, *alive(now), lock=lock)
    if row is None:
        raise missing("file", id, "file_not_found")
    return row


def insert_file(
    connection: Connection,
    now: float,
    tenant: str,
    filename: str,
    purpose: str,
    bytes: int,
    sha256: str,
    place: str,
    expires_at: int | None = None,
) -> File:
    keep(connection, place)
    values = {"id": new_id("file-"), "tenant": tenant, "filename": filename, "purpose": purpose, "bytes": bytes,
              "sha256": sha256, "created_at": int(now), "place": place, "status": "processed", "stored": True,
              "expires_at": expires_at}  # fmt: skip
    return as_file(connection.execute(insert(files).values(**values).returning(files)).mappings().one())


def delete_file(connection: Connection, row: RowMapping, now: float) -> None:
    connection.execute(update(files).where(files.c.n == row["n"]).values(deleted_at=int(now)))
    release(connection, [row["id"]])


def find_upload(connection: Connection, tenant: str, id: str, lock: bool = False) -> RowMapping:
    row = one(connection, uploads, uploads.c.id == id, uploads.c.tenant == tenant, lock=lock)
    if row is None:
        raise missing("upload", id, "upload_not_found")
    return row


def made_of(row: RowMapping, part_ids: Sequence[str]) -> bool:
    """Whether the upload has become a file of these parts."""
    return bool(row["status"] == "completed" and row["parts"] == list(part_ids))


def sent_before(connection: Connection, upload: str, bytes: int, sha256: str) -> Part | None:
    same = parts.c.upload == upload, parts.c.bytes == bytes, parts.c.sha256 == sha256
    row = connection.execute(select(parts).where(*same).order_by(parts.c.n).limit(1)).mappings().one_or_none()
    return None if row is None else entity(Part, row)


def must_be_pending(row: RowMapping, now: float) -> None:
    status = as_upload(row, None, now).status
    if status != "pending":
        raise Refused(400, f"The upload {row['id']} is {status}: begin a new one.", "invalid_status")


def end_upload(connection: Connection, id: str, status: str, **values: Any) -> None:
    """Its parts are no longer needed."""
    for place in connection.scalars(select(parts.c.place).where(parts.c.upload == id)).all():
        drop(connection, place)
    connection.execute(update(uploads).where(uploads.c.id == id).values(status=status, **values))


def chosen_parts(connection: Connection, upload: RowMapping, part_ids: Sequence[str]) -> list[str]:
    """The places of these parts, in this order, if they are as many bytes as the upload."""
    rows = connection.execute(select(parts).where(parts.c.upload == upload["id"])).mappings()
    known = {row["id"]: row for row in rows}
    for id in part_ids:
        if id not in known or list(part_ids).count(id) > 1:
            raise Refused(400, f"part_ids: {id} must be a part of {upload['id']}, once.", "invalid_value", "part_ids")
    bytes = sum(known[id]["bytes"] for id in part_ids)
    if bytes != upload["bytes"]:
        raise Refused(400, f"part_ids: these parts are {bytes} bytes, and the upload {upload['bytes']}.",
                      "invalid_value", "part_ids")  # fmt: skip
    return [known[id]["place"] for id in part_ids]


def joined(storage: Storage, places: Sequence[str], digest: Any) -> Iterator[bytes]:
    for place in places:
        for chunk in storage.read(place):
            digest.update(chunk)
            yield chunk


def check_room(connection: Connection, tenant: str, bytes: int, quota: int | None) -> None:
    """Refused (413) where so many more bytes are more than the quota. One at a time for each tenant."""
    if quota is None:
        return
    one(connection, tenants, tenants.c.id == tenant, lock=True)
    have = stored(connection, tenant)
    if have + bytes > quota:
        words = f"There is no room for {bytes} bytes: {have} of {quota} are stored. Delete files that are not needed."
        raise Refused(413, words, "storage_limit_exceeded")


def stored(connection: Connection, tenant: str) -> int:
    """Bytes of files, those that were deleted but that jobs need among them, and all that uploads are to bring."""
    whole = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.tenant == tenant, files.c.stored)
    coming = uploads.c.tenant == tenant, uploads.c.status == "pending"
    half = select(func.coalesce(func.sum(uploads.c.bytes), 0)).where(*coming)
    return int(connection.scalar(whole) or 0) + int(connection.scalar(half) or 0)
