"""The rewards of a recipe, ready to score: the models that they ask are loaded, and answers find their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from tunewright.artifacts.card import read_card
from tunewright.artifacts.load import load, weights_folder
from tunewright.artifacts.sentences import sentence_encoder
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Completion, Conversation, Prompt, Ranking
from tunewright.data.messages import dialogue
from tunewright.engine.device import pick_device
from tunewright.engine.job import Rewards
from tunewright.errors import BaseModelError, DataError, RecipeError
from tunewright.grading import GraderBase, Reward, Rules, Sample, check_items, checked
from tunewright.labeling import classifier
from tunewright.tasks._judged import answered
from tunewright.tasks._values import new_critic
from tunewright.tasks.base import Drawn, Model

LONGEST_SCORE = 16
"""Tokens of a judge's answer, unless its sampling parameters say otherwise."""
JUDGED = DataConfig(train="-", overlength="truncate_prompt")


def rewards_of(graders: Sequence[GraderBase], prompts: Sequence[Prompt], device: str = "auto") -> Rewards:
    """What scores answers to these prompts, which it knows by their places: by its name, and of `rules` each rule too.

    Raises:
        RecipeError, BaseModelError: a model that a reward names cannot do what it is asked for.
        DataError: rows lack a column that a template names.
    """
    check_items(graders, [(prompt.source, prompt.item) for prompt in prompts])
    untold_rules(graders)
    models = _models(device)
    made = {grader.name: grader.reward(models) for grader in graders}

    def rewards(rows: Sequence[int], answers: Sequence[Any]) -> dict[str, list[float]]:
        samples = [_sample(prompts[row], answer) for row, answer in zip(rows, answers, strict=True)]
        return {key: values for name, reward in made.items() for key, values in _scored(name, reward, samples).items()}

    return rewards


def untold_rules(graders: Sequence[GraderBase]) -> list[str]:
    """A notice of rules that the model which is to tell whether they are broken was not trained on.

    Raises RecipeError where that was trained on single texts, and so can be told no rule at all.
    """
    notices = []
    for config in _each(graders):
        card = read_card(weights_folder(config.run)) if isinstance(config, Rules) else None
        if card is None or card.pairs is None or not isinstance(config, Rules):
            continue
        if not card.pairs:
            raise RecipeError(
                f"The reward {config.name}: {config.run} was trained on single texts, and cannot be told a rule. Train "
                "it on rows of text, rule and violated (docs/rl.md, Rules of conduct)."
            )
        if new := [rule for rule in config.rules if rule not in card.pairs]:
            notices.append(
                f"The reward {config.name}: {config.run} was not trained on {', '.join(map(repr, new))}; what it says "
                "of such a rule may mean little. It knows: " + ", ".join(map(repr, card.pairs)) + "."
            )
    return notices


def _each(graders: Sequence[GraderBase]) -> list[GraderBase]:
    """The rewards, and behind them those that are part of others."""
    return [*graders, *(one for grader in graders for one in getattr(grader, "graders", {}).values())]


def placed(examples: Sequence[Example], prompts: Sequence[Prompt], first: int = 0) -> list[Example]:
    """Encoded prompts that know their places: `first` is that of the first of these prompts."""
    places = {prompt.source: first + i for i, prompt in enumerate(prompts)}
    return [replace(e, fixed={"row": np.array(places[e.source])}) for e in examples]


def try_out(rewards: Rewards) -> None:
    """Score an answer without a word to the first prompt, so that what cannot be scored is known before training."""
    rewards([0], [Drawn([], np.zeros(0), False, "")])


def _scored(name: str, reward: Reward, samples: Sequence[Sample]) -> dict[str, list[float]]:
    if not isinstance(reward, Broken):
        return {name: checked(name, reward, samples)}
    broken: dict[str, np.ndarray] = {}

    def total(given: Sequence[Sample]) -> list[float]:
        broken.update(reward.rules(given))
        return reward.total(broken)

    scored = checked(name, total, samples)
    each = {f"{name}/{rule}": values.tolist() for rule, values in broken.items()}
    return {name: scored, **each}


def _sample(row: Prompt, answer: Any) -> Sample:
    known = Sample(answer.text, row.item, "", len(answer.tokens), answer.ended, source=row.source)
    if isinstance(row.prompt, str):
        return replace(known, prompt=row.prompt)
    return replace(known, prompt=dialogue(row.prompt), messages=(row.prompt, row.tools))


def _models(device: str) -> dict[str, Callable[..., Any]]:
    """What makes a reward of the configuration of one that asks a model; each model is loaded once."""
    loaded = cache(lambda where: load(where, str(pick_device(device))))
    encoder = cache(lambda: sentence_encoder("The reward text_similarity by cosine", device))
    asked = cache(lambda where: classifier(where, device))
    return {
        "reward_model": lambda config: _reward_model(loaded(config.run), config.run),
        "classifier": lambda config: _classifier(asked(config.run), config),
        "rules": lambda config: Broken(asked(config.run), config),
        "score_model": lambda config: _judge(loaded(config.model), config),
        "embed": lambda texts: encoder()(texts),
    }


def _reward_model(model: Model, run: str) -> Reward:
    task: Any = model.task
    if getattr(task, "labels", None) != ["reward"]:
        raise BaseModelError(f"{run} is no reward model: train one with objective: reward, and name its run.")

    def reward(samples: Sequence[Sample]) -> list[float]:
        rows = [Ranking((_judged(sample),), f"answer {i}") for i, sample in enumerate(samples)]  # type: ignore[arg-type]
        encoded = task.encode(model, rows, JUDGED)
        if len(encoded.examples) < len(samples):
            raise DataError(f"{len(samples) - len(encoded.examples)} answers do not fit into {run}'s context.")
        scores: np.ndarray = task.predict(model, encoded.examples).score_S
        return [float(score) for score in scores]

    return reward


def _judged(sample: Sample) -> Completion | Conversation:
    """A sample as a row that a reward model reads. An answer without a word is a full stop: templates drop spaces."""
    text = sample.text if sample.text.strip() else "."
    prompt, tools = sample.messages or (sample.prompt, None)
    return answered(prompt, text, "", tools)


def _classifier(ask: Any, config: Any) -> Reward:
    def reward(samples: Sequence[Sample]) -> list[float]:
        asked = [(s.prompt, s.text) if config.input == "both" else s.text or " " for s in samples]
        return [_probability(found, config.label, config.run) for found in ask(asked)]

    return reward


class Broken:
    """Less the probability that each rule is broken (Glaese et al. 2022, arXiv 2209.14375, section 2.4)."""

    def __init__(self, ask: Any, config: Any) -> None:
        self.ask, self.config = ask, config

    def rules(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """How probable it is that each sample breaks a rule, [S] by rule."""
        config = self.config
        said = [f"{s.prompt}\n{s.text}" if config.input == "both" else s.text for s in samples]
        asked = [(text, rule) for rule in config.rules for text in said]
        found = [_probability(one, config.violated, config.run) for one in self.ask(asked)]
        return dict(zip(config.rules, np.array(found).reshape(len(config.rules), -1), strict=True))

    def total(self, broken: Mapping[str, np.ndarray]) -> list[float]:
        costs = [self.config.cost(rule) for rule in broken]
        return [-float(one) for one in np.dot(costs, list(broken.values()))]

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return self.total(self.rules(samples))


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

    def reward(samples: Sequence[Sample]) -> list[float]:
        asked = [Conversation(config.messages(i, sample), None, "") for i, sample in enumerate(samples)]
        found = [config.score(answer.text) for answer in task.generate(model, asked, **options)]
        return [config.range[0] if score is None else score for score in found]

    return reward


def critic_of(graders: Sequence[GraderBase], model: Model) -> Any:
    """A value net for a policy: the reward model's weights where it reads the same tokens, else the policy's base.

    A reward model that stands in a formula counts too, after those that stand alone.
    """
    for grader in _each(graders):
        if getattr(grader, "type", "") == "reward_model":
            judge = load(getattr(grader, "run"))  # noqa: B009  a field of that type
            if hasattr(judge.module, "score") and judge.processor.get_vocab() == model.processor.get_vocab():
                merge = getattr(judge.module, "merge_and_unload", None)
                return (merge() if merge else judge.module).float().requires_grad_(True)
    return new_critic(model)
