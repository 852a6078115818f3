"""Object stores, through fsspec: opened so that several machines may share them, and failing as files do.

Whatever library speaks to a store, what it raises comes out as an OSError: whoever waits for a disk waits for it too.
"""

from __future__ import annotations

import errno
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import fsspec
from fsspec.core import split_protocol
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from tunewright.errors import MissingExtra, TunewrightError

BLOCK = 16 << 20
"""Bytes that are held of a file that is written or read. S3 takes 10,000 such parts: files of up to 156 GiB."""


def open_system(url: str, **options: Any) -> tuple[AbstractFileSystem, str]:
    """The file system for an address, and the path in it. Raises TunewrightError where it cannot be used."""
    options = {"use_listings_cache": False, **options}  # other machines write there too
    if split_protocol(url)[0] == "s3":
        return _open_s3(url, **options)
    try:
        return cast(tuple[AbstractFileSystem, str], fsspec.core.url_to_fs(url, **options))
    except (ImportError, ValueError) as error:
        raise TunewrightError(f"The storage {without_secrets(url)} cannot be used: {error}") from error


def _open_s3(url: str, **options: Any) -> tuple[AbstractFileSystem, str]:
    if "@" in url:
        said = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile in AWS's own files"
        raise TunewrightError(
            f"--storage: an address such as s3://bucket/folder has no @ and no keys in it. Set {said}."
        )
    try:
        from tunewright.service.s3 import S3Store
    except ModuleNotFoundError as error:
        raise MissingExtra(f"The storage {url}", "s3") from error
    return S3Store(**options), S3Store._strip_protocol(url)


def without_secrets(url: str) -> str:
    """An address without the name and password that may stand in it."""
    return re.sub(r"//.*@", "//…@", url)


@contextmanager
def as_oserror() -> Iterator[None]:
    """Inside, what the library of a store raises becomes an OSError. A mistake in the code remains one."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (OSError, TunewrightError)) or type(error).__module__ == "builtins":
            raise
        name = type(error).__name__
        if "Credential" in name:
            raise PermissionError(errno.EACCES, f"{name}: {error}") from error
        raise OSError(errno.EIO, f"{name}: {error}") from error


@contextmanager
def writing(system: AbstractFileSystem, path: str) -> Iterator[Callable[[bytes], object]]:
    """Inside, what writes to a file. It is there as a whole at the end; what is cut off before leaves nothing."""
    with as_oserror():
        file = system.open(path, "wb", block_size=BLOCK)
    try:
        yield as_oserror()(file.write)
        as_oserror()(file.close)()
    except BaseException:
        with suppress(Exception):
            if isinstance(file, AbstractBufferedFile):
                file.closed = True  # else it is completed, by whoever closes it or forgets it
                file.discard()
            else:
                system.rm(path)
        raise


class Reading(io.RawIOBase):
    """An open file of a store."""

    def __init__(self, system: AbstractFileSystem, path: str) -> None:
        with as_oserror():
            self.file = system.open(path, "rb", block_size=BLOCK)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    @as_oserror()
    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    @as_oserror()
    def readall(self) -> bytes:
        return cast(bytes, self.file.read())

    @as_oserror()
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.file.close()
