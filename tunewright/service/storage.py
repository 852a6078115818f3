"""Where bytes lie: a folder or an object store, by its address (fsspec).

A place is a relative path that the service makes, never a client. Nothing refers to a place before all its bytes are
there, so that a put which was cut off is only rubbish, and a place is written once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem
from structlog import get_logger

from tunewright.errors import OutputError, TunewrightError
from tunewright.service.errors import Refused
from tunewright.service.object_store import Reading, as_oserror, open_system, without_secrets, writing

log = get_logger()

CHUNK = 1 << 20
LISTING = ".files.json"
MARK = ".tunewright"
"""Lies at the address of an object store, in which folders that are empty are not there."""


class Storage:
    """Bytes behind an address: `file:///folder`, `s3://bucket/folder`, `memory://folder`.

    Args:
        url: the address.
        options: for the file system that fsspec has for it, such as credentials.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = without_secrets(url)
        self.system, self.root = open_system(url, **options)
        self.local = isinstance(self.system, LocalFileSystem)

    def refuse_unusable(self) -> None:
        """Raises TunewrightError where nothing can be written to an object store. One that is away may come back."""
        if self.local:
            return
        try:
            self.put(MARK, [b""])
        except FileNotFoundError as error:
            said = f"{self.url}: there is no such bucket. Make it, or give the address of one that is there."
            raise TunewrightError(f"--storage {said}") from error
        except PermissionError as error:
            said = (
                "Give keys that may read, write, list and delete there, by the environment (AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY) or a profile."
            )
            raise TunewrightError(
                f"--storage {self.url} refuses what is written to it: {str(error).rstrip('.')}. {said}"
            ) from error
        except OSError as error:
            log.warning("The storage does not answer; it is waited for. Is its address right?", error=str(error))

    def put(self, place: str, chunks: Iterable[bytes]) -> tuple[int, str]:
        """Write as the chunks come. Returns how many bytes they were, and their SHA-256 in hex.

        Raises:
            Refused: the disk is full. Whatever the chunks raise goes through; the place is then empty.
        """
        digest, size, path = hashlib.sha256(), 0, self._path(place)
        with no_room(), write_here(path) if self.local else writing(self.system, path) as write:
            for chunk in chunks:
                write(chunk)
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def open(self, place: str) -> BinaryIO:
        """The bytes, to read from any position. Raises FileNotFoundError."""
        path = self._path(place)
        return cast(BinaryIO, self.system.open(path, "rb") if self.local else Reading(self.system, path))

    def read(self, place: str) -> Iterator[bytes]:
        """The bytes in pieces of at most a MiB."""
        yield from pieces(self.open(place))

    def delete(self, place: str) -> None:
        """A file, or a folder with all that is in it; nothing where there is none."""
        with suppress(FileNotFoundError), as_oserror():
            self.system.rm(self._path(place), recursive=True)

    def is_there(self) -> bool:
        """Whether anything lies at the address: nothing does where a share is not mounted, or a bucket is gone."""
        try:
            with as_oserror():
                return bool(self.system.ls(self.root, detail=False))
        except FileNotFoundError:
            return False

    @as_oserror()
    def exists(self, place: str) -> bool:
        return bool(self.system.exists(self._path(place)))

    @as_oserror()
    def size(self, place: str) -> int:
        """Of a file, in bytes. Raises FileNotFoundError."""
        return int(self.system.size(self._path(place)))

    def put_folder(self, folder: Path, place: str) -> int:
        """All files of a folder, and a list of them with their hashes. Returns how many bytes they are together."""
        listed: dict[str, tuple[int, str]] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            with path.open("rb") as file:
                listed[name] = self.put(f"{place}/{name}", iter(lambda f=file: f.read(CHUNK), b""))  # type: ignore[misc]
        self.put(f"{place}/{LISTING}", [json.dumps(listed).encode()])
        return sum(size for size, _ in listed.values())

    def get_folder(self, place: str, folder: Path) -> None:
        """Bring a folder here, which must not exist yet: it stands there whole or not at all.

        Raises:
            FileNotFoundError: there is no such folder in the storage.
            OutputError: a file is not what was put there.
        """
        with self.open(f"{place}/{LISTING}") as file:
            listed = read_listing(place, file.read())
        half = folder.with_name(f"{folder.name}.{os.getpid()}.part")
        shutil.rmtree(half, ignore_errors=True)
        try:
            for name, (_, sha256) in listed.items():
                self._fetch(f"{place}/{name}", half / checked(name), sha256)
            half.mkdir(parents=True, exist_ok=True)
            half.rename(folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)

    def _fetch(self, place: str, path: Path, sha256: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with no_room(), path.open("wb") as file:
            for chunk in self.read(place):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != sha256:
            raise OutputError(f"{place} in the storage is not what was put there: it was changed or cut off.")

    def _path(self, place: str) -> str:
        return f"{self.root.rstrip('/')}/{checked(place)}"


@contextmanager
def write_here(path: str) -> Iterator[Callable[[bytes], object]]:
    """Inside, what writes to a file of this machine. It is there for good at the end; what is cut off is not."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            yield file.write
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            os.unlink(path)
        raise


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file, which is closed at its end."""
    with file:
        while chunk := file.read(CHUNK):
            yield chunk


def read_listing(place: str, text: bytes) -> dict[str, tuple[int, str]]:
    """The list of a folder's files: name → bytes, SHA-256. Raises OutputError where it is none."""
    try:
        return {str(name): (int(size), str(sha256)) for name, (size, sha256) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise OutputError(f"{place} in the storage is not what was put there: its list of files is damaged.") from error


def checked(place: str) -> str:
    """The place itself, if it can only lie below the root. An assertion: places are made by the service."""
    parts = place.split("/")
    assert not {"", ".", ".."} & set(parts) and not set("\\\0") & set(place), f"not a place: {place!r}"
    return place


@contextmanager
def no_room() -> Iterator[None]:
    """A full disk is told as such, and may be tried again later."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused(507, "The storage of the service is full.", headers={"Retry-After": "60"}) from error
        raise
