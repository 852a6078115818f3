"""One copy of a base, many LoRAs: every row of a batch may use others, each with a factor of its own.

    y_b = W x_b + Σ_k c_bk · B_k A_k x_b

with all A below and all B beside one another, so that a layer needs two products for all of them, and layers that read
the same (queries, keys and values) have the first in common: of A x the columns of LoRAs that a row does not use are
multiplied by 0. For that, all weights have to be finite and of ordinary size.
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

LARGEST = 1e4
"""A weight above it is none of ordinary size: what others' rows are multiplied by 0 with must not be infinite."""
RANKS = 256
"""LoRAs that were used before stay side by side with those in use until their ranks add up to more."""


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
        """In memory twice: by itself, and side by side with the others."""
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
class _Below:
    """A [R, in] of all LoRAs of the layers that read the same, and of which LoRA each row is."""

    A_RI: Tensor
    owners: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Read:
    """A [R, in], and by what each column of A x is multiplied in each row, [B, 1, R]."""

    A_RI: Tensor
    factor_B1R: Tensor


Route = Mapping[str, tuple[_Read, slice, Tensor]]
"""For each layer what is computed of its input, which columns of that are its own, and their B [R, out]."""


class Bank:
    """The LoRAs on a base. Its layers are changed once, and compute as before where no row uses one."""

    def __init__(self, module: nn.Module) -> None:
        self._layers: dict[str, Any] = {name: part for name, part in module.named_modules() if _kind(part)}
        first = next(module.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._lock = threading.Lock()
        self._adapted: set[str] = set()
        self._beside: list[Lora] = []
        self._joined: dict[str, tuple[_Below, slice, Tensor]] = {}
        self._now: Route = {}
        self._last: tuple[_Read, Tensor, Tensor] | None = None
        self._module = module
        self._first: dict[str, str] | None = None

    def read(self, folder: Path) -> Lora | None:
        """The LoRA in a folder, on the base's device; None where it cannot stand side by side with others."""
        state, config = read_adapter(folder)
        if not _ordinary(state):
            return None
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
            if lora in self._beside:
                self._beside, self._joined = [], {}

    def route(self, rows: Sequence[Terms]) -> Route:
        """How the rows of a batch use LoRAs."""
        wanted = list(dict.fromkeys(lora for terms in rows for lora, _ in terms))
        if not wanted:
            return {}
        with self._lock:
            if not set(wanted) <= set(self._beside):
                self._set_beside(wanted)
            beside, joined = self._beside, self._joined
        place = {lora: i for i, lora in enumerate(beside)}
        factor_BK = torch.zeros(len(rows), len(beside))
        for row, terms in enumerate(rows):
            for lora, factor in terms:
                factor_BK[row, place[lora]] += factor
        factor_BK = factor_BK.to(self._device, self._dtype)
        factors = {below.owners: factor_BK[:, list(below.owners)][:, None] for below, _, _ in joined.values()}
        reads = {below: _Read(below.A_RI, factors[below.owners]) for below, _, _ in joined.values()}
        return {name: (reads[below], own, B_RO) for name, (below, own, B_RO) in joined.items()}

    @contextmanager
    def using(self, route: Route) -> Iterator[None]:
        """Inside, the rows of a batch use the LoRAs of this route. For one thread at a time."""
        self._now = route
        try:
            yield
        finally:
            self._now, self._last = {}, None

    def _factors(self, name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        scale = lora_scale(config, name) * _embed_scale(self._layers[name])
        A_RI, B_OR = (parts[side].to(self._device, torch.promote_types(self._dtype, torch.float32)) for side in "AB")
        return A_RI.to(self._dtype).contiguous(), (B_OR.T * scale).to(self._dtype).contiguous()

    def _fits(self, name: str, factors: tuple[Tensor, Tensor]) -> bool:
        return tuple(part.shape[1] for part in factors) == _sizes(self._layers[name])

    def _set_beside(self, wanted: list[Lora]) -> None:
        """Put the wanted LoRAs side by side, with as many of those that were as there is room for."""
        total, beside = sum(lora.rank for lora in wanted), list(wanted)
        for lora in self._beside:
            if lora not in beside and total + lora.rank <= RANKS:
                beside.append(lora)
                total += lora.rank
        self._beside, self._joined = beside, {}
        groups: dict[str, list[str]] = {}
        for name in dict.fromkeys(name for lora in beside for name in lora.factors):
            groups.setdefault(self._firsts().get(name, name), []).append(name)
            self._adapt(name)
        for names in groups.values():
            self._join(names)

    def _join(self, names: Sequence[str]) -> None:
        """Put the LoRAs of layers that read the same side by side."""
        places = [(name, i) for name in names for i, lora in enumerate(self._beside) if name in lora.factors]
        factors = [self._beside[i].factors[name] for name, i in places]
        owners = tuple(i for (_, i), (A_RI, _) in zip(places, factors, strict=True) for _ in range(len(A_RI)))
        below, begin = _Below(torch.cat([A for A, _ in factors]), owners), 0
        for name in names:
            B_RO = torch.cat([B for (other, _), (_, B) in zip(places, factors, strict=True) if other == name])
            self._joined[name] = below, slice(begin, begin + len(B_RO)), B_RO
            begin += len(B_RO)

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
            y_BTO = own(x)
            found = self._now.get(name)
            if found is None:
                return y_BTO
            read, own_columns, B_RO = found
            h_NR = self._product(read, x, table)[:, own_columns]
            y_BTO.view(-1, y_BTO.shape[-1]).addmm_(h_NR, B_RO)
            return y_BTO

        return forward

    def _product(self, read: _Read, x: Tensor, table: bool) -> Tensor:
        """A x with each row's factors, [N, R]: rows and positions in one. Kept until another is asked for."""
        last = self._last
        if last is None or last[0] is not read or last[1] is not x:
            h_BTR = F.embedding(x, read.A_RI.T) if table else F.linear(x, read.A_RI)
            rows, _, rank = read.factor_B1R.shape
            h_NR = h_BTR.view(rows, -1, rank).mul_(read.factor_B1R).view(-1, rank)
            self._last = last = read, x, h_NR
        return last[2]


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


def _ordinary(state: Mapping[str, Tensor]) -> bool:
    return all(bool((part.abs() <= LARGEST).all()) for part in state.values())  # of NaN too this is not true
