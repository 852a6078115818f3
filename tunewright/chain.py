"""Runs one after another, of which a later one may begin from an earlier one, or be rewarded by it.

    stages:
      supervised: {base: BASE, data: demonstrations.jsonl}
      reward: {base: BASE, data: comparisons.jsonl, objective: reward}
      policy:
        base: supervised
        data: prompts.jsonl
        objective: {type: rl, rewards: [{type: reward_model, run: reward}]}
    alpha: 0.8

Each stage is a recipe, and an ordinary run in a folder of its name. Its `base`, and what its rewards ask, may be the
name of an earlier stage. `alpha` is the point between start and end of the last stage that is written as a model.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from tunewright.data.config import DataConfig
from tunewright.data.kinds import Classified
from tunewright.data.labeling.rules import read_rules
from tunewright.data.records import load_records
from tunewright.errors import RecipeError
from tunewright.grading import GraderBase, Length
from tunewright.labeling import classifier, poll
from tunewright.options import Options
from tunewright.recipe import Recipe, as_yaml, checked, located, referring
from tunewright.tasks._classification import label_names, natural_order

WEAK, CLEAN, CLEAN_ONLY = "weak", "clean", "clean_only"


class Chain(Options):
    """Recipes by the names of their stages, in order; and the folder of all."""

    stages: dict[str, Recipe] = Field(min_length=1)
    alpha: float | None = Field(None, ge=0, le=1)
    output: str | None = None

    @field_validator("stages")
    @classmethod
    def _plain(cls, stages: dict[str, Recipe]) -> dict[str, Recipe]:
        for name, recipe in stages.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"{name!r}: a stage is named by letters, digits, - and _")
            if recipe.output is not None:
                raise ValueError(f"{name}.output: a stage lies in the folder of the chain; leave output out")
        return stages

    @model_validator(mode="after")
    def _seeds_go_on(self) -> Chain:
        seeds = {name: set(recipe.training.seeds or ()) for name, recipe in self.stages.items()}
        for name, recipe in self.stages.items():
            for other in named(recipe):
                if seeds.get(other) and not (seeds[name] and seeds[name] <= seeds[other]):
                    raise ValueError(
                        f"stages.{name}: {other} has a run for each of its training.seeds, and {name} goes on from the "
                        f"run of the same seed: give {name} these seeds too, or {other} none"
                    )
        if self.alpha is not None and self.last.training.seeds:
            raise ValueError("alpha is a point of one run, and the last stage has one for each of its training.seeds")
        return self

    def to_yaml(self) -> str:
        return as_yaml(self.model_dump(mode="json", exclude={"output"}))

    @property
    def last(self) -> Recipe:
        return list(self.stages.values())[-1]


def make_chain(document: Mapping[str, Any]) -> Chain:
    """Check a document with `stages`; paths become absolute, but names of earlier stages stay. Raises RecipeError."""
    chain = checked(Chain, document)
    placed: dict[str, Recipe] = {}
    for name, recipe in chain.stages.items():
        later = [other for other in named(recipe) if other in chain.stages and other not in placed]
        if later:
            raise RecipeError(f"The stage {name} asks for {later[0]}, which is no earlier stage. Change the order.")
        _refuse_unfit(name, recipe, placed)
        placed[name] = _located_but(recipe, placed)
    return chain.model_copy(update={"stages": placed})


def _refuse_unfit(name: str, recipe: Recipe, earlier: Mapping[str, Recipe]) -> None:
    """Raises RecipeError where an earlier stage is named that will have nothing of the kind."""
    for grader in _each_grader(recipe):
        asked = earlier.get(getattr(grader, "run", ""))
        if asked and (asked.objective.type == "reward") != (grader.type == "reward_model"):
            wanted = "objective: reward" if grader.type == "reward_model" else "classes"
            raise RecipeError(
                f"The stage {name}: the reward {grader.name} ({grader.type}) asks {getattr(grader, 'run', '')}, which "
                f"learns by objective: {asked.objective.type}. Name a stage that learns {wanted}."
            )


def _each_grader(recipe: Recipe) -> list[GraderBase]:
    """The rewards of a recipe, and those inside of others."""
    found = list(getattr(recipe.objective, "rewards", ()))
    return [*found, *(one for grader in found for one in getattr(grader, "graders", {}).values())]


def supposed(chain: Chain, name: str) -> Recipe:
    """A stage's recipe as far as it can be known before the earlier ones are done.

    It begins from the base that the stages before it go back to, with what they add to that; a constant stands for a
    reward that an earlier stage would give.
    """
    recipe = chain.stages[name]
    if recipe.base not in chain.stages:
        return _with_constants(recipe, chain.stages)
    begun = supposed(chain, recipe.base)
    data, tokens = recipe.data, dict.fromkeys([*begun.data.special_tokens, *recipe.data.special_tokens])
    data = data.model_copy(
        update={
            "chat_template": data.chat_template or begun.data.chat_template,
            "special_tokens": list(tokens) if recipe.method.trains_new_tokens else data.special_tokens,
        }
    )
    zero_shot = recipe.training.zero_shot or begun.training.zero_shot
    changes = {
        "base": begun.base,
        "weights": begun.weights,
        "module": begun.module,
        "data": data,
        "training": recipe.training.model_copy(update={"zero_shot": zero_shot}),
    }
    return _with_constants(recipe.model_copy(update=changes), chain.stages)


def _with_constants(recipe: Recipe, stages: Collection[str]) -> Recipe:
    rewards = getattr(recipe.objective, "rewards", None)
    if not rewards:
        return recipe
    known = [_known(grader, stages) for grader in rewards]
    return recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"rewards": known})})


def _known(grader: GraderBase, stages: Collection[str]) -> GraderBase:
    """The reward, or a constant of its name where it, or one inside of it, asks a stage."""
    if not any(_asks(one, stages) for one in (grader, *getattr(grader, "graders", {}).values())):
        return grader
    return Length(name=grader.name, weight=grader.weight, max=10**9)


def _asks(grader: GraderBase, stages: Collection[str]) -> bool:
    return any(getattr(grader, field, None) in stages for field in ("run", "model"))


def named(recipe: Recipe) -> list[str]:
    """The models that a recipe names: its base, and those that its rewards ask."""
    found: list[str] = []
    referring(recipe, lambda name: found.append(name) or name)  # type: ignore[func-returns-value]
    return found


def _located_but(recipe: Recipe, stages: Collection[str]) -> Recipe:
    """The recipe with absolute paths, in which the names of stages stay, whatever lies here under those names."""
    marks = {f"\0{stage}": stage for stage in stages}
    hidden = referring(recipe, lambda name: f"\0{name}" if name in stages else name)
    return referring(located(hidden), lambda name: marks.get(name, name))


def then_clean(recipe: Recipe) -> Chain:
    """A recipe with `data.labeling.then_clean` as stages: what rules label, then the clean rows; and these alone."""
    labeling = recipe.data.labeling
    assert labeling is not None and labeling.then_clean is not None
    data = recipe.data.model_copy(update={"classes": recipe.data.classes or _classes(recipe.data)})
    weak = data.model_copy(update={"labeling": labeling.model_copy(update={"then_clean": None})})
    clean = data.model_copy(update={"labeling": None, "train": labeling.then_clean})
    bare = recipe.model_copy(update={"output": None})
    stages = {
        WEAK: bare.model_copy(update={"data": weak}),
        CLEAN_ONLY: bare.model_copy(update={"data": clean}),
        CLEAN: bare.model_copy(update={"data": clean, "base": WEAK}),
    }
    return Chain(stages=stages, output=recipe.output)


def _classes(data: DataConfig) -> list[str]:
    """Those that rules vote for and those of the clean rows: all stages have the same, so that a head goes on."""
    config = data.labeling
    assert config is not None and config.then_clean is not None
    voted = poll(data.train, read_rules(config.rules, classifier, config.ignore_case), columns=data.columns).labels
    clean = load_records(config.then_clean, data.model_copy(update={"on_bad_rows": "skip"})).records
    named = {name for record in clean if isinstance(record, Classified) for name in label_names(record.label)}
    return sorted({*voted, *named}, key=natural_order)
