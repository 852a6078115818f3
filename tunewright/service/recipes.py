"""What a client asked for as a recipe, and the guard against recipes that name code or paths (decision 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from tunewright.errors import RecipeError
from tunewright.grading import Grader
from tunewright.recipe import Recipe, make_recipe, referring
from tunewright.service.bounds import refuse_excess
from tunewright.service.entities import JobSpec
from tunewright.service.errors import Refused

OURS = ("device", "processes", "track", "seeds", "prefix_cache", "micro_batch_tokens")
"""Of `training`: what the machine and its owner decide."""
DEEPEST = 16
"""Levels of a recipe, of which the deepest that means anything has seven."""
SAMPLES = 8
"""Answers to a prompt in reinforcement, which `compute_multiplier` multiplies."""
BASE = "\0"
"""Stands for the base until all other names are resolved."""

Resolve = Callable[[str], str]
"""The name of a model, of the service or tuned → where it lies here. Raises Refused where there is none."""


def make_recipe_for(
    spec: JobSpec, base_path: str | Path, files: Mapping[str, str | Path], models: Resolve, output: str | Path | None
) -> Recipe:
    """The recipe of a job, for a machine where its files lie.

    What the API leaves open is as in any recipe, but that without a validation file no rows are held out: then all are
    learned, and the last weights are kept.

    Args:
        files: where `train` and, if there is one, `validation` lie.
        models: finds the model that a grader names.

    Raises:
        Refused: the client's part of it is not trusted, or cannot mean anything.
    """
    refuse_untrusted(spec.recipe)
    refuse_foreign(spec.method.grader)
    own = dict(spec.recipe)
    held_out: str | int = str(files["validation"]) if "validation" in files else 0
    document = {
        **own,
        "base": BASE,
        "data": {**own.get("data", {}), "train": str(files["train"]), "validation": held_out},
        "objective": _objective(spec),
        "training": {**_training(spec), **own.get("training", {})},
        "output": None if output is None else str(output),
    }
    try:
        recipe = make_recipe(document)
    except RecipeError as error:
        raise Refused(400, str(error), "invalid_recipe", "recipe") from error
    return referring(recipe, lambda name: str(base_path) if name == BASE else models(name))


def check(spec: JobSpec) -> None:
    """Raises Refused where a job asks for what no recipe can say. Models and files are not looked for."""
    files = {"train": "-", **({"validation": "-"} if spec.validation_file else {})}
    make_recipe_for(spec, "-", files, lambda name: name, None)


def decided(spec: JobSpec, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A job's hyperparameters as its run decided them.

    Args:
        recipe: the run's own, as its recipe.yaml says.
    """
    asked = {name: value for name, value in spec.method.hyperparameters if value not in (None, "auto")}
    training, objective = recipe["training"], recipe["objective"]
    found: dict[str, Any] = {"n_epochs": max(1, round(training["epochs"])), "learning_rate_multiplier": 1.0}
    if isinstance(training["batch"], int):
        found["batch_size"] = training["batch"]
    if spec.method.type == "dpo" and "beta" in objective:
        found["beta"] = objective["beta"]
    if spec.method.type == "reinforcement":
        found |= {"compute_multiplier": objective.get("samples", SAMPLES) / SAMPLES}
        found |= {"eval_samples": objective.get("evaluation_samples", 1)}
    return {**found, **asked}


# From the API's words to ours


def _objective(spec: JobSpec) -> Any:
    """That of the API's method, with what the client's recipe says of it; another one where it names another."""
    own = spec.recipe.get("objective", {})
    own = {"type": own} if isinstance(own, str) else own
    made = OBJECTIVES[spec.method.type](spec)
    if "rewards" in own and spec.method.grader:
        raise Refused(400, "recipe.objective.rewards: method.reinforcement.grader says it.", param="recipe")
    return {**made, **own} if own.get("type", made["type"]) == made["type"] else own


def _preference(spec: JobSpec) -> dict[str, Any]:
    beta = spec.method.hyperparameters.beta
    return {"type": "preference", **({} if beta == "auto" else {"beta": beta})}


def _reinforcement(spec: JobSpec) -> dict[str, Any]:
    asked = spec.method.hyperparameters
    made: dict[str, Any] = {"type": "rl", "rewards": [spec.method.grader] if spec.method.grader else []}
    if asked.compute_multiplier != "auto":
        made["samples"] = max(2, round(SAMPLES * asked.compute_multiplier))
    if asked.eval_samples != "auto":
        made["evaluation_samples"] = asked.eval_samples
    return made


OBJECTIVES: dict[str, Callable[[JobSpec], dict[str, Any]]] = {
    "supervised": lambda spec: {"type": "supervised"},
    "dpo": _preference,
    "reinforcement": _reinforcement,
}


def _training(spec: JobSpec) -> dict[str, Any]:
    asked = spec.method.hyperparameters
    named = {
        "epochs": asked.n_epochs,
        "batch": asked.batch_size,
        "rate_multiplier": asked.learning_rate_multiplier,
        "evaluate_every": asked.eval_interval,
    }
    made = {"snapshots": True, **{name: value for name, value in named.items() if value != "auto"}}
    return made if spec.seed is None else {**made, "seed": spec.seed}


def refuse_foreign(grader: Any, where: str = "method.reinforcement.grader") -> None:
    """Raises Refused where a grader would run code, or name a place here."""
    if grader is None:
        return
    if "python" in _types(grader):
        raise Refused(400, f"{where}: code of clients is not run here: there are no python graders.", param=where)
    for path in local_fields(grader, [Grader], where):
        raise Refused(400, f"{path} may not be set from afar: it names a place on the machine.", param=path)
    refuse_excess(grader, where)


def _types(document: Any, depth: int = DEEPEST) -> Iterator[Any]:
    if isinstance(document, dict) and depth:
        yield document.get("type")
        for value in document.values():
            yield from _types(value, depth - 1)


# What a recipe from afar may not say


def refuse_untrusted(recipe: Mapping[str, Any]) -> None:
    """Raises Refused (400), naming the field, where a client's recipe says what only this machine's owner may."""
    data, training = recipe.get("data", {}), recipe.get("training", {})
    for name, part in (("data", data), ("training", training)):
        if not isinstance(part, dict):
            raise Refused(400, f"recipe.{name} must be an object.", param=f"recipe.{name}")
    objective = recipe.get("objective", {})
    if not isinstance(objective, dict | str):
        raise Refused(400, "recipe.objective must be an object, or a name.", param="recipe.objective")
    for path in local_fields(recipe, [Recipe], "recipe"):
        said = "it names code or a place on the machine, or a file, which a job names by its id"
        raise Refused(400, f"{path} may not be set from afar: {said}.", param=path)
    for name in OURS:
        if name in training:
            path = f"recipe.training.{name}"
            raise Refused(400, f"{path} may not be set from afar: it is for the machine's owner to say.", param=path)
    refuse_excess(recipe)


def local_fields(document: Any, kinds: Iterable[Any], where: str, depth: int = DEEPEST) -> Iterator[str]:
    """The paths in a document at which there are fields marked `local_only`, whatever the values.

    Where a place may hold one of several models, as a union or under any name in a mapping, the fields of all count.

    Args:
        kinds: annotations of what may stand here.
    """
    if depth == 0:
        raise Refused(400, f"{where:.200} is too deep.", param=where[:200])
    if isinstance(document, list):
        for index, item in enumerate(document):
            yield from local_fields(item, kinds, f"{where}.{index}", depth - 1)
    if not isinstance(document, dict):
        return
    models, named = _models(kinds)
    for key, value in document.items():
        path = f"{where}.{key}"
        fields = [model.model_fields[key] for model in models if key in model.model_fields]
        if any(isinstance(f.json_schema_extra, dict) and f.json_schema_extra.get("local_only") for f in fields):
            yield path
        else:
            yield from local_fields(value, [*(field.annotation for field in fields), *named], path, depth - 1)


def _models(kinds: Iterable[Any]) -> tuple[list[type[BaseModel]], list[Any]]:
    """The models among annotations, and the annotations of what stands in their mappings, which may stand bare too."""
    models: list[type[BaseModel]] = []
    named: list[Any] = []
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            models.append(kind)
        elif get_origin(kind) is dict:
            inner = get_args(kind)[1:]
            named += inner
            models += _models(inner)[0]
        else:
            found = _models(one for one in get_args(kind) if one is not kind)
            models, named = models + found[0], named + found[1]
    return models, named
