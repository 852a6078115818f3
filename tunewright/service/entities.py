"""What the service keeps: jobs, files, models, keys. Wire formats are made from these, and the store gives them out.

Times are whole seconds since 1970. `spec` is what a client asked for, in no API's words but ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunewright.service.ids import new_id


class Status(StrEnum):
    """Where a job stands, in OpenAI's words. Pausing and paused come only after a client asked for it."""

    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return not NEXT[self]


NEXT: dict[Status, frozenset[Status]] = {
    Status.VALIDATING: frozenset({Status.QUEUED, Status.PAUSED, Status.FAILED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED, Status.CANCELLED}),
    Status.RUNNING: frozenset(
        {Status.QUEUED, Status.PAUSING, Status.PAUSED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}
    ),
    Status.PAUSING: frozenset({Status.PAUSED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}),
    Status.PAUSED: frozenset({Status.VALIDATING, Status.QUEUED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""The one table of what may follow what. A running job is queued again when its worker shuts down in good order; one
that was paused before its files were read is validated when it is resumed."""


class Hyperparameters(BaseModel):
    """What a client may choose; `auto` is decided by the run, from its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    n_epochs: Annotated[int, Field(ge=1, le=50)] | Literal["auto"] = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = "auto"
    beta: Annotated[float, Field(gt=0, le=2)] | Literal["auto"] = "auto"
    compute_multiplier: Annotated[float, Field(gt=1e-5, le=10)] | Literal["auto"] = "auto"
    eval_interval: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    eval_samples: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] | None = None


class Teaching(BaseModel):
    """What kind of teacher the rows are. `grader` is OpenAI's, and only for reinforcement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["supervised", "dpo", "reinforcement"] = "supervised"
    hyperparameters: Hyperparameters = Hyperparameters()
    grader: dict[str, Any] | None = None


class JobSpec(BaseModel):
    """What is to be trained, on what. Files and models are named by id; the worker finds them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1)
    """A base of this service, or a tuned model: `ft:…`."""
    training_file: str = Field(min_length=1)
    validation_file: str | None = None
    method: Teaching = Teaching()
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    metadata: dict[str, str] = {}
    integrations: list[dict[str, Any]] = []
    recipe: dict[str, Any] = {}
    """Further keys of a recipe (method, training, evaluation, …), without those that are `local_only`."""


@dataclass(frozen=True)
class Job:
    """A job and where it stands.

    Attributes:
        n: the order in which jobs were made, over all tenants.
        resolved: hyperparameters as they were decided, once the run has begun.
        fence: how often the job was claimed. Who holds an older number may not write any more.
        lost: how often in a row a worker that held it fell silent, since it last saved.
        saved: where in the storage the newest state lies from which the run goes on.
        run: where in the storage the finished run lies.
    """

    id: str
    n: int
    tenant: str
    spec: JobSpec
    status: Status
    created_at: int
    started_at: int | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    resolved: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    fine_tuned_model: str | None = None
    result_files: tuple[str, ...] = ()
    fence: int = 0
    lost: int = 0
    worker: str | None = None
    saved: str | None = None
    run: str | None = None


@dataclass(frozen=True)
class Note:
    """What is to become an event."""

    message: str
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: new_id("ftevent-"), compare=False)
    """The event's: one that is written again, since nobody heard that it was written, is the same one."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. `data` holds the numbers where `type` is metrics."""

    id: str
    n: int
    job: str
    created_at: int
    message: str
    level: Literal["info", "warn", "error"] = "info"
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A state of a job that answers as a model of its own."""

    id: str
    n: int
    job: str
    model: str
    step: int
    created_at: int
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """A file of a tenant. `place` is where its bytes lie in the storage."""

    id: str
    n: int
    tenant: str
    filename: str
    purpose: str
    bytes: int
    created_at: int
    place: str
    status: Literal["uploaded", "processed", "error"] = "processed"
    status_details: str | None = None
    expires_at: int | None = None
    sha256: str = ""


@dataclass(frozen=True)
class Upload:
    """A file that comes in parts."""

    id: str
    tenant: str
    filename: str
    purpose: str
    bytes: int
    mime_type: str
    created_at: int
    expires_at: int
    status: Literal["pending", "completed", "cancelled", "expired"] = "pending"
    file: File | None = None


@dataclass(frozen=True)
class Part:
    """A piece of a file that comes in parts."""

    id: str
    upload: str
    bytes: int
    created_at: int
    place: str


@dataclass(frozen=True)
class TunedModel:
    """A model that a job made, or one of its checkpoints.

    Attributes:
        base: at the bottom of it; `tuned_from` is the tuned model that its job began from, if it did.
        place: where its run lies in the storage.
    """

    id: str
    tenant: str
    job: str
    base: str
    task: str
    place: str
    created_at: int
    tuned_from: str | None = None


@dataclass(frozen=True)
class Key:
    """An API key, which is stored as a hash. `hint` is how it begins and ends."""

    id: str
    tenant: str
    name: str
    scopes: frozenset[str]
    hint: str
    created_at: int
    last_used_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True)
class Permission:
    """A project that may use a checkpoint."""

    id: str
    checkpoint: str
    project: str
    created_at: int


SCOPES = ("files", "jobs", "models", "inference", "keys")
"""What a key may be allowed to do."""
