"""Recipes out of what Python code has in hand: keyword arguments, configurations, modules, rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from tunewright.chain import Chain, make_chain, then_clean
from tunewright.errors import RecipeError
from tunewright.recipe import Recipe, located, make_recipe, read_document
from tunewright.tasks._factories import is_given, name_of


def composed(recipe: Recipe | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]) -> Recipe | Chain:
    """A recipe as it is, or made of a document or the file of one, with further keys on top; with absolute paths.

    The chain that it is, where the document has `stages`, or where rules are followed by clean rows.
    """
    if isinstance(recipe, str | Path):
        recipe = read_document(Path(recipe))
    document = recipe if isinstance(recipe, Recipe) else plain({**(recipe or {}), **fields})
    if not isinstance(document, Recipe) and "stages" in document:
        return make_chain(document)
    chosen = located(document if isinstance(document, Recipe) else make_recipe(document))
    if chosen.training.processes > 1 and is_given(chosen.base):
        raise RecipeError(
            "training.processes: a module that is given as an object is in this process alone. Name a function that "
            'makes it: base="package.module:factory".'
        )
    followed = chosen.data.labeling is not None and chosen.data.labeling.then_clean is not None
    return then_clean(chosen) if followed else chosen


def plain(value: Any) -> Any:
    """Configuration objects, paths and modules as a document, so that one parser sees all recipes.

    Of a configuration only what was set, of a torch module a name by which it is known.
    """
    if hasattr(value, "model_dump"):
        typed = {"type": value.type} if hasattr(value, "type") else {}
        return {**typed, **value.model_dump(exclude_unset=True)}
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    torch = sys.modules.get("torch")  # whoever has a module has imported it
    if torch and isinstance(value, torch.nn.Module):
        return name_of(value)
    return fspath(value) if isinstance(value, PathLike) else value
