"""What kind of rows a location holds, by the first of them: no more is read, and nothing is fetched."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tunewright.data.config import DataConfig, Location
from tunewright.data.image_folders import read_images, walk
from tunewright.data.records import captions_wanted, load_records
from tunewright.errors import DataError

SEVERAL = 3
"""Rows that are looked at: the first may be one that cannot be used."""


def glance(location: Location, config: DataConfig, kinds: Sequence[str] = ()) -> str | None:
    """One of `KINDS`; None where the first rows do not tell, or are not here. What is wrong with them is not said.

    Args:
        kinds: those that are wanted, see `load_records`.
    """
    try:
        rows = list(islice(_first_rows(location, captions_wanted(config, kinds)), SEVERAL))
        return load_records(rows, config.model_copy(update={"on_bad_rows": "skip"})).kind
    except (DataError, OSError, ValueError):
        return None


def _first_rows(location: Location, captioned: bool | None) -> Iterator[Any]:
    if not isinstance(location, str):
        yield from location
        return
    path = Path(location if Path(location).exists() else location.partition(":")[0])
    if path.is_dir():
        yield from _rows_of_folder(path, captioned)
    elif reader := READERS.get(path.suffix.lower()):
        yield from reader(path)


def _rows_of_folder(folder: Path, captioned: bool | None) -> Iterator[Any]:
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in READERS)
    if files:
        yield from READERS[files[0].suffix.lower()](files[0])
    elif images := read_images(walk(folder), captioned):
        yield from (row.values for row in images.rows)


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        yield from (json.loads(line) for line in file if line.strip())


def _table(path: Path, delimiter: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, delimiter=delimiter)


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow import parquet

    for batch in parquet.ParquetFile(path).iter_batches(batch_size=SEVERAL):
        yield from batch.to_pylist()


READERS = {
    ".jsonl": _json_lines,
    ".csv": lambda path: _table(path, ","),
    ".tsv": lambda path: _table(path, "\t"),
    ".parquet": _parquet,
}
