"""A vLLM server as the engine, against a stand-in that speaks its API and forgets adapters as it starts again."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

import tunewright as tw
from tests.service.inference import chats, pieces, texts, train, tuned
from tunewright.errors import TunewrightError
from tunewright.service.errors import Refused
from tunewright.service.inference.local import LocalEngine
from tunewright.service.inference.models import Models
from tunewright.service.inference.protocol import Classify, Embed, Generate, ModelRef, Piece, Sampling, Usage
from tunewright.service.inference.vllm import PLAIN, VLLM
from tunewright.service.inference.vllm_base import Served, ours, served_at

LENGTH = 100
TOGETHER = 130
"""Requests; httpx by itself makes 100 connections."""


class StandIn:
    """What vLLM's server answers, with this project's engine behind it.

    Args:
        deaf: it takes adapters, and serves its base for them.
        says: its answers, where they are to be these.
    """

    def __init__(self, base: str, deaf: bool = False, says: str | None = None) -> None:
        self.base, self.deaf, self.says = base, deaf, says
        self.waiting, self.all_there = 0, asyncio.Event()
        self.adapters: dict[str, str] = {}
        self.loads: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A fresh start, on the same port."""
        self.adapters.clear()
        self.engine = LocalEngine(Models(10**9, "cpu"))
        routes = [
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/completions", self.complete, methods=["POST"]),
            Route("/v1/embeddings", self.embed, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", lambda _: Response()),
        ]
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(Starlette(routes=routes), log_level="error", timeout_graceful_shutdown=1)
        )
        serving = asyncio.create_task(server.serve([listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            server.should_exit = True
            await serving
            await self.engine.close()

    async def load(self, request: Request) -> Response:
        found = await request.json()
        if found["lora_name"] in self.adapters:
            return self._error(400, "The lora adapter has already been loaded.")
        if not (Path(found["lora_path"]) / "adapter_model.safetensors").is_file():
            return self._error(404, "No adapter found.")
        self.adapters[found["lora_name"]] = found["lora_path"]
        self.loads.append(found["lora_name"])
        return PlainTextResponse("Success")

    async def complete(self, request: Request) -> Response:
        found = await request.json()
        self.asked.append(found)
        if found["model"] not in (*self.adapters, "the-base"):
            return self._error(404, f"The model `{found['model']}` does not exist.")
        if found.get("max_tokens") == 77:
            return self._error(400, "This is wrong.")
        longest = found.setdefault("max_tokens", 16)
        if len(found["prompt"]) + longest > LENGTH:
            return self._error(400, f"'max_tokens' or 'max_completion_tokens' is too large: {longest}.")
        place = None if self.deaf else self.adapters.get(found["model"])
        model = ModelRef("b", self.base, found["model"] if place else None, place)
        how = {
            key: found[key] for key in ("temperature", "top_p", "seed", "max_tokens", "n", "logprobs") if key in found
        }
        asked = Generate(
            model, prompt=tuple(found["prompt"]), sampling=Sampling(stop=tuple(found.get("stop", ())), **how)
        )
        said = [one async for one in self.engine.generate(asked)]
        if not found.get("stream"):
            text = "".join(one.text for one in said if isinstance(one, Piece))
            return JSONResponse({"choices": [{"index": 0, "text": text, "logprobs": self._told(said)}]})
        return StreamingResponse(self._events(said), media_type="text/event-stream")

    async def _events(self, said: list[Any]) -> AsyncIterator[str]:
        for one in said:
            choices = []
            if isinstance(one, Piece):
                one = one if self.says is None else replace(one, text=self.says)
                told = self._told([one]) if one.tokens else None
                choices = [{"index": one.index, "text": one.text, "finish_reason": one.finish, "logprobs": told}]
            usage = vars(one) if isinstance(one, Usage) else None
            yield f"data: {json.dumps({'choices': choices, 'usage': usage}, ensure_ascii=False)}\n\n"
        yield "data: [DONE]\n\n"

    def _told(self, said: list[Any]) -> dict[str, Any]:
        tokens = [token for one in said if isinstance(one, Piece) for token in one.tokens]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{top.text: top.logprob for top in token.top} for token in tokens],
        }

    async def embed(self, request: Request) -> Response:
        """Nobody is answered before TOGETHER are there."""
        self.waiting += 1
        if self.waiting == TOGETHER:
            self.all_there.set()
        await self.all_there.wait()
        return JSONResponse({"data": [{"embedding": [0.5], "index": 0}], "usage": {"prompt_tokens": 1}})

    async def models(self, _: Request) -> Response:
        base = [{"id": "the-base", "root": self.base, "parent": None, "max_model_len": LENGTH}]
        lie = {"parent": "the-base", "max_model_len": None}
        return JSONResponse({"data": base + [{"id": name, "root": at, **lie} for name, at in self.adapters.items()]})

    def _error(self, status: int, message: str) -> Response:
        return JSONResponse({"error": {"message": message, "type": "NotFoundError", "code": status}}, status)


@pytest.fixture(scope="module")
def runs(tiny_base: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    made = [train(tiny_base("qwen3"), root / "chat", "lora", data=chats())]
    made.append(train(str(made[0]), root / "stacked", "lora", data=chats()))
    return [*made, train(tiny_base("qwen3"), root / "full", "full")]


def engine_at(server: StandIn, **options: Any) -> VLLM:
    return VLLM(f"http://127.0.0.1:{server.port}/", Served(("the-base",), server.base, LENGTH), ["base"], **options)


MESSAGES = [{"role": "user", "content": "the fox"}]


def test_adapters_are_loaded_and_loaded_again(runs: list[Path], tiny_base: Callable[..., str], tmp_path: Path) -> None:
    base = tiny_base("qwen3")
    server = StandIn(base)
    points = [(runs[0], 1.0), (runs[0], 0.4), (runs[1], 0.0), (runs[1], 1.0), (runs[1], 0.5)]

    async def ask(engine: VLLM) -> list[str]:
        said = [await pieces(engine, tuned(base, *point), MESSAGES, temperature=0, max_tokens=9) for point in points]
        return [texts(one)[0] for one in said]

    async def story() -> None:
        async with server.running():
            engine = engine_at(server, points=tmp_path)
            expected = [tw.chat(f"{run}@{alpha}", MESSAGES, max_new_tokens=9) for run, alpha in points]
            assert await ask(engine) == expected == await ask(engine) and len(set(expected)) > 2
            assert len(server.loads) == len(points), "each is loaded once"
            plain = await pieces(engine, ModelRef("base", base), "the fox", temperature=0, max_tokens=4, logprobs=2)
            assert server.asked[-1]["model"] == "the-base" and len(plain[0].tokens[0].top) == 2
            stops = server.asked[-1]["stop_token_ids"]
            assert stops and all(isinstance(token, int) for token in stops)
            assert {one.name for one in await engine.loaded()} == {"the-base", *server.loads}
        assert not await engine.healthy()
        with pytest.raises(Refused) as caught:
            await ask(engine)
        assert caught.value.status == 503
        async with server.running():
            assert await engine.healthy() and await ask(engine) == expected
            assert len(server.loads) == 2 * len(points)
            server.adapters.clear()  # as if it had started again while nobody asked
            assert await asyncio.gather(*(ask(engine) for _ in range(3))) == [expected] * 3
            assert len(server.loads) == 3 * len(points)
            with pytest.raises(Refused, match="This is wrong") as caught:
                await pieces(engine, tuned(base, runs[0]), MESSAGES, max_tokens=77)
            assert caught.value.status == 400
            await engine.close()

    asyncio.run(story())


@pytest.mark.parametrize("which, adapter", [(0, "mine"), (2, "the-base")])
def test_a_run_may_be_the_base(
    which: int, adapter: str, runs: list[Path], tiny_base: Callable[..., str], tmp_path: Path
) -> None:
    """LoRAs that lie on one of the server's; and a model that was tuned whole, which the server then has."""
    run = runs[which]
    server = StandIn(tiny_base("qwen3") if which == 0 else str(run / "model"))
    bases = {"other": tmp_path, "plain": Path(tiny_base("qwen3")), "mine": run}
    answer = ours(Served(("the-base",), server.base, LENGTH), bases)
    assert answer == (("plain", "mine") if which == 0 else ("mine",))
    assert "mine" in ours(Served(("plain",) if which == 0 else ("mine",), "/elsewhere", LENGTH), bases)

    async def story() -> None:
        async with server.running():
            engine = VLLM(f"http://127.0.0.1:{server.port}", Served(("the-base",), server.base, LENGTH), answer)
            said = await pieces(engine, ModelRef("mine", str(run)), MESSAGES, temperature=0, max_tokens=9)
            assert texts(said) == [tw.chat(run, MESSAGES if which == 0 else "the fox", max_new_tokens=9)]
            assert server.asked[-1]["model"] == adapter
            await engine.close()

    asyncio.run(story())


def test_what_it_cannot_serve_is_refused(runs: list[Path], tiny_base: Callable[..., str], tmp_path: Path) -> None:
    base = tiny_base("qwen3")

    async def story() -> None:
        server = StandIn(base, deaf=True)
        async with server.running():
            engine = engine_at(server)
            with pytest.raises(Refused, match="as for its base"):
                await pieces(engine, tuned(base, runs[0]), MESSAGES)
            with pytest.raises(Refused, match="is no adapter"):
                await pieces(engine, tuned(base, runs[2]), MESSAGES)
            with pytest.raises(Refused, match="There is no model"):
                await pieces(engine, tuned(base, tmp_path / "none"), MESSAGES)
            with pytest.raises(Refused, match="language models alone"):
                await engine.classify(Classify(tuned(base, runs[0]), ("a",)))
            await engine.close()

    asyncio.run(story())


def test_tokens_are_counted_as_they_are_fed(runs: list[Path], tiny_base: Callable[..., str]) -> None:
    """By what feeds the model: the server need not even know its adapter."""
    base = tiny_base("qwen3")
    model = tuned(base, runs[0])
    server = StandIn(base)

    async def story() -> None:
        async with server.running():
            engine = engine_at(server)
            count = await engine.count(Generate(model, MESSAGES))
            assert not server.asked and not server.loads
            said = await pieces(engine, model, MESSAGES, max_tokens=1)
            assert count == len(server.asked[-1]["prompt"]) == said[-1].prompt_tokens
            with pytest.raises(Refused, match="has one base, base"):
                await engine.count(Generate(replace(model, base="other"), MESSAGES))
            with pytest.raises(Refused, match="must be a list that is not empty"):
                await engine.count(Generate(model, []))
            await engine.close()

    asyncio.run(story())


def test_a_base_that_is_not_the_server_s_is_refused(runs: list[Path], tiny_base: Callable[..., str]) -> None:
    other = ModelRef("other", tiny_base("llama"))
    lies_on_it = replace(tuned(other.base_folder, runs[0]), base="other")

    async def story() -> None:
        server = StandIn(tiny_base("qwen3"))
        async with server.running():
            engine = engine_at(server)
            for model in (other, lies_on_it):
                with pytest.raises(Refused, match="has one base, base") as caught:
                    await pieces(engine, model, MESSAGES)
                assert (caught.value.status, caught.value.param) == (400, "model")
                with pytest.raises(Refused, match="has one base, base"):
                    await engine.embed(Embed(model, ("a",)))
            assert not server.asked and not server.loads
            await engine.close()

    asyncio.run(story())


def test_which_base_a_server_has(tmp_path: Path) -> None:
    for name in ("here/stories", "here/tiny", "there/tiny"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "here" / "stories")
    bases = {"stories": tmp_path / "here" / "stories", "tiny": tmp_path / "here" / "tiny"}

    def found(root: str, *names: str) -> tuple[str, ...]:
        return ours(Served(names or (root,), root, 9), bases)

    assert found("somewhere/else", "gpt-4", "tiny") == ("tiny",), "by its name"
    assert found(f"{tmp_path}/link/") == ("stories",), "by its folder"
    assert found("karpathy/stories") == found("/in/a/container/stories") == ("stories",), "as it is called there"
    with pytest.raises(
        TunewrightError, match=r"there/tiny.* none of the bases here: stories, tiny\..*--served-model-name"
    ):
        found(f"{tmp_path}/there/tiny")


def test_what_a_server_says_of_its_base(tiny_base: Callable[..., str]) -> None:
    server = StandIn(tiny_base("qwen3"))

    async def story() -> Served:
        async with server.running():
            server.adapters["ft:base:x"] = "/runs/x"
            return await asyncio.to_thread(served_at, f"http://127.0.0.1:{server.port}/")

    assert asyncio.run(story()) == Served(("the-base",), server.base, LENGTH)
    for url in (f"http://127.0.0.1:{server.port}", "http://"):
        with pytest.raises(TunewrightError, match="Start it first"):
            served_at(url)


def test_an_answer_has_all_the_room_that_is_left(tiny_base: Callable[..., str]) -> None:
    model = ModelRef("base", tiny_base("qwen3"))
    server = StandIn(model.base_folder)

    async def story() -> None:
        async with server.running():
            engine = engine_at(server)
            await pieces(
                engine,
                model,
                (5, 6, 7),
                top_k=4,
                max_tokens=2,
                schema='{"enum": ["a"]}',
                bias=((7, -1.0),),
                presence=1.0,
            )
            asked = server.asked[-1]
            assert asked["response_format"]["json_schema"]["schema"] == {"enum": ["a"]}
            assert (asked["logit_bias"], asked["presence_penalty"], asked["top_k"]) == ({"7": -1.0}, 1.0, 4)
            for longest in (None, 10**6):
                said = await pieces(engine, model, (5, 6, 7), temperature=0, max_tokens=longest)
                assert server.asked[-1].items() >= PLAIN.items() and "response_format" not in server.asked[-1]
                assert server.asked[-1]["top_k"] == -1
                assert server.asked[-1]["max_tokens"] == LENGTH - 3 and said[-1].completion_tokens > 16
            for given, param in (
                ((5,) * LENGTH, "prompt"),
                ([{"role": "user", "content": "fox " * LENGTH}], "messages"),
            ):
                with pytest.raises(Refused, match=f"base can hold {LENGTH} together") as caught:
                    await pieces(engine, model, given)
                assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)
            await engine.close()

    asyncio.run(story())


def test_characters_that_end_lines_elsewhere_are_said(tiny_base: Callable[..., str]) -> None:
    model, text = ModelRef("base", tiny_base("qwen3")), "a\u2028b\u2029c\x85d\x1ce"
    server = StandIn(model.base_folder, says=text)

    async def story() -> list[str]:
        async with server.running():
            engine = engine_at(server)
            said = await pieces(engine, model, "the fox", stream=False, max_tokens=1)
            await engine.close()
            return texts(said)

    assert asyncio.run(story()) == [text]


def test_as_many_are_asked_at_once_as_ask(tiny_base: Callable[..., str]) -> None:
    model = ModelRef("base", tiny_base("qwen3"))
    server = StandIn(model.base_folder)

    async def story() -> None:
        async with server.running():
            engine = engine_at(server)
            asking = asyncio.gather(*(engine.embed(Embed(model, ("a",))) for _ in range(TOGETHER)))
            try:
                await asyncio.wait_for(asking, 20)
            finally:
                await engine.close()

    asyncio.run(story())


def test_who_asks_needs_no_torch() -> None:
    names = "client, protocol, vllm, vllm_base, prompts, process"
    code = f"import sys\nfrom tunewright.service.inference import {names}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
