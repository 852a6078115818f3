"""A service on an object store that is reached by S3's own protocol, which may be away or refuse."""

from __future__ import annotations

import base64
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from tests.service.hosted import ROWS, hosted
from tests.service.machine import Machine
from tests.service.s3 import BUCKET, S3
from tests.service.served import CHAT, ended, jsonl, served
from tunewright.cli import app
from tunewright.errors import MissingExtra
from tunewright.service import logs, patience
from tunewright.service.object_store import BLOCK
from tunewright.service.patience import is_lost
from tunewright.service.storage import MARK, Storage

MEBI = 1 << 20


@pytest.fixture
def away(s3: S3) -> Iterator[Callable[[], None]]:
    """Call it, and the store is away until `s3.relay.back()`, or the end of the test."""
    yield s3.relay.away
    s3.relay.back()


def folder_of(url: str) -> str:
    return url.partition(f"{BUCKET}/")[2]


def unfinished(s3: S3) -> list[Any]:
    return list(s3.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []))


def chunks(size: int, by: int = 700_001) -> Iterator[bytes]:
    for start in range(0, size, by):
        yield bytes([start // by % 251]) * min(by, size - start)


# bytes


def test_a_large_file_goes_in_parts_of_one_size(s3: S3, s3_url: str) -> None:
    storage, size = Storage(s3_url), 2 * BLOCK + 12_345
    assert storage.put("files/x", chunks(size))[0] == size
    named = {"Bucket": BUCKET, "Key": f"{folder_of(s3_url)}/files/x"}
    parts = [s3.client.head_object(**named, PartNumber=number) for number in (1, 2, 3)]
    assert [part["ContentLength"] for part in parts] == [BLOCK, BLOCK, 12_345] and not unfinished(s3)
    assert b"".join(storage.read("files/x")) == b"".join(chunks(size))
    with storage.open("files/x") as file:
        file.seek(BLOCK - 3)
        assert file.read(7) == b"".join(chunks(size))[BLOCK - 3 : BLOCK + 4]


@pytest.mark.parametrize("size", [MEBI, 2 * BLOCK])
def test_what_is_cut_off_is_never_completed(s3: S3, s3_url: str, size: int) -> None:
    """Not when it is forgotten either, as files of fsspec are."""
    storage = Storage(s3_url)

    def cut() -> Iterator[bytes]:
        yield from chunks(size)
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError):
        storage.put("files/x", cut())
    gc.collect()
    assert not s3.names(folder_of(s3_url)) and not unfinished(s3)


def test_files_of_other_machines_are_seen_and_missed(s3: S3, s3_url: str) -> None:
    storage, folder = Storage(s3_url), folder_of(s3_url)
    storage.put("files/mine", [b"1"])
    assert storage.is_there() and storage.system.ls(f"{storage.root}/files") and storage.exists("files/mine")
    s3.client.put_object(Bucket=BUCKET, Key=f"{folder}/files/theirs", Body=b"22")
    assert storage.size("files/theirs") == 2 and storage.open("files/theirs").read() == b"22"
    for name in ("mine", "theirs"):
        s3.client.delete_object(Bucket=BUCKET, Key=f"{folder}/files/{name}")
    assert not storage.exists("files/mine") and not storage.is_there()


def test_an_upload_holds_a_few_parts_in_memory(s3: S3, s3_url: str) -> None:
    """In a process of its own, after a first file: what the libraries need is there then."""
    code = f"""
import resource
from tunewright.service.storage import Storage
def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
storage = Storage({s3_url!r})
for place, size in (("a", 2), ("b", 64)):
    before = most()
    storage.put(place, (bytes({MEBI}) for _ in range(size)))
    sum(map(len, storage.read(place)))
print(most() - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=os.environ)
    assert int(found.stdout) < 5 * BLOCK


# what is wrong, and away


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Start the service where it cannot; gives what it says."""
    monkeypatch.setattr(logs, "set_up", lambda: None)

    def go(url: str) -> str:
        found = CliRunner().invoke(app, ["serve", "--storage", url, "--port", "0", "--home", str(tmp_path)])
        assert found.exit_code == 2, found.output
        return " ".join(found.output.split())

    return go


def test_a_bucket_that_is_not_there_is_told_at_the_start(s3: S3, start: Callable[..., str]) -> None:
    said = start("s3://nowhere/folder")
    assert "s3://nowhere/folder: there is no such bucket. Make it" in said and s3.key not in said


@pytest.mark.parametrize("wrong", ["secret", "key", "none"])
def test_keys_that_are_refused_are_told_at_the_start_and_not_repeated(
    s3: S3, s3_url: str, start: Callable[..., str], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": s3.key, "AWS_SECRET_ACCESS_KEY": "a" * 40}
    if wrong == "key":
        keys = {"AWS_ACCESS_KEY_ID": "AKIA" + "B" * 16, "AWS_SECRET_ACCESS_KEY": s3.secret}
    for name, value in keys.items():
        if wrong == "none":
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    said = start(s3_url)
    assert "refuses what is written to it" in said and "AWS_SECRET_ACCESS_KEY" in said
    assert not [value for value in keys.values() if value in said]


def test_keys_in_an_address_are_refused_and_not_repeated(start: Callable[..., str]) -> None:
    said = start("s3://AKIAXYZ:se/cret@bucket/folder")
    assert "AWS_SECRET_ACCESS_KEY" in said and "AKIAXYZ" not in said and "cret" not in said.replace("secret", "")


def test_a_library_that_is_not_there_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "tunewright.service.s3", raising=False)
    with pytest.raises(MissingExtra, match=r"tunewright\[s3\]"):
        Storage("s3://bucket/folder")


def test_a_store_that_takes_nothing_is_not_waited_for_without_end(
    s3: S3, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the connection, reads nothing and says nothing, which s3fs waits for for ever."""
    monkeypatch.setattr("tunewright.service.s3.SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        storage = Storage(s3_url, skip_instance_cache=True)
        for size in (1, BLOCK):
            began = time.monotonic()
            with pytest.raises(OSError):
                storage.put("files/x", [bytes(size)])
            assert time.monotonic() - began < 10


def test_a_store_that_is_away_fails_as_a_disk_does(s3: S3, s3_url: str, away: Callable[[], None]) -> None:
    storage = Storage(s3_url)
    storage.refuse_unusable()
    storage.put("files/x", chunks(2 * BLOCK))
    half = storage.open("files/x")
    half.read(10)
    assert is_lost(storage, FileNotFoundError())
    away()

    def cut() -> Iterator[bytes]:
        yield bytes(2 * BLOCK)

    for call in (
        lambda: storage.put("files/y", [b"1"]), lambda: storage.put("files/y", cut()), lambda: storage.open("files/x"),
        lambda: storage.size("files/x"), lambda: storage.exists("files/x"), lambda: storage.delete("files/x"),
        storage.is_there, lambda: (half.seek(-1, os.SEEK_END), half.read()),
    ):  # fmt: skip
        with pytest.raises(OSError) as error:
            call()
        assert "127.0.0.1" not in patience.reason(error.value) and s3_url not in patience.reason(error.value)
    assert not is_lost(storage, FileNotFoundError()), "it may be there when the store is"
    with capture_logs() as said:
        storage.refuse_unusable()
    assert "waited for" in said[0]["event"], "it starts, and waits"
    s3.relay.back()
    assert sorted(s3.names(folder_of(s3_url))) == [MARK, "files/x"]
    assert half.read() == b"".join(chunks(2 * BLOCK))[-1:], "who reads goes on"
    assert b"".join(storage.read("files/x")) == b"".join(chunks(2 * BLOCK))


def test_a_store_that_is_cut_off_in_the_middle_leaves_nothing(s3: S3, s3_url: str, away: Callable[[], None]) -> None:
    storage = Storage(s3_url)

    def cut() -> Iterator[bytes]:
        yield from chunks(BLOCK + MEBI)
        away()
        yield from chunks(BLOCK)

    with pytest.raises(OSError):
        storage.put("files/x", cut())
    s3.relay.back()
    gc.collect()
    assert not s3.names(folder_of(s3_url))
    for left in unfinished(s3):  # nobody could end it: a rule of the bucket's may
        s3.client.abort_multipart_upload(Bucket=BUCKET, Key=left["Key"], UploadId=left["UploadId"])


def test_clients_are_told_to_come_again(s3: S3, s3_url: str, away: Callable[[], None], tmp_path: Path) -> None:
    service = hosted(tmp_path / "service", s3_url)
    form: dict[str, Any] = {"files": {"file": ROWS}, "data": {"purpose": "fine-tune"}}
    file = service.ask("POST", "/v1/files", **form).json()["id"]
    asked = {"filename": "x", "purpose": "fine-tune", "bytes": len(ROWS)}
    upload = f"/v1/uploads/{service.ask('POST', '/v1/uploads', json=asked).json()['id']}"
    part = service.ask("POST", f"{upload}/parts", files={"data": ROWS}).json()["id"]
    whole: dict[str, Any] = {"json": {"part_ids": [part]}}
    away()
    for method, path, options in (
        ("POST", "/v1/files", form), ("POST", f"{upload}/parts", {"files": {"data": ROWS}}),
        ("POST", f"{upload}/complete", whole), ("GET", f"/v1/files/{file}/content", {}),
    ):  # fmt: skip
        answer = service.ask(method, path, **options)
        assert answer.status_code == 503 and answer.headers["Retry-After"] and "127.0.0.1" not in answer.text
    s3.relay.back()
    assert service.ask("GET", f"/v1/files/{file}/content").content == ROWS
    made = service.ask("POST", f"{upload}/complete", **whole).json()
    assert service.ask("GET", f"/v1/files/{made['file']['id']}/content").content == ROWS
    service.store.sweep(service.bringing.storage)
    assert len(s3.names(folder_of(s3_url))) == 2


# jobs


def test_a_job_goes_on_on_another_machine_and_over_an_outage_to_the_same_bytes(
    s3: S3, s3_url: str, away: Callable[[], None], tiny_base: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(patience, "TOLD", 0.1)
    here = Machine(tmp_path, "here", tiny_base("llama"), s3_url)
    there = Machine(tmp_path, "there", tiny_base("llama"), s3_url)
    expected, killed = here.broken_off()

    def said() -> list[str]:
        return [event.message for event in here.parts.store.jobs.news("acme", killed.id)]

    away()
    with there.work():
        there.until(killed, lambda job: job.fence > 1 and any("goes on by itself" in message for message in said()))
        s3.relay.back()
        done = there.ended(killed)
    assert there.weights(done) == expected and "The job goes on." in said()
    assert not [
        message for message in said() if "127.0.0.1" in message or BUCKET in message or "begins again" in message
    ]
    lost = here.job()
    place = here.parts.store.files.used(lost.id, lost.spec.training_file).place
    s3.client.delete_object(Bucket=BUCKET, Key=f"{folder_of(s3_url)}/{place}")
    with there.work():
        end = time.monotonic() + 60
        while not (failed := here.parts.store.jobs.look(lost.id)).status.ended:
            assert time.monotonic() < end
            time.sleep(0.05)
    assert failed.error and failed.error["code"] == "file_lost"


def test_the_whole_story(s3: S3, s3_url: str, tmp_path: Path) -> None:
    with served(tmp_path / "home", [], "--storage", s3_url, "--lease", "5") as service:
        client = service.client()
        file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
        half = len(jsonl(CHAT)) // 2
        upload = client.uploads.create(
            filename="more.jsonl", purpose="fine-tune", bytes=len(jsonl(CHAT)), mime_type="application/jsonl"
        )
        parts = [
            client.uploads.parts.create(upload.id, data=data).id for data in (jsonl(CHAT)[:half], jsonl(CHAT)[half:])
        ]
        whole = client.uploads.complete(upload.id, part_ids=parts).file
        assert whole and client.files.content(whole.id).content == jsonl(CHAT)
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
        job = ended(client, client.fine_tuning.jobs.create(
            model="tiny", training_file=file.id, validation_file=whole.id, method=method
        ))  # fmt: skip
        assert job.status == "succeeded" and base64.b64decode(
            client.files.content(job.result_files[0]).content
        ).startswith(b"step")
        answer = client.chat.completions.create(
            model=str(job.fine_tuned_model), messages=[{"role": "user", "content": "fox"}], max_tokens=3
        )
        assert answer.usage and answer.usage.completion_tokens
        events = client.fine_tuning.jobs.list_events(job.id).model_dump_json()
        metrics = httpx.get(f"{service.url}/metrics").text
        assert not list((tmp_path / "home").glob("storage")) and MARK in s3.names(folder_of(s3_url))
    log = (tmp_path / "home.log").read_text()
    assert "request" in log and "Unclosed" not in log and "Traceback" not in log
    for text in (log, events, metrics, service.said):
        assert s3.key not in text and s3.secret not in text
