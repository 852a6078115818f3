"""An embedding table with rows behind its own, which alone may train."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NewRows(nn.Module):
    """`table` for its own tokens, and `rows` for those from `first` on.

    The table is not copied and no part of it can change, as it would if it were one with the rows.

    Args:
        start_VD: what the V new rows begin with.
    """

    start_VD: Tensor

    def __init__(self, table: nn.Embedding, start_VD: Tensor, first: int) -> None:
        super().__init__()
        self.table, self.first = table, first
        self.rows = nn.Parameter(start_VD.clone(), requires_grad=False)
        self.register_buffer("start_VD", start_VD, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The rows of all tokens, as one table has them."""
        return torch.cat([self.table.weight[: self.first], self.rows.to(self.table.weight.dtype)])

    def forward(self, ids: Tensor) -> Tensor:
        new = ids >= self.first
        known = self.table(ids.masked_fill(new, 0))
        return torch.where(new[..., None], self.rows[(ids - self.first).clamp(min=0)].to(known.dtype), known)

    def joined(self) -> nn.Embedding:
        return nn.Embedding.from_pretrained(self.weight.detach().clone())
