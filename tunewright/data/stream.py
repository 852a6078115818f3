"""Rows that may have no label, one after another, from files larger than memory: JSON lines and Parquet.

Everything else is read whole. Of a folder of images without classes and captions each is a row with its `file_name`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunewright.data.config import Location
from tunewright.data.image_folders import loose_images
from tunewright.data.row import Fault, Row
from tunewright.data.rows import jsonl_rows, parquet_rows, read_rows, readable
from tunewright.errors import DataError

READERS = {".jsonl": jsonl_rows, ".parquet": parquet_rows}


def stream_rows(location: Location, captioned: bool | None = None) -> Iterator[Row | Fault]:
    """The rows of a location, in order, and those that cannot be used as faults.

    Args:
        captioned: see `read_rows`.

    Raises DataError where the location cannot be read, or holds nothing.
    """
    path = Path(location) if isinstance(location, str) else Path()
    if isinstance(location, str) and path.is_dir() and (images := loose_images(path)):
        yield from images
        return
    reader = READERS.get(path.suffix.lower()) if path.is_file() else None
    if reader is None:
        read = read_rows(location, captioned)
        yield from read.faults
        yield from read.rows
        return
    number = 0
    with readable(str(path)):
        for number, row in enumerate(reader(path), 1):  # noqa: B007  counts them
            yield row
    if not number:
        raise DataError(f"{path} holds no rows: nothing can be learned from it.")
