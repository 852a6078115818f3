"""Rows from wherever they are: files, folders, the hub, Python. No row is lost silently; a bad one becomes a fault."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunewright.data.config import Location
from tunewright.data.features import dataset_rows, with_class_names
from tunewright.data.image_folders import SPLIT, read_images, split_folder, walk
from tunewright.data.pictures import Picture
from tunewright.data.row import Fault, Row, Rows
from tunewright.data.tables import Entry, read_table
from tunewright.data.texts import HALF, is_address, is_whole
from tunewright.errors import DataError

GROUP = 1024  # rows of a Parquet file that are decoded together


def read_rows(location: Location, captioned: bool | None = None) -> Rows:
    """All rows of a location, with the malformed ones apart.

    Args:
        location: a file (see `READERS`), a folder, a hub name ("owner/name" or "owner/name:split"), or the rows.
        captioned: what a folder of images is read for: see `image_folders.read_images`.

    Raises:
        DataError: the location is missing, unreadable, of an unknown kind, or holds nothing.
    """
    name = location if isinstance(location, str) else "the list of rows"
    with readable(name):
        read = _read(location, captioned)
    if not read.rows and not read.faults:
        raise DataError(f"{name} holds no rows: nothing can be learned from it.")
    return read


@contextmanager
def readable(name: str) -> Iterator[None]:
    """An error of the file system as a DataError that names what is read."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{name} cannot be read ({reason}): check the path and its permissions.") from error


def absolute(location: Any) -> Any:
    """A file or folder that there is by its absolute path, with its split; anything else as it was given."""
    if not isinstance(location, str):
        return location
    path, split = _split_of(location)
    return ":".join(filter(None, (str(path.absolute()), split))) if path.exists() else location


def content_hash(rows: Iterable[Row]) -> str:
    """SHA-256 over the rows' values as canonical JSON: the same rows have the same hash, in whatever file format."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(canonical_json(row.values) + b"\n")
    return digest.hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces. Bytes and images enter by their hash, other foreign values by their text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_foreign).encode()


def _foreign(value: Any) -> str:
    if isinstance(value, Picture):
        return value.sha256
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else str(value)


def _read(location: Location, captioned: bool | None) -> Rows:
    if not isinstance(location, str):
        return _sort_out(location, lambda index: f"rows[{index}]")
    path, split = _split_of(location)
    if path.is_dir():
        return _read_folder(path, split, captioned)
    if path.exists():
        return _read_file(path)
    if on_the_hub(location):
        return _read_hub(*_partition(location))
    if is_address(location):
        raise DataError(f"{location} is an address, and rows are read from files: download it, and give its path.")
    raise DataError(f"{location} does not exist: give a file, a folder, or a hub name such as owner/name:train.")


def _sort_out(values: Iterable[Any], source: Callable[[int], str]) -> Rows:
    return _gathered(_sorted_out(values, source))


def _sorted_out(values: Iterable[Any], source: Callable[[int], str]) -> Iterator[Row | Fault]:
    """Objects become rows, anything else a fault. `source` names the n-th value, counted from 0."""
    for index, value in enumerate(values):
        if not is_whole(value):
            yield Fault(source(index), HALF, ascii(value))
        elif isinstance(value, dict):
            yield Row(value, source(index))
        else:
            yield Fault(source(index), f"not an object with columns, but {_kind(value)}", value)


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


# Files


def _read_file(path: Path) -> Rows:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path} is of an unknown kind: give one of {', '.join(READERS)}.")
    return reader(path)


def _gathered(found: Iterable[Row | Fault]) -> Rows:
    read = Rows([], [])
    for one in found:
        if isinstance(one, Row):
            read.rows.append(one)
        else:
            read.faults.append(one)
    return read


def jsonl_rows(path: Path) -> Iterator[Row | Fault]:
    """The rows of a file with one JSON object a line, one after another."""
    for number, line in _lines(path):
        source = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Fault(source, f"not valid JSON: {error}", line.decode(errors="replace"))
            continue
        if rb"\ud" in line.lower() and not is_whole(value):
            yield Fault(source, HALF, ascii(value))
        elif isinstance(value, dict):
            yield Row(value, source)
        else:
            yield Fault(source, _not_an_object(value), value)


def _not_an_object(value: Any) -> str:
    hint = " (one JSON list in a file is read from a .json file)" if isinstance(value, list) else ""
    return f"a line must be a JSON object, not {_kind(value)}{hint}"


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1. Split as bytes: U+2028 inside a string ends no line."""
    with path.open("rb") as file:
        number, begun = 0, False
        for piece in file:
            piece = piece if number else _without_mark(piece, path)
            for line in piece.splitlines():
                number += 1
                if not begun and line.lstrip()[:1] == b"[":
                    wanted = path.with_suffix(".json")
                    raise DataError(f"{path} holds one JSON list, not one object a line: rename it to {wanted}.")
                if line.strip():
                    begun = True
                    yield number, line


def _utf8_bytes(path: Path) -> bytes:
    """The file's bytes without a UTF-8 byte order mark."""
    return _without_mark(path.read_bytes(), path)


def _without_mark(content: bytes, path: Path) -> bytes:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path} is encoded as UTF-16: save it as UTF-8.")
    return content.removeprefix(b"\xef\xbb\xbf")


def _text(path: Path) -> str:
    try:
        return _utf8_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error


def _read_json(path: Path) -> Rows:
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        hint = "if it holds one object a line, rename it to .jsonl"
        raise DataError(f"{path} is not valid JSON ({error}): mend it, or {hint}.") from error
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise DataError(f'{path} must hold a list of rows, or {{"data": [rows]}}.')
    return _sort_out(rows, lambda index: f"{path}:row {index + 1}")


def _read_table(path: Path, delimiter: str) -> Rows:
    """CSV and TSV, with names in the first line. Every value is a string, and a row is where its first line is."""
    entries = read_table(_text(path), delimiter)
    names = next(entries, Entry(1, []))
    if names.fault:
        raise DataError(f"{path}:{names.line}: {names.fault}.")
    if twice := [name for name, count in Counter(names.cells).items() if count > 1]:
        raise DataError(f"{path}:{names.line}: the columns {', '.join(map(repr, twice))} are there twice: rename one.")
    doubts: list[str] = []
    read = Rows([], [], doubts)
    for line, cells, text, fault, doubt in entries:
        source = f"{path}:{line}"
        doubts += [f"{source}: {doubt}"] if doubt else []
        if not fault and len(cells) == len(names.cells):
            read.rows.append(Row(dict(zip(names.cells, cells, strict=True)), source))
        else:
            reason = f"this row does not have the {len(names.cells)} cells that the first line names"
            read.faults.append(Fault(source, fault or reason, text or cells))
    return read


def parquet_rows(path: Path) -> Iterator[Row | Fault]:
    """The rows of a Parquet file, one after another."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        written = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        features = written.get("info", {}).get("features") or {}
        values = (row for group in file.iter_batches(GROUP) for row in group.to_pylist())
        yield from _sorted_out(with_class_names(values, features), lambda index: f"{path}:row {index + 1}")
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file ({error}): check how it was written.") from error


def _read_text(path: Path) -> Rows:
    """The whole file is one document."""
    text = _text(path)
    return Rows([Row({"text": text}, str(path))] if text.strip() else [], [])


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": lambda path: _gathered(jsonl_rows(path)),
    ".json": _read_json,
    ".csv": lambda path: _read_table(path, ","),
    ".tsv": lambda path: _read_table(path, "\t"),
    ".parquet": lambda path: _gathered(parquet_rows(path)),
    ".txt": _read_text,
}


# Folders

SAVED_DATASET = ("dataset_dict.json", "dataset_info.json")


def _read_folder(folder: Path, split: str | None, captioned: bool | None) -> Rows:
    if any((folder / name).exists() for name in SAVED_DATASET):
        return _read_saved_dataset(folder, split)
    files = _files(folder)
    if not _has_metadata(files):
        tree = walk(folder)
        if place := split_folder(tree, split):
            return _read_split(place, captioned)
        if split is None and (images := read_images(tree, captioned)):
            return images
    files = [path for path in files if split is None or _split_in(path) == split]
    if not files:
        of_split = f" of the split {split}" if split else ""
        raise DataError(f"{folder} holds no file{of_split} that can be read: give one of {', '.join(READERS)}.")
    if not _belong_together(files):
        names = [str(path) for path in files]
        raise DataError(
            f"{folder} holds files of several splits or kinds: name one, or a split as {folder}:train.", names
        )
    return _read_files(files)


def _files(folder: Path) -> list[Path]:
    """Those of a folder that can be read, but for hidden ones."""
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in READERS and not p.name.startswith("."))


def _has_metadata(files: list[Path]) -> bool:
    """Whether one says what images in its folder show."""
    return any(path.stem == "metadata" for path in files)


def _read_split(folder: Path, captioned: bool | None) -> Rows:
    """The images of a split. A folder in it is a class, whatever its name."""
    files = [path for path in _files(folder) if _has_metadata([path])]
    return _read_files(files) if files else read_images(walk(folder), captioned) or Rows([], [])


def _read_files(files: list[Path]) -> Rows:
    reads = [_read_file(path) for path in files]
    return Rows([row for read in reads for row in read.rows], [fault for read in reads for fault in read.faults])


def _belong_together(files: list[Path]) -> bool:
    """Files of one kind and one split: a folder with train and test files must never be trained on whole."""
    return len({(path.suffix.lower(), _split_in(path)) for path in files}) == 1


def _split_in(path: Path) -> str:
    match = SPLIT.match(path.stem.lower())
    return match[1] if match else ""


def _read_saved_dataset(folder: Path, split: str | None) -> Rows:
    from datasets import load_from_disk

    return _dataset_rows(load_from_disk(str(folder)), str(folder), split)


def _dataset_rows(dataset: Any, name: str, split: str | None) -> Rows:
    """Rows of a `datasets.Dataset`, or of one split of a `DatasetDict`."""
    if isinstance(dataset, dict):
        split = split or (next(iter(dataset)) if len(dataset) == 1 else None)
        if split not in dataset:
            raise DataError(f"{name} has the splits {', '.join(dataset)}: name one, e.g. {name}:{next(iter(dataset))}.")
        dataset, name = dataset[split], f"{name}:{split}"
    return _sort_out(dataset_rows(dataset), lambda index: f"{name}:row {index + 1}")


# The hub

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+(:\w+)?")


def _partition(location: str) -> tuple[str, str | None]:
    name, _, split = location.partition(":")
    return name, split or None


def _split_of(location: str) -> tuple[Path, str | None]:
    """A path as it stands, or a folder with the name of a split behind a colon."""
    if not Path(location).exists() and ":" in location:
        name, _, split = location.rpartition(":")
        if Path(name).is_dir():
            return Path(name), split
    return Path(location), None


def folder_of(location: Location) -> Path:
    """The folder that relative paths in the rows of a location begin in: that of the file, or of the split."""
    if not isinstance(location, str):
        return Path()
    path, split = _split_of(location)
    places = (path / (split or ""), path, path.parent if path.is_file() else Path())
    return next((place for place in places if place.is_dir()), Path())


def on_the_hub(location: str) -> bool:
    """Whether it is like owner/name, and neither anything here, nor a file's name or a path under a folder of here."""
    path, (here, _) = Path(location), _split_of(location)
    hub_name = HUB_NAME.fullmatch(location) and path.suffix.lower() not in READERS and not path.parent.is_dir()
    return bool(hub_name) and not here.exists()


def _read_hub(name: str, split: str | None) -> Rows:
    from datasets import load_dataset

    try:
        dataset = load_dataset(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} is no file here and cannot be had from the hub ({reason}).") from error
    return _dataset_rows(dataset, name, split)
