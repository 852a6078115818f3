"""Whoever means harm, or breaks off: what they send is refused, leaves nothing behind and disturbs nobody."""

from __future__ import annotations

import asyncio
import io
import json
import re
import select
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import structlog
from structlog.testing import capture_logs

from tests.service.hosted import ROWS, Hosted, hosted
from tunewright.service import body
from tunewright.service.entities import JobSpec, Note, Status
from tunewright.service.logs import set_up
from tunewright.service.settings import MEBI
from tunewright.service.worker import Worker

SLUGS = ("\ud800", "\0", "..", "../../etc/passwd", "ä☃", "a" * 100_000, "'; DROP TABLE jobs; --", "%00", "\u202e", " ")
FORM = {"purpose": "fine-tune"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Hosted:
    return hosted(tmp_path_factory.mktemp("faults"), file_bytes=MEBI, part_bytes=MEBI, body_bytes=MEBI,
                  image_body_bytes=MEBI)  # fmt: skip


@pytest.fixture(scope="module")
def address(service: Hosted) -> Iterator[str]:
    with service.served() as url:
        yield url


# Who may do what, on every route that there is

OPEN = ("/healthz", "/readyz", "/metrics")
CHAT = {"messages": [{"role": "user", "content": "a"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/keys": {"name": "a key"},
    "/v1/uploads": {"filename": "x", "purpose": "fine-tune", "bytes": 4},
    "/v1/uploads/{id}/complete": {"part_ids": ["{part}"]},
    "/v1/fine_tuning/jobs": {"model": "{model}", "training_file": "{file}"},
    "/v1/fine_tuning/alpha/check": {"model": "{model}", "training_file": "{file}"},
    "/v1/fine_tuning/checkpoints/{name}/permissions": {"project_ids": ["other"]},
    "/v1/fine_tuning/alpha/graders/validate": {"grader": {"type": "string_check", "name": "a", "input": "b",
                                                          "reference": "b", "operation": "eq"}},
    "/v1/fine_tuning/alpha/graders/run": {"model_sample": "a", "item": {}, "grader": {
        "type": "score_model", "name": "a", "model": "{model}", "input": [{"role": "user", "content": "b"}]}},
    "/v1/chat/completions": {"model": "{model}", **CHAT},
    "/v1/completions": {"model": "{model}@0.5", "prompt": "a"},
    "/v1/embeddings": {"model": "{checkpoint}", "input": "a"},
    "/v1/predictions": {"model": "{model}", "input": "a"},
    "/v1/images/generations": {"model": "{model}", "prompt": "a"},
    "/v1beta1/tuningJobs": {"baseModel": "{model}", "supervisedTuningSpec": {"trainingDatasetUri": "{file}"}},
    "/v1beta1/{model}": {"contents": [{"role": "user", "parts": [{"text": "a"}]}]},
    "/openai/deployments/{name}/chat/completions": CHAT,
    "/openai/deployments/{name}/completions": {"prompt": "a"},
    "/openai/deployments/{name}/embeddings": {"input": "a"},
}  # fmt: skip
"""What each route that reads JSON takes, with the ids of the things that it names."""
FORMS = {"/v1/files": "file", "/v1/uploads/{id}/parts": "data"}
GOOGLE_MODELS = tuple(f"/v1beta1/{path}" for path in ("models", "publishers/google/models", "{model}"))
HIDDEN = [("POST", path) for path in BODIES if path.startswith("/openai/")]


@dataclass(frozen=True)
class Route:
    """A way to ask for something; `named`: the names in its path that stand in braces."""

    method: str
    path: str

    @property
    def named(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    def send(self, service: Hosted, tenant: str | None, things: dict[str, str], chosen: tuple[str, ...]) -> Any:
        """Ask with these things in the path, and whatever things belong in the body."""
        path = self.path
        for name, thing in zip(self.named, chosen, strict=True):
            path = path.replace(f"{{{name}}}", thing)
        path += ":generateContent" if self.method == "POST" and path.startswith("/v1beta1/ft:") else ""
        options: dict[str, Any] = {}
        if self.path in FORMS:
            options = {"files": {FORMS[self.path]: ("x", b"row")}, "data": FORM if self.path == "/v1/files" else {}}
        elif self.method == "POST":
            text = json.dumps(BODIES.get(self.path, {}))
            options = {"content": re.sub(r"{(\w+)}", lambda found: things[found[1]], text)}
        return service.ask(self.method, path, tenant, **options)


def routes(service: Hosted) -> list[Route]:
    document = service.app.openapi()["paths"]
    found = [(method.upper(), path) for path, methods in document.items() for method in methods if path not in OPEN]
    return [Route(*one) for one in found + HIDDEN]


def test_every_route_that_reads_a_body_is_tried_with_one_that_it_takes(service: Hosted) -> None:
    document = service.app.openapi()["paths"]
    reading = {path for path, methods in document.items() if "requestBody" in methods.get("post", {})}
    assert reading == {*BODIES, *FORMS} - {path for _, path in HIDDEN}


def test_no_route_answers_without_a_key_and_no_body_is_read_before_it(service: Hosted) -> None:
    for route in routes(service):
        path = re.sub(r"{\w+}", "x", route.path)
        azure = path.startswith("/v1/") and not path.startswith(("/v1/keys", "/v1/audit"))
        for prefix in ("/v1/", "/openai/v1/", "/openai/") if azure else ("/v1/",):
            for headers in ({}, {"Authorization": "Bearer tw-wrong"}, {"api-key": b"\xff"}):
                found = service.ask(route.method, path.replace("/v1/", prefix, 1), None, headers=headers, content=b"{")
                assert found.status_code == 401 and found.json()["error"]["message"], (route, prefix, found.text)


def test_what_belongs_to_another_tenant_is_not_there_on_any_route(tmp_path: Path) -> None:
    """The same requests, sent by the owner, are answered: so it is whose they are that they fail for."""
    service = hosted(tmp_path)
    things = service.belongings("acme")
    for route in routes(service):
        names = re.search(r"{\w+}", json.dumps(BODIES.get(route.path, {}))) and route.method == "POST"
        if not route.named and not names:
            continue
        choices = list(product(things.values(), repeat=len(route.named)))
        for chosen in choices if len(choices) < 20 else choices[:: len(things) + 1]:
            found = route.send(service, "other", things, chosen)
            assert found.status_code in (403, 404), (route, chosen, found.text)
        own = service.belongings("acme")
        choices = list(product(own.values(), repeat=len(route.named)))
        assert any(route.send(service, "acme", own, chosen).is_success for chosen in choices), route


def test_a_key_does_no_more_than_its_scopes(service: Hosted) -> None:
    for route in routes(service):
        path = re.sub(r"{\w+}", "x", route.path)
        secret = service.store.keys.create("acme", "narrow", ["models"])[1]
        status = service.ask(route.method, path, None, headers={"api-key": secret}).status_code
        about_models = path.startswith("/v1/models") or (route.method == "GET" and route.path in GOOGLE_MODELS)
        assert status == 403 or (about_models and status < 500), route
    made = service.store.keys.create("acme", "keys only", ["keys"])[1]
    found = service.ask("POST", "/v1/keys", None, headers={"api-key": made}, json={"name": "x", "scopes": ["files"]})
    assert found.status_code == 403


def test_of_two_keys_one_counts_and_no_key_is_in_the_log(service: Hosted, capsys: pytest.CaptureFixture[str]) -> None:
    service.key("other")
    keys = {name: service.key(name) for name in ("acme", "other")}
    files = {name: service.store.files.page(name)[0] for name in keys}
    set_up()
    try:
        both = [("authorization", f"Bearer {keys['acme']}"), ("authorization", f"Bearer {keys['other']}")]
        ways: list[Any] = [both, {"Authorization": f"Bearer {keys['acme']}", "api-key": keys["other"]}]
        for headers in ways:
            found = _raw(service, headers)
            assert found.status_code in (200, 400, 401)
            if found.is_success:
                assert [one["id"] for one in found.json()["data"]] == [one.id for one in files["acme"]]
        for headers in ({"Authorization": keys["acme"]}, {"Authorization": f"Basic {keys['acme']}"}):
            assert _raw(service, headers).status_code == 401
        assert service.ask("GET", f"/v1/files/{keys['acme']}").status_code == 404
        structlog.get_logger().error("it fails", nested={"a": [keys["acme"]]}, exc_info=ValueError(keys["acme"]))
    finally:
        structlog.reset_defaults()
    log = capsys.readouterr().err
    assert '"path": "/v1/files/tw-…"' in log and "ValueError: tw-…" in log
    assert not any(secret in log for secret in keys.values())


def _raw(service: Hosted, headers: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.get("/v1/files", headers=headers)

    return asyncio.run(send())


# Names and JSON


def test_ids_and_names_are_only_looked_up(service: Hosted) -> None:
    before = len(service.stored())
    for route in routes(service):
        for hostile in SLUGS:
            quoted = "".join(f"%{byte:02x}" for byte in hostile.encode("utf-8", "surrogatepass"))[:30_000]
            path = re.sub(r"{\w+}", quoted, route.path) if route.named else f"{route.path}?after={quoted}"
            found = service.ask(route.method, path)
            assert found.status_code in (200, 400, 403, 404, 405, 422), (route, hostile[:40], found.text[:300])
            assert route.named == [] or found.status_code != 200, (route, hostile[:40])
    for path in ("/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/page/.", "/page/index.html%00", "/page//etc/passwd"):
        assert service.ask("GET", path, None).status_code == 404
    assert len(service.stored()) == before


@pytest.mark.parametrize("name", [*SLUGS, "..\\..\\x", "a/b\0c", "x" * 5000 + ".jsonl", ".", ""], ids=ascii)
def test_the_name_of_a_file_is_only_shown(service: Hosted, name: str) -> None:
    upload = {"filename": name, "purpose": "fine-tune", "bytes": 1}
    found = service.ask("POST", "/v1/uploads", content=json.dumps(upload).encode())
    if found.status_code != 400:
        assert found.status_code == 200, found.text
        shown = found.json()["filename"]
        assert 0 < len(shown) <= 255 and not set(shown) & set("/\\\0") and shown not in (".", "..")
    assert all(re.fullmatch(r"\w+/\w\w/\w{24}", str(path.relative_to(service.root / "storage")))
               for path in service.stored() if "models" not in path.parts)  # fmt: skip


VALUES: tuple[bytes, ...] = (
    b"null", b"true", b"0", b"-1", b"1e999", b"-1e999", b"NaN", b"9" * 4000, b"9" * 5000, b"1e-400", b'""',
    b"[]", b"{}",
    b'"\\ud800"', b'"\\u0000"', b'{"\\ud800": "\\ud800"}', b'["\\ud800"]', b'{"a": 1e999}', b"[[[[1]]]]", b'"\xff"',
    b'{"type": "' + b"x" * 1000 + b'"}', b"[" * 500 + b"]" * 500, b'{"a":' * 500 + b"1" + b"}" * 500, b"[" * 100_000,
)  # fmt: skip


def test_no_value_anywhere_in_a_body_is_too_much_for_it(service: Hosted) -> None:
    """Every value somewhere in each route's body, and each field with some of them. What is taken can be read again."""
    things = service.belongings("acme")
    for path, document in BODIES.items():
        text = re.sub(r"{(\w+)}", lambda found: things[found[1]], json.dumps(document))
        target = re.sub(r"{\w+}", things["checkpoint"], path)
        target += ":generateContent" if path == "/v1beta1/{model}" else ""
        properties = service.app.openapi()["paths"].get(path, {}).get("post", {}).get("requestBody", {})
        fields = properties.get("content", {}).get("application/json", {}).get("schema", {}).get("properties", {})
        names = list(dict.fromkeys([*json.loads(text), *fields, "\ud800"]))
        for index, value in enumerate(VALUES):
            own = [name for number, name in enumerate(names) if (index + number) % 4 == 0]
            whole = [b"{" + text[1:-1].encode() + b", " + json.dumps(name).encode() + b": " + value + b"}"
                     for name in own]  # fmt: skip
            for raw in [*whole, value]:
                found = service.ask("POST", target, content=raw)
                assert found.status_code < 500, (path, raw[-300:], found.text[:300])
                assert found.status_code not in (408, 409)
    for path in ("/v1/fine_tuning/jobs?limit=100", "/v1beta1/tuningJobs?pageSize=100", "/v1/keys", "/v1/audit"):
        assert service.ask("GET", path).status_code == 200


def test_deep_and_doubtful_json_says_what_is_wrong(service: Hosted) -> None:
    for raw in (b"[" * 101 + b"]" * 101, b"[" * 1_000_000, b'{"a": NaN}', b'{"a": 1e999}', b"9" * 5000, b"\xff", b"'"):
        found = service.ask("POST", "/v1/fine_tuning/jobs", content=raw)
        assert found.status_code == 400 and found.json()["error"]["code"] == "invalid_json", raw[:20]
    twice = b'{"model": "tiny", "model": "tiny", "training_file": "file-x"}'
    found = service.ask("POST", "/v1/fine_tuning/jobs", content=twice)
    assert found.status_code == 400 and "twice" in found.json()["error"]["message"]


# Forms


def _multipart(*parts: bytes, boundary: bytes = b"edge") -> tuple[bytes, dict[str, str]]:
    whole = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    return whole, {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}


def _field(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value


PURPOSE = _field(b"purpose", b"fine-tune")
FILE = _field(b"file", ROWS, b'; filename="rows.jsonl"')
TRICKS: dict[str, tuple[bytes, ...]] = {
    "many parts": tuple(_field(b"f%d" % i, b"x") for i in range(20_000)),
    "many files": (FILE, FILE, PURPOSE),
    "no file name": (_field(b"file", ROWS), PURPOSE),
    "a huge name": (_field(b"n" * 900_000, b"x"), FILE, PURPOSE),
    "a huge header": (b"X-Much: " + b"m" * 900_000 + b"\r\n" + FILE, PURPOSE),
    "many headers": (b"X-Much: m\r\n" * 50_000 + FILE, PURPOSE),
    "a huge field": (_field(b"purpose", b"fine-tune" * 200_000), FILE),
    "no disposition": (b"Content-Type: text/plain\r\n\r\nx", FILE, PURPOSE),
    "no name": (b"Content-Disposition: form-data\r\n\r\nx", FILE, PURPOSE),
    "one form in another": (b"Content-Type: multipart/mixed; boundary=inner\r\n" + _field(b"file", _multipart(FILE)[0]),
                            PURPOSE),
    "a purpose that is a file": (_field(b"purpose", b"fine-tune", b'; filename="p"'), FILE),
    "no purpose": (FILE,),
    "an empty file": (_field(b"file", b"", b'; filename="rows.jsonl"'), PURPOSE),
    "bytes that are no text": (_field(b"file", ROWS, b'; filename="\xff\xfe"'), _field(b"purpose", b"\xff")),
    "expires soon": (FILE, PURPOSE, _field(b"expires_after[anchor]", b"created_at"),
                     _field(b"expires_after[seconds]", "٣٦٠٠".encode())),
}  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_a_form_with_tricks_is_refused_and_leaves_nothing(service: Hosted, trick: str) -> None:
    before, listed = service.stored(), len(service.store.files.page("acme")[0])
    raw, headers = _multipart(*TRICKS[trick])
    found = service.ask("POST", "/v1/files", content=raw, headers=headers)
    assert found.status_code in (400, 413), found.text[:300]
    assert found.json()["error"]["message"] and found.headers["x-should-retry"] == "false"
    service.store.sweep(service.bringing.storage)
    assert service.stored() == before and len(service.store.files.page("acme")[0]) == listed


def test_forms_that_are_none_are_refused(service: Hosted) -> None:
    whole, _ = _multipart(FILE, PURPOSE)
    kinds = ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=other",
             "application/json", "multipart/form-data; boundary=" + "e" * 10_000,
             "multipart/form-data; boundary=\xff")  # fmt: skip
    for kind in kinds:
        found = service.ask("POST", "/v1/files", content=whole, headers={"Content-Type": kind.encode("latin-1")})
        assert found.status_code == 400, (kind[:60], found.text)


def test_a_body_above_its_limit_is_413_whether_it_is_declared_or_not(address: str, service: Hosted) -> None:
    before = service.stored()
    headers = service.headers()
    large = b"x" * (MEBI + 100_000)
    form, kind = _multipart(_field(b"file", large, b'; filename="x"'), PURPOSE)
    wanted = {"filename": "x", "purpose": "fine-tune", "bytes": 5 * MEBI}
    upload = service.ask("POST", "/v1/uploads", json=wanted).json()
    data, _ = _multipart(_field(b"data", large, b'; filename="x"'))
    asked: list[tuple[str, Any, dict[str, str]]] = [
        ("files", form, kind), (f"uploads/{upload['id']}/parts", data, kind), ("chat/completions", large, {}),
    ]  # fmt: skip
    for path, content, more in asked:
        for sent in (content, iter([content[i : i + 65536] for i in range(0, len(content), 65536)])):
            found = httpx.post(f"{address}/v1/{path}", content=sent, headers={**headers, **more})
            assert found.status_code == 413 and found.json()["error"]["code"] == "too_large", found.text
    assert service.ask("POST", "/v1/uploads", json={**wanted, "bytes": 9 << 30}).status_code == 400
    assert service.stored() == before


def _connected(address: str, head: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(head.replace("\n", "\r\n").encode())
    return connection


def _head(service: Hosted, size: int | str) -> str:
    length = f"Content-Length: {size}" if isinstance(size, int) else "Transfer-Encoding: chunked"
    return (
        f"POST /v1/files HTTP/1.1\nHost: x\nAuthorization: Bearer {service.key()}\n"
        f"Content-Type: multipart/form-data; boundary=edge\n{length}\n\n"
    )


def test_an_upload_that_is_cut_off_leaves_nothing_and_is_no_error_of_the_service(address: str, service: Hosted) -> None:
    before, listed = service.stored(), len(service.store.files.page("acme")[0])
    whole, _ = _multipart(FILE, PURPOSE)
    with capture_logs() as lines:
        for size, sent in ((len(whole), whole[:200]), (len(whole), whole[:-3]), ("chunked", b"80\r\n" + whole[:100])):
            with _connected(address, _head(service, size)) as connection:
                connection.sendall(sent)
        assert httpx.get(f"{address}/healthz").is_success
        time.sleep(0.3)
    assert service.stored() == before and len(service.store.files.page("acme")[0]) == listed
    assert not [line for line in lines if line["log_level"] == "error"]


def test_a_slow_upload_holds_up_nobody_and_one_that_stops_is_ended(
    address: str, service: Hosted, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = _multipart(PURPOSE, FILE)
    slow = [_connected(address, _head(service, len(whole))) for _ in range(60)]
    try:
        for connection in slow:
            connection.sendall(whole[:100])
        assert httpx.get(f"{address}/v1/files", headers=service.headers(), timeout=30).is_success
        for start in range(100, len(whole), 300):
            slow[0].sendall(whole[start : start + 300])
            time.sleep(0.02)
        assert slow[0].recv(12) == b"HTTP/1.1 200"
        monkeypatch.setattr(body, "SILENCE", 0.5)
        with _connected(address, _head(service, len(whole))) as silent:
            silent.sendall(whole[:100])
            assert silent.recv(12) == b"HTTP/1.1 408"
        with _connected(address, _head(service, len(whole))) as dripping:
            for byte in whole[:50]:
                dripping.sendall(bytes([byte]))
                if select.select([dripping], [], [], 0.1)[0]:
                    break
            else:
                pytest.fail("a byte now and then is enough")
            assert dripping.recv(12) == b"HTTP/1.1 408"
    finally:
        for connection in slow:
            connection.close()


# Contents


def _bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"fox/{number}.png", b"\0" * (40 * MEBI))
    return file.getvalue()


def _leaving() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../../../tmp/out.png", b"x")
    return file.getvalue()


@pytest.mark.parametrize(
    "content", [_bomb(), _leaving(), b"{}\n" * 400_000, b"PAR1" + b"\0" * 100, b"\0" * 1000, b'{"a":' * 50_000],
    ids=["bomb", "leaving", "empty rows", "parquet", "zeros", "deep"],
)  # fmt: skip
def test_hostile_contents_fail_the_job_and_not_the_worker(tmp_path: Path, content: bytes) -> None:
    service = hosted(tmp_path / "service")
    sent = service.ask("POST", "/v1/files", files={"file": ("rows.jsonl", content)}, data=FORM)
    asked = {"model": "tiny", "training_file": sent.json()["id"]}
    checked = service.ask("POST", "/v1/fine_tuning/alpha/check", json=asked).json()
    assert checked["faults"] and str(tmp_path) not in json.dumps(checked)
    job = service.ask("POST", "/v1/fine_tuning/jobs", json=asked).json()
    assert job["status"] == "validating_files"
    working = Worker(service.bringing, tmp_path / "scratch", 60)
    assert working._validate_next()
    failed = service.ask("GET", f"/v1/fine_tuning/jobs/{job['id']}").json()
    assert failed["status"] == "failed" and failed["error"]["code"].startswith("invalid_"), failed
    assert str(tmp_path) not in json.dumps(failed) and len(failed["error"]["message"]) < 5000
    assert not list(working.scratch.iterdir()), "what was unpacked is gone"


# Much of it


def test_ten_thousand_events_are_paged_by_the_client(tmp_path: Path) -> None:
    service = hosted(tmp_path)
    file = service.store.files.add("acme", "x", "fine-tune", 1, "", service.store.places.reserve("files"))
    job = service.store.jobs.create("acme", JobSpec(model="tiny", training_file=file.id))
    service.store.jobs.move(job.id, Status.QUEUED)
    job = service.store.jobs.claim("worker", 600) or job
    service.store.jobs.progress(job.id, job.fence, events=[Note(f"event {i}") for i in range(10_000)])
    with service.served() as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=service.key())
        events = list(client.fine_tuning.jobs.list_events(job.id, limit=500))
    assert [one.message for one in events[:10_000]] == [f"event {i}" for i in reversed(range(10_000))]
    assert len({one.id for one in events}) == len(events) == 10_004


def test_who_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    service = hosted(tmp_path, requests_per_minute=5, open_jobs=2)
    found = [service.ask("GET", "/v1/files") for _ in range(6)]
    assert [one.status_code for one in found] == [200] * 5 + [429]
    assert 1 <= int(found[-1].headers["Retry-After"]) <= 120
    assert service.ask("GET", "/v1/files", "other").is_success, "another's requests do not count"
    file = service.store.files.add("third", "x", "fine-tune", 1, "", service.store.places.reserve("files"))
    asked = {"model": "tiny", "training_file": file.id}
    made = [service.ask("POST", "/v1/fine_tuning/jobs", "third", json=asked) for _ in range(3)]
    assert [one.status_code for one in made] == [200, 200, 429] and int(made[-1].headers["Retry-After"]) <= 120


@pytest.mark.parametrize("purpose", ["batch", "evals", "user_data"])
def test_a_file_for_something_else_is_not_trained_on(service: Hosted, purpose: str) -> None:
    def upload(purpose: str) -> str:
        sent = service.ask("POST", "/v1/files", files={"file": ("rows.jsonl", ROWS)}, data={"purpose": purpose})
        return str(sent.json()["id"])

    right, wrong = upload("fine-tune"), upload(purpose)
    before = service.store.jobs.page("acme", limit=100)
    for path in ("/v1/fine_tuning/jobs", "/v1/fine_tuning/alpha/check"):
        for named in ({"training_file": wrong}, {"training_file": right, "validation_file": wrong}):
            answer = service.ask("POST", path, json={"model": "tiny", **named})
            error, param = answer.json()["error"], list(named)[-1]
            assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
            assert purpose in error["message"] and "purpose fine-tune" in error["message"]
    tuning = {"baseModel": "tiny", "supervisedTuningSpec": {"trainingDatasetUri": wrong}}
    assert service.ask("POST", "/v1beta1/tuningJobs", json=tuning).status_code == 400
    assert service.store.jobs.page("acme", limit=100) == before
    good = service.ask("POST", "/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": right})
    assert good.status_code == 200


def test_made_up_methods_and_paths_do_not_grow_the_metrics(service: Hosted) -> None:
    for number in range(20):
        service.ask(f"MADEUP{number}", f"/v1/made-up-{number}")
        service.ask(f"MADEUP{number}", "/v1/files")
    assert "made-up" not in (text := service.ask("GET", "/metrics", None).text) and "MADEUP" not in text


@pytest.mark.slow
def test_an_upload_of_200_mb_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    """In a process of its own; the client streams, the file comes back whole, and the server has grown by little."""
    script = (
        "import sys, time; from pathlib import Path; from tests.service.hosted import hosted\n"
        "service = hosted(Path(sys.argv[1]))\n"
        "with service.served() as url:\n    print(url, service.key(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "service")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdin
        try:
            url, key = process.stdout.readline().split()
            watched, most, over = psutil.Process(process.pid), 0, threading.Event()
            with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
                client.files.create(file=("small", b"x"), purpose="fine-tune")
                before = watched.memory_info().rss

                def watch() -> None:
                    nonlocal most
                    while not over.wait(0.02):
                        most = max(most, watched.memory_info().rss)

                thread = threading.Thread(target=watch)
                thread.start()
                (tmp_path / "large").write_bytes(b"0123456789abcdef" * (200 * MEBI // 16))
                with (tmp_path / "large").open("rb") as file:
                    sent = client.files.create(file=("large", file), purpose="fine-tune")
                with client.files.with_streaming_response.content(sent.id) as response:
                    size = sum(len(chunk) for chunk in response.iter_bytes())
                over.set()
                thread.join()
        finally:
            process.stdin.close()
    assert sent.bytes == size == 200 * MEBI
    assert most - before < 30 * MEBI, f"grew by {(most - before) / MEBI:.0f} MiB"
