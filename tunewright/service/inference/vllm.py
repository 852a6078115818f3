"""A vLLM server as the engine. It has one base, and is given the adapters of tuned models as they are asked for.

vLLM forgets adapters when it starts again, and serves its base, without a word, where an adapter's names do not match
its own: so an adapter is loaded again where it is unknown, and a probe has to tell it from the base before it answers.
A name always means the same weights, because reloading one would reuse what was computed with the old ones.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tunewright.artifacts.card import read_card
from tunewright.artifacts.interpolate import write_point
from tunewright.artifacts.load import card_of_adapter, is_adapter, shape_of, weights_folder
from tunewright.artifacts.start import start_of
from tunewright.data.render import Renderer
from tunewright.errors import TunewrightError
from tunewright.methods._lora_file import CONFIG
from tunewright.service.errors import Refused, missing
from tunewright.service.inference.client import lines_of
from tunewright.service.inference.prompts import room_for_answer, tokens_of
from tunewright.service.inference.protocol import (
    Classify,
    Draw,
    Embed,
    Embedded,
    Generate,
    Loaded,
    ModelRef,
    Piece,
    Token,
    Usage,
    as_refused,
)
from tunewright.service.inference.vllm_base import Served
from tunewright.tasks._pretrained import load_tokenizer

PLAIN = {"min_p": 0.0, "repetition_penalty": 1.0}
"""What changes nothing: vLLM else takes what the model's generation_config says, which this service does not."""
ALL = -1
"""Its top_k that draws from all tokens; it takes a default from there too."""
PROBE = "Once upon a time there was"
PROBED = 8
"""Tokens of the probe whose probabilities are compared."""


@dataclass
class _Known:
    """What feeds a model, its adapter if it has one, and whether the server has that."""

    renderer: Renderer
    chats: bool
    adapter: Path | None
    loaded: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class VLLM:
    """An `Engine` (see `protocol.py`) that generates and embeds.

    Args:
        url: where the server listens; it is to be started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, sees the same
            files as this process, and should be reached by nobody else.
        served: its base.
        bases: what that is called here; all others are refused.
        points: a folder for adapters at points between start and end, which are written there.
    """

    def __init__(
        self, url: str, served: Served, bases: Collection[str], token: str | None = None, points: Path | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(None, connect=5),
            limits=httpx.Limits(max_connections=None),  # vLLM itself says how many it answers at a time
        )
        self._base, self._length, self._bases = served.names[0], served.length, tuple(bases)
        self._known = dict[ModelRef, _Known]()
        self._scratch = None if points else tempfile.TemporaryDirectory("tunewright")
        self._points = points or Path(self._scratch.name if self._scratch else "")

    async def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        known = await self._know(asked.model)
        prompt = await _prompt(asked, known)
        room = room_for_answer(asked.model.shown, len(prompt), self._length, asked.messages is not None)
        body = self._body(asked, prompt, known, room)
        async with _Asking(self, asked.model, "/v1/completions", body) as response:
            usage = None
            async for line in lines_of(response):
                if line.startswith(b"data: ") and line != b"data: [DONE]":
                    found = json.loads(line[6:])
                    if "error" in found:
                        raise _error(found["error"], response.status_code)
                    usage = found.get("usage") or usage
                    for choice in found["choices"]:
                        yield _piece(choice)
        if usage is None:
            raise Refused(503, "The vLLM server has ended in the middle of an answer. Ask again.")
        yield Usage(usage["prompt_tokens"], usage["completion_tokens"])

    async def count(self, asked: Generate) -> int:
        """The server is not asked, and given no adapter: what it is fed are tokens."""
        return len(await _prompt(asked, await self._find(asked.model)))

    async def embed(self, asked: Embed) -> Embedded:
        known = await self._know(asked.model)
        given = [list(one) if isinstance(one, tuple) else one for one in asked.inputs]
        body = {"model": self._name(asked.model, known), "input": given}
        async with _Asking(self, asked.model, "/v1/embeddings", body) as response:
            found = json.loads(await response.aread())
        vectors = tuple(tuple(one["embedding"]) for one in sorted(found["data"], key=lambda one: one["index"]))
        return Embedded(vectors, found["usage"]["prompt_tokens"])

    async def classify(self, asked: Classify) -> list[dict[str, Any]]:
        raise Refused(400, "The vLLM server answers for language models alone.", param="model")

    async def images(self, asked: Draw) -> list[bytes]:
        raise Refused(400, "The vLLM server answers for language models alone.", param="model")

    async def loaded(self) -> list[Loaded]:
        """What the server says that it has; it does not tell sizes."""
        try:
            found = (await self._http.get("/v1/models")).raise_for_status().json()["data"]
        except httpx.HTTPError as error:
            raise _unreachable() from error
        return [Loaded(one["id"], "adapter" if one.get("parent") else "base", 0, 0) for one in found]

    async def healthy(self) -> bool:
        try:
            return (await self._http.get("/health")).is_success
        except httpx.HTTPError:
            return False

    async def close(self) -> None:
        await self._http.aclose()
        if self._scratch:
            self._scratch.cleanup()

    def _name(self, model: ModelRef, known: _Known) -> str:
        return model.shown if known.adapter else self._base

    def _body(self, asked: Generate, prompt: list[int], known: _Known, room: int) -> dict[str, Any]:
        """vLLM ends an answer after 16 tokens where it is told no length, and refuses one that has no room."""
        how = asked.sampling
        body: dict[str, Any] = {
            "model": self._name(asked.model, known), "prompt": prompt, "n": how.n, "seed": how.seed, **PLAIN,
            "temperature": how.temperature, "top_p": how.top_p, "top_k": how.top_k or ALL, "stop": list(how.stop),
            "presence_penalty": how.presence, "frequency_penalty": how.frequency,
            "response_format": how.schema and {
                "type": "json_schema", "json_schema": {"name": "answer", "schema": json.loads(how.schema)},
            },
            "logit_bias": {str(token): value for token, value in how.bias} or None,
            "max_tokens": min(how.max_tokens or room, room),
            "stop_token_ids": known.renderer.stop_ids(), "skip_special_tokens": True, "logprobs": how.logprobs,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        return {key: value for key, value in body.items() if value is not None}

    async def _know(self, model: ModelRef) -> _Known:
        """What feeds the model; its adapter is loaded and told from the base. Raises Refused where it cannot be."""
        known = await self._find(model)
        async with known.lock:
            if not known.loaded and known.adapter:
                await self._load(self._name(model, known), known)
            known.loaded = True
        return known

    async def _find(self, model: ModelRef) -> _Known:
        """What feeds the model. Raises Refused where it is none of the server's base."""
        if model.base not in self._bases:
            bases = ", ".join(self._bases)
            raise Refused(400, f"{model.shown}: the vLLM server has one base, {bases}. Ask for that, or for what was "
                          "tuned from it.", param="model")  # fmt: skip
        known = self._known.get(model)
        if known is None:
            try:
                known = await asyncio.to_thread(_known_of, model, self._points)
            except TunewrightError as error:
                raise as_refused(error) from error
            known = self._known.setdefault(model, known)
        return known

    async def _load(self, name: str, known: _Known) -> None:
        asked = {"lora_name": name, "lora_path": str(known.adapter)}
        try:
            response = await self._http.post("/v1/load_lora_adapter", json=asked)
            if response.is_error and "already" not in response.text:
                raise Refused(502, f"The vLLM server does not take {name}: {response.text[:200]}")
            prompt = known.renderer.prompt(PROBE)
            one, other = [await self._probe(model, prompt) for model in (name, self._base)]
        except httpx.HTTPError as error:
            raise _unreachable() from error
        if one == other:
            raise Refused(500, f"vLLM answers for {name} as for its base: its names of layers do not match.")

    async def _probe(self, name: str, prompt: list[int]) -> Any:
        asked = {"model": name, "prompt": prompt, "temperature": 0, "max_tokens": PROBED, "logprobs": 0}
        found = (await self._http.post("/v1/completions", json=asked)).raise_for_status().json()["choices"][0]
        return found["text"], found["logprobs"]["token_logprobs"]

    def forget(self) -> None:
        """The server started again: it has no adapters."""
        for known in self._known.values():
            known.loaded = False


class _Asking:
    """A request, once more where the server has started again: it then knows no adapter, or was away."""

    def __init__(self, engine: VLLM, model: ModelRef, path: str, body: dict[str, Any]) -> None:
        self._engine, self._model, self._path, self._body = engine, model, path, body
        self._response: httpx.Response | None = None

    async def __aenter__(self) -> httpx.Response:
        for again in (False, True):
            try:
                request = self._engine._http.build_request("POST", self._path, json=self._body)
                self._response = await self._engine._http.send(request, stream=True)
            except httpx.HTTPError as error:
                if again:
                    raise _unreachable() from error
            else:
                if not self._response.is_error:
                    return self._response
                text = (await self._response.aread()).decode(errors="replace")
                if self._response.status_code != 404 or again:
                    raise _error(_message(text), self._response.status_code)
            self._engine.forget()
            await self._engine._know(self._model)
        raise AssertionError("the second time returns or raises")

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._response:
            await self._response.aclose()
        if isinstance(error, httpx.HTTPError):
            raise Refused(503, "The vLLM server has ended in the middle of an answer. Ask again.") from error


async def _prompt(asked: Generate, known: _Known) -> list[int]:
    try:
        return await asyncio.to_thread(tokens_of, asked, known.renderer, known.chats)
    except TunewrightError as error:
        raise as_refused(error) from error


def _known_of(model: ModelRef, points: Path) -> _Known:
    """Raises Refused where the model is not there, or is no adapter."""
    run = Path(model.run_folder or model.base_folder)
    if model.run_folder and not run.is_dir():
        raise missing("model", model.shown, "model_not_found")
    weights = weights_folder(run)
    if model.run_folder is None and not is_adapter(weights):
        tokenizer, card = load_tokenizer(str(weights)), read_card(weights)
        return _Known(Renderer(tokenizer), card.chats if card else bool(tokenizer.chat_template), None)
    if not (weights / CONFIG).is_file():
        raise Refused(400, f"{model.shown} is no adapter, and a vLLM server has one base.", param="model")
    own = (weights / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(str(weights) if own else shape_of(model.base_folder))
    return _Known(Renderer(tokenizer), card_of_adapter(weights).chats, _adapter_of(model, run, points))


def _adapter_of(model: ModelRef, run: Path, points: Path) -> Path | None:
    """The folder of the adapter at α, which is written where it is a point in between; None at the base."""
    if model.alpha == 1:
        return weights_folder(run)
    if model.alpha == 0:
        return start_of(run).adapter
    folder = points / str(model.name).replace("/", "_") / f"{model.alpha:g}"
    if not folder.is_dir():
        write_point(run, model.alpha, folder)
    if not (folder / CONFIG).is_file():
        raise Refused(400, f"{model.shown} is no adapter, and a vLLM server has one base.", param="model")
    return folder


def _piece(choice: dict[str, Any]) -> Piece:
    return Piece(choice["index"], choice["text"], _tokens(choice.get("logprobs")), choice.get("finish_reason"))


def _tokens(found: dict[str, Any] | None) -> tuple[Token, ...]:
    """vLLM's legacy form: lists beside one another, and the likeliest tokens by their text."""
    if not found:
        return ()
    tops = found.get("top_logprobs") or [{}] * len(found["tokens"])
    return tuple(
        Token(text, tuple(text.encode()), value, tuple(Token(t, tuple(t.encode()), v) for t, v in (top or {}).items()))
        for text, value, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    )


def _message(text: str) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return text[:200]
    return found.get("error", found) if isinstance(found, dict) else text[:200]


def _error(found: Any, status: int) -> Refused:
    message = found.get("message", found) if isinstance(found, dict) else found
    status = status if 400 <= status < 500 and status not in (401, 403, 404, 408, 409, 429) else 502
    return Refused(status, f"The vLLM server refuses: {message}")


def _unreachable() -> Refused:
    return Refused(503, "The vLLM server cannot be reached. Ask again in a moment.", headers={"Retry-After": "5"})
