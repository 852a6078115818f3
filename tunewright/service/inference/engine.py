"""Continuous batching: rows join and leave between tokens, and the answer to each is the one that it would get alone.

One thread reads prompts and draws tokens for all models in turn. A row draws with numbers of its own, which its seed
gives, so what else is asked at the time changes an answer at most by how sums are rounded. Where a model keeps more
than keys and values (recurrent states, virtual tokens), rows are answered in groups that nobody joins.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunewright.errors import DAMAGED
from tunewright.service.errors import Refused
from tunewright.service.inference.answers import Answer, Words, described
from tunewright.service.inference.line import Line
from tunewright.service.inference.models import Module, Ready
from tunewright.service.inference.protocol import Piece, Sampling, Token, Usage, as_refused, logprob
from tunewright.tasks._rows import Batch, draw_each

log = logging.getLogger(__name__)

EXPECTED = 1024
"""Tokens of an answer for which room is kept; most that may be longer are not."""
ENDED = 0.25
"""The share of rows that ended from which on they leave the batch; to leave is to copy the cache of all the others."""

PAUSE = 0.04
"""Seconds between pieces of an answer in a stream, after the first: tokens that come sooner are said together."""

Hear = Callable[[list[tuple["Request", "Piece | Usage | Refused"]]], None]


@dataclass(frozen=True)
class Limits:
    """How much is answered at a time; what else is asked waits for its turn.

    Attributes:
        rows: answers of one module.
        tokens: positions of its cache: rows times the longest.
        reading: positions of prompts that are read at once; a longer prompt is read by itself.
        waiting: requests of a tenant, for all models; what it asks then is refused.
    """

    rows: int = 64
    tokens: int = 65536
    reading: int = 4096
    waiting: int = 1024


@dataclass(eq=False)
class Request:
    """A prompt in tokens and its answers.

    Attributes:
        room: tokens that an answer may have at the most.
        apart: whether the answer's text stands for itself, or goes on from the prompt's.
        tenant: who asks; tenants take turns.
    """

    ready: Ready
    prompt: list[int]
    sampling: Sampling
    stream: bool
    apart: bool
    tenant: str = ""
    answers: list[Answer] = field(init=False)
    gone: bool = False
    _kept: dict[int, list[Piece]] = field(default_factory=dict)
    _spoke: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model, limit = self.ready.model, self.ready.limit
        if self.ready.shared.form:
            limit -= self.ready.shared.form.virtual
        if len(self.prompt) >= limit:
            raise Refused(
                400, f"The prompt has {len(self.prompt)} tokens, and {self.ready.ref.shown} can hold {limit} together "
                "with the answer. Shorten it.", "context_length_exceeded", "messages",
            )  # fmt: skip
        vocabulary = model.module.get_input_embeddings().weight.shape[0]
        if not self.prompt or not 0 <= min(self.prompt) <= max(self.prompt) < vocabulary:
            raise Refused(400, f"prompt: one token id at least, and all below {vocabulary}.", param="prompt")
        room = min(limit - len(self.prompt), self.sampling.max_tokens or limit)
        ends = frozenset(self.ready.renderer.stop_ids())
        seed = secrets.randbits(64) if self.sampling.seed is None else abs(self.sampling.seed)
        before = [] if self.apart else self.prompt
        self.answers = [
            Answer(i, Words(model.processor, before), self.sampling, room, ends, np.random.default_rng([seed, i]))
            for i in range(self.sampling.n)
        ]

    @property
    def longest(self) -> int:
        """Positions that a row of it is expected to fill."""
        return len(self.prompt) + min(self.answers[0].room, EXPECTED)

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt), sum(answer.count for answer in self.answers))

    @property
    def ended(self) -> bool:
        return all(answer.finish for answer in self.answers)

    def said(self, piece: Piece) -> Piece | None:
        """The piece to give out now: all that was kept, at the end of an answer or when a stream is to go on."""
        kept = self._kept.setdefault(piece.index, [])
        kept.append(piece)
        now = time.monotonic()
        goes_on = self.stream and now - self._spoke.get(piece.index, -PAUSE) >= PAUSE
        if not piece.finish and not (goes_on and any(one.text or one.tokens for one in kept)):
            return None
        self._kept[piece.index], self._spoke[piece.index] = [], now
        tokens = tuple(token for one in kept for token in one.tokens)
        return Piece(piece.index, "".join(one.text for one in kept), tokens, piece.finish)


@dataclass(eq=False)
class _Row:
    request: Request
    answer: Answer

    @property
    def going(self) -> bool:
        return not self.answer.finish and not self.request.gone


class _Lane:
    """The rows of one module."""

    def __init__(self, shared: Module, limits: Limits) -> None:
        assert shared.form, "what generates has a form"
        self.shared, self.form, self.limits = shared, shared.form, limits
        self.waiting: Line[Request] = Line()
        self.reading: list[Request] = []
        self.rows: list[_Row] = []
        self.batch: Batch | None = None
        self.route: Any = None
        self.device = next(shared.module.parameters()).device

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.rows)

    def requests(self) -> list[Request]:
        return list(dict.fromkeys([*self.waiting, *self.reading, *(row.request for row in self.rows)]))

    def turn(self, told: list[tuple[Request, Piece | Usage | Refused]]) -> None:
        """Read prompts for which there is room, and draw a token for every row."""
        self.reading = self._chosen()
        if self.rows:
            self._step(told)
        if self.reading:
            self._read(self.reading, told)
            self.reading = []
        self._leave()

    def _chosen(self) -> list[Request]:
        """Who comes next; nobody overtakes the one whose turn it is."""
        going = [row for row in self.rows if row.going]
        if not self.waiting or (going and not self.form.joins):
            return []
        in_use = Counter(row.request.tenant for row in going)
        chosen: list[Request] = []
        rows, longest, width = len(going), max([row.request.longest for row in going], default=0), 0
        while one := self.waiting.first(in_use):
            rows, longest = rows + one.sampling.n, max(longest, one.longest)
            width = max(width, len(one.prompt))
            over = rows > self.limits.rows or rows * longest > self.limits.tokens
            if (going or chosen) and over:
                break
            if chosen and (len(chosen) + 1) * width > self.limits.reading:
                break
            if chosen and not self.form.pads and len(one.prompt) != len(chosen[0].prompt):
                break
            self.waiting.remove(one)
            chosen.append(one)
            in_use[one.tenant] += one.sampling.n
        return chosen

    def _read(self, chosen: list[Request], told: list[Any]) -> None:
        model = chosen[0].ready.model
        fresh = Batch(self.form, model.processor.pad_token_id, chosen[0].ready.limit, open=self.form.joins)
        rows = [_Row(request, answer) for request in chosen for answer in request.answers]
        if self.form.joins:
            with self._using([request.ready.terms for request in chosen]):
                logits_BV = fresh.read([request.prompt for request in chosen])
            if len(rows) > len(chosen):
                copies = torch.tensor([len(request.answers) for request in chosen], device=self.device)
                index = torch.arange(len(chosen), device=self.device).repeat_interleave(copies)
                fresh.keep(index)
                logits_BV = logits_BV[index]
        else:
            logits_BV = fresh.read([row.request.prompt for row in rows])
        _draw(rows, logits_BV, told)
        self._join(rows, fresh)

    def _join(self, rows: list[_Row], fresh: Batch) -> None:
        free = [place for place, row in enumerate(self.rows) if not row.going]
        if self.batch is None or len(free) == len(self.rows):
            self.batch, self.rows = fresh, rows
        elif len(free) >= len(rows) and fresh.length <= self.batch.length:
            self.batch.put(free[: len(rows)], fresh)
            for place, row in zip(free, rows, strict=False):
                self.rows[place] = row
        else:
            self._shrink(free)
            self.batch.append(fresh)
            self.rows = self.rows + rows
        self.route = None

    def _step(self, told: list[Any]) -> None:
        assert self.batch is not None
        if self.route is None and self.shared.bank:
            self.route = self.shared.bank.route([row.request.ready.terms if row.going else () for row in self.rows])
        last_B = torch.tensor([row.answer.last for row in self.rows], device=self.device)
        with self.shared.bank.using(self.route) if self.shared.bank else nullcontext():
            logits_BV = self.batch.step(last_B)
        _draw(self.rows, logits_BV, told)

    def _leave(self) -> None:
        """Rows that ended leave where they are many, and with them the columns that only they used."""
        ended = [place for place, row in enumerate(self.rows) if not row.going]
        if len(ended) == len(self.rows):
            self.rows, self.batch, self.route = [], None, None
            return
        assert self.batch is not None
        alone = not self.waiting or not self.form.joins  # nobody comes who could take their places
        if self.batch.shrinks and alone and len(ended) >= ENDED * len(self.rows):
            self._shrink(ended)
        if self.form.joins:
            self.batch.trim([place for place, row in enumerate(self.rows) if row.going])

    def _shrink(self, ended: Sequence[int]) -> None:
        if ended:
            assert self.batch is not None
            kept = [place for place in range(len(self.rows)) if place not in set(ended)]
            self.batch.keep(torch.tensor(kept, device=self.device))
            self.rows, self.route = [self.rows[place] for place in kept], None

    def _using(self, terms: list[Any]) -> Any:
        bank = self.shared.bank
        return bank.using(bank.route(terms)) if bank else nullcontext()


def _draw(rows: Sequence[_Row], logits_BV: Tensor, told: list[Any]) -> None:
    """A token for each row that goes on; what it lets its answer say is added to `told`."""
    peak_B, token_B = logits_BV.max(-1)
    samplings = [row.request.sampling for row in rows]
    if any(one.temperature for one in samplings):
        numbers = [row.answer.numbers.random() if row.going else 0.0 for row in rows]
        settings = torch.tensor([[one.temperature, one.top_p] for one in samplings], dtype=torch.float32)
        temperature_B, top_p_B = settings.to(logits_BV.device).unbind(-1)
        some = any(one.top_p < 1 for one in samplings)
        uniform_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device)
        token_B = draw_each(logits_BV, temperature_B, top_p_B if some else None, uniform_B)
    described_B = _described(rows, logits_BV, token_B)
    for place, (row, token, peak) in enumerate(zip(rows, token_B.tolist(), peak_B.isfinite().tolist(), strict=True)):
        if not row.going:
            continue
        if not peak:
            row.request.gone = True
            told.append((row.request, Refused(500, DAMAGED, "model_damaged")))
            continue
        piece = row.request.said(row.answer.take(token, described_B.get(place)))
        if piece:
            told.append((row.request, piece))
        if row.answer.finish and row.request.ended:
            told.append((row.request, row.request.usage))


def _described(rows: Sequence[_Row], logits_BV: Tensor, token_B: Tensor) -> dict[int, Token]:
    """What is told of the tokens of rows that want it."""
    places = [i for i, row in enumerate(rows) if row.going and row.request.sampling.logprobs is not None]
    if not places:
        return {}
    logprob_BV = logits_BV[places].float().log_softmax(-1)
    count = max(row.request.sampling.logprobs or 0 for row in rows)
    top, which = (part.tolist() for part in logprob_BV.topk(min(count, logprob_BV.shape[-1]), -1))
    own = logprob_BV.gather(-1, token_B[places, None])[:, 0].tolist()
    found = {}
    for i, place in enumerate(places):
        request = rows[place].request
        wanted, tokenizer = request.sampling.logprobs or 0, request.ready.model.processor
        pairs = zip(which[i][:wanted], top[i][:wanted], strict=True)
        likeliest = tuple(described(tokenizer, token, logprob(value)) for token, value in pairs)
        found[place] = described(tokenizer, int(token_B[place]), logprob(own[i]), likeliest)
    return found


class Batching:
    """The thread that answers.

    Args:
        hear: called with all that was said in a turn, in this thread. A Usage or an error is a request's last.
    """

    def __init__(self, hear: Hear, limits: Limits | None = None) -> None:
        self._hear, self._limits = hear, limits or Limits()
        self._change = threading.Condition()
        self._new: deque[Request] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._lanes: dict[Module, _Lane] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="answers", daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> None:
        """Answer a request when its turn comes. Raises Refused: 503 where too many wait."""
        with self._change:
            if self._closed:
                raise Refused(503, "The service is shutting down.", headers={"Retry-After": "10"})
            new = sum(other.tenant == request.tenant for other in self._new)
            if (
                new + sum(lane.waiting.of(request.tenant) for lane in list(self._lanes.values()))
                >= self._limits.waiting
            ):
                raise Refused(503, "Too many requests wait already. Ask again later.", headers={"Retry-After": "5"})
            if request.sampling.n > self._limits.rows:
                raise Refused(400, f"n is {request.sampling.n}: at most {self._limits.rows} here.", param="n")
            self._new.append(request)
            self._change.notify()

    def call(self, job: Callable[[], None]) -> None:
        """Run something short between tokens, in the thread that alone uses the modules."""
        with self._change:
            self._calls.append(job)
            self._change.notify()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop; who still waits is told."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            if self._calls:
                self._calls.popleft()()
            told: list[tuple[Request, Piece | Usage | Refused]] = []
            for lane in list(self._lanes.values()):
                self._turn(lane, told)
            if told:
                self._hear(told)
        over = Refused(503, "The service is shutting down.", headers={"Retry-After": "10"})
        left = [*self._new, *(request for lane in self._lanes.values() for request in lane.requests())]
        self._hear([(request, over) for request in left if not request.gone])

    def _wait(self) -> bool:
        """Until there is something to do; False at the end."""
        with self._change:
            while not (self._closed or self._new or self._calls or self._lanes):
                self._change.wait()
            while self._new:
                request = self._new.popleft()
                shared = request.ready.shared
                if shared not in self._lanes:
                    self._lanes[shared] = _Lane(shared, self._limits)
                self._lanes[shared].waiting.append(request)
            return not self._closed

    def _turn(self, lane: _Lane, told: list[tuple[Request, Piece | Usage | Refused]]) -> None:
        try:
            with torch.inference_mode():
                lane.turn(told)
        except Exception as error:
            log.exception("a batch has failed")
            told += [(request, as_refused(error)) for request in lane.requests() if not request.gone]
            lane.waiting.clear()
            lane.reading, lane.rows = [], []
        if not lane.busy:
            del self._lanes[lane.shared]
