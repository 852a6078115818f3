"""The process that answers, asked by its client: streams, errors, who goes away, what stays in memory."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import tunewright as tw
from tests.runs import recipe
from tests.service.inference import pieces, texts, train, tuned, with_engine
from tests.tiny import pictures
from tunewright.artifacts.sentences import find_encoder, sentence_encoder
from tunewright.service.errors import Refused
from tunewright.service.inference.client import Client
from tunewright.service.inference.local import LocalEngine
from tunewright.service.inference.models import Models
from tunewright.service.inference.process import app_of
from tunewright.service.inference.protocol import (
    Classify,
    Draw,
    Embed,
    Generate,
    ModelRef,
    Piece,
    Sampling,
    Token,
    Usage,
)
from tunewright.service.relocation import note_places, relocate


@pytest.fixture(scope="module")
def runs(tiny_base: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    made = [train(tiny_base("llama"), root / name, name) for name in ("lora", "rslora", "lora+")]
    return [*made, train(tiny_base("llama"), root / "full", "full")]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[str]:
    place = str(tmp_path / "s")
    command = [sys.executable, "-m", "tunewright.service.inference", "--socket", place, "--device", "cpu"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 120
        while not Path(place).exists():
            assert running.poll() is None and time.monotonic() < until, running.stderr and running.stderr.read()
            time.sleep(0.05)
        yield place
    finally:
        running.terminate()
        assert running.wait(30) in (0, -15)


def test_the_whole_story_over_a_socket(process: str, runs: list[Path], tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    models = [tuned(base, runs[0]), tuned(base, runs[1], 0.25), ModelRef("base", base), tuned(base, runs[3])]
    names = [str(runs[0]), f"{runs[1]}@0.25", base, str(runs[3])]

    async def ask() -> None:
        client = Client(socket=process)
        assert await client.healthy()
        said = await asyncio.gather(
            *(pieces(client, model, "the fox", temperature=0, max_tokens=8, stream=i % 2 == 0, logprobs=1)
              for i, model in enumerate(models * 3))
        )  # fmt: skip
        assert await client.count(Generate(models[0], prompt="the fox")) == said[0][-1].prompt_tokens > 0
        ours = [texts(one)[0] for one in said]
        assert ours[:4] == ours[4:8] == ours[8:]
        for text, name in zip(ours, names, strict=False):
            if name != base:
                assert text == tw.chat(name, "the fox", max_new_tokens=8)[-len(text) :]
        assert all(isinstance(piece, Piece) and piece.tokens for one in said for piece in one[:1])
        with pytest.raises(Refused) as caught:
            await pieces(client, ModelRef("base", base, "ft:x", "/nowhere"), "a")
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
        going = client.generate(Generate(models[0], prompt="the", sampling=Sampling(temperature=0, max_tokens=240)))
        await anext(going)
        assert any(one.used for one in await client.loaded())
        await going.aclose()  # type: ignore[attr-defined]
        for _ in range(500):
            if not any(one.used for one in await client.loaded()):
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the process does not know that its client went away")
        await client.close()

    assert stat.S_IMODE(os.stat(process).st_mode) == 0o600
    asyncio.run(ask())


class Odd:
    """An engine whose answers are odd, or never come: then it notes who went away."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.begun: list[str] = []

    async def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        if asked.prompt == "never":
            await self._never("generate")
        yield Piece(0, ODD, (Token(ODD, tuple(ODD.encode()), -0.5),), "stop")
        yield Usage(1, 1)

    async def count(self, _: Generate) -> Any:
        await self._never("count")

    async def embed(self, _: Embed) -> Any:
        await self._never("embed")

    async def classify(self, _: Classify) -> Any:
        await self._never("classify")

    async def images(self, _: Draw) -> Any:
        await self._never("images")

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...

    async def _never(self, what: str) -> None:
        self.begun.append(what)
        try:
            await asyncio.sleep(60)
        finally:
            self.left.append(what)


ODD = "left\u2028right\u2029 \x85 \x0b \x1e \n\r\U0001f98a end"


@asynccontextmanager
async def serving(engine: Any, place: str) -> AsyncIterator[Client]:
    """The process's application in this process, and a client of it."""
    server = uvicorn.Server(uvicorn.Config(app_of(lambda: engine), uds=place, log_level="warning"))
    going = asyncio.create_task(server.serve())
    client = Client(socket=place)
    while not await client.healthy():
        await asyncio.sleep(0.01)
    try:
        yield client
    finally:
        await client.close()
        server.should_exit = True
        await going


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_may_hold_any_character(stream: bool, tmp_path: Path) -> None:
    async def ask() -> list[Any]:
        async with serving(Odd(), str(tmp_path / "s")) as client:
            return await pieces(client, ModelRef("base", "/base"), "a\u2028", stream=stream)

    said = asyncio.run(ask())
    assert texts(said) == [ODD] and said[0].tokens[0].text == ODD


def test_the_engine_hears_that_a_client_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.service.connected.SECONDS_BETWEEN_LOOKS", 0.05)
    engine, model = Odd(), ModelRef("base", "/base")

    async def leave() -> None:
        async with serving(engine, str(tmp_path / "s")) as client:
            asked: list[Coroutine[Any, Any, Any]] = [
                pieces(client, model, "never", stream=False), pieces(client, model, "never"),
                client.embed(Embed(model, ("a",))), client.classify(Classify(model, ("a",))),
                client.images(Draw(model, "a")), client.count(Generate(model, prompt="a")),
            ]  # fmt: skip
            tasks = [asyncio.create_task(one) for one in asked]
            async with asyncio.timeout(20):
                while len(engine.begun) < len(tasks):
                    await asyncio.sleep(0.01)
                for task in tasks:
                    task.cancel()
                while len(engine.left) < len(tasks):
                    await asyncio.sleep(0.01)
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(leave())
    assert sorted(engine.left) == ["classify", "count", "embed", "generate", "generate", "images"]


def test_a_port_asks_for_its_token(tiny_base: Callable[..., str]) -> None:
    async def ask() -> list[int]:
        app = app_of(lambda: LocalEngine(Models(10**9, "cpu")), token="secret")
        found = []
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as http,
        ):
            for given in (None, "Bearer wrong", "Bearer secret"):
                found.append((await http.get("/loaded", headers={"authorization": given} if given else {})).status_code)
            headers = {"authorization": "Bearer secret"}
            for body in (b"", b"{", b"[]", b'{"model": 3}', json.dumps({"model": {"base": "b"}}).encode()):
                answer = await http.post("/generate", content=body, headers=headers)
                found.append(answer.status_code)
                assert answer.json()["error"]["message"]
        return found

    assert asyncio.run(ask()) == [401, 401, 200, *[400] * 5]
    with pytest.raises(SystemExit):
        from tunewright.service.inference.process import main

        main(["--port", "0"])


def test_a_process_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.service.inference.client.STARTING", 0.5)

    async def ask() -> None:
        client = Client(socket=str(tmp_path / "none"))
        assert not await client.healthy()
        with pytest.raises(Refused) as caught:
            await pieces(client, ModelRef("b", "b"), "a")
        assert caught.value.status == 503 and caught.value.headers["Retry-After"]

    asyncio.run(ask())


def test_what_was_used_longest_ago_makes_room(runs: list[Path], tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    refs = [tuned(base, run) for run in runs[:3]]
    whole = Models(10**9, "cpu")
    for ref in refs:
        whole.give_back(whole.take(ref))
    size = {one.name: one.bytes for one in whole.loaded()}
    first, second, third = (size[str(ref.name)] for ref in refs)
    models = Models(size["base"] + max(first + second, first + third), "cpu")

    def names() -> set[str]:
        return {one.name for one in models.loaded()}

    held = models.take(refs[0])
    models.give_back(models.take(refs[1]))
    models.give_back(models.take(refs[2]))
    assert names() == {"base", refs[0].name, refs[2].name}, "the second was idle, the first in use"
    models.give_back(models.take(refs[0]))
    models.give_back(held)
    models.give_back(models.take(refs[1]))
    assert names() == {"base", refs[0].name, refs[1].name}, "the third was used longest ago"
    with pytest.raises(Refused, match="takes") as caught:
        Models(1000, "cpu").take(ModelRef("base", base))
    assert (caught.value.status, caught.value.code) == (400, "model_too_large")


def test_room_is_made_for_all_that_an_adapter_takes(
    runs: list[Path], tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are less than that: in memory it is stacked too."""
    monkeypatch.setattr("tunewright.service.inference.models.WAIT", 0.05)
    first, second = (tuned(tiny_base("llama"), run) for run in runs[:2])
    whole = Models(10**9, "cpu")
    held = [whole.take(first), whole.take(second)]
    memory = sum(one.bytes for one in whole.loaded())
    models = Models(memory - 1, "cpu")
    ready = models.take(first)
    with pytest.raises(Refused) as caught:
        models.take(second)
    assert caught.value.status == 503 and {one.name for one in models.loaded()} == {"base", first.name}
    bank = ready.shared.bank
    assert bank and len(bank._alone) == 1, "what was refused is still in memory"
    exact = Models(memory, "cpu")
    assert exact.take(first) and exact.take(second) and held


def test_there_is_no_room_while_all_are_used(
    runs: list[Path], tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.service.inference.models.WAIT", 0.05)
    base, other = ModelRef("base", tiny_base("llama")), ModelRef("other", tiny_base("gpt2"))
    models = Models(300_000, "cpu")
    held = models.take(base)
    with pytest.raises(Refused) as caught:
        models.take(other)
    assert caught.value.status == 503 and [one.name for one in models.loaded()] == ["base"]
    models.give_back(held)
    models.take(other)
    assert [one.name for one in models.loaded()] == ["other"]


def test_a_run_that_was_moved_finds_its_base(runs: list[Path], tiny_base: Callable[..., str], tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base("llama"), tmp_path / "there"))
    stacked = train(str(runs[0]), tmp_path / "stacked", "lora", training={"seed": 3})

    def said(run: Path) -> list[str]:
        return [tw.chat(name, "the fox", max_new_tokens=5) for name in (str(run), f"{run}@0.5")]

    for name in ("lora", "full"):
        made = train(str(base), tmp_path / f"made {name}", name)
        note_places(made, {"tiny": base}, tmp_path / "cache")
        moved = Path(shutil.copytree(made, tmp_path / f"moved {name}"))
        expected = said(made)
        here = Path(shutil.copytree(base, tmp_path / f"here {name}"))
        base.rename(tmp_path / "gone")
        relocate(moved, {"tiny": here}, tmp_path / "cache here")
        assert said(moved) == expected
        (tmp_path / "gone").rename(base)
    note_places(stacked, {"tiny": runs[0]}, tmp_path / "cache")
    relocate(stacked, {"tiny": tmp_path / "moved base"}, tmp_path / "cache")
    assert json.loads((stacked / "run.json").read_text())["recipe"]["base"] == str(tmp_path / "moved base")
    other = tiny_base("qwen3")
    broken = Path(shutil.copytree(tmp_path / "made lora", tmp_path / "broken"))
    relocate(broken, {"tiny": Path(other)}, tmp_path / "cache")
    with pytest.raises(Refused) as caught:
        Models(10**9, "cpu").take(ModelRef("base", other, "ft:x", str(broken)))
    assert caught.value.status == 500 and str(tmp_path) not in str(caught.value)


def test_texts_become_vectors(runs: list[Path], tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    given = ("the little fox", "apples", "many apples and a fox lived in Paris")
    model = tuned(base, runs[0], 0.5)

    async def ask(engine: LocalEngine) -> Any:
        alone = [(await engine.embed(Embed(model, (one,)))).vectors[0] for one in given]
        return await engine.embed(Embed(model, given)), alone

    found, alone = with_engine(ask)
    np.testing.assert_allclose(found.vectors, alone, atol=1e-4)
    loaded = tw.load(runs[0], alpha=0.5)
    for vector, text in zip(found.vectors, given, strict=True):
        ids = torch.tensor([loaded.processor(text)["input_ids"]])
        with torch.no_grad():
            hidden_1TH = loaded.module(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(vector, hidden_1TH[0].mean(0), atol=1e-4)
    assert found.tokens == sum(len(loaded.processor(text)["input_ids"]) for text in given)


def test_a_sentence_encoder_embeds() -> None:
    base = str(find_encoder("this"))
    texts_of = ("A dog runs.", "The quick brown fox jumps over the lazy dog.")
    found = with_engine(lambda engine: engine.embed(Embed(ModelRef("minilm", base), texts_of)))
    np.testing.assert_allclose(found.vectors, sentence_encoder("this", "cpu")(texts_of), atol=1e-5)


def test_classes_and_images(tiny_base: Callable[..., str], tmp_path: Path) -> None:
    text = tw.train(recipe(tiny_base("bert"), tmp_path / "t", task="text-classification")).folder
    image = tw.train(recipe(tiny_base("vit"), tmp_path / "i", task="image-classification")).folder
    drawing = tw.train(recipe(tiny_base("sd1"), tmp_path / "d", task="text-to-image")).folder
    picture = pictures(1)[0]["image"]

    async def ask(engine: LocalEngine) -> None:
        words = await engine.classify(Classify(tuned(tiny_base("bert"), text), ("the fox", "apples")))
        assert words == [
            {k: v for k, v in one.items() if k != "text"} for one in tw.predict(text, ["the fox", "apples"])
        ]
        seen = tuned(tiny_base("vit"), image)
        code = base64.b64encode(picture).decode()
        lines = base64.encodebytes(picture).decode()
        assert lines.count("\n") > 1
        for given in (code, f"data:image/png;base64,{code}", lines, f"data:image/png;base64,{lines}"):
            (one,) = await engine.classify(Classify(seen, (given,)))
            assert one == {k: v for k, v in tw.predict(image, picture)[0].items() if k != "image"}
        for wrong in ("/etc/passwd", str(tmp_path), "https://example.org/a.png", base64.b64encode(b"none").decode()):
            with pytest.raises(Refused) as caught:
                await engine.classify(Classify(seen, (wrong,)))
            assert caught.value.status == 400
        sd1 = tuned(tiny_base("sd1"), drawing)
        found = await engine.images(Draw(sd1, "a red wall", n=2, seed=4, steps=2))
        second = tw.generate(drawing, "a red wall", seed=5, steps=2)[1.0][0]
        assert np.array_equal(np.asarray(Image.open(BytesIO(found[1]))), np.asarray(second))
        with pytest.raises(Refused, match=r"does not draw\. Ask it for predictions"):
            await engine.images(Draw(seen, "a"))
        with pytest.raises(Refused, match="no effect without guidance"):
            await engine.images(Draw(sd1, "a", guidance=1, negative="b"))

    with_engine(ask)
