"""Bytes behind an address: in a folder, in memory, and in an object store."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunewright.errors import OutputError, TunewrightError
from tunewright.service import storage as module
from tunewright.service.errors import Refused
from tunewright.service.storage import Storage


@pytest.fixture(params=["file", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "s3":
        return Storage(request.getfixturevalue("s3_url"))
    return Storage(f"file://{tmp_path}/bytes" if request.param == "file" else f"memory://{tmp_path.name}")


def test_bytes_come_back(storage: Storage) -> None:
    data = os.urandom(3 * module.CHUNK + 7)
    size, sha256 = storage.put("files/a b/ü.bin", (data[i : i + 1000] for i in range(0, len(data), 1000)))
    assert (size, sha256) == (len(data), hashlib.sha256(data).hexdigest()) and storage.size("files/a b/ü.bin") == size
    pieces = list(storage.read("files/a b/ü.bin"))
    assert b"".join(pieces) == data and max(map(len, pieces)) <= module.CHUNK
    with storage.open("files/a b/ü.bin") as file:
        file.seek(-7, os.SEEK_END)
        assert file.read() == data[-7:]


def test_what_is_deleted_is_gone(storage: Storage) -> None:
    storage.put("a/b", [b"1"])
    storage.put("a/c", [])
    assert storage.exists("a/b") and storage.size("a/c") == 0
    storage.delete("a/b"), storage.delete("a/b"), storage.delete("none")
    assert not storage.exists("a/b") and storage.exists("a/c")
    storage.delete("a")
    assert not storage.exists("a/c")
    with pytest.raises(FileNotFoundError):
        storage.open("a/b")


def test_a_put_that_is_cut_off_leaves_nothing(storage: Storage) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        storage.put("files/x", chunks())
    assert not storage.exists("files/x")


def test_a_full_disk_is_told_as_such(storage: Storage) -> None:
    def chunks() -> Iterator[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield b""

    with pytest.raises(Refused, match="full") as error:
        storage.put("files/x", chunks())
    assert error.value.status == 507 and not storage.exists("files/x")


@pytest.mark.parametrize("place", ["../x", "a/../../x", "/etc/passwd", "", "a//b", "a/", "./a", "a\\b", "a\0b"])
def test_places_lie_below_the_root(storage: Storage, place: str) -> None:
    for call in (storage.open, storage.delete, storage.exists, storage.size, lambda p: storage.put(p, [])):
        with pytest.raises(AssertionError, match="not a place"):
            call(place)


def test_a_folder_comes_back(storage: Storage, tmp_path: Path) -> None:
    folder, back = tmp_path / "run", tmp_path / "back"
    files = {"run.json": b"{}", "checkpoints/step-1/weights[0]*.bin": os.urandom(5000), "empty": b"", ".hidden": b"1"}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert storage.put_folder(folder, "runs/x") == sum(map(len, files.values()))
    storage.get_folder("runs/x", back)
    assert {p.relative_to(back).as_posix(): p.read_bytes() for p in back.rglob("*") if p.is_file()} == files
    storage.delete("runs/x")
    assert not storage.exists("runs/x/run.json")
    with pytest.raises(FileNotFoundError):
        storage.get_folder("runs/x", tmp_path / "again")


def test_a_folder_that_was_changed_is_refused(storage: Storage, tmp_path: Path) -> None:
    folder, back = tmp_path / "run", tmp_path / "back"
    folder.mkdir()
    (folder / "weights").write_bytes(b"right")
    storage.put_folder(folder, "runs/x")
    storage.put("runs/x/weights", [b"wrong"])
    with pytest.raises(OutputError, match="not what was put there"):
        storage.get_folder("runs/x", back)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("back")) == []


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(TunewrightError, match="nonsense"):
        Storage("nonsense://x")
