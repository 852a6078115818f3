"""LoRAs one above the other, and how the rows of a batch use them.

The rows of each LoRA are brought together, so that a layer needs two products of stacked matrices for all of them, and
layers that read the same (queries, keys and values) have them in common. A row meets no weights but its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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


Act = Callable[[Tensor, Tensor], object]
"""Adds to the second what it makes of the first."""

Terms = tuple[tuple[Lora, float], ...]
"""The LoRAs that a row uses, each with its factor."""


JOINED = 16384
"""Numbers of the B of layers that read the same up to which one product for all is faster than one for each."""


@dataclass(frozen=True, eq=False)
class Group:
    """Layers that read the same: A [G, I, R] of all.

    Attributes:
        places: for each layer, which columns of A x it reads, and which of the outputs of all are its own.
        own: for each layer B [G, its R, its O].
        joined_GRO: B of all, with 0 where rank and output are of two layers: own are its parts; None where one product
            for each is faster.
    """

    A_GIR: Tensor
    places: Mapping[str, tuple[slice, slice]]
    own: Mapping[str, Tensor]
    joined_GRO: Tensor | None = None

    @classmethod
    def joined(cls, A_GIR: Tensor, places: Mapping[str, tuple[slice, slice]], joined_GRO: Tensor) -> Group:
        own = {name: joined_GRO[:, ranks, outputs] for name, (ranks, outputs) in places.items()}
        return cls(A_GIR, places, own, joined_GRO)

    @property
    def bytes(self) -> int:
        parts = self.own.values() if self.joined_GRO is None else (self.joined_GRO,)
        return self.A_GIR.nbytes + sum(B_GRO.nbytes for B_GRO in parts)

    def only(self, index_G: Tensor) -> Group:
        A_GIR = self.A_GIR.index_select(0, index_G)
        if self.joined_GRO is not None:
            return Group.joined(A_GIR, self.places, self.joined_GRO.index_select(0, index_G))
        return Group(A_GIR, self.places, {name: B_GRO.index_select(0, index_G) for name, B_GRO in self.own.items()})


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
        device = next(iter(self.groups.values())).A_GIR.device
        index_G = torch.tensor([place[lora] for lora in wanted], device=device)
        return Stack(tuple(wanted), {first: group.only(index_G) for first, group in self.groups.items()})


def stacked(loras: Sequence[Lora], groups: Mapping[str, Mapping[str, int]]) -> Stack:
    """Args: groups: by the first of the layers that read the same, the names of all and how much each puts out."""
    return Stack(tuple(loras), {first: _group(loras, sizes) for first, sizes in groups.items()})


def _group(loras: Sequence[Lora], sizes: Mapping[str, int]) -> Group:
    columns, places, own, rank, begin = [], dict[str, tuple[slice, slice]](), dict[str, Tensor](), 0, 0
    for name, size in sizes.items():
        have = next((lora.factors[name] for lora in loras if name in lora.factors), None)
        if have is not None:
            none = have[0][:0], have[1][:0]
            A_GRI, B_GRO = (
                pad_sequence([lora.factors.get(name, none)[side] for lora in loras], batch_first=True)
                for side in (0, 1)
            )
            columns.append(A_GRI.mT)
            own[name] = B_GRO
            places[name] = slice(rank, rank + A_GRI.shape[1]), slice(begin, begin + size)
            rank += A_GRI.shape[1]
        begin += size
    A_GIR = torch.cat(columns, -1)
    if len(sizes) > 1 and (len(own) == 1 or rank * begin > JOINED):
        return Group(A_GIR, places, own)
    joined_GRO = A_GIR.new_zeros(len(loras), rank, begin)
    for name, (ranks, outputs) in places.items():
        joined_GRO[:, ranks, outputs] = own[name]
    return Group.joined(A_GIR, places, joined_GRO)


class Moves(NamedTuple):
    """The row in each of the G · M slots, any in empty ones; the slots that are not empty, in the order of their rows,
    and these; None for each row once.
    """

    row_S: Tensor
    slot_N: Tensor
    to_N: Tensor | None


@dataclass(frozen=True, eq=False)
class Route:
    """How the rows of a batch use a stack: each of its LoRAs has M slots, of which some may be empty.

    Attributes:
        factor_GM1: by what a LoRA is multiplied in each slot; None for ones.
        moves: None where the slots are the rows in their order.
        acts: what adds to the outputs y [B, ΣO] of layers that read the same x [B, I], by the first of them.
    """

    stack: Stack
    factor_GM1: Tensor | None
    moves: Moves | None = None
    acts: Mapping[str, Act] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "acts", {first: self._act(group) for first, group in self.stack.groups.items()})

    def _act(self, group: Group) -> Act:
        """It is called for each token: what can be known before is not looked up then."""
        A_GIR, B_GRO = group.A_GIR, group.joined_GRO
        if B_GRO is None:
            return lambda x, y: self._add_each(group, x, y)
        if self.moves or self.factor_GM1 is not None:
            return lambda x, y: self.add(y, self.below(A_GIR, x), B_GRO)
        count, size, width = len(A_GIR), A_GIR.shape[1], B_GRO.shape[2]
        if count > 1:
            return lambda x, y: y.view(count, -1, width).baddbmm_(torch.bmm(x.view(count, -1, size), A_GIR), B_GRO)
        A_IR, B_RO = A_GIR[0], B_GRO[0]
        return lambda x, y: y.addmm_(torch.mm(x, A_IR), B_RO)

    def _add_each(self, group: Group, x: Tensor, y: Tensor) -> None:
        h_GNR = self.below(group.A_GIR, x)
        for name, (ranks, outputs) in group.places.items():
            self.add(y[:, outputs], h_GNR[..., ranks], group.own[name])

    def below(self, A_GIR: Tensor, x: Tensor, table: bool = False) -> Tensor:
        """A x of all slots, [G, M · T, R], with their factors; x is [B, I] or [B, T, I], for a table without I."""
        count, size, rank = A_GIR.shape
        if self.moves:
            x = x.index_select(0, self.moves.row_S)
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
        if not self.moves:
            y.view(*h_GNR.shape[:2], -1).baddbmm_(h_GNR, B_GRO)
            return
        added_N = torch.bmm(h_GNR, B_GRO).view(-1, *y.shape[1:]).index_select(0, self.moves.slot_N)
        if self.moves.to_N is None:
            y.add_(added_N)
        else:
            y.index_add_(0, self.moves.to_N, added_N)


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
    every_B = torch.arange(len(rows))
    factor_GM1 = None if bool((factor_GM == 1).all()) else factor_GM.to(device, dtype)[..., None]
    if taken_GM.all() and torch.equal(row_GM.view(-1), every_B):
        return Route(stack, factor_GM1)
    once = torch.equal(to_N, every_B)
    moves = Moves(row_GM.view(-1).to(device), slot_N.to(device), None if once else to_N.to(device))
    return Route(stack, factor_GM1, moves)
