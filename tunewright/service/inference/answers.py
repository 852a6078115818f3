"""An answer while it is drawn: which tokens, in which words, and where it ends."""

from __future__ import annotations

import re
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
from tokenizers.decoders import DecodeStream

from tunewright.service.inference.protocol import Piece, Sampling, Token

CONTEXT = 8
"""Tokens of a prompt by which the text that goes on from it is told: whether it begins with a space."""


class Words:
    """Tokens become text as they come, and a character of several tokens when it is whole.

    Args:
        before: the tokens that the text goes on from; none where it stands for itself.
    """

    def __init__(self, tokenizer: Any, before: list[int]) -> None:
        self._tokenizer, self._before, self._tokens = tokenizer, before[-CONTEXT:], list[int]()
        self._said, self._shown = "", 0
        quick = getattr(tokenizer, "backend_tokenizer", None)
        self._quick: Any = None if getattr(tokenizer, "clean_up_tokenization_spaces", False) else quick
        self._stream = DecodeStream(ids=self._before, skip_special_tokens=True)

    def add(self, token: int) -> str:
        """The text that a token completes; empty where nothing is whole yet."""
        self._tokens.append(token)
        new = self._step(token) if self._quick is not None else self._new()
        self._said += new
        self._shown = len(self._tokens) if new else self._shown
        return new

    def rest(self) -> str:
        """What is left at the end: half characters."""
        whole = self._whole()
        return whole[len(self._said) :] if whole.startswith(self._said) else self._unsaid()

    def _step(self, token: int) -> str:
        try:
            return self._stream.step(self._quick, token) or ""
        except Exception:  # bytes that are no text, which change what was whole before them: it stays said
            self._stream = DecodeStream(ids=[token], skip_special_tokens=True)
            return self._unsaid()

    def _new(self) -> str:
        whole = self._whole()
        if whole.endswith("\ufffd"):
            return ""
        return whole[len(self._said) :] if whole.startswith(self._said) else self._unsaid()

    def _unsaid(self) -> str:
        return self._decoded(self._tokens[self._shown :])

    def _whole(self) -> str:
        before = self._decoded(self._before) if self._before else ""
        return self._decoded(self._before + self._tokens)[len(before) :]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


@dataclass
class Stops:
    """Text is held back while it may be the beginning of a stop text, or hold one."""

    texts: tuple[str, ...]
    held: str = ""
    hit: bool = False

    def add(self, new: str) -> str:
        """What is certain to be said. Of a text in which a stop text is found, that is what stands before it."""
        self.held += new
        found = [place for text in self.texts if (place := self.held.find(text)) >= 0]
        if found:
            self.hit = True
            return self._give(min(found))
        longest = max((len(text) for text in self.texts), default=1) - 1
        for length in range(min(longest, len(self.held)), 0, -1):
            if any(text.startswith(self.held[-length:]) for text in self.texts):
                return self._give(len(self.held) - length)
        return self._give(len(self.held))

    def _give(self, count: int) -> str:
        said, self.held = self.held[:count], self.held[count:]
        return said


class Follower(Protocol):
    """What tells which tokens may come next."""

    def copy(self) -> Follower: ...

    def allowed(self, count: int) -> np.ndarray:
        """[V] of bool, for so many tokens; one at least may."""

    def take(self, token: int) -> None: ...


@dataclass
class Answer:
    """One answer to a prompt.

    Attributes:
        room: tokens that it may have at the most.
        ends: the tokens that end it.
        follower: of the schema that it has to follow.
        last: the token that was drawn last and that the model has not been fed.
    """

    index: int
    words: Words
    sampling: Sampling
    room: int
    ends: frozenset[int]
    numbers: np.random.Generator
    follower: Follower | None = None
    count: int = 0
    last: int = 0
    finish: str | None = None
    stops: Stops = field(init=False)
    said: Counter[int] = field(default_factory=Counter)
    """How often it has each token, where that matters."""
    _length: int = 0
    _said: int = 0
    _tokens: deque[tuple[int, Token]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.stops = Stops(self.sampling.stop)

    def take(self, token: int, told: Token | None) -> Piece:
        """A token that was drawn, with what is told of it; the piece that can be said now."""
        self.count, self.last = self.count + 1, token
        if self.follower:
            self.follower.take(token)
        if self.sampling.presence or self.sampling.frequency:
            self.said[token] += 1
        said = ""
        if token in self.ends:
            self.finish = "stop"
        else:
            said = self._say(self.words.add(token), told)
        if self.count == self.room and not self.finish:
            self.finish = "length"
        if self.finish and not self.stops.hit:
            said += self._say(self.words.rest(), None)
        if self.stops.hit:
            self.finish = "stop"
        elif self.finish:
            said += self.stops.held
        self._said += len(said)
        return Piece(self.index, said, self._certain(), self.finish)

    def changes(self) -> dict[int, float]:
        """What is added to the logits of its next token."""
        found = dict(self.sampling.bias)
        for token, count in self.said.items():
            found[token] = found.get(token, 0.0) - self.sampling.presence - self.sampling.frequency * count
        return found

    def _say(self, new: str, told: Token | None) -> str:
        if told:
            self._tokens.append((self._length, told))
        self._length += len(new)
        return self.stops.add(new)

    def _certain(self) -> tuple[Token, ...]:
        """Tokens whose text is said, as far as it is; a token without text comes with the one before it."""
        found = []
        while self._tokens and (self._tokens[0][0] < self._said or (self.finish and not self.stops.hit)):
            found.append(self._tokens.popleft()[1])
        return tuple(found)


@cache
def _byte_of() -> dict[str, int]:
    """Which byte a character stands for in the vocabularies of byte-level tokenizers (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {**{chr(byte): byte for byte in plain}, **{chr(256 + i): byte for i, byte in enumerate(others)}}


def described(tokenizer: Any, token: int, logprob: float, top: tuple[Token, ...] = ()) -> Token:
    """A token by itself: its text, with the space in front of it, and its bytes, which may be half a character."""
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if whole := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        found = bytes([int(whole[1], 16)])
    elif "▁" in piece:
        found = piece.replace("▁", " ").encode()
    else:
        text, table = str(tokenizer.decode([token])), _byte_of()
        half = "\ufffd" in text and set(piece) <= table.keys()
        found = bytes(table[c] for c in piece) if half else text.encode()
    return Token(found.decode(errors="replace"), tuple(found), logprob, top)
