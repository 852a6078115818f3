"""OpenAI's fine-tuning jobs: requests → what the service keeps, and that → JSON. Azure's are the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from tunewright.service.entities import (
    Checkpoint,
    Event,
    Hyperparameters,
    Job,
    JobSpec,
    Permission,
    Teaching,
    TunedModel,
)
from tunewright.service.errors import Refused
from tunewright.service.wire.body import Body, check_metadata, parsed, slug, split_alpha

COMMON = ("batch_size", "n_epochs", "learning_rate_multiplier")
OPTIONS: dict[str, tuple[str, ...]] = {
    "supervised": COMMON,
    "dpo": (*COMMON, "beta"),
    "reinforcement": (*COMMON, "compute_multiplier", "eval_interval", "eval_samples", "reasoning_effort"),
}
"""The hyperparameters of each method."""


# Requests


class WandbRun(Body):
    project: str = Field(min_length=1)
    name: str | None = None
    entity: str | None = None
    tags: list[str] = Field([])


class Wandb(Body):
    type: Literal["wandb"]
    wandb: WandbRun


class Settings(Body):
    """What stands under a method's own name."""

    hyperparameters: dict[str, Any] = Field({})
    grader: dict[str, Any] | None = None


class Method(Body):
    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: Settings = Settings()
    dpo: Settings = Settings()
    reinforcement: Settings = Settings()


class CreateJob(Body):
    """POST /fine_tuning/jobs. `recipe` is ours; `trainingType` is Azure's word for what it charges, and means nothing.

    `hyperparameters` is where they stood before there were methods; what stands under the method goes before it.
    """

    model: str = Field(min_length=1)
    training_file: str = Field(min_length=1)
    validation_file: Annotated[str, Field(min_length=1)] | None = None
    hyperparameters: dict[str, Any] = Field({})
    method: Method = Method(type="supervised")
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: dict[str, str] = Field({})
    integrations: list[Wandb] = Field([])
    recipe: dict[str, Any] = Field({})
    trainingType: str | None = None


def create_job(body: Any) -> JobSpec:
    """What a client asks to have trained. Raises Refused (400) that names the field."""
    asked = parsed(CreateJob, body)
    check_metadata(asked.metadata)
    if split_alpha(asked.model)[1] is not None:
        raise Refused(400, "model: a job begins from a model itself: leave @ and α out.", param="model")
    return JobSpec(
        model=asked.model,
        training_file=asked.training_file,
        validation_file=asked.validation_file,
        method=_teaching(asked),
        suffix=asked.suffix and slug(asked.suffix),
        seed=asked.seed,
        metadata=asked.metadata,
        integrations=[one.model_dump() for one in asked.integrations],
        recipe=asked.recipe,
    )


def _teaching(asked: CreateJob) -> Teaching:
    kind = asked.method.type
    if others := sorted(asked.method.model_fields_set - {"type", kind}):
        raise Refused(
            400, f"method.{others[0]} has no effect where method.type is {kind}.", param=f"method.{others[0]}"
        )
    own: Settings = getattr(asked.method, kind)
    if (own.grader is None) == (kind == "reinforcement"):
        said = "is missing" if own.grader is None else f"has no effect where method.type is {kind}"
        raise Refused(400, f"method.{kind}.grader {said}.", param=f"method.{kind}.grader")
    given = hyperparameters(kind, {**asked.hyperparameters, **own.hyperparameters}, f"method.{kind}.hyperparameters")
    if given.eval_interval != "auto" and not asked.validation_file:
        where = f"method.{kind}.hyperparameters.eval_interval"
        raise Refused(400, f"{where} needs validation_file.", param=where)
    return Teaching(type=kind, hyperparameters=given, grader=own.grader)


def hyperparameters(kind: str, given: Mapping[str, Any], where: str, names: Mapping[str, str] | None = None) -> Any:
    """The hyperparameters of a method. Raises Refused where one is unknown, or not in its range.

    Args:
        names: how a client calls them, where that is not how we do.
    """
    called = names or {}
    present = {name: value for name, value in given.items() if value is not None}
    if unknown := [name for name in present if name not in OPTIONS[kind]]:
        param = f"{where}.{called.get(unknown[0], unknown[0])}"
        raise Refused(400, f"{param} is no hyperparameter here: there are {', '.join(OPTIONS[kind])}.", param=param)
    if present.get("reasoning_effort", "default") != "default":
        param = f"{where}.reasoning_effort"
        raise Refused(400, f"{param}: models that are tuned here think as they were taught: leave it out.", param=param)
    try:
        return Hyperparameters.model_validate(present, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        name = str(fault["loc"][0])
        param = f"{where}.{called.get(name, name)}"
        said = "; ".join(one["msg"] for one in error.errors() if one["loc"][0] == name)
        raise Refused(400, f"{param}: {said}.", param=param) from error


@dataclass(frozen=True)
class ListQuery:
    """Which page of a list is wanted. `metadata` "null": only what has none."""

    after: str | None = None
    limit: int = 20
    metadata: dict[str, str] | Literal["null"] | None = None
    order: Literal["asc", "desc"] = "desc"
    purpose: str | None = None


def list_query(query: Iterable[tuple[str, str]], limit: int = 20, most: int = 100) -> ListQuery:
    """The query of a list, pair by pair as it stands in the address. A limit above `most` is `most`."""
    pairs = list(query)
    found = {name: value for name, value in pairs if name in ("after", "limit", "order", "purpose")}
    wanted = {name[9:-1]: value for name, value in pairs if name.startswith("metadata[") and name.endswith("]")}
    check_metadata(wanted)
    number = found.get("limit", str(limit))
    if not number.isascii() or not number.isdecimal() or len(number) > 9 or int(number) < 1:
        raise Refused(400, f"limit: {number!r:.40} is no number from 1 on.", param="limit")
    order = found.get("order", "desc").removesuffix("ending")  # the client's permissions have the longer words
    if order not in ("asc", "desc"):
        raise Refused(400, f"order: {order!r:.40} is neither asc nor desc.", param="order")
    none = ("metadata", "null") in pairs
    return ListQuery(
        found.get("after") or None,
        min(int(number), most),
        "null" if none else wanted or None,
        order,  # type: ignore[arg-type]
        found.get("purpose") or None,
    )


class Projects(Body):
    project_ids: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(min_length=1, max_length=100)


def project_ids(body: Any) -> list[str]:
    """The projects that are to be allowed a checkpoint."""
    return parsed(Projects, body).project_ids


# Answers


def job(kept: Job) -> dict[str, Any]:
    """A job as `fine_tuning.job`. Hyperparameters are those decided, where the run has decided them."""
    spec, kind = kept.spec, kept.spec.method.type
    asked = spec.method.hyperparameters.model_dump(include=set(OPTIONS[kind]), exclude_none=True)
    decided = {**asked, **{name: value for name, value in kept.resolved.items() if name in OPTIONS[kind]}}
    settings = {"hyperparameters": decided, **({"grader": spec.method.grader} if spec.method.grader else {})}
    return {
        "id": kept.id,
        "object": "fine_tuning.job",
        "created_at": kept.created_at,
        "finished_at": kept.finished_at,
        "estimated_finish": kept.estimated_finish,
        "model": spec.model,
        "fine_tuned_model": kept.fine_tuned_model,
        "organization_id": kept.tenant,
        "status": str(kept.status),
        "error": _error_of(kept),
        "hyperparameters": {name: decided[name] for name in COMMON},
        "method": {"type": kind, kind: settings},
        "training_file": spec.training_file,
        "validation_file": spec.validation_file,
        "result_files": list(kept.result_files),
        "trained_tokens": kept.trained_tokens,
        "seed": spec.seed or 0,
        "integrations": spec.integrations,
        "metadata": spec.metadata,
        "user_provided_suffix": spec.suffix,
    }


def _error_of(kept: Job) -> dict[str, Any] | None:
    return {"param": None, **kept.error} if kept.error else None


def event(kept: Event) -> dict[str, Any]:
    return {
        "id": kept.id,
        "object": "fine_tuning.job.event",
        "created_at": kept.created_at,
        "level": kept.level,
        "message": kept.message,
        "type": kept.type,
        "data": kept.data or None,
    }


def checkpoint(kept: Checkpoint) -> dict[str, Any]:
    return {
        "id": kept.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": kept.created_at,
        "fine_tuned_model_checkpoint": kept.model,
        "fine_tuning_job_id": kept.job,
        "step_number": kept.step,
        "metrics": {"step": kept.step, **kept.metrics},
    }


def permission(kept: Permission) -> dict[str, Any]:
    return {
        "id": kept.id,
        "object": "checkpoint.permission",
        "created_at": kept.created_at,
        "project_id": kept.project,
    }


def model(kept: TunedModel) -> dict[str, Any]:
    """`task` is ours: by it a client knows on which route the model answers."""
    return {"id": kept.id, "object": "model", "created": kept.created_at, "owned_by": kept.tenant, "task": kept.task}


def base_model(name: str, created: int, task: str | None) -> dict[str, Any]:
    told = {"id": name, "object": "model", "created": created, "owned_by": "tunewright"}
    return {**told, **({"task": task} if task else {})}


def deleted(kind: str, name: str) -> dict[str, Any]:
    """What is said of something deleted: `kind` is model, file or checkpoint.permission."""
    return {"id": name, "object": kind, "deleted": True}


def page(items: Sequence[Mapping[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page of a list, of things with an id."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": list(items), "has_more": has_more, "first_id": first, "last_id": last}


def error(refused: Refused) -> dict[str, Any]:
    """The body of an answer that refuses a request."""
    told = {"message": str(refused), "type": refused.type, "param": refused.param, "code": refused.code}
    return {"error": told}
