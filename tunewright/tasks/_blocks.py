"""The blocks of a model's trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunewright.errors import BaseModelError

if TYPE_CHECKING:
    from torch import nn

MOST = 0.9
"""A child with so large a share of the weighted layers is the trunk, and what lies beside it is not."""


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


def unwrapped(module: nn.Module) -> nn.Module:
    """The model within PEFT's wrapper, where there is one; its layers may still be wrapped."""
    inner = getattr(module, "get_base_model", None)
    return inner() if inner else module


def blocks_of_names(module: nn.Module, names: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """The blocks by their names in the model, with the names that they have in a wrapped one."""
    bare = unwrapped(module)
    paths = {id(inner): path for path, inner in module.named_modules()}
    return [(paths[id(block)], block) for block in map(bare.get_submodule, names)]


def nested_blocks(module: nn.Module, head: str) -> list[str]:
    """The names of the blocks of any torch module, by rule.

    From the root into the child that holds nine of ten of the layers with weights (linear, convolutional, embeddings;
    the head does not count), and on, until there is no such child. The children there that have parameters are the
    blocks, in the order in which they are defined: `conv1, bn1, layer1, …` of a ResNet, `features.0, features.3, …`
    of a SqueezeNet. Layers are counted rather than parameters, most of which may lie in one wide linear layer (VGG).
    """
    place, name = module, ""
    while True:
        children = [(f"{name}{child}", inner) for child, inner in place.named_children()]
        count = sum(_layers(inner, path, head) for path, inner in children)
        deeper = [(p, inner) for p, inner in children if count and _layers(inner, p, head) >= MOST * count]
        if not deeper or not any(True for _ in deeper[0][1].children()):
            return [path for path, inner in children if path != head and any(True for _ in inner.parameters())]
        path, place = deeper[0]
        name = f"{path}."


def named_blocks(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """The names of the modules that the patterns match, in the order in which they are defined.

    `*` stands for any part of a name between two dots: `layer*.*` are the blocks within the layers of a ResNet.
    Raises BaseModelError for a pattern that matches nothing, and for blocks within each other.
    """
    there = [name for name, inner in module.named_modules() if name and any(True for _ in inner.parameters())]
    idle = [pattern for pattern in patterns if not any(_matches(pattern, name) for name in there)]
    if idle:
        top = ", ".join(name for name in there if "." not in name)
        raise BaseModelError(f"module.blocks: {', '.join(idle)} matches no module with parameters. At the top: {top}.")
    found = [name for name in there if any(_matches(pattern, name) for pattern in patterns)]
    inside = [(a, b) for a in found for b in found if b.startswith(f"{a}.")]
    if inside:
        raise BaseModelError(f"module.blocks: {inside[0][1]} lies within {inside[0][0]}. Name one of them.")
    return found


def _matches(pattern: str, name: str) -> bool:
    from fnmatch import fnmatchcase

    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _layers(module: nn.Module, name: str, head: str) -> int:
    """How many layers with weights there are in a module, the head not among them."""
    own = [
        inner for inner, m in module.named_modules(prefix=name) if any(p.ndim > 1 for p in m.parameters(recurse=False))
    ]
    return sum(inner != head for inner in own)
