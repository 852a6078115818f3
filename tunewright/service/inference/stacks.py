"""LoRAs one above the other, and how the rows of a batch use them.

The rows of each LoRA are brought together, so that a layer needs two products of stacked matrices for all of them, and
layers that read the same (queries, keys and values) have them in common. A row meets no weights but its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, eq=False)
class Lora:
    """An adapter's weights by the names of the base's modules: A [R, in], and B [R, out] times its scale."""

    factors: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def rank(self) -> int:
        """Of the layer in which it is largest."""
        return max(A_RI.shape[0] for A_RI, _ in self.factors.values())


Terms = tuple[tuple[Lora, float], ...]
"""The LoRAs that a row uses, each with its factor."""


JOINED = 16384
"""Numbers of the B of layers that read the same up to which one product for all is faster than one for each."""

Part = tuple[slice, slice, Tensor]
"""Which columns of A x are read, which outputs are added to, and B [G, R, O] between them."""


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that read the same: A [G, I, R] of all.

    Attributes:
        own: a part for each layer.
        parts: what to compute for all of them: the same, or one with 0 where rank and output are of two layers.
    """

    A_GIR: Tensor
    own: Mapping[str, Part]
    parts: Sequence[Part]

    @property
    def bytes(self) -> int:
        return self.A_GIR.nbytes + sum(B_GRO.nbytes for *_, B_GRO in self.parts)


@dataclass(frozen=True, eq=False)
class Stack:
    """G LoRAs, filled up with zeros where others have a layer or a rank that they have not.

    Attributes:
        groups: by the first of the layers that read the same.
        first: for each layer that one.
    """

    loras: tuple[Lora, ...]
    groups: Mapping[str, Group]
    first: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        first = {name: first for first, group in self.groups.items() for name in group.own}
        object.__setattr__(self, "first", first)

    @property
    def bytes(self) -> int:
        return sum(group.bytes for group in self.groups.values())

    def only(self, wanted: Sequence[Lora]) -> Stack:
        """A copy with some of its LoRAs."""
        place = {lora: i for i, lora in enumerate(self.loras)}
        index_G = torch.tensor([place[lora] for lora in wanted])

        def chosen(part: Part) -> Part:
            return part[0], part[1], part[2].index_select(0, index_G.to(part[2].device))

        groups = {
            first: Group(
                group.A_GIR.index_select(0, index_G.to(group.A_GIR.device)),
                {name: chosen(part) for name, part in group.own.items()},
                [chosen(part) for part in group.parts],
            )
            for first, group in self.groups.items()
        }
        return Stack(tuple(wanted), groups)


def stacked(loras: Sequence[Lora], groups: Mapping[str, Mapping[str, int]]) -> Stack:
    """Args: groups: by the first of the layers that read the same, the names of all and how much each puts out."""
    return Stack(tuple(loras), {first: _group(loras, sizes) for first, sizes in groups.items()})


def _group(loras: Sequence[Lora], sizes: Mapping[str, int]) -> Group:
    columns, own, rank, begin = [], dict[str, Part](), 0, 0
    for name, size in sizes.items():
        have = next((lora.factors[name] for lora in loras if name in lora.factors), None)
        if have is not None:
            none = have[0][:0], have[1][:0]
            A_GRI, B_GRO = (
                pad_sequence([lora.factors.get(name, none)[side] for lora in loras], batch_first=True)
                for side in (0, 1)
            )
            columns.append(A_GRI.mT)
            own[name] = slice(rank, rank + A_GRI.shape[1]), slice(begin, begin + size), B_GRO
            rank += A_GRI.shape[1]
        begin += size
    A_GIR = torch.cat(columns, -1)
    if len(own) == 1 or rank * begin > JOINED:
        return Group(A_GIR, own, list(own.values()))
    joined_GRO = A_GIR.new_zeros(len(loras), rank, begin)
    for name, (ranks, outputs, B_GRO) in own.items():
        joined_GRO[:, ranks, outputs] = B_GRO
        own[name] = ranks, outputs, joined_GRO[:, ranks, outputs]
    return Group(A_GIR, own, [(slice(None), slice(None), joined_GRO)])


@dataclass(frozen=True, eq=False)
class Route:
    """How the rows of a batch use a stack: each of its LoRAs has M slots, of which some may be empty.

    Attributes:
        row_S: the row in each of the G · M slots, any in empty ones; None where all rows use the only LoRA.
        factor_GM1: by what a LoRA is multiplied in each slot; None for ones.
        slot_N, to_N: the slots that are not empty, in the order of their rows, and these; None for each row once.
    """

    stack: Stack
    row_S: Tensor | None
    factor_GM1: Tensor | None
    slot_N: Tensor
    to_N: Tensor | None

    def below(self, A_GIR: Tensor, x: Tensor, table: bool) -> Tensor:
        """A x of all slots, [G, M · T, R], with their factors; x is [B, I] or [B, T, I], for a table without I."""
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
            return
        added_N = torch.bmm(h_GNR, B_GRO).view(-1, *y.shape[1:]).index_select(0, self.slot_N)
        if self.to_N is None:
            y.add_(added_N)
        else:
            y.index_add_(0, self.to_N, added_N)


def routed(stack: Stack, rows: Sequence[Terms], device: torch.device, dtype: torch.dtype) -> Route:
    """How rows use a stack that holds all their LoRAs."""
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
        None if once and len(slots) == 1 else row_GM.view(-1).to(device),
        None if bool((factor_GM == 1).all()) else factor_GM.to(device, dtype)[..., None],
        slot_N.to(device),
        None if once else to_N.to(device),
    )
