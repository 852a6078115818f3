"""Batch norms that no model can be tuned with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunewright.errors import BaseModelError

if TYPE_CHECKING:
    from torch import nn


def refuse_no_statistics(module: nn.Module, base: str) -> None:
    """Raise BaseModelError for a batch norm without running statistics: with it, an answer is one of a whole batch."""
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [(name, m) for name, m in module.named_modules() if isinstance(m, _BatchNorm)]
    without = [name for name, norm in norms if norm.running_mean is None]
    if without:
        more = f" and {len(without) - 3} more" if len(without) > 3 else ""
        raise BaseModelError(
            f"{base} has batch norms without running statistics ({', '.join(without[:3])}{more}): what it says of a "
            "row would depend on the rows beside it. Let them have some: track_running_stats=True."
        )
