"""`/fine_tuning/alpha/graders`: a grader is checked, or tried on one answer, as a job would use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic import Field, ValidationError

from tunewright.errors import DataError
from tunewright.grading import GRADER, GraderBase, Models, Sample, checked
from tunewright.grading.templates import filled
from tunewright.service.errors import Refused
from tunewright.service.recipes import refuse_foreign
from tunewright.service.wire.body import Body, parsed

Ask = Callable[[str, list[dict[str, Any]], Mapping[str, Any]], Awaitable[tuple[str, int]]]
"""(a model's name, messages, sampling parameters in OpenAI's names) → what it answers, and tokens that took."""
Embed = Callable[[Sequence[str]], Any]

TRIED = ("string_check", "text_similarity", "score_model", "multi")
"""The graders that are tried out. What else there is needs a run's own models, or a client's regular expression."""
LONGEST = 4_000
"""Characters of an answer, or of a text that a template makes: how alike two texts are takes their lengths' product."""
MOST_GRADERS = 8
LONGEST_SCORE = 16
ERRORS = (
    *("formula_parse_error", "sample_parse_error", "truncated_observation_error", "unresponsive_reward_error"),
    *("invalid_variable_error", "other_error", "python_grader_server_error", "python_grader_runtime_error"),
    *("model_grader_server_error", "model_grader_refusal_error", "model_grader_parse_error"),
)
DETAILS = ("python_grader_server_error_type", "python_grader_runtime_error_details")


class Validate(Body):
    grader: dict[str, Any]


class Run(Body):
    grader: dict[str, Any]
    model_sample: str = Field(max_length=LONGEST)
    item: dict[str, Any] = Field({})


class Wrong(Exception):
    """What an answer could not be graded for: the name of the API's error, and what is said of it."""

    def __init__(self, error: str, said: str = "") -> None:
        super().__init__(said)
        self.error = error


def validate_grader(body: Any) -> dict[str, Any]:
    """The grader, where a job could use it. Raises Refused (400)."""
    asked = parsed(Validate, body)
    _grader(asked.grader)
    return {"grader": asked.grader}


async def run_grader(body: Any, ask: Ask, embed: Embed | None = None) -> dict[str, Any]:
    """What a grader says of one answer. What goes wrong with this answer is told in the reply, with a reward of 0.

    Raises:
        Refused (400): the request or the grader is wrong.
    """
    asked = parsed(Run, body)
    grader = _grader(asked.grader)
    parts = _parts(grader)
    if foreign := [part.type for part in parts.values() if part.type not in TRIED]:
        raise Refused(400, f"grader: {foreign[0]} is for jobs, and is not tried out here.", param="grader")
    if len(parts) > MOST_GRADERS:
        raise Refused(400, f"grader: {len(parts)} graders are more than {MOST_GRADERS}.", param="grader")
    began, usage = time.perf_counter(), dict[str, int]()
    sample = Sample(asked.model_sample, asked.item, "", 0, True)
    errors: dict[str, Any] = dict.fromkeys(ERRORS, False) | dict.fromkeys(DETAILS)
    errors["model_grader_server_error_details"] = None
    scores: dict[str, float] = {}
    reward = 0.0
    try:
        for name, part in parts.items():
            scores[name] = await _score(part, sample, ask, embed, usage)
        reward = _total(grader, scores)
    except Wrong as wrong:
        errors[wrong.error] = True
        if wrong.error == "model_grader_server_error":
            errors["model_grader_server_error_details"] = str(wrong)
    names = sorted({part.model for part in parts.values() if part.type == "score_model"})  # type: ignore[attr-defined]
    return {
        "reward": reward,
        "sub_rewards": scores if grader.type == "multi" else {},
        "metadata": {
            "name": grader.name,
            "type": grader.type,
            "errors": errors,
            "execution_time": time.perf_counter() - began,
            "scores": scores,
            "token_usage": sum(usage.values()) if names else None,
            "sampled_model_name": names[0] if names else None,
        },
        "model_grader_token_usage_per_model": usage,
    }


def _grader(document: dict[str, Any]) -> GraderBase:
    refuse_foreign(document, "grader")
    try:
        return GRADER.validate_python(document)
    except ValidationError as error:
        fault = error.errors()[0]
        path = [str(part) for part in fault["loc"][1:]]  # behind the type, by which the grader was found
        param = ".".join(["grader", *path])
        raise Refused(400, f"{param}: {fault['msg'].removeprefix('Value error, ')}.", param=param) from error


def _parts(grader: GraderBase) -> dict[str, Any]:
    """The graders that give numbers, by their names; several where a formula joins them."""
    return dict(getattr(grader, "graders", None) or {grader.name: grader})


async def _score(grader: Any, sample: Sample, ask: Ask, embed: Embed | None, usage: dict[str, int]) -> float:
    """The number of one grader. Raises Wrong."""
    try:
        texts = [filled(template, 0, sample) for template in grader.templates()]
    except DataError as error:
        raise Wrong("invalid_variable_error", str(error)) from error
    if any(len(text) > LONGEST for text in texts):
        raise Refused(400, f"grader: its templates make texts of more than {LONGEST:,} characters.", param="grader")
    models: dict[str, Any] = {}
    if grader.type == "score_model":
        score = await _judged(grader, sample, ask, usage)
        models["score_model"] = lambda _: lambda samples: [score] * len(samples)
    if getattr(grader, "evaluation_metric", "") == "cosine":
        if embed is None:
            raise Refused(
                400, "grader.evaluation_metric: there is no model here for cosine.", param="grader.evaluation_metric"
            )
        models["embed"] = embed
    return await asyncio.to_thread(_counted, grader, models, sample)


def _counted(grader: Any, models: Models, sample: Sample) -> float:
    try:
        return checked(grader.name, grader.reward(models), [sample])[0]
    except DataError as error:
        raise Wrong("other_error", str(error)) from error


async def _judged(config: Any, sample: Sample, ask: Ask, usage: dict[str, int]) -> float:
    """The score that a model gives. No thread waits for it: the model needs one itself to begin. Raises Wrong."""
    sampling = config.sampling_params.model_dump(exclude_none=True) if config.sampling_params else {}
    asked = {"temperature": 0.0, "max_completions_tokens": LONGEST_SCORE, **sampling}
    try:
        text, tokens = await ask(config.model, config.messages(0, sample), asked)
    except Refused:
        raise
    except Exception as error:
        raise Wrong("model_grader_server_error", type(error).__name__) from error
    usage[config.model] = usage.get(config.model, 0) + tokens
    score: float | None = config.score(text)
    if score is None:
        raise Wrong("model_grader_parse_error", text)
    return score


def _total(grader: Any, scores: Mapping[str, float]) -> float:
    if grader.type != "multi":
        return next(iter(scores.values()))
    try:
        return float(grader.formula(scores))
    except ArithmeticError as error:
        raise Wrong("other_error", str(error)) from error
