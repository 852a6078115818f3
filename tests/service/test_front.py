"""Strangers, and clients that ask for much at once: they get their answer, and everybody else goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from tests.service.hosted import Echo, Hosted, hosted
from tunewright.service import body, connections, json_body
from tunewright.service.body import limit_of
from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Generate, Piece, Usage
from tunewright.service.logs import Seldom
from tunewright.service.settings import MEBI, Limits
from tunewright.service.store.database import answering

HOST = "db.internal:5432"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Hosted:
    return hosted(tmp_path_factory.mktemp("front"), file_bytes=3 * MEBI, part_bytes=2 * MEBI, body_bytes=MEBI)


def eventually(true: Callable[[], bool], seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


# Graders

JUDGE = {"type": "score_model", "model": "tiny", "input": [{"role": "user", "content": "a"}]}
MULTI = {
    "type": "multi", "name": "all", "calculate_output": "+".join(f"g{i}" for i in range(8)),
    "graders": {f"g{i}": {**JUDGE, "name": f"g{i}"} for i in range(8)},
}  # fmt: skip
GRADE = {"grader": MULTI, "model_sample": "x", "item": {}}


def test_more_graders_than_threads_all_answer(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async def generate(self: Echo, asked: Generate) -> AsyncIterator[Piece | Usage]:
        yield Piece(0, "0.5", finish="stop")
        yield Usage(1, 1)

    monkeypatch.setattr(Echo, "generate", generate)

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=None) as client:
            sent = [client.post("/v1/fine_tuning/alpha/graders/run", json=GRADE, headers=headers) for _ in range(50)]
            return await asyncio.wait_for(asyncio.gather(*sent), 60)

    headers = service.headers()
    assert [one.json()["reward"] for one in asyncio.run(ask())] == [4.0] * 50


def test_a_grader_whose_client_has_gone_asks_nothing_more(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = list[bool](), list[bool]()

    async def generate(self: Echo, asked: Generate) -> AsyncIterator[Piece | Usage]:
        begun.append(True)
        try:
            await asyncio.sleep(60)
            yield Piece(0, "0.5", finish="stop")
        finally:
            ended.append(True)

    monkeypatch.setattr(Echo, "generate", generate)
    with service.served() as address:
        with pytest.raises(httpx.ReadTimeout):
            url = f"{address}/v1/fine_tuning/alpha/graders/run"
            httpx.post(url, json=GRADE, headers=service.headers(), timeout=1)
        assert eventually(lambda: len(ended) == len(begun) == 1), (begun, ended)


# Bodies


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        *((f"{tree}/files", "file_bytes") for tree in ("/v1", "/openai/v1", "/openai")),
        *((f"{tree}/uploads/upload_1/parts", "part_bytes") for tree in ("/v1", "/openai/v1", "/openai")),
        *((f"{tree}/chat/completions", "image_body_bytes") for tree in ("/v1", "/openai", "/openai/deployments/a")),
        *((path, "image_body_bytes") for path in ("/v1/predictions", "/v1beta1/models/a:streamGenerateContent")),
        ("/v1beta1/models/a:countTokens", "image_body_bytes"),
        *((f"/v1{path}", "body_bytes") for path in ("/files/", "/x/files", "/files/x/files", "/uploads/parts")),
        *((f"/v1beta1{path}", "body_bytes") for path in ("/x/files", "/uploads/x/parts", "/predictions", "/files")),
        *((path, "body_bytes") for path in ("/files", "/v1/uploads/a/b/parts", "/v1/fine_tuning/jobs", "/v1/files\n")),
    ],
)
def test_only_routes_that_take_more_may_be_sent_more(path: str, limit: str) -> None:
    limits, form = Limits(), 1 << 16 if limit in ("file_bytes", "part_bytes") else 0
    assert limit_of(path, limits) == getattr(limits, limit) + form


def test_a_path_that_only_looks_like_an_upload_takes_no_more_than_json(service: Hosted) -> None:
    large = b'{"a": "' + b"x" * (2 * MEBI) + b'"}'
    for path in ("/v1beta1/x/files", "/v1beta1/x/parts", "/v1/fine_tuning/jobs"):
        assert service.ask("POST", path, content=large).status_code == 413, path
    found = service.ask("POST", "/v1/predictions", json={"model": "tiny", "input": "x" * (2 * MEBI)})
    assert found.status_code == 200, "images may be large"


def test_large_json_is_read_while_others_are_served(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def read(raw: bytes) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return json_body.read_json(raw)

    monkeypatch.setattr(body, "read_json", read)
    for size in (10, 300_000):
        service.ask("POST", "/v1/predictions", json={"model": "tiny", "input": "x" * size})
    assert threads == [True, False]


@pytest.mark.parametrize("raw", [b'{"a":[' + b"[]," * 5_000_000 + b"0]}", b'["' + b"," * 5_000_000 + b'"]'])
def test_json_in_too_many_pieces_is_refused_before_it_is_read(raw: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_body, "DECODER", None)
    with pytest.raises(Refused) as found:
        json_body.read_json(raw)
    assert (found.value.status, found.value.code) == (413, "too_large")


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(_depth, inner), default=0)


def test_depth_is_told_from_the_text() -> None:
    chance = random.Random(0)
    texts = ['"', "\\", "[", '\\"[{', 'a]"}', "é[", "\\\\", "{}", ""]

    def made(levels: int) -> Any:
        kind = chance.random()
        if not levels or kind < 0.2:
            return chance.choice([1, *texts])
        if kind < 0.6:
            return [made(levels - 1) for _ in range(chance.randrange(3))]
        return {chance.choice(texts): made(levels - 1) for _ in range(chance.randrange(3))}

    for _ in range(2000):
        value = made(7)
        for ascii_only in (True, False):
            assert json_body._depth(json.dumps(value, ensure_ascii=ascii_only).encode()) == _depth(value)
    assert json_body.read_json(b"[" * 100 + b"]" * 100)
    for raw in (b"[" * 101 + b"]" * 101, b'{"a":' * 101 + b"1" + b"}" * 101, b"[" * 300_000):
        with pytest.raises(Refused, match="more than 100 levels"):
            json_body.read_json(raw)


def test_numbers_of_many_digits_are_none() -> None:
    assert json_body.read_json(b"[" + b"9" * 100 + b"]") == [10**100 - 1]
    with pytest.raises(Refused, match="larger than any number"):
        json_body.read_json(b"[" + b"9" * 101 + b"]")


@pytest.mark.parametrize(
    ("path", "document", "field"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": "a\ud800"}, "input"),
        ("/v1/completions", {"model": "tiny", "prompt": ["\udc00"]}, "prompt"),
        ("/v1/images/generations", {"model": "tiny", "prompt": "\ud800\ud800"}, "prompt"),
        ("/v1/predictions", {"model": "tiny", "input": "\ude00\ud83d"}, "input"),
        ("/v1/keys", {"name": "\ud800"}, "name"),
        ("/v1/fine_tuning/jobs", {"model": "tiny", "training_file": "x", "recipe": {"\ud800": 1}}, "recipe"),
        ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "a"}],
                                  "tools": [{"type": "function", "function": {"name": "\ud800"}}]}, "tools"),
        ("/v1beta1/tiny:generateContent", {"contents": [{"role": "user", "parts": [{"text": "\ud800"}]}]}, "contents"),
        ("/v1/embeddings", {"\ud800": "a"}, None),
    ],
)  # fmt: skip
def test_half_of_a_character_is_said_to_be_one(service: Hosted, path: str, document: Any, field: str | None) -> None:
    found = service.ask("POST", path, content=json.dumps(document).encode())
    error = found.json()["error"]
    assert found.status_code == 400 and "half of a character" in error["message"], found.text
    assert error["message"].startswith(field or "The body")


def test_whole_characters_are_taken_however_they_are_written() -> None:
    for raw in (b'{"a": "\\ud83d\\ude00"}', '{"a": "😀"}'.encode(), b'\xef\xbb\xbf{"a": "\\uD83D\\uDE00"}'):
        assert json_body.read_json(raw) == {"a": "😀"}
    assert json_body.read_json(b'{"a": "\\\\ud800"}') == {"a": "\\ud800"}
    for raw in (b'"\xed\xa0\x80"', '{"a": 1}'.encode("utf-16")):
        with pytest.raises(Refused, match="no JSON"):
            json_body.read_json(raw)


# Connections


def connected(address: str, sent: bytes = b"") -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=15)
    connection.sendall(sent)
    return connection


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


def test_a_head_that_does_not_come_whole_is_not_waited_for(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD", 1.0)
    with service.served() as address:
        silent, half = connected(address), connected(address, HALF_A_HEAD)
        began = time.monotonic()
        while not is_closed(half) and time.monotonic() - began < 10:
            time.sleep(0.1)
            try:
                half.sendall(b"X")
            except OSError:
                break
        assert 0.8 < time.monotonic() - began < 5, "bytes now and then give it no more time"
        assert eventually(lambda: is_closed(silent), 5)
        again = connected(address, HALF_A_HEAD + b"\r\n")
        assert again.recv(15) == b"HTTP/1.1 200 OK"
        while b"ok" not in again.recv(4096):
            pass
        time.sleep(1.2)
        assert not is_closed(again), "it may be quiet after an answer"
        again.sendall(HALF_A_HEAD)
        assert eventually(lambda: is_closed(again), 5), "the next head has no more time than the first"


def test_an_answer_may_take_longer_than_a_head(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async def generate(self: Echo, asked: Generate) -> AsyncIterator[Piece | Usage]:
        await asyncio.sleep(1.5)
        yield Piece(0, "fox", finish="stop")
        yield Usage(1, 1)

    monkeypatch.setattr(connections, "HEAD", 0.5)
    monkeypatch.setattr(Echo, "generate", generate)
    with service.served() as address:
        asked = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
        url = f"{address}/v1/chat/completions"
        assert httpx.post(url, json=asked, headers=service.headers(), timeout=20).is_success


def test_who_asks_is_served_when_those_who_do_not_hold_all_connections(service: Hosted) -> None:
    with service.served(connections=20) as address:
        idle = [connected(address, HALF_A_HEAD) for _ in range(60)]
        assert httpx.get(f"{address}/healthz", timeout=5).is_success
        assert eventually(lambda: sum(map(is_closed, idle)) >= 40, 5)
        for one in idle:
            one.close()


def test_a_service_may_open_as_many_files_as_the_system_permits() -> None:
    script = (
        "import resource as r; from tunewright.service.connections import allow_many\n"
        "_, hard = r.getrlimit(r.RLIMIT_NOFILE); r.setrlimit(r.RLIMIT_NOFILE, (300, 4096)); most = allow_many()\n"
        "print(most, *r.getrlimit(r.RLIMIT_NOFILE))"
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("fewer than 4,096 open files are permitted here")
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    most, soft, now = map(int, found.stdout.split())
    assert soft == now == 4096 and 1000 < most < 4096 / 2


def test_libraries_say_the_same_once_a_minute() -> None:
    now = [1000.0]
    seldom = Seldom(lambda: now[0])

    def said(message: str, error: Exception | None = None, name: str = "asyncio") -> bool:
        info = (type(error), error, None) if error else None
        return bool(seldom.filter(logging.LogRecord(name, logging.ERROR, "x", 1, message, None, info)))

    full = OSError(24, "Too many open files")
    flood = [said("socket.accept() out of system resource\nsocket: <…>", full) for _ in range(1000)]
    assert flood == [True] + [False] * 999
    assert said("Invalid HTTP request received.", name="uvicorn.error") and said("fails", ValueError("a"))
    assert said("fails", ValueError("b")) and not said("fails", ValueError("b"))
    now[0] += 61
    assert said("socket.accept() out of system resource", full)
    assert all(said(f"line {number}") for number in range(1000)) and len(seldom._said) <= 100


# What anybody is told


def _away(*_: Any) -> None:
    with answering():
        raise OperationalError("SELECT 1", {}, Exception(f'connection to server at "{HOST}" failed'))


def test_where_the_database_is_stands_in_the_log_alone(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.store, "ping", _away)
    monkeypatch.setattr(service.store.keys, "by_secret", _away)
    with capture_logs() as lines:
        ready = service.ask("GET", "/readyz", None)
        asked = [service.ask("GET", path) for path in ("/v1/files", "/v1beta1/tuningJobs")]
    assert ready.status_code == 503 and ready.json() == {"database": "does not answer", "engine": "ok"}
    assert all(one.status_code == 503 and "database" in one.json()["error"]["message"] for one in asked)
    assert not any(HOST in one.text for one in (ready, *asked))
    assert sum(HOST in str(line.get("error")) for line in lines) == 3


def test_nobody_is_sent_to_a_host_that_the_client_named(service: Hosted) -> None:
    paths = (
        "/v1/files/",
        "/openai/v1/models/",
        "/openai/fine_tuning/jobs/",
        "/v1beta1/tuningJobs/",
        "/docs/",
        "/page/",
    )
    for path in paths:
        found = service.ask("GET", path, headers={"Host": "evil.example"})
        assert found.status_code in (404, 405) and "location" not in found.headers, path


def test_whether_it_lives_may_be_asked_without_an_answer_in_words(service: Hosted) -> None:
    for path in ("/healthz", "/readyz"):
        assert service.ask("HEAD", path, None).status_code == 200
    with service.served() as address:
        assert httpx.head(f"{address}/healthz").status_code == 200


@pytest.mark.parametrize(
    ("status", "told", "wait"),
    [(503, None, 5), (429, None, 5), (503, "600", 120), (429, "0", 1), (503, "10", 10), (503, "soon", 5),
     (507, "999", 120)],
)  # fmt: skip
def test_who_is_to_come_again_is_told_when_and_within_two_minutes(
    service: Hosted, monkeypatch: pytest.MonkeyPatch, status: int, told: str | None, wait: int
) -> None:
    """openai's client takes no longer wait than that: it asks again at once."""

    async def embed(*_: Any) -> None:
        raise Refused(status, "Not now.", headers={"Retry-After": told} if told else None)

    monkeypatch.setattr(Echo, "embed", embed)
    found = service.ask("POST", "/v1/embeddings", json={"model": "tiny", "input": "a"})
    assert found.status_code == status and found.headers["retry-after"] == str(wait)


def test_what_is_not_ready_says_when_to_ask_again(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unhealthy(_: Echo) -> bool:
        return False

    monkeypatch.setattr(Echo, "healthy", unhealthy)
    found = service.ask("GET", "/readyz", None)
    assert found.status_code == 503 and 1 <= int(found.headers["retry-after"]) <= 120
    assert "retry-after" not in service.ask("GET", "/v1/files/none").headers


def test_a_base_whose_folder_is_gone_is_not_listed(tmp_path: Path) -> None:
    service = hosted(tmp_path)
    (one,) = service.ask("GET", "/v1/models").json()["data"]
    assert (one["id"], "task" in one) == ("tiny", False)
    (tmp_path / "models" / "tiny" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    assert service.ask("GET", "/v1/models").json()["data"][0]["task"] == "text-generation"
    shutil.rmtree(tmp_path / "models" / "tiny")
    assert service.ask("GET", "/v1/models").json()["data"] == []
