"""One copy of a base, many LoRAs: every row of a batch may use others, each with a factor of its own.

    y_b = W x_b + Σ_k c_bk · B_k A_k x_b

The rows of each LoRA are brought together, so that a layer needs two products of stacked matrices for all of them, and
layers that read the same (queries, keys and values) have the first in common. A row meets no weights but its own.
The rows of tokens that trained are LoRAs too: what is added to a row, where its token stands.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.pytorch_utils import Conv1D

from tunewright.artifacts.load import card_of_adapter, is_adapter, weights_folder
from tunewright.artifacts.start import start_of
from tunewright.methods._lora_file import (
    CONFIG,
    DIFFUSERS,
    TOKENS,
    WEIGHTS,
    lora_scale,
    module_of,
    read_adapter,
    stackable,
)

RANKS = 256
"""LoRAs that were used before stay stacked with those in use until their ranks add up to more."""


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter's weights by the names of the base's modules: A [R, in], and B [R, out] times its scale."""

    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """Of the layer in which it is largest."""
        return max(A_RI.shape[0] for A_RI, _ in self.factors.values())

    @property
    def bytes(self) -> int:
        """In memory twice: by itself, and stacked with others."""
        return 2 * sum(part.nbytes for factors in self.factors.values() for part in factors)


Terms = tuple[tuple[Lora, float], ...]
"""The LoRAs that a row uses, each with its factor."""


# Which runs can be served so


def terms_of(run: Path, alpha: float) -> list[tuple[Path, float]] | None:
    """The LoRAs whose sum is the run at α, each with its factor; None where a run is more than LoRAs on its base.

    A run that was stacked on an earlier LoRA begins there: (1 − α)·Δ₀ + α·Δ₁. Raises TunewrightError where the run is
    broken, or its base has other weights now.
    """
    weights = weights_folder(run)
    if not _is_plain(weights):
        return None
    start = start_of(run)
    if start.head or (run / "start" / "base").is_dir():
        return None
    earlier = start.adapter
    if earlier and not _is_plain(earlier):
        return None
    terms = [(weights, alpha), *([(earlier, 1 - alpha)] if earlier else [])]
    return [(folder, factor) for folder, factor in terms if factor]


def _is_plain(folder: Path) -> bool:
    """Whether a folder holds a LoRA for a language model, and nothing that trained beside it but rows of tokens."""
    if not is_adapter(folder) or not (folder / CONFIG).is_file() or (folder / DIFFUSERS).exists():
        return False
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    more = ("modules_to_save", "layer_replication", "megatron_config")
    alone = stackable(config) and not any(config.get(name) for name in more)
    return alone and card_of_adapter(folder).task == "text-generation" and (folder / WEIGHTS).is_file()


# On a base


@dataclass(frozen=True, eq=False)
class _Stack:
    """G LoRAs, filled up with zeros where others have a layer or a rank that they have not.

    Attributes:
        below: A [G, I, R] of all layers that read the same, by the first of them.
        above: for each layer that first one, which of the columns are its own, and B [G, R, O].
    """

    loras: tuple[Lora, ...]
    below: Mapping[str, Tensor]
    above: Mapping[str, tuple[str, slice, Tensor]]


@dataclass(frozen=True, eq=False)
class Route:
    """How the rows of a batch use a stack: each of its LoRAs has M slots, of which some may be empty.

    Attributes:
        row_S: the row in each of the G · M slots, any in empty ones; None where all rows use the only LoRA.
        factor_GM1: by what a LoRA is multiplied in each slot; None for ones.
        slot_N, to_N: the slots that are not empty, in the order of their rows, and these; None for each row once.
    """

    stack: _Stack
    row_S: Tensor | None
    factor_GM1: Tensor | None
    slot_N: Tensor
    to_N: Tensor | None

    def below(self, first: str, x: Tensor, table: bool) -> Tensor:
        """A x of all slots, [G, M · T, R], with their factors; x is [B, I] or [B, T, I], for a table without I."""
        A_GIR = self.stack.below[first]
        count, size, rank = A_GIR.shape
        if self.row_S is not None:
            x = x.index_select(0, self.row_S)
        if table:
            offset_G1 = size * torch.arange(count, device=x.device)[:, None]
            h_GNR = F.embedding(x.reshape(count, -1) + offset_G1, A_GIR.reshape(-1, rank))
        else:
            h_GNR = torch.bmm(x.reshape(count, -1, size), A_GIR)
        if self.factor_GM1 is not None:
            h_GNR.view(*self.factor_GM1.shape[:2], -1).mul_(self.factor_GM1)
        return h_GNR

    def add(self, y: Tensor, h_GNR: Tensor, B_GRO: Tensor) -> None:
        """B h of all slots, added to the rows that they belong to."""
        if self.row_S is None:
            y.view(-1, y.shape[-1]).addmm_(h_GNR[0], B_GRO[0])
        else:
            added_N = torch.bmm(h_GNR, B_GRO).view(-1, *y.shape[1:]).index_select(0, self.slot_N)
            if self.to_N is None:
                y.add_(added_N)
            else:
                y.index_add_(0, self.to_N, added_N)


class Bank:
    """The LoRAs on a base. Its layers are changed once, and compute as before where no row uses one."""

    def __init__(self, module: nn.Module) -> None:
        self._layers: dict[str, Any] = {name: part for name, part in module.named_modules() if _kind(part)}
        first = next(module.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._lock = threading.Lock()
        self._adapted: set[str] = set()
        self._stack: _Stack | None = None
        self._now: Route | None = None
        self._last: tuple[str, Tensor, Tensor] | None = None
        self._module = module
        self._first: dict[str, str] | None = None

    def read(self, folder: Path) -> Lora | None:
        """The LoRA in a folder, on the base's device; None where it cannot be stacked with others."""
        state, config = read_adapter(folder)
        indices = config.get("trainable_token_indices") or {}
        rows = {table: state.pop(TOKENS.format(table), None) for table in indices}
        tokens = self._of_tokens(rows, indices)
        names = {module_of(key) for key in state}
        known = all(name in self._layers and ".experts." not in name for name in names)
        if not names or not known or tokens is None or names & tokens.keys():
            return None
        found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for key, tensor in state.items():
            found[module_of(key)]["A" if ".lora_A" in key or ".lora_embedding_A" in key else "B"] = tensor
        factors = {name: self._factors(name, parts, config) for name, parts in found.items()}
        factors |= tokens
        return Lora(factors) if all(self._fits(name, factors[name]) for name in factors) else None

    def _of_tokens(
        self, rows: Mapping[str, Tensor | None], indices: Mapping[str, Sequence[int]]
    ) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Trained rows of tables as LoRAs of the layers with these weights; None where the base has no such rows.

        Args:
            rows: of each table, [K, H], in place of those of the base.
            indices: the K tokens.
        """
        found = {}
        for table, row_KH in rows.items():
            layer = self._layers.get(table)
            if layer is None or row_KH is None or row_KH.shape != (len(indices[table]), layer.weight.shape[1]):
                return None
            size = layer.weight.shape[0]
            if not 0 <= min(indices[table]) <= max(indices[table]) < size:
                return None
            token_K = torch.tensor(indices[table], device=self._device)
            where_KV = F.one_hot(token_K, size).to(self._dtype)
            wide = torch.promote_types(self._dtype, torch.float32)
            added_KH = row_KH.to(self._device, wide) - layer.weight[token_K].detach().to(wide)
            for name, other in self._layers.items():
                if other.weight is layer.weight and isinstance(other, nn.Embedding):
                    found[name] = where_KV, (added_KH * _embed_scale(other)).to(self._dtype)
                elif other.weight is layer.weight:
                    found[name] = added_KH.to(self._dtype), where_KV
        return found

    def forget(self, lora: Lora) -> None:
        with self._lock:
            if self._stack and lora in self._stack.loras:
                self._stack = None

    def route(self, rows: Sequence[Terms]) -> Route | None:
        """How the rows of a batch use LoRAs; None where none does."""
        wanted = list(dict.fromkeys(lora for terms in rows for lora, _ in terms))
        if not wanted:
            return None
        with self._lock:
            stack = self._stack_of(wanted)
        slots: dict[Lora, list[tuple[int, float]]] = {lora: [] for lora in stack.loras}
        for row, terms in enumerate(rows):
            for lora, factor in terms:
                slots[lora].append((row, factor))
        width = max(map(len, slots.values()))
        row_GM = torch.zeros(len(slots), width, dtype=torch.long)
        factor_GM, taken_GM = torch.ones(len(slots), width), torch.zeros(len(slots), width, dtype=torch.bool)
        for g, of_lora in enumerate(slots.values()):
            for m, (row, factor) in enumerate(of_lora):
                row_GM[g, m], factor_GM[g, m], taken_GM[g, m] = row, factor, True
        slot_N = taken_GM.view(-1).nonzero()[:, 0]
        slot_N = slot_N[row_GM.view(-1)[slot_N].argsort(stable=True)]
        to_N = row_GM.view(-1)[slot_N]
        once = torch.equal(to_N, torch.arange(len(rows)))
        return Route(
            stack,
            None if once and len(slots) == 1 else row_GM.view(-1).to(self._device),
            None if bool((factor_GM == 1).all()) else factor_GM.to(self._device, self._dtype)[..., None],
            slot_N.to(self._device),
            None if once else to_N.to(self._device),
        )

    @contextmanager
    def using(self, route: Route | None) -> Iterator[None]:
        """Inside, the rows of a batch use the LoRAs of this route. For one thread at a time."""
        self._now = route
        try:
            yield
        finally:
            self._now, self._last = None, None

    def _factors(self, name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        scale = lora_scale(config, name) * _embed_scale(self._layers[name])
        A_RI, B_OR = (parts[side].to(self._device, torch.promote_types(self._dtype, torch.float32)) for side in "AB")
        return A_RI.to(self._dtype).contiguous(), (B_OR.T * scale).to(self._dtype).contiguous()

    def _fits(self, name: str, factors: tuple[Tensor, Tensor]) -> bool:
        return tuple(part.shape[1] for part in factors) == _sizes(self._layers[name])

    def _stack_of(self, wanted: list[Lora]) -> _Stack:
        """A stack with the wanted LoRAs, and with as many of those that were in use before as there is room for."""
        if len(wanted) > 1 and self._stack and set(wanted) <= set(self._stack.loras):
            return self._stack
        total, loras = sum(lora.rank for lora in wanted), list(wanted)
        for lora in self._stack.loras if self._stack and len(wanted) > 1 else ():
            if lora not in loras and total + lora.rank <= RANKS:
                loras.append(lora)
                total += lora.rank
        groups: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for lora in loras for name in lora.factors):
            groups.setdefault(self._firsts().get(name, name), []).append(name)
            self._adapt(name)
        stack = _stacked(loras, groups)
        if len(wanted) > 1:  # one by itself is put together as often as it comes
            self._stack = stack
        return stack

    def _firsts(self) -> dict[str, str]:
        """Of layers that read the same tensor one after another, the first; found by a look at a token's way."""
        if self._first is None:
            self._first = {}
            with suppress(Exception):  # then each layer is by itself
                self._first = _read_together(self._module, self._layers)
        return self._first

    def _adapt(self, name: str) -> None:
        if name not in self._adapted:
            self._adapted.add(name)
            layer = self._layers[name]
            layer.forward = self._with_loras(name, layer.forward, isinstance(layer, nn.Embedding))  # type: ignore[method-assign]

    def _with_loras(self, name: str, own: Callable[[Tensor], Tensor], table: bool) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            y = own(x)
            route = self._now
            found = route.stack.above.get(name) if route else None
            if route and found:
                first, own_columns, B_GRO = found
                route.add(y, self._below(route, first, x, table)[..., own_columns], B_GRO)
            return y

        return forward

    def _below(self, route: Route, first: str, x: Tensor, table: bool) -> Tensor:
        """What layers that read the same have in common, kept until another is asked for."""
        last = self._last
        if last is None or last[0] != first or last[1] is not x:
            self._last = last = first, x, route.below(first, x, table)
        return last[2]


def _stacked(loras: Sequence[Lora], groups: Mapping[str, Sequence[str]]) -> _Stack:
    """Args: groups: by the first of the layers that read the same, all of them."""
    below, above = {}, {}
    for first, names in groups.items():
        columns, begin = [], 0
        for name in names:
            have = next(lora.factors[name] for lora in loras if name in lora.factors)
            none = have[0][:0], have[1][:0]
            A_GRI, B_GRO = (
                pad_sequence([lora.factors.get(name, none)[side] for lora in loras], batch_first=True)
                for side in (0, 1)
            )
            columns.append(A_GRI.mT)
            above[name] = first, slice(begin, begin + A_GRI.shape[1]), B_GRO
            begin += A_GRI.shape[1]
        below[first] = torch.cat(columns, -1)
    return _Stack(tuple(loras), below, above)


def _read_together(module: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """For each linear layer the first of those that read the same tensor right after one another."""
    found: dict[str, str] = {}
    before: tuple[Any, str] = (None, "")

    def watch(name: str) -> Callable[..., None]:
        def see(_: nn.Module, given: tuple[Any, ...]) -> None:
            nonlocal before
            before = before if given[0] is before[0] else (given[0], name)
            found[name] = before[1]

        return see

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            module(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(module.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _embed_scale(layer: Any) -> float:
    """What Gemma multiplies the rows of its table by."""
    return float(getattr(layer, "embed_scale", 1.0))


def _kind(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Embedding, Conv1D))


def _sizes(layer: Any) -> tuple[int, int]:
    """(in, out) as a LoRA sees them."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)
