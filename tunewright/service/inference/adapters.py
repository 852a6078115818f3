"""One copy of a base, many LoRAs: every row of a batch may use others, each with a factor of its own.

    y_b = W x_b + Σ_k c_bk · B_k A_k x_b

with all A below and all B beside one another, so that a layer needs two products for all of them: of A x the columns
of LoRAs that a row does not use are multiplied by 0. For that, all weights have to be finite and of ordinary size.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tunewright.artifacts.load import card_of_adapter, is_adapter, weights_folder
from tunewright.artifacts.start import start_of
from tunewright.methods._lora_file import CONFIG, DIFFUSERS, WEIGHTS, lora_scale, module_of, read_adapter, stackable

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
    """Whether a folder holds a LoRA for a language model, and nothing that trained beside it."""
    if not is_adapter(folder) or not (folder / CONFIG).is_file() or (folder / DIFFUSERS).exists():
        return False
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    more = ("modules_to_save", "trainable_token_indices", "layer_replication", "megatron_config")
    alone = stackable(config) and not any(config.get(name) for name in more)
    return alone and card_of_adapter(folder).task == "text-generation" and (folder / WEIGHTS).is_file()


# On a base


class Bank:
    """The LoRAs on a base. Its layers are changed once, and compute as before where no row uses one."""

    def __init__(self, module: nn.Module) -> None:
        self._layers = {name: part for name, part in module.named_modules() if _kind(part)}
        first = next(module.parameters())
        self._device, self._dtype = first.device, first.dtype
        self._lock = threading.Lock()
        self._adapted: set[str] = set()
        self._beside: list[Lora] = []
        self._joined: dict[str, tuple[Tensor, Tensor, tuple[int, ...]]] = {}
        self._now: Mapping[str, tuple[Tensor, Tensor, Tensor]] = {}

    def read(self, folder: Path) -> Lora | None:
        """The LoRA in a folder, on the base's device; None where it cannot stand side by side with others."""
        state, config = read_adapter(folder)
        names = {module_of(key) for key in state}
        known = all(name in self._layers and ".experts." not in name for name in names)
        if not names or not known or not _ordinary(state):
            return None
        found: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for key, tensor in state.items():
            found[module_of(key)]["A" if ".lora_A" in key or ".lora_embedding_A" in key else "B"] = tensor
        factors = {name: self._factors(name, parts, config) for name, parts in found.items()}
        return Lora(factors) if all(self._fits(name, factors[name]) for name in names) else None

    def forget(self, lora: Lora) -> None:
        with self._lock:
            if lora in self._beside:
                self._beside, self._joined = [], {}

    def route(self, rows: Sequence[Terms]) -> Mapping[str, tuple[Tensor, Tensor, Tensor]]:
        """For each layer all A [R, in], all B [R, out], and the factor of each column of A x in each row [B, 1, R]."""
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
        columns = {owners: factor_BK[:, list(owners)][:, None] for _, _, owners in joined.values()}
        return {name: (A_RI, B_RO, columns[owners]) for name, (A_RI, B_RO, owners) in joined.items()}

    @contextmanager
    def using(self, route: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Iterator[None]:
        """Inside, the rows of a batch use the LoRAs of this route. For one thread at a time."""
        self._now = route
        try:
            yield
        finally:
            self._now = {}

    def _factors(self, name: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        scale = lora_scale(config, name) * float(getattr(self._layers[name], "embed_scale", 1.0))
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
        for name in dict.fromkeys(name for lora in beside for name in lora.factors):
            parts = [(i, *lora.factors[name]) for i, lora in enumerate(beside) if name in lora.factors]
            owners = tuple(i for i, A_RI, _ in parts for _ in range(len(A_RI)))
            self._joined[name] = torch.cat([A for _, A, _ in parts]), torch.cat([B for _, _, B in parts]), owners
            self._adapt(name)

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
            A_RI, B_RO, factor_B1R = found
            h_BTR = F.embedding(x, A_RI.T) if table else F.linear(x, A_RI)
            rows, _, rank = factor_B1R.shape
            if h_BTR.dim() != 3:  # rows and positions in one
                h_BTR = h_BTR.view(rows, -1, rank)
            h_BTR.mul_(factor_B1R)
            y_BTO.view(-1, y_BTO.shape[-1]).addmm_(h_BTR.view(-1, rank), B_RO)
            return y_BTO

        return forward


def _kind(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Embedding, Conv1D))


def _sizes(layer: Any) -> tuple[int, int]:
    """(in, out) as a LoRA sees them."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return tuple(layer.weight.shape)


def _ordinary(state: Mapping[str, Tensor]) -> bool:
    return all(bool((part.abs() <= LARGEST).all()) for part in state.values())  # of NaN too this is not true
