"""Google's tuning jobs, as google-genai speaks with Vertex AI: requests → what the service keeps, and that → JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from tunewright.service.entities import Checkpoint, Job, JobSpec, Status, Teaching, TunedModel
from tunewright.service.errors import Refused
from tunewright.service.wire.body import Body, check_metadata, parsed, slug, split_alpha
from tunewright.service.wire.openai import ListQuery, hyperparameters

SUPERVISED, PREFERENCE = "supervisedTuningSpec", "preferenceOptimizationSpec"
NAMES = {
    "n_epochs": "epochCount",
    "learning_rate_multiplier": "learningRateMultiplier",
    "batch_size": "batchSize",
    "beta": "beta",
}
"""Of hyperparameters."""
RANKS = {"ONE": 1, "TWO": 2, "FOUR": 4, "EIGHT": 8, "SIXTEEN": 16, "THIRTY_TWO": 32}
"""ADAPTER_SIZE_…"""
STATES = {
    Status.VALIDATING: "PENDING",
    Status.QUEUED: "QUEUED",
    Status.RUNNING: "RUNNING",
    Status.PAUSING: "RUNNING",
    Status.PAUSED: "PAUSED",
    Status.SUCCEEDED: "SUCCEEDED",
    Status.FAILED: "FAILED",
    Status.CANCELLED: "CANCELLED",
}
CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}
CODES |= {409: "ABORTED", 413: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
MOST = 100
TUNED_ALONE = "labels.tune-type:*"
"""The filter that google-genai adds by itself where tuned models are asked for."""
BASE_LABEL = "google-vertex-llm-tuning-base-model-id"
"""The label in which it looks for the base of a tuned model."""

File = Annotated[str, Field(min_length=1)]
Size = Annotated[str, Field(pattern=f"^ADAPTER_SIZE_({'|'.join(RANKS)})$")]


class Choices(Body):
    epochCount: int | str | None = None
    learningRateMultiplier: float | None = None
    batchSize: int | None = None
    learningRate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    beta: float | None = None
    adapterSize: Size | None = None


class Spec(Body):
    """What is trained on what. A dataset's address is the id of a file that was uploaded here."""

    trainingDatasetUri: File
    validationDatasetUri: File | None = None
    hyperParameters: Choices = Choices()
    tuningMode: Literal["TUNING_MODE_FULL", "TUNING_MODE_PEFT_ADAPTER"] | None = None
    exportLastCheckpointOnly: Literal[False] = False


class Tuned(Body):
    tunedModelName: str = Field(min_length=1)


class CreateTuning(Body):
    """POST tuningJobs. `recipe` is ours."""

    baseModel: Annotated[str, Field(min_length=1)] | None = None
    preTunedModel: Tuned | None = None
    supervisedTuningSpec: Spec | None = None
    preferenceOptimizationSpec: Spec | None = None
    tunedModelDisplayName: Annotated[str, Field(min_length=1)] | None = None
    description: str | None = None
    labels: dict[str, str] = Field({})
    recipe: dict[str, Any] = Field({})


def create_tuning(body: Any) -> JobSpec:
    """What a client asks to have trained. Raises Refused (400) that names the field."""
    asked = parsed(CreateTuning, body)
    name, spec = _spec_of(asked)
    kind: Literal["supervised", "dpo"] = "supervised" if name == SUPERVISED else "dpo"
    metadata = {**asked.labels, **({"description": asked.description} if asked.description else {})}
    check_metadata(metadata, "labels")
    return JobSpec(
        model=_base_of(asked),
        training_file=spec.trainingDatasetUri,
        validation_file=spec.validationDatasetUri,
        method=_teaching(kind, spec, f"{name}.hyperParameters"),
        suffix=asked.tunedModelDisplayName and slug(asked.tunedModelDisplayName, "tunedModelDisplayName")[:64],
        metadata=metadata,
        recipe=_recipe(asked.recipe, spec),
    )


def _spec_of(asked: CreateTuning) -> tuple[str, Spec]:
    given = [(name, spec) for name in (SUPERVISED, PREFERENCE) if (spec := getattr(asked, name)) is not None]
    if len(given) != 1:
        raise Refused(400, f"Give one of {SUPERVISED} and {PREFERENCE}.", param=SUPERVISED)
    return given[0]


def _base_of(asked: CreateTuning) -> str:
    if (asked.baseModel is None) == (asked.preTunedModel is None):
        raise Refused(400, "Give one of baseModel and preTunedModel.", param="baseModel")
    name = asked.baseModel or (asked.preTunedModel.tunedModelName if asked.preTunedModel else "")
    if split_alpha(model_of(name))[1] is not None:
        raise Refused(400, "baseModel: a job begins from a model itself: leave @ and α out.", param="baseModel")
    return model_of(name)


def _teaching(kind: Literal["supervised", "dpo"], spec: Spec, where: str) -> Teaching:
    given = {name: getattr(spec.hyperParameters, called) for name, called in NAMES.items()}
    if isinstance(given["n_epochs"], str):  # 64-bit numbers may be written as texts in Google's JSON
        given["n_epochs"] = int(given["n_epochs"]) if given["n_epochs"].isdecimal() else given["n_epochs"]
    return Teaching(type=kind, hyperparameters=hyperparameters(kind, given, where, NAMES))


def _recipe(own: dict[str, Any], spec: Spec) -> dict[str, Any]:
    """The client's recipe, with what Google says elsewhere than OpenAI: the adapter's rank, the rate itself."""
    chosen, full = spec.hyperParameters, spec.tuningMode == "TUNING_MODE_FULL"
    recipe = dict(own)
    if chosen.adapterSize and full:
        raise Refused(400, "adapterSize has no effect with TUNING_MODE_FULL.", param="adapterSize")
    if chosen.adapterSize:
        rank = RANKS[chosen.adapterSize.removeprefix("ADAPTER_SIZE_")]
        recipe["method"] = {"type": "lora", "rank": rank}
    if full:
        recipe["method"] = {"type": "full"}
    if chosen.learningRate:
        recipe["training"] = {**recipe.get("training", {}), "learning_rate": chosen.learningRate}
    return recipe


def list_query(query: Iterable[tuple[str, str]], size: int = 20) -> ListQuery:
    """The query of a list: a page's token is the id behind which it begins."""
    found = dict(query)
    number = found.get("pageSize", str(size))
    if not number.isascii() or not number.isdecimal() or len(number) > 9:
        raise Refused(400, f"pageSize: {number!r:.40} is no number.", param="pageSize")
    return ListQuery(found.get("pageToken") or None, min(int(number) or size, MOST))


def model_query(query: Sequence[tuple[str, str]]) -> ListQuery:
    """The query of a list of models. Raises Refused for filters, which would have no effect."""
    if any(name == "filter" and value != TUNED_ALONE for name, value in query):
        raise Refused(400, "filter: lists of models are not filtered here: leave it out.", param="filter")
    return list_query(query)


def model_of(path: str) -> str:
    """The name of a model as the client's library writes it: `publishers/google/models/NAME` → `NAME`."""
    parts = path.strip("/").split("/")
    for mark in ("endpoints", "models", "tuningJobs"):
        if mark in parts[:-1]:
            at = parts.index(mark)
            publisher = parts[at - 1] if at >= 2 and parts[at - 2] == "publishers" else "google"
            return "/".join([*([] if publisher == "google" else [publisher]), *parts[at + 1 :]])
    return path


# Answers


def tuning_job(kept: Job, checkpoints: Sequence[Checkpoint] = ()) -> dict[str, Any]:
    """A job as TuningJob. A tuned model answers under its own name: `model` and `endpoint` are the same."""
    spec, teaching = kept.spec, kept.spec.method
    asked = {**teaching.hyperparameters.model_dump(), **kept.resolved}
    chosen = {called: asked[name] for name, called in NAMES.items() if asked.get(name) not in (None, "auto")}
    uris = {"trainingDatasetUri": spec.training_file, "validationDatasetUri": spec.validation_file}
    told: dict[str, Any] = {
        "name": f"tuningJobs/{kept.id}",
        "state": f"JOB_STATE_{STATES[kept.status]}",
        "createTime": _time(kept.created_at),
        "startTime": _time(kept.started_at),
        "endTime": _time(kept.finished_at),
        "updateTime": _time(kept.finished_at or kept.started_at or kept.created_at),
        "baseModel": spec.model,
        "tunedModelDisplayName": spec.suffix,
        "description": spec.metadata.get("description"),
        "labels": {name: value for name, value in spec.metadata.items() if name != "description"},
        "error": {"code": 3, "message": kept.error["message"]} if kept.error else None,
        "tunedModel": _tuned(kept, checkpoints),
    }
    if teaching.type != "reinforcement":  # whose reward is in other words there
        name = SUPERVISED if teaching.type == "supervised" else PREFERENCE
        told[name] = _present({**uris, "hyperParameters": _fitting(name, chosen)})
    return _present(told)


def _tuned(kept: Job, checkpoints: Sequence[Checkpoint]) -> dict[str, Any] | None:
    if not kept.fine_tuned_model:
        return None
    listed = [
        {"checkpointId": str(one.step), "step": one.step, "endpoint": one.model}
        for one in sorted(checkpoints, key=lambda one: one.step)
    ]
    name = kept.fine_tuned_model
    return {"model": name, "endpoint": name, **({"checkpoints": listed} if listed else {})}


def _fitting(name: str, chosen: dict[str, Any]) -> dict[str, Any]:
    """Google has no beta of supervised training, and no batch size of preferences."""
    foreign = "beta" if name == SUPERVISED else "batchSize"
    return {called: value for called, value in chosen.items() if called != foreign}


def tuning_page(jobs: Sequence[dict[str, Any]], after: str | None) -> dict[str, Any]:
    """A page; `after` is the id of its last job where there are more."""
    return {"tuningJobs": list(jobs), **({"nextPageToken": after} if after else {})}


def base_model(name: str) -> dict[str, Any]:
    return {"name": name}


def tuned_model(kept: TunedModel, name: str) -> dict[str, Any]:
    """A tuned model under the name that was asked for, at which it answers: that may hold an α."""
    when = _time(kept.created_at)
    return {
        "name": name, "createTime": when, "updateTime": when, "labels": {BASE_LABEL: kept.base},
        "deployedModels": [{"endpoint": name}],
    }  # fmt: skip


def model_page(models: Sequence[dict[str, Any]], more: bool) -> dict[str, Any]:
    """A page; the last model's name leads to the next one."""
    return {"models": list(models), **({"nextPageToken": models[-1]["name"]} if more else {})}


def error(refused: Refused) -> dict[str, Any]:
    status = CODES.get(refused.status, "INTERNAL" if refused.status >= 500 else "INVALID_ARGUMENT")
    return {"error": {"code": refused.status, "message": str(refused), "status": status}}


def _time(seconds: int | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _present(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if value not in (None, {})}
