"""Many samples of a causal language model at once, for reinforcement learning: fast, and exact about probabilities.

A prompt is read once for all its samples, samples that ended leave the batch, and each draw is decided by a number that
the caller gives. Imported where it is used, because it imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from tunewright.data.batches import split_by_tokens
from tunewright.errors import BaseModelError

BATCH_TOKENS = 32768
"""The positions, samples × longest, that a batch may fill. On a CPU more were no faster, a quarter a fifth slower."""
LEFT = 0.25
"""The share of ended rows from which on they leave the batch; to leave is to copy the cache of all the others."""


@dataclass(frozen=True)
class Sampled:
    """An answer to a prompt, with the token that ended it where it ended by itself."""

    tokens: list[int]
    nll: np.ndarray
    """[len(tokens)], in nats: −log softmax(logits / temperature) of each token, and of temperature 1 if it was 0."""
    ended: bool


def sample(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    copies: int,
    max_new_tokens: int,
    temperature: float,
    uniform: np.ndarray,
    stop: Sequence[int],
    pad: int,
    limit: int,
    batch_tokens: int = BATCH_TOKENS,
) -> list[list[Sampled]]:
    """Draw `copies` answers to each prompt; all of a prompt's are in one list.

    Token t of answer c to prompt p is the inverse of the cumulative distribution at `uniform[p * copies + c, t]`, in
    [0, 1), so that answers depend neither on what else is in a batch nor on the number of processes. Temperature 0
    takes the likeliest token. An answer ends with a token of `stop`, after `max_new_tokens`, or where prompt and answer
    fill the `limit` of the context; `pad` fills shorter prompts up on the left, and may be any token.

    Raises:
        BaseModelError: the module keeps no cache from which it can go on, or its logits are not finite.
    """
    form = _form(module)
    limit -= form.virtual
    assert prompts and all(0 < len(prompt) < limit for prompt in prompts), "a prompt is empty or leaves no room"
    assert uniform.dtype == np.float64 and uniform.shape == (len(prompts) * copies, max_new_tokens)
    assert uniform.min() >= 0 and uniform.max() < 1
    uniform_PCT = uniform.reshape(len(prompts), copies, max_new_tokens)
    answers: dict[int, list[Sampled]] = {}
    with _evaluating(module), torch.inference_mode():
        for group in _groups(form, [len(prompt) for prompt in prompts], copies, max_new_tokens, batch_tokens):
            chosen = [prompts[i] for i in group]
            room_N = np.repeat([min(max_new_tokens, limit - len(prompt)) for prompt in chosen], copies)
            batch = _Batch(form, chosen, copies, pad, limit, int(room_N.max()))
            drawn = _draw_all(batch, room_N, temperature, np.concatenate(uniform_PCT[group]), list(stop))
            for place, i in enumerate(group):
                answers[i] = drawn[place * copies : (place + 1) * copies]
    return [answers[i] for i in range(len(prompts))]


def draw(logits_BV: Tensor, temperature: float, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """The token whose stretch of the cumulative distribution holds the number, and its −log probability, both [B].

    The sum is in fp64: in fp32 the tail of a large vocabulary would be rounded away. A token of probability 0 has no
    stretch and is never drawn: the product of the total with any fp64 number below 1 is below the total.
    """
    p_BV = (logits_BV.float() / (temperature or 1.0)).softmax(-1)
    if temperature:
        total_BV = p_BV.cumsum(-1, dtype=torch.float64)
        token_B1 = torch.searchsorted(total_BV, uniform_B[:, None] * total_BV[:, -1:], right=True)
        token_B1.clamp_(max=p_BV.shape[-1] - 1)  # where the sum is not a number
    else:
        token_B1 = logits_BV.argmax(-1, keepdim=True)
    return token_B1[:, 0], -p_BV.gather(-1, token_B1)[:, 0].log()


def _draw_all(
    batch: _Batch, room_N: np.ndarray, temperature: float, uniform_NT: np.ndarray, stop: list[int]
) -> list[Sampled]:
    """Draw until all rows have ended. The host waits for the device once per token: to see which rows did."""
    count = len(room_N)
    token_NT = np.zeros(uniform_NT.shape, dtype=np.int64)
    length_N, ended_N = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    row_B, going_B = np.arange(count), np.ones(count, dtype=bool)
    steps: list[tuple[np.ndarray, Tensor]] = []
    logits_BV = batch.begin()
    uniform_BT = torch.from_numpy(uniform_NT).to(logits_BV.device)
    for t in range(int(room_N.max())):
        token_B, nll_B = draw(logits_BV, temperature, uniform_BT[:, t])
        said_B = token_B.cpu().numpy()
        token_NT[row_B, t] = said_B
        steps.append((row_B, nll_B))
        stopped_B = going_B & np.isin(said_B, stop)
        over_B = stopped_B | (going_B & (room_N[row_B] == t + 1))
        ended_N[row_B[stopped_B]] = True
        length_N[row_B[over_B]] = t + 1
        going_B = going_B & ~over_B
        if not going_B.any():
            break
        if batch.shrinks and going_B.mean() <= 1 - LEFT:
            kept = torch.from_numpy(np.flatnonzero(going_B)).to(logits_BV.device)
            batch.keep(kept)
            token_B, uniform_BT = token_B[kept], uniform_BT[kept]
            row_B, going_B = row_B[going_B], going_B[going_B]
        logits_BV = batch.step(token_B)
    nll_NT = _nll(steps, token_NT.shape)
    answers = []
    for row, length in enumerate(length_N):
        answers.append(Sampled(token_NT[row, :length].tolist(), nll_NT[row, :length].copy(), bool(ended_N[row])))
        if not np.isfinite(answers[-1].nll).all():
            raise BaseModelError(
                "The model's logits are not finite: its weights are damaged, or its training has diverged. "
                "Begin again from weights that are sound, with a lower learning rate."
            )
    return answers


def _nll(steps: Sequence[tuple[np.ndarray, Tensor]], shape: tuple[int, ...]) -> np.ndarray:
    nll_NT = np.zeros(shape, dtype=np.float32)
    ends = np.cumsum([len(row_B) for row_B, _ in steps])[:-1]
    for t, nll_B in enumerate(np.split(torch.cat([nll_B for _, nll_B in steps]).cpu().numpy(), ends)):
        nll_NT[steps[t][0], t] = nll_B
    return nll_NT


# The module


@dataclass(frozen=True)
class _Form:
    """How a module is to be called."""

    first: nn.Module
    """What reads prompts."""
    then: nn.Module
    """What goes on from a cache: below the virtual tokens of PEFT, which would come again at every step."""
    takes: frozenset[str]
    virtual: int

    @property
    def cache(self) -> str:
        return "cache_params" if "cache_params" in self.takes else "past_key_values"

    @property
    def pads(self) -> bool:
        """Whether prompts of several lengths may share a batch. PEFT puts virtual tokens in front of the padding."""
        return "attention_mask" in self.takes and not self.virtual


def _form(module: nn.Module) -> _Form:
    base: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # type: ignore[operator]
    config: Any = getattr(module, "active_peft_config", None)
    virtual = config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0
    return _Form(module, base if virtual else module, frozenset(inspect.signature(base.forward).parameters), virtual)


def _groups(
    form: _Form, lengths: Sequence[int], copies: int, max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Prompts of similar lengths, or equal ones if they cannot be padded, whose answers fit the budget together."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    full = [copies * (form.virtual + length + max_new_tokens) for length in lengths]
    if form.pads:
        yield from split_by_tokens(order, full, batch_tokens)
    else:
        for _, equal in groupby(order, key=lambda i: lengths[i]):
            yield from split_by_tokens(list(equal), full, batch_tokens)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, nothing is dropped out; parts that were training before are again afterwards, and only these."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@dataclass
class _Batch:
    """Prompts of a batch, then the rows that go on from them: what the module has to be given, and its cache."""

    form: _Form
    prompts: Sequence[Sequence[int]]
    copies: int
    pad: int
    limit: int
    room: int
    shrinks: bool = True
    cache: Any = None
    length: int = field(init=False)
    mask_BT: Tensor | None = field(init=False, default=None)
    position_B1: Tensor | None = field(init=False, default=None)

    def begin(self) -> Tensor:
        """Read the prompts once, and become a row for each sample. Logits [B, V] for the first tokens."""
        prompts = self.prompts
        logits_PV = self._read(prompts)
        samples = torch.arange(len(prompts), device=logits_PV.device).repeat_interleave(self.copies)
        if hasattr(self.cache, "reorder_cache"):
            self._grow_in_place()
            self.keep(samples)
            return logits_PV[samples]
        self.shrinks = False  # nor does it multiply: every sample reads its prompt itself
        return self._read([prompt for prompt in prompts for _ in range(self.copies)])

    def step(self, token_B: Tensor) -> Tensor:
        """Logits [B, V] for the tokens after these."""
        self.length += 1
        given: dict[str, Any] = {self.form.cache: self.cache}
        if self.mask_BT is not None and self.form.cache == "past_key_values":  # else the cache has seen the padding
            given["attention_mask"] = self.mask_BT[:, : self.length]
        if self.position_B1 is not None:
            self.position_B1 = (self.position_B1 + 1).clamp_(max=self.limit - 1)  # of rows that ended
            given["position_ids"] = self.position_B1
        return self._logits(self.form.then, token_B[:, None], given)

    def keep(self, index: Tensor) -> None:
        """Go on with these rows, each as often as it is named."""
        self.cache.reorder_cache(index)
        self.mask_BT = None if self.mask_BT is None else self.mask_BT[index]
        self.position_B1 = None if self.position_B1 is None else self.position_B1[index]

    def _read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        lengths = np.array([len(prompt) for prompt in prompts])
        width = int(lengths.max())
        ids_BT = np.full((len(prompts), width), self.pad, dtype=np.int64)
        for row, prompt in zip(ids_BT, prompts, strict=True):
            row[width - len(prompt) :] = prompt
        device = next(self.form.first.parameters()).device
        given = self._padding(lengths, width, device)
        self.length = width
        return self._logits(self.form.first, torch.from_numpy(ids_BT).to(device), given)

    def _padding(self, lengths: np.ndarray, width: int, device: torch.device) -> dict[str, Tensor]:
        """Without padding neither mask nor positions are passed: attention then has its fastest kernels."""
        if (lengths == width).all():
            return {}
        start_B1 = torch.from_numpy(width - lengths).to(device)[:, None]
        column_T = torch.arange(width + self.room, device=device)
        self.mask_BT = (column_T >= start_B1).long()
        given = {"attention_mask": self.mask_BT[:, :width]}
        if "position_ids" in self.form.takes:
            given["position_ids"] = (column_T[:width] - start_B1).clamp_(min=0)
            self.position_B1 = given["position_ids"][:, -1:]
        return given

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


class _Roomy(DynamicLayer):
    """A cache layer with room for tokens to come: transformers' own copies all keys and values for every token."""

    def __init__(self, layer: Any):
        super().__init__()
        self.lazy_initialization(layer.keys, layer.values)
        self.keys, self.values = layer.keys, layer.values
        self.buffers: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        held: list[Any] = [self.keys, self.values]
        start = held[0].shape[-2]
        end = start + key_states.shape[-2]
        if not self.buffers or self.buffers[0].shape[-2] < end:
            self.buffers = [_with_room(part, end + max(64, end // 4)) for part in held]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        keys, values = (buffer[:, :, :end] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values

    def reorder_cache(self, beam_idx: Any) -> None:
        super().reorder_cache(beam_idx)
        self.buffers = []


def _with_room(held_BHTD: Tensor, length: int) -> Tensor:
    batch, heads, past, width = held_BHTD.shape
    buffer_BHTD = held_BHTD.new_empty(batch, heads, length, width)
    buffer_BHTD[:, :, :past] = held_BHTD
    return buffer_BHTD
