"""Recipes out of what Python code has in hand: keyword arguments, configurations, modules, DataFrames."""

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


def composed(recipe: Recipe | Mapping[str, Any] | str | Path | None, fields: Mapping[str, Any]) -> Recipe:
    """A recipe as it is, or made of a document or the file of one, with further keys on top; with absolute paths."""
    if isinstance(recipe, str | Path):
        recipe = read_document(Path(recipe))
    chosen = located(recipe if isinstance(recipe, Recipe) else make_recipe(plain({**(recipe or {}), **fields})))
    if chosen.training.processes > 1 and is_given(chosen.base):
        raise RecipeError(
            "training.processes: a module that is given as an object is in this process alone. Name a function that "
            'makes it: base="package.module:factory".'
        )
    return chosen


def as_chain(document: Recipe | Mapping[str, Any]) -> Chain | None:
    """The chain that a document with `stages` is, or a recipe whose rules are followed by clean rows; else None."""
    if not isinstance(document, Recipe) and "stages" in document:
        return make_chain(document)
    recipe = document if isinstance(document, Recipe) else make_recipe(document)
    followed = recipe.data.labeling is not None and recipe.data.labeling.then_clean is not None
    return then_clean(located(recipe)) if followed else None


def plain(value: Any) -> Any:
    """Configuration objects, paths, modules and DataFrames as a document, so that one parser sees all recipes.

    Of a configuration only what was set, of a torch module a name by which it is known, of a DataFrame its rows.
    """
    if hasattr(value, "model_dump"):
        typed = {"type": value.type} if hasattr(value, "type") else {}
        return {**typed, **value.model_dump(exclude_unset=True)}
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    torch = sys.modules.get("torch")  # whoever has a module has imported it
    if torch and isinstance(value, torch.nn.Module):
        return name_of(value)
    pandas = sys.modules.get("pandas")  # whoever has a DataFrame has imported it
    if pandas and isinstance(value, pandas.DataFrame):
        import pyarrow

        return pyarrow.Table.from_pandas(value, preserve_index=False).to_pylist()  # lists as lists, no NaN for nothing
    return fspath(value) if isinstance(value, PathLike) else value
