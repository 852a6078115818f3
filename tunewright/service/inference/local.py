"""The engine in this process: models in memory, one thread that answers, one that loads, two for all other work."""

from __future__ import annotations

import asyncio
import base64
import binascii
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from io import BytesIO
from typing import Any, TypeVar

import torch
from torch import Tensor

from tunewright.api import predict
from tunewright.data.texts import is_whole
from tunewright.drawing import Drawing, draw
from tunewright.errors import TunewrightError
from tunewright.recipe import checked
from tunewright.service.errors import Refused
from tunewright.service.inference.answers import Follower
from tunewright.service.inference.engine import Batching
from tunewright.service.inference.lane import Limits
from tunewright.service.inference.models import Models, Module, Ready
from tunewright.service.inference.prompts import EDGE, is_long, pieces_of, tokens_of
from tunewright.service.inference.protocol import (
    Classify,
    Draw,
    Embed,
    Embedded,
    Generate,
    Loaded,
    ModelRef,
    Piece,
    Usage,
    as_refused,
)
from tunewright.service.inference.request import Request, room_behind
from tunewright.service.inference.turns import Turns
from tunewright.tasks.base import Model

TOGETHER = 1024
"""Positions of a forward pass that embeds: so long others wait for their next token."""
SLICE = 64
"""Texts that are tokenized or classified at a time."""

CAPABILITIES = {
    "generate": ("does not generate text", "answers (/chat/completions)"),
    "classify": ("does not classify", "predictions (/predictions)"),
    "images": ("does not draw", "images (/images/generations)"),
}
"""What a task may be able to do; what is said of models that are not, and of those that are."""

Found = TypeVar("Found")


class LocalEngine:
    """An `Engine` (see `protocol.py`). To be made where an event loop runs."""

    def __init__(self, models: Models, limits: Limits | None = None) -> None:
        self.models = models
        self._loop = asyncio.get_running_loop()
        self._hearing: dict[Request, asyncio.Queue[Piece | Usage | Refused]] = {}
        self._batching = Batching(self._hear, models.spare, limits)
        self._loader = ThreadPoolExecutor(1)
        self._tokenizing, self._working, self._embedding = Turns(), Turns(), Turns()

    async def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        async with self._model(asked.model) as ready:
            _can(ready, "generate")
            prompt = await self._tokens(asked, ready)
            follower = await self._follower(asked, ready)
            apart = asked.messages is not None
            request = Request(ready, prompt, asked.sampling, asked.stream, apart, asked.tenant, follower)
            heard: asyncio.Queue[Piece | Usage | Refused] = asyncio.Queue()
            self._hearing[request] = heard
            try:
                self._batching.ask(request)
                while True:
                    said = await heard.get()
                    if isinstance(said, Refused):
                        raise said
                    yield said
                    if isinstance(said, Usage):
                        return
            finally:
                request.gone = True
                del self._hearing[request]

    async def count(self, asked: Generate) -> int:
        async with self._model(asked.model) as ready:
            _can(ready, "generate")
            return len(await self._tokens(asked, ready))

    async def embed(self, asked: Embed) -> Embedded:
        async with self._model(asked.model) as ready:
            if not hasattr(ready.model.module, "get_input_embeddings") or not hasattr(ready.model.processor, "decode"):
                raise _refused(ready, "is not for texts, so it embeds none")
            tokens: list[list[int]] = []
            for given in _slices(asked.inputs):
                encode = partial(_encoded, given, ready)
                tokens += await self._tokenizing.do(asked.tenant, encode)
            vectors: list[tuple[float, ...]] = []
            for some in _parts(tokens):
                async with self._embedding.turn(asked.tenant):
                    vectors += await self._between(partial(embedded, ready, some))
            return Embedded(tuple(vectors), sum(map(len, tokens)))

    async def classify(self, asked: Classify) -> list[dict[str, Any]]:
        async with self._model(asked.model) as ready:
            _can(ready, "classify")
            inputs = [_input(ready.model, one) for one in asked.inputs]
            found: list[dict[str, Any]] = []
            for some in _slices(inputs):
                found += await self._working.do(asked.tenant, partial(predict, ready.model, some))
            return [{key: value for key, value in one.items() if key not in ("text", "image")} for one in found]

    async def images(self, asked: Draw) -> list[bytes]:
        async with self._model(asked.model) as ready:
            _can(ready, "images")
            gone = threading.Event()
            try:
                each = [partial(drawn, ready.model, asked, number, gone) for number in range(asked.n)]
                return [await self._working.do(asked.tenant, one) for one in each]
            finally:
                gone.set()

    async def loaded(self) -> list[Loaded]:
        return self.models.loaded()

    async def healthy(self) -> bool:
        return self._batching.alive

    async def close(self) -> None:
        await asyncio.to_thread(self._batching.close)
        self._loader.shutdown(wait=False, cancel_futures=True)
        for turns in (self._tokenizing, self._working, self._embedding):
            turns.close()

    async def _tokens(self, asked: Generate, ready: Ready) -> list[int]:
        """What the model is fed. A prompt that is much too long is refused before all of it is read."""
        renderer, chats = ready.renderer, ready.model.chats
        if is_long(asked):
            count = 0
            for piece in await self._tokenizing.do(asked.tenant, partial(pieces_of, asked, renderer, chats)):
                count += await self._tokenizing.do(asked.tenant, partial(renderer.count, piece)) - EDGE
                room_behind(ready, count, asked.messages is not None, "more than ")
        return await self._tokenizing.do(asked.tenant, partial(tokens_of, asked, renderer, chats))

    def _hear(self, told: list[tuple[Request, Piece | Usage | Refused]]) -> None:
        self._loop.call_soon_threadsafe(self._deliver, told)

    def _deliver(self, told: Sequence[tuple[Request, Piece | Usage | Refused]]) -> None:
        for request, said in told:
            if heard := self._hearing.get(request):
                heard.put_nowait(said)

    @asynccontextmanager
    async def _model(self, ref: ModelRef) -> AsyncIterator[Ready]:
        """A model in memory, in use inside. Errors that are raised inside become Refused."""
        ready = self.models.at_hand(ref)
        if ready is None:
            loading = self._loader.submit(self.models.take, ref)
            try:
                ready = await asyncio.wrap_future(loading)
            except asyncio.CancelledError:
                loading.add_done_callback(self._unwanted)
                raise
        try:
            yield ready
        except TunewrightError as error:
            raise as_refused(error) from error
        finally:
            self.models.give_back(ready)

    def _unwanted(self, loading: Future[Ready]) -> None:
        if not loading.cancelled() and not loading.exception():
            self.models.give_back(loading.result())

    async def _follower(self, asked: Generate, ready: Ready) -> Follower | None:
        if asked.sampling.schema is None:
            return None
        from tunewright.service.inference.schemas import follower_of

        return await self._tokenizing.do(asked.tenant, partial(follower_of, ready, asked.sampling.schema))

    async def _between(self, work: Callable[[], Found]) -> Found:
        """Do something in the thread that answers, between two tokens."""
        done: Future[Found] = Future()

        def run() -> None:
            if not done.set_running_or_notify_cancel():
                return  # who asked has gone
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        self._batching.call(run)
        return await asyncio.wrap_future(done)


def _can(ready: Ready, capability: str) -> None:
    """Raises Refused where a model has no such capability."""
    if not hasattr(ready.model.task, capability):
        raise _refused(ready, CAPABILITIES[capability][0])


def _refused(ready: Ready, otherwise: str) -> Refused:
    """What a model does not do, and what to ask it in place of that."""
    offered = [what for capability, (_, what) in CAPABILITIES.items() if hasattr(ready.model.task, capability)]
    instead = f"Ask it for {offered[0]}." if offered else "It has no trained head: tune it first, or ask it to embed."
    return Refused(400, f"{ready.ref.shown} {otherwise}. {instead}", param="model")


# Vectors


def _slices(inputs: Sequence[Found]) -> Iterator[Sequence[Found]]:
    return (inputs[start : start + SLICE] for start in range(0, len(inputs), SLICE))


def _encoded(inputs: Sequence[str | tuple[int, ...]], ready: Ready) -> list[list[int]]:
    return [_tokens_of(given, ready) for given in inputs]


def _tokens_of(given: str | tuple[int, ...], ready: Ready) -> list[int]:
    if isinstance(given, str) and not is_whole(given):
        raise Refused(400, "input holds half of a character: mend it.", param="input")
    tokens = list(ready.model.processor(given)["input_ids"]) if isinstance(given, str) else list(given)
    vocabulary = ready.model.module.get_input_embeddings().weight.shape[0]
    if not tokens or not 0 <= min(tokens) <= max(tokens) < vocabulary:
        raise Refused(400, "input: a text, or token ids of this model; none may be empty.", param="input")
    if len(tokens) > ready.limit:
        raise Refused(
            400, f"A text has {len(tokens)} tokens, and {ready.ref.shown} reads {ready.limit}. Cut it into parts.",
            "context_length_exceeded", "input",
        )  # fmt: skip
    return tokens


def _parts(tokens: Sequence[list[int]]) -> list[list[list[int]]]:
    """In their order, as many at once as a forward pass may have positions."""
    parts: list[list[list[int]]] = []
    for one in tokens:
        if parts and (len(parts[-1]) + 1) * max(map(len, [*parts[-1], one])) <= TOGETHER:
            parts[-1].append(one)
        else:
            parts.append([one])
    return parts


def embedded(ready: Ready, tokens: Sequence[list[int]]) -> list[tuple[float, ...]]:
    """For each text the mean of the last layer over its tokens, padded on the right."""
    width = max(map(len, tokens))
    device = next(ready.model.module.parameters()).device
    pad = ready.model.processor.pad_token_id
    ids_BT = torch.tensor([[*one, *[pad] * (width - len(one))] for one in tokens], device=device)
    mask_BT = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in tokens], device=device)
    with torch.inference_mode():
        hidden_BTH = _hidden(ready, ids_BT, mask_BT).float()
        mean_BH = (hidden_BTH * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
    return [tuple(row) for row in mean_BH.tolist()]


def _hidden(ready: Ready, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    given = {"input_ids": ids_BT, "attention_mask": mask_BT}
    shared = ready.shared
    trunk = _trunk(shared)
    if trunk is None:
        states = shared.module(**given, output_hidden_states=True).hidden_states
        return states[-1][:, -ids_BT.shape[1] :]  # type: ignore[no-any-return]
    bank = shared.bank
    with bank.using(bank.route([ready.terms] * len(ids_BT))) if bank else nullcontext():
        return trunk(**given, use_cache=False).last_hidden_state  # type: ignore[no-any-return]


def _trunk(shared: Module) -> Any:
    """A language model without its head, which would make logits of all positions; None where there is no such part."""
    if not shared.form or shared.form.virtual:
        return None
    whole = shared.module.get_base_model() if hasattr(shared.module, "get_base_model") else shared.module
    trunk = getattr(whole, "base_model", whole)
    return None if trunk is whole else trunk


# Classes and images


def _input(model: Model, given: str | tuple[str, str]) -> Any:
    """A text, a pair of texts, or an image's bytes. Raises Refused for what cannot be an image."""
    if model.task.name != "image-classification":
        return given
    text = "".join(given.split()) if isinstance(given, str) else ""  # `base64 FILE` prints it in lines
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except binascii.Error as error:
        raise Refused(400, "input: an image is given as its file in base64.", param="input") from error


def drawn(model: Model, asked: Draw, number: int, gone: threading.Event) -> bytes:
    """A PNG file; given up when nobody waits for it any more."""
    options = {"steps": asked.steps, "guidance": asked.guidance, "size": asked.size, "negative": asked.negative}
    drawing = checked(Drawing, {**options, "seed": asked.seed + number, "precision": "fp32"})
    device = next(model.module.parameters()).device

    def check() -> None:
        if gone.is_set():
            raise Refused(503, "Nobody waits for the image any more.")

    ((_, _, image),) = draw(model, [asked.prompt], [1.0], str(device), drawing, check)
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
