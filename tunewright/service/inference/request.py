"""A prompt in tokens, and what is said of its answers, and when."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

import numpy as np

from tunewright.service.errors import Refused
from tunewright.service.inference.answers import Answer, Follower, Words
from tunewright.service.inference.models import Ready
from tunewright.service.inference.prompts import room_for_answer
from tunewright.service.inference.protocol import Piece, Sampling, Usage

EXPECTED = 1024
"""Tokens of an answer for which room is kept; most that may be longer are not."""
PAUSE = 0.04
"""Seconds between pieces of an answer in a stream, after the first: tokens that come sooner are said together."""


@dataclass(eq=False)
class Request:
    """A prompt in tokens and its answers.

    Attributes:
        room: tokens that an answer may have at the most.
        apart: whether the answer is to messages and its text stands for itself, or it goes on from a prompt's.
        tenant: who asks; tenants take turns.
        follower: of the schema that its answers have to follow, at their beginning.
        left: answers that have not begun.
    """

    ready: Ready
    prompt: list[int]
    sampling: Sampling
    stream: bool
    apart: bool
    tenant: str = ""
    follower: Follower | None = None
    answers: list[Answer] = field(init=False)
    left: list[Answer] = field(init=False)
    gone: bool = False
    _kept: dict[int, list[Piece]] = field(default_factory=dict)
    _spoke: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        model = self.ready.model
        room = room_behind(self.ready, len(self.prompt), self.apart)
        vocabulary = model.module.get_input_embeddings().weight.shape[0]
        if not self.prompt or not 0 <= min(self.prompt) <= max(self.prompt) < vocabulary:
            raise Refused(400, f"prompt: one token id at least, and all below {vocabulary}.", param="prompt")
        if any(not 0 <= token < vocabulary for token, _ in self.sampling.bias):
            raise Refused(400, f"logit_bias: ids of tokens below {vocabulary}.", param="logit_bias")
        room = min(room, self.sampling.max_tokens or room)
        ends = frozenset(self.ready.renderer.stop_ids())
        seed = secrets.randbits(64) if self.sampling.seed is None else abs(self.sampling.seed)
        before = [] if self.apart else self.prompt
        self.answers = [
            Answer(
                i,
                Words(model.processor, before),
                self.sampling,
                room,
                ends,
                np.random.default_rng([seed, i]),
                self.follower and self.follower.copy(),
            )
            for i in range(self.sampling.n)
        ]
        self.left = list(self.answers)

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


def room_behind(ready: Ready, count: int, chat: bool, about: str = "") -> int:
    """As `room_for_answer`, of a model in memory."""
    limit = ready.limit - (ready.shared.form.virtual if ready.shared.form else 0)
    return room_for_answer(ready.ref.shown, count, limit, chat, about)
