"""Routes that answer, over an engine that says what a test wants: broken streams, tools, prompts, the reference."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.service.hosted import hosted
from tunewright.service.app import make_app
from tunewright.service.bringing import Bringing
from tunewright.service.errors import Refused
from tunewright.service.inference.protocol import Generate, Piece, Token, Usage
from tunewright.service.settings import Limits, Settings
from tunewright.service.storage import Storage
from tunewright.service.store import Store


class Saying:
    """An engine that says these things, whatever it is asked; an error among them is raised."""

    def __init__(self) -> None:
        self.says: list[Any] = []
        self.asked: list[Generate] = []

    async def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        self.asked.append(asked)
        for one in self.says:
            if isinstance(one, Exception):
                raise one
            yield one

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...


@pytest.fixture
def engine() -> Saying:
    return Saying()


@pytest.fixture
def web(tmp_path: Path, engine: Any) -> Iterator[TestClient]:
    store = Store(f"sqlite:///{tmp_path}/db")
    bringing = Bringing(store, Storage(f"file://{tmp_path}/storage"), {"tiny": tmp_path}, tmp_path / "cache")
    _, secret = store.keys.create("acme", "test")
    settings = Settings(home=tmp_path, limits=Limits(requests_per_minute=20))
    with TestClient(make_app(bringing, engine, settings), raise_server_exceptions=False) as web:
        web.headers["Authorization"] = f"Bearer {secret}"
        yield web
    store.close()


ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


@pytest.mark.parametrize("error", [Refused(503, "The model went away."), RuntimeError("secret of the house")])
def test_a_stream_that_breaks_ends_with_an_error_and_not_with_done(
    web: TestClient, engine: Saying, error: Exception
) -> None:
    engine.says = [Piece(0, "Hel"), error]
    said = events(web.post("/v1/chat/completions", json={**ASK, "stream": True}).text)
    assert said[-1]["error"]["type"] == "server_error" and "[DONE]" not in said
    assert "secret" not in said[-1]["error"]["message"]
    assert not any(one.get("choices", [{}])[0].get("finish_reason") for one in said[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_the_first_token_has_its_status(web: TestClient, engine: Saying, stream: bool) -> None:
    engine.says = [Refused(400, "The prompt is longer than the context.", "context_length_exceeded", "messages")]
    found = web.post("/v1/chat/completions", json={**ASK, "stream": stream})
    assert found.status_code == 400 and found.json()["error"]["code"] == "context_length_exceeded"
    engine.says = [RuntimeError("secret of the house")]
    found = web.post("/v1/chat/completions", json={**ASK, "stream": stream})
    assert found.status_code == 500 and "secret" not in found.text and found.headers["x-request-id"]


CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def test_tools_are_called(web: TestClient, engine: Saying) -> None:
    engine.says = [Piece(0, "Let me see. " + CALL[:20]), Piece(0, CALL[20:]), Piece(0, "", (), "stop"), Usage(1, 2)]
    whole = web.post("/v1/chat/completions", json={**ASK, "tools": TOOLS}).json()["choices"][0]
    assert engine.asked[-1].tools == TOOLS and whole["finish_reason"] == "tool_calls"
    assert whole["message"]["content"] == "Let me see."
    assert whole["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    said = events(web.post("/v1/chat/completions", json={**ASK, "tools": TOOLS, "stream": True}).text)
    deltas = [one["choices"][0] for one in said if one != "[DONE]"]
    assert deltas[-1]["finish_reason"] == "tool_calls" and deltas[-1]["delta"]["tool_calls"][0]["index"] == 0
    plain = web.post("/v1/chat/completions", json=ASK).json()["choices"][0]
    assert plain["message"]["content"].endswith(CALL) and plain["finish_reason"] == "stop"
    engine.says = [Piece(0, "<tool_call>{broken</tool_call>", (), "stop"), Usage(1, 2)]
    broken = web.post("/v1/chat/completions", json={**ASK, "tools": TOOLS}).json()["choices"][0]
    assert broken["message"]["content"] == "<tool_call>{broken</tool_call>" and "tool_calls" not in broken["message"]


def test_text_is_said_while_no_tool_may_be_called(web: TestClient, engine: Saying) -> None:
    """From what may begin a call on it is held back, and said at the end if it was none."""
    parts = ["One ", "two", ". a < b", " <tool", "box>.", "\n<tool_c", 'all>{"name"', ': "weather"}</tool_call>']
    engine.says = [*(Piece(0, part) for part in parts), Piece(0, "", (), "stop"), Usage(1, 2)]
    said = events(web.post("/v1/chat/completions", json={**ASK, "tools": TOOLS, "stream": True}).text)
    deltas = [one["choices"][0]["delta"] for one in said if one != "[DONE]"]
    assert [one["content"] for one in deltas if one.get("content")] == ["One two", ". a < b", " <toolbox>."]
    assert deltas[-1]["tool_calls"][0]["function"]["name"] == "weather"
    engine.says = [Piece(0, "a <"), Piece(0, "tool_call>"), Piece(0, " not", (), "stop"), Usage(1, 2)]
    said = events(web.post("/v1/chat/completions", json={**ASK, "tools": TOOLS, "stream": True}).text)
    told = "".join(one["choices"][0]["delta"].get("content") or "" for one in said if one != "[DONE]")
    assert told == "a <tool_call> not" and said[-2]["choices"][0]["finish_reason"] == "stop"


def test_several_prompts_are_numbered_through(web: TestClient, engine: Saying) -> None:
    token = Token("a", (97,), -0.5, (Token("a", (97,), -0.5),))
    engine.says = [Piece(1, "b", (token,), "length"), Piece(0, "a", (token,), "stop"), Usage(2, 3)]
    body = {"model": "tiny", "prompt": ["x", "y"], "n": 2, "logprobs": 1}
    found = web.post("/v1/completions", json=body).json()
    assert [(one["index"], one["text"]) for one in found["choices"]] == [(0, "a"), (1, "b"), (2, "a"), (3, "b")]
    assert found["usage"] == {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10}
    said = events(web.post("/v1/completions", json={**body, "stream": True}).text)
    assert {one["choices"][0]["index"] for one in said[:-1]} == {0, 1, 2, 3} and said[-1] == "[DONE]"


def test_a_key_has_so_many_requests_a_minute(web: TestClient) -> None:
    answers = [web.get("/v1/models") for _ in range(21)]
    assert {one.status_code for one in answers[:20]} == {200}
    last = answers[20]
    assert last.status_code == 429 and 1 <= int(last.headers["retry-after"]) <= 120
    assert last.json()["error"]["type"] == "rate_limit_error" and "x-should-retry" not in last.headers


def test_a_point_of_a_model_can_be_looked_up_by_the_name_that_answers(tmp_path: Path) -> None:
    service = hosted(tmp_path)
    name = service.belongings("acme")["model"]
    told = service.ask("GET", f"/v1/models/{name}").json()
    point = service.ask("GET", f"/v1/models/{name}@0.5")
    assert point.status_code == 200 and point.json() == {**told, "id": f"{name}@0.5"}
    found = [service.ask("GET", f"/v1/models/{one}").status_code for one in (f"{name}@2", "ft:none@0.5", "tiny")]
    assert found == [400, 404, 200] and service.ask("GET", f"/v1/models/{name}@0.5", "other").status_code == 404


@pytest.mark.parametrize(
    "changes, status",
    [
        ({"quality": "auto", "style": "vivid", "background": "auto"}, 200),
        ({"quality": "standard", "style": "natural"}, 200),
        ({"quality": "hd"}, 400),
        ({"style": "noir"}, 400),
        ({"background": "transparent"}, 400),
    ],
)
def test_what_has_no_effect_on_images_is_taken_as_openai_has_it_by_itself(
    tmp_path: Path, changes: dict[str, Any], status: int
) -> None:
    body = {"model": "tiny", "prompt": "a dog", **changes}
    found = hosted(tmp_path).ask("POST", "/v1/images/generations", json=body)
    assert found.status_code == status, found.text
    if status == 400:
        assert found.json()["error"]["param"] in changes and "Input should be '" in found.json()["error"]["message"]


def test_the_reference_needs_nothing_from_afar(web: TestClient) -> None:
    page = web.get("/docs")
    assert page.status_code == 200 and "POST /v1/fine_tuning/jobs" in page.text and "training_file" in page.text
    assert "<script" not in page.text and "https://" not in page.text
    for name in ("look.css", "reference.css"):
        assert f"/page/{name}" in page.text and web.get(f"/page/{name}").status_code == 200
    assert page.headers["content-security-policy"].startswith("default-src 'self'")


def test_numbers_for_prometheus(web: TestClient) -> None:
    web.get("/v1/models")
    text = web.get("/metrics").text
    assert 'tunewright_requests_total{method="GET",route="/models",status="200"} 1.0' in text
    assert 'tunewright_jobs{status="running"} 0.0' in text
    assert web.get("/readyz").json() == {"database": "ok", "engine": "ok"}
