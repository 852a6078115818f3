"""The least arithmetic that a workload needs, counted by formula: what no training loop can do without.

A product of an [m × k] with a [k × n] matrix is 2·m·k·n operations. Nothing is recomputed, nothing is padded.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Counts of a prepared workload.

    Attributes:
        rows: training rows.
        tokens: real tokens in them, with EOS, without padding.
        positions: positions that must be fed: a language model's last token of a row is never an input.
        position_pairs: pairs (query, key) that attention must look at, summed over rows; one layer.
        weighted: positions with a loss.
        shortest, longest: tokens of the shortest and the longest row.
        trunk: [out, in] of each linear layer within the blocks.
        head: [out, in] of each linear layer behind them, which runs at weighted positions only.
        hidden, layers: of the model.
        parameters: of the model, all of them.
        loss_before: validation loss of the untrained base; None where it has no head yet.
    """

    rows: int
    tokens: int
    positions: int
    position_pairs: int
    weighted: int
    shortest: int
    longest: int
    trunk: list[list[int]]
    head: list[list[int]]
    hidden: int
    layers: int
    parameters: int
    loss_before: float | None = None


def training_flops(facts: Facts, rank: int | None) -> float:
    """Operations of forward and backward over all rows once.

    LoRA: a frozen matrix costs its forward product and the gradient of its input, 2 + 2 operations a weight and
    position; an adapter's weight costs 6, as it needs its own gradient too. Full fine-tuning: 6 everywhere.
    Attention: QKᵀ and AV forward, twice that backward, at the pairs that the mask leaves.
    """
    trunk, head = _weights(facts.trunk), _weights(facts.head)
    attention = 12.0 * facts.position_pairs * facts.hidden * facts.layers
    if rank is None:
        return 6.0 * (trunk * facts.positions + head * facts.weighted) + attention
    adapters = sum(rank * (out + into) for out, into in facts.trunk)
    return (4.0 * trunk + 6.0 * adapters) * facts.positions + 4.0 * head * facts.weighted + attention


def _weights(shapes: list[list[int]]) -> int:
    return sum(out * into for out, into in shapes)
