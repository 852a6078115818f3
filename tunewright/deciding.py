"""What a recipe leaves open is decided, and what would have no effect is refused, once model and rows are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.data.batches import Example
from tunewright.engine.config import TrainingConfig
from tunewright.engine.device import auto_batch, auto_learning_rate
from tunewright.engine.job import Job
from tunewright.errors import RecipeError, counted
from tunewright.evaluation.evaluate import refuse_idle_evaluation, refuse_idle_on_prompts
from tunewright.methods.base import Method, moving_norms
from tunewright.objectives.base import Objective
from tunewright.objectives.supervised import NOISING, Supervised, class_weights
from tunewright.recipe import Recipe
from tunewright.tasks._blocks import unwrapped
from tunewright.tasks.base import Model, Task


def refuse_idle_training(recipe: Recipe, task: Task, validation: bool) -> None:
    """Options of the training that would have no effect on this task and these sets of rows. Raises RecipeError."""
    training, idle = recipe.training, [] if validation else ["patience", "evaluate_every"]
    if recipe.evaluation.prompts:  # drawn at each evaluation, whether or not there is anything else to measure
        idle = idle[:1]
    for option in idle:
        if getattr(training, option) is not None:
            raise RecipeError(f"training.{option} needs validation rows. Give data.validation, or leave {option} out.")
    if training.packing and not task.packs:
        raise RecipeError(f"training.packing: {task.name} does not pack rows. Leave it out.")
    if training.packing and not recipe.objective.packs:
        raise RecipeError(f"training.packing does not go with objective: {recipe.objective.type}. Leave it out.")
    if training.packing and not recipe.method.packs():
        raise RecipeError(
            "training.packing does not go with virtual tokens, which would stand in front of the first row."
        )


def decide(training: TrainingConfig, method: Method, model: Model, rows: int, objective: Objective) -> TrainingConfig:
    """Replace `auto` by the documented rules.

    Args:
        rows: how many the training set has.
        objective: has a rate over that of supervised training, and says how many rows it compares with one another.
    """
    changes: dict[str, Any] = {}
    if training.learning_rate == "auto":
        rate = float(f"{_rate(method, model) * objective.rate:.2g}") * training.rate_multiplier
        changes |= {"learning_rate": rate, "rate_multiplier": 1.0}  # what is decided can be read again as it is
    if training.batch == "auto" and training.batch_tokens is None:
        changes["batch"] = auto_batch(rows, bool(moving_norms(model.module, method)), objective.enough)
    return training.model_copy(update=changes)


def _rate(method: Method, model: Model) -> float:
    """The task's own rate for the method, where it has one; else the method's, by the model's width."""
    own: Mapping[str, float] = getattr(model.task, "rates", {})
    if method.type in own:
        return own[method.type]
    reference = method.learning_rate * (NORMED if _is_normed(model, method) else 1)
    return auto_learning_rate(reference, hidden_size(model)) if method.scaled else reference


NORMED = 10
"""How much larger the automatic rate is where batch norms of the trunk train.

They take the scale out of the weights in front of them, and with it most of the effect of a step (van Laarhoven, arXiv
1706.05350). Measured in full training, one seed: ResNet-20 on noisy CIFAR-10 (800 rows, 3 epochs) has 55.0 % at the
rate by width, 1.5e-4, and 62.8 % at ten times that; SqueezeNet, without batch norms, on ants and bees 83.0 % at the
rate by width, 5e-5, and 79.1 % at ten times that.
"""


def _is_normed(model: Model, method: Method) -> bool:
    along = {id(m) for name in model.along for m in unwrapped(model.module).get_submodule(name).modules()}
    return any(id(norm) not in along for norm in moving_norms(model.module, method))


def hidden_size(model: Model) -> int:
    return int(model.task.width(model.module))


def refuse_small_steps(job: Job) -> None:
    """Raises RecipeError where a step has too few prompts to compare their answers, or to deal them out to `parts`."""
    sizes, objective = [len(rows) for _, rows in job.plan], job.objective
    most, parts = max(sizes), getattr(objective, "parts", 1)
    if parts > most:
        raise RecipeError(f"objective.parts: {parts} is more than the {most} prompts of a step. Raise training.batch.")
    if "prompt" in objective.reads and min(sizes) < objective.least:
        raise RecipeError(
            f"objective.algorithm: {getattr(objective, 'algorithm', '')} compares an answer with the others of its "
            "step, and here a step has a single answer. Set training.batch or objective.samples to 2 or more."
        )


def refuse_endless_warmup(job: Job) -> None:
    """Raises RecipeError where the learning rate would still rise when the run ends."""
    warmup, steps = job.config.warmup, len(job.plan)
    if warmup >= 1 and warmup >= steps:
        raise RecipeError(
            f"training.warmup: the warm-up takes {counted(round(warmup), 'step')}, and the run has {steps:,}. Set it "
            "lower, or to a share such as 0.05, or train longer."
        )


def rows_beyond_a_step(job: Job) -> list[str]:
    """A notice where rows alone are longer than a step was to be."""
    budget = job.config.batch_tokens
    long = [length for length in job.lengths if budget is not None and length > budget]
    if not long:
        return []
    rows = counted(len(long), "row is longer", "rows are longer")
    return [f"training.batch_tokens: {rows} than {budget:,}, up to {max(long):,}: each is a step of its own. Raise it."]


ENOUGH = 100
"""Steps. With fewer, images look as before: DreamBooth takes some 1,000 (Ruiz et al., arXiv 2208.12242, section 4)."""


def few_steps(job: Job) -> list[str]:
    """A notice where images are to be learned in very few steps, as three epochs of five images would be."""
    steps = len(job.plan)
    if not job.model.task.diffuses or steps >= ENOUGH:
        return []
    return [
        f"{counted(steps, 'step')} in all: images usually take some hundreds to be learned. Set training.max_steps."
    ]


def refuse_idle(recipe: Recipe, model: Model) -> None:
    """Options that would have no effect on this model and these rows."""
    refuse_idle_evaluation(recipe.evaluation, model)
    objective = recipe.objective
    prior = recipe.data.prior or recipe.data.prior_prompt
    if getattr(objective, "prior_weight", 1) != 1 and not prior:
        raise RecipeError("objective.prior_weight is for data.prior or data.prior_prompt. Leave it out, or give one.")
    if "prompt" in objective.reads:
        refuse_idle_on_prompts(recipe.evaluation)
    if not isinstance(objective, Supervised):
        return
    if objective.router_loss and not model.task.routes(model.module):
        raise RecipeError("objective.router_loss is for language models that are mixtures of experts. Leave it out.")
    predicts = model.task.predicts(model) if hasattr(model.task, "predicts") else ""
    if objective.label_smoothing and (predicts or getattr(model.task, "kind", "") == "regression"):
        raise RecipeError("objective.label_smoothing is for classes, and these rows have none. Leave it out.")
    if idle := [name for name in NOISING if getattr(objective, name) and not predicts]:
        raise RecipeError(f"objective.{idle[0]} is for text-to-image, which learns from noise. Leave it out.")
    if objective.min_snr and predicts == "flow":
        raise RecipeError("objective.min_snr is not defined for flow matching, as this base does it. Leave it out.")


def weigh_classes(recipe: Recipe, task: Task, examples: Sequence[Example]) -> None:
    """Fold class weights into the training rows' weights, in place."""
    wanted = recipe.objective.class_weights if isinstance(recipe.objective, Supervised) else None
    if wanted is None:
        return
    labels = getattr(task, "labels", None)
    if not labels or getattr(task, "kind", "") != "single_label":
        raise RecipeError("objective.class_weights is for classifiers with one label a row. Leave it out.")
    weight_C = class_weights(wanted, labels, examples)
    for example in examples:
        soft = example.target.dtype.kind == "f"
        example.weight[:] *= float(example.target @ weight_C) if soft else weight_C[example.target[0]]
