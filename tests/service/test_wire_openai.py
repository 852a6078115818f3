"""OpenAI's formats: what a real client sends is understood, and what is answered is what its types say."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject, Model, ModelDeleted
from openai.types import Upload as WireUpload
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.checkpoints import PermissionCreateResponse, PermissionDeleteResponse
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.uploads import UploadPart

from tunewright.service.entities import (
    Checkpoint,
    Event,
    File,
    Hyperparameters,
    Job,
    JobSpec,
    Part,
    Permission,
    Status,
    Teaching,
    TunedModel,
    Upload,
)
from tunewright.service.errors import Refused, missing
from tunewright.service.wire import metrics, openai_files
from tunewright.service.wire import openai as wire

GRADER = {
    "type": "string_check", "name": "exact", "operation": "eq",
    "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
}  # fmt: skip
SPEC = JobSpec(model="stories260k", training_file="file-a")
FILE = File("file-a", 1, "acme", "rows.jsonl", "fine-tune", 120, 1_700_000_000, "acme/file-a")
LINES = [
    {"step": 1, "epoch": 0.5, "loss": 2.5, "accuracy": 0.25, "grad_norm": 1.0},
    {"step": 2, "epoch": 1.0, "loss": None, "accuracy": 0.5, "grad_norm": 1.0},
    {"step": 2, "validation": {"loss": 1.75, "accuracy": 0.625}},
]


def job(spec: JobSpec = SPEC, **changes: Any) -> Job:
    return replace(Job("ftjob-1", 1, "acme", spec, Status.QUEUED, 1_700_000_000), **changes)


def sent(call: Any) -> httpx.Request:
    """The request that a client makes."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"object": "list", "data": []})

    http = httpx.Client(transport=httpx.MockTransport(answer))
    call(openai.OpenAI(api_key="tw-x", base_url="http://here/v1", http_client=http))
    return seen[0]


def test_a_client_s_request_becomes_a_job() -> None:
    hyper = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5, "beta": 0.2}
    request = sent(
        lambda client: client.fine_tuning.jobs.create(
            model="stories260k",
            training_file="file-a",
            validation_file="file-b",
            method={"type": "dpo", "dpo": {"hyperparameters": hyper}},
            suffix="my model: 2",
            seed=7,
            metadata={"team": "search"},
            integrations=[{"type": "wandb", "wandb": {"project": "p"}}],
            extra_body={"recipe": {"method": {"rank": 4}}},
        )
    )
    assert wire.create_job(json.loads(request.content)) == JobSpec(
        model="stories260k",
        training_file="file-a",
        validation_file="file-b",
        method=Teaching(
            type="dpo", hyperparameters=Hyperparameters(n_epochs=2, learning_rate_multiplier=0.5, beta=0.2)
        ),
        suffix="my-model-2",
        seed=7,
        metadata={"team": "search"},
        integrations=[{"type": "wandb", "wandb": {"project": "p", "name": None, "entity": None, "tags": []}}],
        recipe={"method": {"rank": 4}},
    )


def test_what_is_null_or_stands_where_it_stood_once() -> None:
    body = {"model": "m", "training_file": "f", "seed": None, "suffix": None, "method": None}
    spec = wire.create_job({**body, "hyperparameters": {"n_epochs": 4, "batch_size": None}, "trainingType": "Standard"})
    assert spec == JobSpec(model="m", training_file="f", method=Teaching(hyperparameters=Hyperparameters(n_epochs=4)))
    both = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    again = wire.create_job({**body, "hyperparameters": {"n_epochs": 4, "batch_size": 2}, "method": both})
    assert again.method.hyperparameters == Hyperparameters(n_epochs=1, batch_size=2)


REINFORCED: dict[str, Any] = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"model": "ft:m:acme::abc@0.5"}, "model"),
        ({"training_file": ""}, "training_file"),
        ({"learning_rate": 1e-4}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"suffix": "::"}, "suffix"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: ""}}, "metadata"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, "integrations.0.wandb.project"),
        ({"method": {"type": "sft"}}, "method.type"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement.grader"),
        ({"hyperparameters": {"n_epochs": 0}}, "method.supervised.hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "3"}}, "method.supervised.hyperparameters.n_epochs"),
        ({"hyperparameters": {"beta": 0.1}}, "method.supervised.hyperparameters.beta"),
        ({"hyperparameters": {"eval_interval": 5}, "method": REINFORCED},
         "method.reinforcement.hyperparameters.eval_interval"),
        ({"hyperparameters": {"reasoning_effort": "high"}, "method": REINFORCED},
         "method.reinforcement.hyperparameters.reasoning_effort"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        wire.create_job({"model": "m", "training_file": "f", **changes})
    assert (refused.value.status, refused.value.param) == (400, param)
    assert wire.error(refused.value)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [None, [], "x", 1])
def test_a_body_that_is_no_object(body: Any) -> None:
    with pytest.raises(Refused):
        wire.create_job(body)


@pytest.mark.parametrize(
    "given, read",
    [
        ({}, wire.ListQuery()),
        ({"after": "ftjob-1", "limit": 3}, wire.ListQuery("ftjob-1", 3)),
        ({"limit": 1000}, wire.ListQuery(limit=100)),
        ({"metadata": {"a": "b", "c": "d"}}, wire.ListQuery(metadata={"a": "b", "c": "d"})),
    ],
)
def test_the_query_of_a_list(given: dict[str, Any], read: wire.ListQuery) -> None:
    url = sent(lambda client: client.fine_tuning.jobs.list(**given)).url
    assert wire.list_query(url.params.multi_items()) == read


def test_an_order_has_two_names() -> None:
    """Those that the client writes for permissions are longer than the ones for files."""
    orders = {name: wire.list_query([("order", name)]).order for name in ("asc", "desc", "ascending", "descending")}
    assert orders == {"asc": "asc", "desc": "desc", "ascending": "asc", "descending": "desc"}
    for name in ("", "up", "ending"):
        with pytest.raises(Refused, match="neither asc nor desc"):
            wire.list_query([("order", name)])


def test_jobs_without_metadata_are_asked_for() -> None:
    assert wire.list_query([("metadata", "null")]).metadata == "null"
    for limit in ("0", "-1", "x", "²", "1" * 20):
        with pytest.raises(Refused):
            wire.list_query([("limit", limit)])


TEACHINGS = [
    Teaching(),
    Teaching(type="dpo", hyperparameters=Hyperparameters(beta=0.3)),
    Teaching(type="reinforcement", grader=GRADER),
]


@pytest.mark.parametrize("teaching", TEACHINGS, ids=lambda t: t.type)
def test_a_job_is_what_the_client_reads(teaching: Teaching) -> None:
    spec = SPEC.model_copy(update={"method": teaching, "integrations": [{"type": "wandb", "wandb": {"project": "p"}}]})
    error = {"code": "invalid_training_file", "message": "line 3: not valid JSON"}
    for kept in (
        job(spec),
        job(spec, status=Status.FAILED, error=error, finished_at=1_700_000_100),
        job(spec, status=Status.SUCCEEDED, result_files=("file-r",), trained_tokens=10, fine_tuned_model="ft:x:y::z"),
    ):
        told = wire.job(kept)
        read = FineTuningJob.model_validate(told, strict=True)
        assert told.keys() - {"user_provided_suffix"} <= FineTuningJob.model_fields.keys()
        assert read.status == kept.status and read.method and read.method.type == teaching.type
        json.dumps(told, allow_nan=False)
    assert read.hyperparameters.n_epochs == "auto"


def test_what_the_run_decided_is_told() -> None:
    told = wire.job(job(resolved={"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0, "rank": 16}))
    assert told["hyperparameters"] == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert told["method"]["supervised"]["hyperparameters"] == told["hyperparameters"]


def test_the_rest_is_what_the_client_reads() -> None:
    data = metrics.event_data(LINES[2], 2)
    for kind, told in [
        (FineTuningJobEvent, wire.event(Event("ftevent-1", 1, "ftjob-1", 1, "Created"))),
        (FineTuningJobEvent, wire.event(Event("ftevent-1", 1, "ftjob-1", 1, "Step 2", "info", "metrics", data))),
        (FineTuningJobCheckpoint, wire.checkpoint(
            Checkpoint("ftckpt_1", 1, "ftjob-1", "ft:m:acme::1:ckpt-step-2", 2, 1, metrics.checkpoint_metrics(LINES, 2))
        )),
        (PermissionCreateResponse, wire.permission(Permission("cp_1", "ftckpt_1", "proj", 1))),
        (PermissionDeleteResponse, wire.deleted("checkpoint.permission", "cp_1")),
        (Model, wire.model(TunedModel("ft:m:acme::1", "acme", "ftjob-1", "m", "text-generation", "p", 1))),
        (Model, wire.base_model("m", 1, None)),
        (ModelDeleted, wire.deleted("model", "m")),
        (FileObject, openai_files.file(FILE)),
        (FileDeleted, wire.deleted("file", "file-a")),
        (WireUpload, openai_files.upload(Upload("upload_1", "acme", "a", "fine-tune", 3, "x/y", 1, 2, file=FILE))),
        (UploadPart, openai_files.part(Part("part_1", "upload_1", 3, 1, "p"))),
    ]:  # fmt: skip
        kind.model_validate(told, strict=True)
        assert told.keys() - {"task"} <= kind.model_fields.keys()  # ours, of models


def test_pages() -> None:
    assert wire.page([{"id": "a"}, {"id": "b"}], True) == {
        "object": "list", "data": [{"id": "a"}, {"id": "b"}], "has_more": True, "first_id": "a", "last_id": "b",
    }  # fmt: skip
    assert wire.page([], False)["last_id"] is None


def test_a_missing_job_in_the_client_s_own_words() -> None:
    body = wire.error(missing("job", "ftjob-x", "fine_tune_not_found"))
    http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(404, json=body)))
    client = openai.OpenAI(api_key="tw-x", base_url="http://here/v1", http_client=http)
    with pytest.raises(openai.NotFoundError) as found:
        client.fine_tuning.jobs.retrieve("ftjob-x")
    assert found.value.code == "fine_tune_not_found" and found.value.type == "invalid_request_error"


def test_figures_of_a_step_and_of_an_evaluation() -> None:
    assert metrics.event_data(LINES[0], 2) == {
        "step": 1, "total_steps": 2, "train_loss": 2.5, "train_mean_token_accuracy": 0.25
    }  # fmt: skip
    assert metrics.event_data(LINES[2], 2) == {
        "step": 2, "total_steps": 2, "valid_loss": 1.75, "valid_mean_token_accuracy": 0.625,
        "full_valid_loss": 1.75, "full_valid_mean_token_accuracy": 0.625,
    }  # fmt: skip
    assert metrics.event_message(LINES[0], 2) == "Step 1/2: training loss=2.50"
    assert metrics.event_message(LINES[1], 2) == "Step 2/2"


def test_the_results_file_has_a_row_a_step() -> None:
    content = base64.b64decode(metrics.results_file(LINES), validate=True).decode()
    assert content.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    first, second = csv.DictReader(io.StringIO(content))
    assert (first["step"], first["train_loss"], first["train_accuracy"], first["valid_loss"]) == (
        "1",
        "2.5",
        "0.25",
        "",
    )
    assert (second["train_loss"], second["train_accuracy"]) == ("", "0.5")
    assert second["valid_loss"] == second["full_valid_loss"] == "1.75"
    assert metrics.results_csv([]).count("\n") == 1
    rewarded = metrics.results_csv([{"step": 1, "loss": 0.0, "reward": 0.5, "samples": [{}]}])
    assert rewarded.splitlines()[0].endswith(",train_mean_reward") and rewarded.splitlines()[1].endswith(",0.5")


@pytest.mark.parametrize(
    "form, param",
    [
        ({}, "purpose"),
        ({"purpose": "fine-tune-results"}, "purpose"),
        ({"purpose": "fine-tune", "path": "/etc"}, "path"),
        ({"purpose": "fine-tune", "expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "60"},
         "expires_after.seconds"),
        ({"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "²"},
         "expires_after.seconds"),
    ],
)  # fmt: skip
def test_a_wrong_field_of_a_file(form: dict[str, str], param: str) -> None:
    with pytest.raises(Refused) as refused:
        openai_files.file_form(form)
    assert refused.value.param == param


def test_fields_of_a_file() -> None:
    form = {"purpose": "fine-tune", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    assert openai_files.file_form(form) == ("fine-tune", 3600)
    assert openai_files.file_form({"purpose": "evals", "file": object()}) == ("evals", None)


@pytest.mark.parametrize(
    "name, shown",
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\a\\b.jsonl", "b.jsonl"),
        ("a\x00\nb", "ab"),
        ("..", "upload"),
        (None, "upload"),
    ],
)
def test_names_of_files_hold_no_path(name: str, shown: str) -> None:
    assert openai_files.plain_name(name) == shown


def test_uploads_in_parts() -> None:
    request = sent(
        lambda client: client.uploads.create(bytes=3, filename="a/b", mime_type="text/jsonl", purpose="fine-tune")
    )
    asked = openai_files.create_upload(json.loads(request.content))
    assert (asked.filename, asked.bytes, asked.expires_after) == ("b", 3, None)
    request = sent(lambda client: client.uploads.complete("upload_1", part_ids=["p1", "p2"], md5="0" * 32))
    assert openai_files.complete_upload(json.loads(request.content)).part_ids == ["p1", "p2"]
    for body in ({"part_ids": ["p", "p"]}, {"part_ids": []}, {"part_ids": ["p"], "md5": "x"}):
        with pytest.raises(Refused):
            openai_files.complete_upload(body)
    request = sent(lambda client: client.fine_tuning.checkpoints.permissions.create("c", project_ids=["proj"]))
    assert wire.project_ids(json.loads(request.content)) == ["proj"]
