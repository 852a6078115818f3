"""How `tunewright serve` listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

from tests.service.hosted import Echo
from tests.service.served import served
from tunewright.cli import app
from tunewright.cli.serve import _greet
from tunewright.errors import RecipeError
from tunewright.service import logs
from tunewright.service.bases import one_that_chats
from tunewright.service.bringing import Bringing
from tunewright.service.serve import address_of, listening, refuse_absent
from tunewright.service.settings import Limits, read_limits
from tunewright.service.store import Store
from tunewright.tiny_base import tiny_base


@pytest.fixture(autouse=True)
def _own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `serve` sets up would go on writing to the output that a test has closed."""
    monkeypatch.setattr(logs, "set_up", lambda: None)


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", "gpu"])
def test_a_device_that_is_not_there_is_refused_at_the_start(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = CliRunner().invoke(app, ["serve", "--device", device, "--home", str(tmp_path / "home"), "--port", "0"])
    assert found.exit_code == 2 and f"--device: {device.partition(':')[0]}" in found.output and "auto" in found.output
    assert not (tmp_path / "home").exists(), "nothing was begun"


def test_of_several_devices_one_is_taken_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refuse_absent("cuda:1")
    with pytest.raises(RecipeError, match="torch sees 2 here"):
        refuse_absent("cuda:2")
    for device in ("auto", "cpu"):
        refuse_absent(device)


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("fe80::2", "[fe80::2]"), ("here", "here")],
)
def test_an_address_can_be_pasted(host: str, shown: str) -> None:
    assert address_of(host, 80) == f"http://{shown}:80"


def test_what_is_done_to_keys_in_the_terminal_stands_in_the_audit_log(tmp_path: Path) -> None:
    home = ["--home", str(tmp_path), "--json"]
    made = CliRunner().invoke(app, ["keys", "create", "laptop", "--tenant", "acme", *home])
    id = json.loads(made.stdout)["id"]
    assert CliRunner().invoke(app, ["keys", "revoke", id, *home]).exit_code == 0
    store = Store(f"sqlite:///{tmp_path / 'service.db'}")
    found = [(one.action, one.object, one.key) for one in store.audit.entries("acme")]
    store.close()
    assert found == [("keys.revoke", id, None), ("keys.create", id, None)]


@pytest.mark.parametrize(
    "option", [("--memory", "inf"), ("--memory", "nan"), ("--memory", "1e300"), ("--lease", "inf"), ("--lease", "nan")]
)
def test_what_is_no_amount_is_refused_at_the_start(option: tuple[str, str], tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["serve", *option, "--home", str(tmp_path / "home"), "--host", "999.1.1.1"])
    assert found.exit_code == 2 and option[0] in found.output and "999" not in found.output
    assert not (tmp_path / "home").exists(), "nothing was begun"


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1", "a..b"])
def test_a_host_that_is_not_here_is_no_fault_of_the_port(host: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["serve", "--host", host, "--port", "0", "--home", str(tmp_path)])
    assert found.exit_code == 2 and f"--host {host} is no address of this machine" in found.output
    assert "--port" not in found.output


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        found = CliRunner().invoke(app, ["serve", "--port", port, "--home", str(tmp_path)])
    assert found.exit_code == 2 and f"Port {port} of 127.0.0.1 cannot be had" in found.output
    assert "Give another --port" in found.output


@pytest.mark.parametrize("command", [["keys", "list"], ["keys", "revoke", "key_1"], ["worker"]])
def test_where_there_is_no_service_none_is_made(command: list[str], tmp_path: Path) -> None:
    for where in (["--home", str(tmp_path / "typo")], ["--database", f"sqlite:///{tmp_path}/typo.db"]):
        found = CliRunner().invoke(app, [*command, *where])
        assert found.exit_code == 2 and "There is no service" in found.output and where[0] in found.output
    assert not list(tmp_path.iterdir())


@contextmanager
def vllm(**base: Any) -> Iterator[str]:
    """The address of what says that it is a vLLM server with this base."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"parent": None, "max_model_len": 64, **base}]}).encode())

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with two bases."""
    for name in ("first", "second"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    return tmp_path / "models"


def test_a_vllm_server_of_another_base_is_refused_at_the_start(tmp_path: Path, models: Path) -> None:
    with vllm(id="gpt-4", root="org/other") as url:
        options = ["--engine", f"vllm={url}", "--home", str(tmp_path), "--models", str(models), "--port", "0"]
        found = CliRunner().invoke(app, ["serve", *options])
    assert found.exit_code == 2 and "has the base gpt-4 (from org/other)" in found.output
    assert "first, second, tiny" in found.output and "--served-model-name" in found.output


def test_only_the_base_of_a_vllm_server_answers(tmp_path: Path, models: Path) -> None:
    with (
        vllm(id="x", root=str(models / "second")) as url,
        served(tmp_path / "home", [str(models)], "--engine", f"vllm={url}", "--workers", "0") as service,
    ):
        answer = httpx.post(
            f"{service.url}/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]},
            headers={"Authorization": f"Bearer {service.key}"},
        )
    assert answer.status_code == 400 and "one base, second" in answer.json()["error"]["message"]
    assert "answers for second alone; first, tiny can only be tuned" in service.said
    assert 'create(model="second"' in service.said


def test_limits_are_set_by_name() -> None:
    found = read_limits(["open_jobs=3", "file_bytes=2GiB", "file_bytes=3 MiB", "body_bytes=1000"])
    assert (found.open_jobs, found.file_bytes, found.body_bytes) == (3, 3 << 20, 1000)
    assert found.part_bytes == Limits().part_bytes and read_limits([]) == Limits()
    assert Limits.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("open_job=3", "no limit open_job. Did you mean open_jobs?"),
        ("zzz=3", "Known: requests_per_minute"),
        ("open_jobs", "give name=value"),
        ("open_jobs=many", "--limit open_jobs=many: give a whole number"),
        ("open_jobs=0", "1 or more"),
        ("file_bytes=2 parsecs", "give bytes, such as 2GiB"),
    ],
)
def test_a_limit_that_means_nothing_is_refused_before_anything_begins(given: str, said: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["serve", "--limit", given, "--home", str(tmp_path / "home"), "--port", "0"])
    assert found.exit_code == 2 and said in " ".join(found.output.split())
    assert not (tmp_path / "home").exists()


def test_the_limits_of_the_command_line_are_those_of_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    beside = contextlib.nullcontext((Echo(), lambda: None, ("tiny",)))
    monkeypatch.setattr("tunewright.service.serve.beside", lambda *_: beside)
    monkeypatch.setattr("tunewright.service.serve.run", lambda application, _: made.append(application))
    options = ["--limit", "open_jobs=3", "--limit", "file_bytes=1MiB", "--home", str(tmp_path), "--port", "0"]
    assert CliRunner().invoke(app, ["serve", *options]).exit_code == 0
    limits = made[0].state.settings.limits
    assert (limits.open_jobs, limits.file_bytes) == (3, 1 << 20)


def test_the_documents_say_every_limit() -> None:
    said = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", said, re.MULTILINE))
    assert read_limits([f"{name}={value}" for name, value in rows.items()]) == Limits()
    assert set(rows) == set(Limits.model_fields)


def _base(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_the_first_lines_name_a_base_that_chats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speaks, template = {"architectures": ["LlamaForCausalLM"]}, {"chat_template": "{{ messages }}"}
    run = _base(tmp_path / "h-run", run={})
    _base(run / "model", tunewright={"task": "text-generation", "chats": True})
    bases = {
        "a-vision": _base(tmp_path / "a", config={"architectures": ["ViTForImageClassification"]}),
        "b-classes": _base(tmp_path / "b", config={"architectures": ["BertForSequenceClassification"]},
                           tokenizer_config=template),
        "c-plain": _base(tmp_path / "c", config=speaks, tokenizer_config={}),
        "d-broken": _base(tmp_path / "d", config=[]),
        "e-tuned": _base(tmp_path / "e", config=speaks, tokenizer_config=template,
                         tunewright={"task": "text-generation"}),
        "f-pipeline": _base(tmp_path / "f", model_index={}),
    }  # fmt: skip
    assert one_that_chats(bases) == "a-vision", "where none does"
    assert one_that_chats({**bases, "tiny": tiny_base()}) == "tiny"
    assert one_that_chats({**bases, "run": run}) == "run"
    assert (
        one_that_chats({**bases, "chats": _base(tmp_path / "g", config=speaks, tokenizer_config=template)}) == "chats"
    )
    store = Store(f"sqlite:///{tmp_path / 'service.db'}")
    bringing = Bringing(store, Any, {**bases, "tiny": tiny_base()}, tmp_path)  # type: ignore[arg-type]
    _greet("http://here", bringing, list(bringing.bases))
    store.close()
    assert 'model="tiny"' in capsys.readouterr().out


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_clients_may_come_at_once_and_do_not_wait_for_their_own_acknowledgement(host: str) -> None:
    async def first() -> int:
        listener = listening(host, 0)
        with socket.create_connection(listener.getsockname()[:2], timeout=5):
            found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                accepted = writer.get_extra_info("socket")
                found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(accept, sock=listener):
                return await asyncio.wait_for(found, 5)

    try:
        assert asyncio.run(first())
    except OSError as error:
        if host == "::1":
            pytest.skip(f"no IPv6 here: {error}")
        raise
