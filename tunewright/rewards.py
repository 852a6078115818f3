"""The rewards of a recipe, ready to score: the models that they ask are loaded, and answers find their rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from tunewright.artifacts.load import load
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Completion, Conversation, Prompt, Ranking
from tunewright.data.messages import text_of
from tunewright.engine.device import pick_device
from tunewright.engine.job import Rewards
from tunewright.errors import BaseModelError, DataError, RecipeError
from tunewright.grading import GraderBase, Reward, Sample, check_items, checked
from tunewright.labeling import classifier
from tunewright.tasks._values import new_critic
from tunewright.tasks.base import Model

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
LONGEST_SCORE = 16
"""Tokens of a judge's answer, unless its sampling parameters say otherwise."""
JUDGED = DataConfig(train="-", overlength="truncate_prompt")


def rewards_of(graders: Sequence[GraderBase], prompts: Sequence[Prompt], device: str = "auto") -> Rewards:
    """What scores answers to these prompts: by its name, and of `rules` by each rule too.

    Raises:
        RecipeError, BaseModelError: a model that a reward names cannot do what it is asked for.
        DataError: rows lack a column that a template names.
    """
    rows = {prompt.source: prompt for prompt in prompts}
    check_items(graders, [prompt.item for prompt in prompts])
    models = _models(device)
    made = {grader.name: grader.reward(models) for grader in graders}

    def rewards(sources: Sequence[str], answers: Sequence[Any]) -> dict[str, list[float]]:
        samples = [_sample(rows[source], answer) for source, answer in zip(sources, answers, strict=True)]
        return {name: checked(name, reward, samples) for name, reward in made.items()}

    return rewards


def _sample(row: Prompt, answer: Any) -> Sample:
    if isinstance(row.prompt, str):
        return Sample(answer.text, row.item, row.prompt, len(answer.tokens), answer.ended)
    asked = "\n".join(f"{message['role']}: {text_of(message)}" for message in row.prompt)
    return Sample(answer.text, row.item, asked, len(answer.tokens), answer.ended, (row.prompt, row.tools))


def _models(device: str) -> dict[str, Callable[..., Any]]:
    """What makes a reward of the configuration of one that asks a model; each model is loaded once."""
    loaded = cache(lambda where: load(where, str(pick_device(device))))
    asked = cache(lambda where: classifier(where, device))
    return {
        "reward_model": lambda config: _reward_model(loaded(config.run), config.run),
        "classifier": lambda config: _classifier(asked(config.run), config),
        "rules": lambda config: _rules(asked(config.run), config),
        "score_model": lambda config: _judge(loaded(config.model), config),
    }


def _reward_model(model: Model, run: str) -> Reward:
    task: Any = model.task
    if getattr(task, "labels", None) != ["reward"]:
        raise BaseModelError(f"{run} is no reward model: train one with objective: reward, and name its run.")

    def reward(samples: Sequence[Sample]) -> list[float]:
        rows = [Ranking(_judged(sample), f"answer {i}") for i, sample in enumerate(samples)]  # type: ignore[arg-type]
        encoded = task.encode(model, rows, JUDGED)
        if len(encoded.examples) < len(samples):
            raise DataError(f"{len(samples) - len(encoded.examples)} answers do not fit into {run}'s context.")
        scores: np.ndarray = task.predict(model, encoded.examples).score_S
        return [float(score) for score in scores]

    return reward


def _judged(sample: Sample) -> tuple[Completion] | tuple[Conversation]:
    """A sample as a row that a reward model reads. An answer without a word is a space, which can be read."""
    text = sample.text if sample.text.strip() else " "
    if sample.messages is None:
        return (Completion(sample.prompt, text, ""),)
    messages, tools = sample.messages
    context = [{**message, **({"weight": 0} if message["role"] == "assistant" else {})} for message in messages]
    return (Conversation([*context, {"role": "assistant", "content": text}], tools, ""),)


def _classifier(ask: Any, config: Any) -> Reward:
    def reward(samples: Sequence[Sample]) -> list[float]:
        asked = [(s.prompt, s.text) if config.input == "both" else s.text for s in samples]
        return [_probability(found, config.label, config.run) for found in ask(asked)]

    return reward


def _rules(ask: Any, config: Any) -> Reward:
    """Less the probability that each rule is broken (Glaese et al. 2022, arXiv 2209.14375, section 2.4)."""

    def reward(samples: Sequence[Sample]) -> list[float]:
        asked = [(sample.text, rule) for sample in samples for rule in config.rules]
        broken = np.array([_probability(found, config.violated, config.run) for found in ask(asked)])
        return [float(-one) for one in broken.reshape(len(samples), -1).sum(1)]

    return reward


def _probability(found: Mapping[str, float], label: str, run: str) -> float:
    if label not in found:
        raise RecipeError(f"{run} knows no class {label}: it has {', '.join(found)}.")
    return found[label]


def _judge(model: Model, config: Any) -> Reward:
    """A language model's own number, cut to the range; an answer without a number gets the smallest."""
    task: Any = model.task
    if not hasattr(task, "generate"):
        raise BaseModelError(f"{config.model} is no language model, and cannot be asked for a score.")
    sampling = config.sampling_params
    options = {
        "max_new_tokens": (sampling and sampling.max_completions_tokens) or LONGEST_SCORE,
        "temperature": (sampling and sampling.temperature) or 0.0,
        "seed": (sampling and sampling.seed) or 0,
    }
    if sampling and (sampling.top_p is not None or sampling.reasoning_effort is not None):
        raise RecipeError(f"The reward {config.name}: top_p and reasoning_effort have no effect here. Leave them out.")
    low, high = config.range

    def reward(samples: Sequence[Sample]) -> list[float]:
        asked = [Conversation(config.messages(i, sample), None, "") for i, sample in enumerate(samples)]
        found = [NUMBER.search(answer.text) for answer in task.generate(model, asked, **options)]
        return [min(high, max(low, float(one[0]))) if one else low for one in found]

    return reward


def critic_of(graders: Sequence[GraderBase], model: Model) -> Any:
    """A value net for a policy: the reward model's weights where it reads the same tokens, else the policy's base."""
    for grader in graders:
        if getattr(grader, "type", "") == "reward_model":
            judge = load(getattr(grader, "run"))  # noqa: B009  a field of that type
            if hasattr(judge.module, "score") and judge.processor.get_vocab() == model.processor.get_vocab():
                merge = getattr(judge.module, "merge_and_unload", None)
                return (merge() if merge else judge.module).float().requires_grad_(True)
    return new_critic(model.base)
