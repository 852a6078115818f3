"""The rows of one module: who is read next, a token for each, and who leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunewright.errors import DAMAGED
from tunewright.service.errors import Refused
from tunewright.service.inference.answers import Answer, described
from tunewright.service.inference.line import Line
from tunewright.service.inference.models import Module
from tunewright.service.inference.protocol import Piece, Sampling, Token, Usage, logprob
from tunewright.service.inference.request import Request
from tunewright.tasks._rows import Batch, draw_each

ENDED = 0.25
"""The share of rows that ended from which on they leave the batch; to leave is to copy the cache of all the others."""

SPARE = 1.25
"""A cache is made so many times as long as it has to be, to grow in place."""


@dataclass(frozen=True)
class Limits:
    """How much is answered at a time; what else is asked waits for its turn.

    Attributes:
        rows: answers of one module.
        tokens: positions of its cache: rows times the longest. Less where memory is short, but one row always.
        reading: positions of prompts that are read at once; a longer prompt is read by itself.
        waiting: requests of a tenant, for all models; what it asks then is refused.
    """

    rows: int = 64
    tokens: int = 65536
    reading: int = 4096
    waiting: int = 1024


@dataclass(eq=False)
class Row:
    request: Request
    answer: Answer

    @property
    def going(self) -> bool:
        return not self.answer.finish and not self.request.gone


class Lane:
    """The rows of one module."""

    def __init__(self, shared: Module, limits: Limits) -> None:
        assert shared.form, "what generates has a form"
        self.shared, self.form, self.limits = shared, shared.form, limits
        self.waiting: Line[Request] = Line()
        self.reading: list[tuple[Request, list[Answer]]] = []
        self.rows: list[Row] = []
        self.batch: Batch | None = None
        self.route: Any = None
        self.device = next(shared.module.parameters()).device
        self.position_bytes = cache_bytes(shared.module)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.rows)

    def requests(self) -> list[Request]:
        reading = (request for request, _ in self.reading)
        return list(dict.fromkeys([*self.waiting, *reading, *(row.request for row in self.rows)]))

    @property
    def bytes(self) -> int:
        """What its cache is expected to take."""
        return len(self.rows) * self._longest(self.rows) * self.position_bytes

    def turn(self, told: list[tuple[Request, Piece | Usage | Refused]], free: int) -> None:
        """Read prompts for which there is room, and draw a token for every row.

        Args:
            free: bytes that the cache may take.
        """
        self.reading = self._chosen(free)
        if self.rows:
            self._step(told)
        if self.reading:
            self._read(self.reading, told)
            self.reading = []
        self._leave()

    def _chosen(self, free: int) -> list[tuple[Request, list[Answer]]]:
        """Who comes next, and with which answers; nobody overtakes the one whose turn it is."""
        going = [row for row in self.rows if row.going]
        if not self.waiting or (going and not self.form.joins):
            return []
        in_use = Counter(row.request.tenant for row in going)
        tokens = min(self.limits.tokens, free // self.position_bytes if self.position_bytes else self.limits.tokens)
        chosen: list[tuple[Request, list[Answer]]] = []
        rows, longest, width = len(going), self._longest(going), 0
        while one := self.waiting.first(in_use):
            longest, width = max(longest, one.longest), max(width, len(one.prompt))
            room = max(1, min(self.limits.rows, tokens // longest)) - rows
            if room < 1 or (chosen and (len(chosen) + 1) * width > self.limits.reading):
                break
            if chosen and not self.form.pads and len(one.prompt) != len(chosen[0][0].prompt):
                break
            some, one.left = one.left[:room], one.left[room:]
            chosen.append((one, some))
            rows += len(some)
            in_use[one.tenant] += len(some)
            if one.left:
                break
            self.waiting.remove(one)
        return chosen

    def _longest(self, rows: Sequence[Row]) -> int:
        """Positions that a row is expected to fill; some fill more."""
        length = self.batch.length if self.batch and rows else 0
        return max([length, *(row.request.longest for row in rows)])

    def _read(self, chosen: list[tuple[Request, list[Answer]]], told: list[Any]) -> None:
        ready = chosen[0][0].ready
        fresh = Batch(self.form, ready.model.processor.pad_token_id, ready.limit, open=self.form.joins)
        rows = [Row(request, answer) for request, some in chosen for answer in some]
        if self.form.joins:
            with self._using([request.ready.terms for request, _ in chosen]):
                logits_BV = fresh.read([request.prompt for request, _ in chosen])
            if len(rows) > len(chosen):
                copies = torch.tensor([len(some) for _, some in chosen], device=self.device)
                index = torch.arange(len(chosen), device=self.device).repeat_interleave(copies)
                fresh.keep(index)
                logits_BV = logits_BV[index]
        else:
            logits_BV = fresh.read([row.request.prompt for row in rows])
        _draw(rows, logits_BV, told)
        self._join(rows, fresh)

    def _join(self, rows: list[Row], fresh: Batch) -> None:
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


def _draw(rows: Sequence[Row], logits_BV: Tensor, told: list[Any]) -> None:
    """A token for each row that goes on; what it lets its answer say is added to `told`."""
    peak_B, token_B = logits_BV.max(-1)
    changed_BV = _changed(rows, logits_BV)
    if changed_BV is not logits_BV:
        token_B = changed_BV.argmax(-1)
    samplings = [row.request.sampling for row in rows]
    if any(one.temperature for one in samplings):
        numbers = [row.answer.numbers.random() if row.going else 0.0 for row in rows]
        settings = torch.tensor([[one.temperature, one.top_p] for one in samplings], dtype=torch.float32)
        temperature_B, top_p_B = settings.to(logits_BV.device).unbind(-1)
        some = any(one.top_p < 1 for one in samplings)
        uniform_B = torch.tensor(numbers, dtype=torch.float64, device=logits_BV.device)
        top_k_B = _top_k(samplings, logits_BV)
        token_B = draw_each(changed_BV, temperature_B, top_k_B, top_p_B if some else None, uniform_B)
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


def _top_k(samplings: Sequence[Sampling], logits_BV: Tensor) -> Tensor | None:
    """From how many tokens each row draws; None where all draw from all."""
    if all(one.top_k is None for one in samplings):
        return None
    every = logits_BV.shape[-1]
    return torch.tensor([min(one.top_k or every, every) for one in samplings], device=logits_BV.device)


def _changed(rows: Sequence[Row], logits_BV: Tensor) -> Tensor:
    """Logits as the rows' requests change them; what is told of tokens is told of those of the model."""
    changes = [
        (place, token, change)
        for place, row in enumerate(rows)
        if row.going
        for token, change in row.answer.changes().items()
        if token < logits_BV.shape[-1]
    ]
    following = [(place, row.answer.follower) for place, row in enumerate(rows) if row.going and row.answer.follower]
    if not changes and not following:
        return logits_BV
    changed_BV = logits_BV.clone()
    if changes:
        places, tokens, values = (list(part) for part in zip(*changes, strict=True))
        changed_BV[places, tokens] += torch.tensor(values, dtype=logits_BV.dtype, device=logits_BV.device)
    for place, follower in following:
        allowed_V = torch.from_numpy(follower.allowed(logits_BV.shape[-1])).to(logits_BV.device)
        changed_BV[place].masked_fill_(~allowed_V, -torch.inf)
    return changed_BV


def _described(rows: Sequence[Row], logits_BV: Tensor, token_B: Tensor) -> dict[int, Token]:
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


def cache_bytes(module: Any) -> int:
    """What the keys and values of a position take, with the room that is kept; 0 where it cannot be told."""
    config = module.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 1
    kept = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    layers = getattr(config, "num_hidden_layers", 0)
    return int(SPARE * 2 * layers * kept * size * next(module.parameters()).dtype.itemsize)
