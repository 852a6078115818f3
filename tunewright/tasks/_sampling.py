"""Many samples of a causal language model at once, for reinforcement learning: fast, and exact about probabilities.

A prompt is read once for all its samples, samples that ended leave the batch, and each draw is decided by a number that
the caller gives. Imported where it is used, because it imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from tunewright.data.batches import split_by_tokens
from tunewright.errors import BaseModelError
from tunewright.tasks._rows import Batch, Form, draw, evaluating, form_of

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
    assert uniform.dtype == np.float64 and uniform.shape == (len(prompts) * copies, max_new_tokens)
    assert uniform.min() >= 0 and uniform.max() < 1
    uniform_PCT = uniform.reshape(len(prompts), copies, max_new_tokens)
    answers: dict[int, list[Sampled]] = {}
    with evaluating(module), torch.inference_mode():
        form = form_of(module)
        most = limit - form.virtual
        assert prompts and all(0 < len(prompt) < most for prompt in prompts), "a prompt is empty or leaves no room"
        for group in _groups(form, [len(prompt) for prompt in prompts], copies, max_new_tokens, batch_tokens):
            chosen = [prompts[i] for i in group]
            room_N = np.repeat([min(max_new_tokens, most - len(prompt)) for prompt in chosen], copies)
            batch = Batch(form, pad, limit)
            first_NV = batch.read(chosen, copies)
            drawn = _draw_all(batch, first_NV, room_N, temperature, np.concatenate(uniform_PCT[group]), list(stop))
            for place, i in enumerate(group):
                answers[i] = drawn[place * copies : (place + 1) * copies]
    return [answers[i] for i in range(len(prompts))]


def _draw_all(
    batch: Batch,
    logits_BV: Tensor,
    room_N: np.ndarray,
    temperature: float,
    uniform_NT: np.ndarray,
    stop: list[int],
) -> list[Sampled]:
    """Draw until all rows have ended. The host waits for the device once per token: to see which rows did."""
    count = len(room_N)
    token_NT = np.zeros(uniform_NT.shape, dtype=np.int64)
    length_N, ended_N = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=bool)
    row_B, going_B = np.arange(count), np.ones(count, dtype=bool)
    steps: list[tuple[np.ndarray, Tensor]] = []
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


def _groups(
    form: Form, lengths: Sequence[int], copies: int, max_new_tokens: int, batch_tokens: int
) -> Iterator[list[int]]:
    """Prompts of similar lengths, or equal ones if they cannot be padded, whose answers fit the budget together."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    full = [copies * (form.virtual + length + max_new_tokens) for length in lengths]
    if form.pads:
        yield from split_by_tokens(order, full, batch_tokens)
    else:
        for _, equal in groupby(order, key=lambda i: lengths[i]):
            yield from split_by_tokens(list(equal), full, batch_tokens)
