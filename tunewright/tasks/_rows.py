"""Rows of a causal language model that answer together: prompts are read at once, then all go on from one cache.

Rows may leave between tokens, and where the cache holds keys and values alone, others may join. Imported where it is
used, because it imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from tunewright.errors import BaseModelError
from tunewright.tasks._quick import Quick, quick_of

WASTE = 64
"""Columns of a cache that no row uses are given up from so many on, if they are a quarter of all."""


# Drawing


def draw(logits_BV: Tensor, temperature: float, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The token whose stretch of the cumulative distribution holds the number, and its −log probability, both [B].

    Temperature 0 takes the likeliest token.
    """
    p_BV = (logits_BV.float() / (temperature or 1.0)).softmax(-1)
    token_B = inverse(p_BV, uniform_B) if temperature else logits_BV.argmax(-1)
    return token_B, -p_BV.gather(-1, token_B[:, None])[:, 0].log()


def draw_each(
    logits_BV: Tensor, temperature_B: Tensor, top_k_B: Tensor | None, top_p_B: Tensor | None, uniform_B: Tensor
) -> Tensor:
    """The same with a temperature for each row, 0 among them, [B].

    Args:
        top_k_B: a row draws only from so many of the likeliest tokens, V at the most, and those that are as likely as
            the last of them.
        top_p_B: of these it draws only from the likeliest whose probabilities first reach this share of theirs all
            together, and those that are as likely as the last of them (nucleus sampling, arXiv 1904.09751).
    """
    greedy_B = temperature_B == 0
    p_BV = (logits_BV.float() / temperature_B.masked_fill(greedy_B, 1.0)[:, None]).softmax(-1)
    if top_k_B is not None or top_p_B is not None:
        p_BV = p_BV.masked_fill(p_BV < _least(p_BV, top_k_B, top_p_B), 0.0)
    return torch.where(greedy_B, logits_BV.argmax(-1), inverse(p_BV, uniform_B))


def _least(p_BV: Tensor, top_k_B: Tensor | None, top_p_B: Tensor | None) -> Tensor:
    """The least probability of a token that may be drawn, [B, 1]."""
    falling_BV = p_BV.sort(-1, descending=True).values
    if top_k_B is not None:
        least_B1 = falling_BV.gather(-1, top_k_B[:, None] - 1)
        falling_BV = falling_BV.masked_fill(falling_BV < least_B1, 0.0)
    if top_p_B is not None:
        reached_BV = falling_BV.cumsum(-1, dtype=torch.float64)
        short_BV = reached_BV < top_p_B[:, None] * reached_BV[:, -1:]
        least_B1 = falling_BV.gather(-1, short_BV.sum(-1, keepdim=True))
    return least_B1


def inverse(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Where the cumulative sum of each row passes the number's share of the whole, [B].

    The sum is in fp64: in fp32 the tail of a large vocabulary would be rounded away. A token of probability 0 has no
    stretch and is never drawn: the product of the total with any fp64 number below 1 is below the total.
    """
    total_BV = p_BV.cumsum(-1, dtype=torch.float64)
    token_B1 = torch.searchsorted(total_BV, uniform_B[:, None] * total_BV[:, -1:], right=True)
    return token_B1.clamp_(max=p_BV.shape[-1] - 1)[:, 0]  # where the sum is not a number


# The module


@dataclass(frozen=True)
class Form:
    """How a module is to be called."""

    first: nn.Module
    """What reads prompts."""
    then: nn.Module
    """What goes on from a cache: below the virtual tokens of PEFT, which would come again at every step."""
    takes: frozenset[str]
    virtual: int
    remembers: bool
    """Whether all that it keeps are keys and values, so that rows of any length can stand side by side."""
    quick: Quick | None
    """What draws from a cache of keys and values with fewer calls."""

    @property
    def cache(self) -> str:
        return "cache_params" if "cache_params" in self.takes else "past_key_values"

    @property
    def pads(self) -> bool:
        """Whether prompts of several lengths may share a batch. PEFT puts virtual tokens in front of the padding."""
        return "attention_mask" in self.takes and not self.virtual

    @property
    def joins(self) -> bool:
        """Whether rows may be taken in that were read apart."""
        return self.pads and self.remembers and self.cache == "past_key_values"


def form_of(module: nn.Module) -> Form:
    """How a module in evaluation is to be called."""
    base: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    config: Any = getattr(module, "active_peft_config", None)
    virtual = config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0
    takes = frozenset(inspect.signature(base.forward).parameters)
    return Form(module, base if virtual else module, takes, virtual, _remembers(base.config), quick_of(base))


def _remembers(config: Any) -> bool:
    """Layers with a window are among them: they may keep more than it, since the mask cuts it off."""
    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    if not kinds <= {"full_attention", "sliding_attention"}:
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, nothing is dropped out; parts that were training before are again afterwards, and only these."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@dataclass
class Batch:
    """Prompts that are read together, then the rows that go on from them.

    Attributes:
        pad: fills shorter prompts up on the left, and may be any token.
        limit: positions of the context; rows that ended may stay in the batch longer.
        open: whether rows are to join later: the cache then keeps all that windows cut off.
        length: columns of the cache.
        start_B: the column at which each row begins.
    """

    form: Form
    pad: int
    limit: int
    open: bool = False
    cache: Any = None
    length: int = field(init=False, default=0)
    start_B: np.ndarray = field(init=False, default_factory=lambda: np.zeros(0, dtype=np.int64))
    _roomy: bool = field(init=False, default=False)
    _start_B1: Tensor | None = field(init=False, default=None)

    @property
    def shrinks(self) -> bool:
        """Whether rows can leave, and be multiplied."""
        return hasattr(self.cache, "reorder_cache")

    def read(self, prompts: Sequence[Sequence[int]], copies: int = 1) -> Tensor:
        """Read each prompt once, and become a row for each of its answers. Logits [B, V] for the first tokens."""
        logits_PV = self._read(prompts)
        rows = torch.arange(len(prompts), device=logits_PV.device).repeat_interleave(copies)
        if self.shrinks:
            self._grow_in_place()
            if copies > 1:
                self.keep(rows)
            return logits_PV[rows]
        return self._read([prompt for prompt in prompts for _ in range(copies)]) if copies > 1 else logits_PV

    def step(self, token_B: Tensor) -> Tensor:
        """Logits [B, V] for the tokens after these."""
        self.length += 1
        if self.form.quick and self._roomy:
            return self.form.quick.step(token_B, self.cache, self._start(token_B.device), self.limit)
        given: dict[str, Any] = {self.form.cache: self.cache}
        start_B1 = self._start(token_B.device)
        if start_B1 is not None and self.form.cache == "past_key_values":  # else the cache has seen the padding
            given["attention_mask"] = (torch.arange(self.length, device=token_B.device) >= start_B1).long()
            if "position_ids" in self.form.takes:
                given["position_ids"] = (self.length - 1 - start_B1).clamp_(max=self.limit - 1)  # of rows that ended
        return self._logits(self.form.then, token_B[:, None], given)

    def keep(self, index: Tensor) -> None:
        """Go on with these rows, each as often as it is named."""
        self.cache.reorder_cache(index)
        self._begin_at(self.start_B[index.cpu().numpy()])

    def put(self, places: Sequence[int], other: Batch) -> None:
        """Let the rows of another batch take the places of rows that ended; it may not be longer than this one."""
        assert other.length <= self.length and len(places) == len(other.start_B)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.put(places, theirs)
        starts = self.start_B.copy()
        starts[list(places)] = other.start_B + self.length - other.length
        self._begin_at(starts)

    def append(self, other: Batch) -> None:
        """Take in the rows of another batch behind those that are here."""
        width = max(self.length, other.length)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.append(theirs, width)
        mine_B, theirs_B = self.start_B + width - self.length, other.start_B + width - other.length
        self.length = width
        self._begin_at(np.concatenate([mine_B, theirs_B]))

    def trim(self, going: Sequence[int]) -> None:
        """Give up the columns in front of all rows that still go on, where these are many."""
        spare = int(self.start_B[list(going)].min())
        if spare >= max(WASTE, self.length // 4):
            for layer in self.cache.layers:
                layer.trim(spare)
            self.length -= spare
            self._begin_at(np.maximum(self.start_B - spare, 0))

    def _read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        lengths = np.array([len(prompt) for prompt in prompts])
        self.length = width = int(lengths.max())
        ids_BT = np.full((len(prompts), width), self.pad, dtype=np.int64)
        for row, prompt in zip(ids_BT, prompts, strict=True):
            row[width - len(prompt) :] = prompt
        device = next(self.form.first.parameters()).device
        self._begin_at(width - lengths)
        given: dict[str, Any] = {"past_key_values": DynamicCache()} if self.open else {}
        return self._logits(self.form.first, torch.from_numpy(ids_BT).to(device), {**given, **self._padding(device)})

    def _padding(self, device: torch.device) -> dict[str, Tensor]:
        """Without padding neither mask nor positions are passed: attention then has its fastest kernels."""
        start_B1 = self._start(device)
        if start_B1 is None:
            return {}
        column_T = torch.arange(self.length, device=device)
        given = {"attention_mask": (column_T >= start_B1).long()}
        if "position_ids" in self.form.takes:
            given["position_ids"] = (column_T - start_B1).clamp_(min=0)
        return given

    def _begin_at(self, start_B: np.ndarray) -> None:
        self.start_B, self._start_B1 = start_B, None

    def _start(self, device: torch.device) -> Tensor | None:
        """[B, 1]; None where nothing is padded."""
        if self._start_B1 is None and self.start_B.any():
            self._start_B1 = torch.from_numpy(self.start_B).to(device)[:, None]
        return self._start_B1

    def _logits(self, module: nn.Module, ids_BT: Tensor, given: dict[str, Any]) -> Tensor:
        if "logits_to_keep" in self.form.takes:
            given["logits_to_keep"] = 1
        output = module(input_ids=ids_BT, use_cache=True, **given)
        self.cache = getattr(output, self.form.cache, None)
        if self.cache is None:
            raise BaseModelError(
                f"{type(module).__name__} returns no {self.form.cache}, from which it would go on token by token: "
                "answers cannot be sampled from it. Choose another base."
            )
        return output.logits[:, -1]

    def _grow_in_place(self) -> None:
        layers = getattr(self.cache, "layers", [])
        for place, layer in enumerate(layers):
            if type(layer) is DynamicLayer and layer.is_initialized:
                layers[place] = _Roomy(layer)
        self._roomy = bool(layers) and all(type(layer) is _Roomy for layer in layers)


class _Roomy(DynamicLayer):
    """A cache layer with room for tokens to come: transformers' own copies all keys and values for every token."""

    def __init__(self, layer: Any):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self.buffers: list[Tensor] = []

    @property
    def held(self) -> list[Any]:
        return [self.keys, self.values]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.held[0].shape[-2]
        end = start + key_states.shape[-2]
        if not self.buffers or self.buffers[0].shape[-2] < end:
            self.buffers = [_with_room(part, end + max(64, end // 4)) for part in self.held]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        keys, values = (buffer[:, :, :end] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self.buffers = []

    def put(self, places: Sequence[int], other: _Roomy) -> None:
        for mine_BHTD, theirs_BHTD in zip(self.held, other.held, strict=True):
            front = mine_BHTD.shape[-2] - theirs_BHTD.shape[-2]
            for row, place in enumerate(places):
                mine_BHTD[place, :, :front] = 0  # masked, but 0 · NaN of the row before would be NaN
                mine_BHTD[place, :, front:] = theirs_BHTD[row]

    def append(self, other: _Roomy, width: int) -> None:
        self.buffers = []
        for mine_BHTD, theirs_BHTD in zip(self.held, other.held, strict=True):
            rows, heads, past, size = mine_BHTD.shape
            both = mine_BHTD.new_zeros(rows + len(theirs_BHTD), heads, width + max(64, width // 4), size)
            both[:rows, :, width - past : width] = mine_BHTD
            both[rows:, :, width - theirs_BHTD.shape[-2] : width] = theirs_BHTD
            self.buffers.append(both)
        self.keys, self.values = (buffer[:, :, :width] for buffer in self.buffers)

    def trim(self, columns: int) -> None:
        self.keys, self.values = (part[:, :, columns:] for part in self.held)
        self.buffers = []


def _with_room(held_BHTD: Tensor, length: int) -> Tensor:
    batch, heads, past, width = held_BHTD.shape
    buffer_BHTD = held_BHTD.new_empty(batch, heads, length, width)
    buffer_BHTD[:, :, :past] = held_BHTD
    return buffer_BHTD
