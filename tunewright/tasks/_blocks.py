"""The blocks of a model's trunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def trunk_blocks(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of the trunk, by rule: the `ModuleList` with the most parameters, not nested in another one.

    Every transformers model keeps its layers so. Raises nothing: a module without such a list has no blocks.
    """
    from torch import nn

    lists = {name: m for name, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists if other != name)]
    if not outer:
        return []
    trunk = max(outer, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    return [(f"{trunk}.{i}", block) for i, block in enumerate(lists[trunk])]
