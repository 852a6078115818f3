"""What a recipe would train, from shapes alone."""

from __future__ import annotations

from typing import Any

from tunewright.account import describe_parameters
from tunewright.artifacts.load import infer_task, shape_of
from tunewright.data.glance import first_rows, glance
from tunewright.reading import task_of_rows, wanted_kinds
from tunewright.recipe import Recipe
from tunewright.tasks import task_class
from tunewright.tasks._factories import is_factory
from tunewright.tasks._module_config import ModuleConfig
from tunewright.tasks._modules import laid_out, layout_of
from tunewright.tasks.base import Model

UNCHECKED = "The rows are not checked in a dry run: `tunewright check` does that."
UNCOUNTED = (
    "Rows of the vocabulary are not counted, which train too: those of data.special_tokens, and that of an end token "
    "which the base never learned (its weights tell that)."
)


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """What a recipe would train, from the shapes of its base alone: no weights are loaded.

    Of the rows no more than the first are looked at, where they are here: they tell the task that is not given. Else
    the base tells it, by what it was made for or by the head that transformers has for its kind.

    Raises TunewrightError for rows that are not there, and for what the base or the method refuse.
    """
    task, notices = _shape_of_task(recipe, _kind_of_rows(recipe))
    model = _module_shape(recipe, task) if is_factory(recipe.base) else task.load(shape_of(recipe.base), weights=False)
    recipe.method.extend(model)
    recipe.method.attach(model)
    notices += [UNCOUNTED] if _may_add_rows(recipe, model) else []
    counts = describe_parameters(model.module)
    return {"task": task.name, "method": recipe.method.type, "base": recipe.base, **counts, "notices": notices}


def _kind_of_rows(recipe: Recipe) -> str | None:
    """What the first training rows are. Raises DataError where any rows are missing, or are none."""
    data, kinds = recipe.data, wanted_kinds(recipe)
    for location in (*data.test_sets().values(), data.validation, data.prior):
        if isinstance(location, str | list):
            first_rows(location, data, kinds)
    return glance(first_rows(data.train, data, kinds), data)


def _may_add_rows(recipe: Recipe, model: Model) -> bool:
    """Whether single rows of the vocabulary may train beside what is counted."""
    if not recipe.method.trains_new_tokens or not hasattr(model.task, "unlearned_ends"):
        return False
    return not any(p.requires_grad for p in model.module.get_output_embeddings().parameters())


def _shape_of_task(recipe: Recipe, kind: str | None) -> tuple[Any, list[str]]:
    name, notices = recipe.task, [UNCHECKED]
    if name == "auto":
        name = task_of_rows(kind) or infer_task(recipe.base, by_kind=True)
        notices.append(f"Task: {name}, by the {'rows' if task_of_rows(kind) else 'base'}.")
    chosen = task_class(name)
    if not hasattr(chosen, "from_records") or is_factory(recipe.base):
        return chosen(), notices
    notices.append("The head is counted with two classes; no labels are read in a dry run.")
    task = chosen(["0", "1"])
    if recipe.training.zero_shot and hasattr(task, "templates"):
        task.templates = recipe.training.zero_shot
    return task, notices


def _module_shape(recipe: Recipe, task: Any) -> Model:
    said = recipe.module or ModuleConfig()
    module = laid_out(recipe.base, said)
    layout = layout_of(module)
    assert layout is not None
    return Model(module, said.image.processor(), task, recipe.base, along=(layout.head,))
