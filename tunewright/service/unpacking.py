"""A client's file, of any name, as a place that rows are read from: its kind is told by its content.

Rows of JSONL may be in Google's form; each is written in OpenAI's on the line where it stood.
JSONL, CSV, TSV and Parquet, and zip archives of a folder of images, which are unpacked with care: nothing in them
decides where it is written, and what they may hold is limited in number, size and how far it was compressed.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewright.data.image_folders import CAPTIONS, REPEATS, SPLIT, TABLES
from tunewright.data.pictures import EXTENSIONS
from tunewright.data.row import Fault, Row
from tunewright.data.rows import jsonl_rows
from tunewright.errors import DataError, counted
from tunewright.service.errors import Refused
from tunewright.service.wire import google_rows

Role = Literal["training", "validation"]
SPLITS: dict[Role, tuple[str, ...]] = {"training": ("train", "training"), "validation": ("validation", "valid", "val")}
KEPT = (*EXTENSIONS, *CAPTIONS, *TABLES)
FOREIGN = ("dataset_dict.json", "dataset_info.json", "state.json")
"""What makes a folder one that `datasets` saved: it would be read from wherever these files say."""
PIECE = 1 << 20
MOST_FAULTS = 100
"""Lines whose faults are kept, of which fewer are shown."""
SMALL = 16 << 20
"""Bytes that any archive may become: a few pictures of one colour are compressed a thousandfold."""


@dataclass(frozen=True)
class Limits:
    """How large a client's file may be: rows, bytes of a line, files of an archive, bytes that it becomes, and how many
    times its own size that may be; and the fewest rows that are worth a training."""

    rows: int = 1_000_000
    line: int = 16 << 20
    entries: int = 100_000
    unpacked: int = 8 << 30
    ratio: int = 100
    fewest: int = 10


def placed(path: Path, folder: Path, role: Role = "training", limits: Limits = Limits()) -> str:
    """Where the rows of a file lie, within `folder`, which is made: as `data.train` of a recipe takes it.

    Raises DataError: it is of no kind that is read, or not safe, or larger than the limits.
    """
    folder.mkdir(parents=True)
    suffix = _suffix(path)
    if suffix == ".zip":
        _unpack(path, folder, limits)
        return _location(folder, role)
    if suffix != ".parquet":
        _check_lines(path, limits)
    place = folder / f"rows{suffix}"
    try:
        os.link(path, place)
    except OSError:  # on another disk
        shutil.copyfile(path, place)
    if suffix == ".jsonl" and _mentions(place, google_rows.MARK):
        _translate(place)
    return str(place)


def _suffix(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(PIECE)
    if head.startswith(b"PAR1"):
        return ".parquet"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ".zip"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    first = text.split(b"\n", 1)[0]
    if not text:
        raise DataError("the file is empty: it must hold rows.")
    if text[:1] in (b"{", b"["):
        return ".jsonl"
    if b"\0" not in head and b"\t" in first:
        return ".tsv"
    if b"\0" not in head and b"," in first:
        return ".csv"
    raise DataError(
        "the file is none that can be read: give JSONL (one object a line), CSV or TSV (with the columns' names in the "
        "first line), Parquet, or a zip archive of a folder of images."
    )


def _check_lines(path: Path, limits: Limits) -> None:
    """Raises DataError for a line that is too long, without keeping one, and for too many of them."""
    number, length = 1, 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            ends = [match.start() for match in re.finditer(rb"\n", piece)]
            lengths = [end - begin for begin, end in zip([-length, *(end + 1 for end in ends)], ends, strict=False)]
            length = len(piece) - (ends[-1] + 1) if ends else length + len(piece)
            longest = max([*lengths, length])
            if longest > limits.line:
                where = number + (lengths.index(longest) if longest in lengths else len(lengths))
                raise DataError(f"line {where:,} is longer than {limits.line:,} bytes: make it shorter.")
            number += len(ends)
            if number > limits.rows + 1:
                raise DataError(f"the file has more than {limits.rows:,} lines: train on fewer rows.")


# Google's rows


def _mentions(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(mark) >= 0


def _translate(place: Path) -> None:
    """Put rows of Google's there in OpenAI's form. Raises DataError that names all lines which cannot be."""
    made, good, bad, faults, at = place.with_suffix(".made"), 0, 0, list[str](), 0
    with made.open("w", encoding="utf-8") as file:
        for one in jsonl_rows(place):
            read = _translated(one) if isinstance(one, Row) else one
            if isinstance(read, Fault):
                bad += 1
                faults += [str(read)] if bad <= MOST_FAULTS else []
                continue
            good, number = good + 1, int(read.source.rpartition(":")[2])
            file.write("\n" * (number - at - 1) + json.dumps(read.values) + "\n")
            at = number
    if bad:
        raise DataError(f"{bad:,} of {counted(bad + good, 'row')} cannot be used.", faults)
    made.replace(place)


def _translated(row: Row) -> Row | Fault:
    if not google_rows.is_google(row.values):
        return row
    try:
        return Row(google_rows.translated(row.values), row.source)
    except Refused as error:
        return Fault(row.source, str(error), row.values)


# Archives


def _unpack(path: Path, folder: Path, limits: Limits) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
            if len(found) > limits.entries:
                raise DataError(f"the archive has {len(found):,} entries: {limits.entries:,} are allowed.")
            _write(archive, [one for one in found if _is_wanted(one)], folder, path.stat().st_size, limits)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("the archive is damaged, encrypted, or packed in a way that is not read.") from error


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    """Whether it is a file that may be part of a data set. Raises DataError for what would leave the folder."""
    name = entry.filename
    parts = name.rstrip("/").split("/")
    bad = not name.isprintable() or "\\" in name or ":" in name or len(name) > 1000
    if bad or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        raise DataError(f"the archive holds {name!a:.120}, which is no name of a file within a folder.")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise DataError(f"the archive holds {name!a:.120}, which is no plain file.")
    if parts[-1].lower() in FOREIGN:
        raise DataError(f"the archive holds {name!a:.120}: save the rows as JSONL or Parquet instead.")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not entry.is_dir() and not hidden and Path(name).suffix.lower() in KEPT


def _write(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path, packed: int, limits: Limits) -> None:
    """What an entry says of its size is not believed: bytes are counted as they come."""
    most, written = min(limits.unpacked, max(SMALL, limits.ratio * packed)), 0
    for entry in entries:
        place = folder.joinpath(*entry.filename.split("/"))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            target = place.open("xb")
        except OSError as error:
            raise DataError(f"the archive holds {entry.filename!a:.120} twice, or as a folder too.") from error
        with archive.open(entry) as source, target:
            while piece := source.read(PIECE):
                written += len(piece)
                if written > most:
                    raise DataError(f"the archive becomes more than {counted(most, 'byte')}: it is too large.")
                target.write(piece)


def _location(folder: Path, role: Role) -> str:
    """The folder that holds the classes, captions or tables; of a data set with splits that of this role."""
    while len(inside := sorted(folder.iterdir())) == 1 and inside[0].is_dir():
        if SPLIT.fullmatch(inside[0].name.lower()) or REPEATS.fullmatch(inside[0].name):
            break
        folder = inside[0]
    return next((f"{folder}:{one.name}" for one in _splits(folder) if one.name.lower() in SPLITS[role]), str(folder))


def _splits(folder: Path) -> Iterator[Path]:
    return (one for one in sorted(folder.iterdir()) if one.is_dir())
