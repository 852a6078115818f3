"""One copy of a base, many LoRAs: every row of a batch may use others, each with a factor of its own.

    y_b = W x_b + Σ_k c_bk · B_k A_k x_b

The rows of tokens that trained are LoRAs too: what is added to a row, where its token stands.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
from tunewright.service.inference.stacks import Lora, Route, Stack, Terms, routed, stacked

RANKS = 256
"""LoRAs that were used before stay stacked with those in use up to so many ranks, those of filling up among them."""


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


class Bank:
    """The LoRAs on a base. Its layers are changed once, and compute as before where no row uses one."""

    def __init__(self, module: nn.Module) -> None:
        self._layers: dict[str, Any] = {name: part for name, part in module.named_modules() if _kind(part)}
        first = next(module.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._lock = threading.Lock()
        self._adapted: set[str] = set()
        self._stacks: dict[int, Stack] = {}
        self._alone: dict[Lora, Stack] = {}
        self._now: tuple[Route, ...] = ()
        self._last: dict[Route, tuple[str, Tensor, Tensor]] = {}
        self._module = module
        self._groups: dict[str, tuple[str, ...]] | None = None

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
        if not all(self._fits(name, factors[name]) for name in factors):
            return None
        lora = Lora(factors)
        self._alone[lora] = self._stacked([lora])
        return lora

    def bytes_of(self, lora: Lora) -> int:
        """What it takes in memory: by itself, stacked alone, and with others."""
        own = sum(part.nbytes for factors in lora.factors.values() for part in factors)
        return own + 2 * self._alone[lora].bytes

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
            self._alone.pop(lora, None)
            self._stacks = {kind: stack for kind, stack in self._stacks.items() if lora not in stack.loras}

    def route(self, rows: Sequence[Terms]) -> tuple[Route, ...]:
        """How the rows of a batch use LoRAs: those of similar ranks together, so that little is filled up."""
        kinds: dict[int, list[Lora]] = {}
        for lora in dict.fromkeys(lora for terms in rows for lora, _ in terms):
            kinds.setdefault(_rank_kind(lora), []).append(lora)
        found = []
        for kind, wanted in kinds.items():
            with self._lock:
                stack = self._stack_of(kind, wanted)
            for name in stack.first:
                self._adapt(name)
            own = [tuple(term for term in terms if _rank_kind(term[0]) == kind) for terms in rows]
            found.append(routed(stack, own, self._device, self._dtype))
        return tuple(found)

    def reads_as_one(self, joints: Sequence[tuple[str, ...]]) -> bool:
        """Whether the layers that each of these names reads the same, and nothing else that may be adapted does."""
        return all(self._read_together().get(names[0]) == names for names in joints)

    def add(self, first: str, x: Tensor, y: Tensor) -> None:
        """Add LoRAs to the outputs of all layers that read the same, x [B, I], side by side in y [B, ΣO]."""
        for route in self._now:
            if act := route.acts.get(first):
                act(x, y)

    @contextmanager
    def using(self, routes: tuple[Route, ...]) -> Iterator[None]:
        """Inside, the rows of a batch use the LoRAs of these routes. For one thread at a time."""
        self._now = routes
        try:
            yield
        finally:
            self._now, self._last = (), {}

    def _factors(self, name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        scale = lora_scale(config, name) * _embed_scale(self._layers[name])
        A_RI, B_OR = (parts[side].to(self._device, torch.promote_types(self._dtype, torch.float32)) for side in "AB")
        return A_RI.to(self._dtype).contiguous(), (B_OR.T * scale).to(self._dtype).contiguous()

    def _fits(self, name: str, factors: tuple[Tensor, Tensor]) -> bool:
        return tuple(part.shape[1] for part in factors) == _sizes(self._layers[name])

    def _stack_of(self, kind: int, wanted: list[Lora]) -> Stack:
        """A stack with the wanted LoRAs, and with some of those that were in use before: they come again."""
        stack = self._stacks.get(kind)
        if len(wanted) == 1:  # one that was forgotten meanwhile is stacked for this once
            return self._alone.get(wanted[0]) or self._stacked(wanted)
        if not stack or not set(wanted) <= set(stack.loras):
            loras = list(wanted)
            for lora in stack.loras if stack else ():
                if lora not in loras and (len(loras) + 1) * max(one.rank for one in [*loras, lora]) <= RANKS:
                    loras.append(lora)
            stack = self._stacked(loras)
            if all(lora in self._alone for lora in loras):  # else one was forgotten meanwhile
                self._stacks[kind] = stack
        return stack if 2 * len(wanted) > len(stack.loras) else stack.only(wanted)

    def _stacked(self, loras: Sequence[Lora]) -> Stack:
        adapted = {name for lora in loras for name in lora.factors}
        groups = {first: names for first, names in self._read_together().items() if adapted & set(names)}
        return stacked(
            loras, {first: {name: _sizes(self._layers[name])[1] for name in names} for first, names in groups.items()}
        )

    def _read_together(self) -> dict[str, tuple[str, ...]]:
        """Layers that read the same tensor one after another, by the first; found by a look at a token's way."""
        if self._groups is None:
            firsts: dict[str, str] = {}
            with suppress(Exception):  # then each layer is by itself
                firsts = _firsts(self._module, self._layers)
            groups: dict[str, list[str]] = {}
            for name in {**firsts, **self._layers}:  # in the order in which they are called
                groups.setdefault(firsts.get(name, name), []).append(name)
            self._groups = {first: tuple(names) for first, names in groups.items()}
        return self._groups

    def _adapt(self, name: str) -> None:
        if name not in self._adapted:
            self._adapted.add(name)
            layer = self._layers[name]
            layer.forward = self._with_loras(name, layer.forward, isinstance(layer, nn.Embedding))  # type: ignore[method-assign]

    def _with_loras(self, name: str, own: Callable[[Tensor], Tensor], table: bool) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            y = own(x)
            for route in self._now:
                if first := route.stack.first.get(name):
                    group = route.stack.groups[first]
                    if len(group.own) > 1:
                        h_GNR = self._below(route, first, group.A_GIR, x, table)[..., group.places[name][0]]
                        route.add(y, h_GNR, group.own[name])
                    elif x.ndim == 2 and not table and group.joined_GRO is not None:
                        route.acts[first](x, y)
                    else:
                        route.add(y, route.below(group.A_GIR, x, table), group.own[name])
            return y

        return forward

    def _below(self, route: Route, first: str, A_GIR: Tensor, x: Tensor, table: bool) -> Tensor:
        """What layers that read the same have in common, kept until another is asked for."""
        last = self._last.get(route)
        if last is None or last[0] != first or last[1] is not x:
            self._last[route] = last = first, x, route.below(A_GIR, x, table)
        return last[2]


def _rank_kind(lora: Lora) -> int:
    """LoRAs are stacked with those of the same; the largest rank is less than twice the least."""
    return lora.rank.bit_length()


def _firsts(module: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
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
