"""Unmodified clients go through the whole story: openai (sync and async), Azure's, google-genai and curl."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from google import genai
from google.genai import types

from tests.service.served import CHAT, WORDS, Served, ended, jsonl, served
from tests.tiny import make_base

FAST = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 5}
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"{a} {b}"}]},
        "preferred_output": [{"role": "assistant", "content": a}],
        "non_preferred_output": [{"role": "assistant", "content": b}],
    }
    for a in WORDS
    for b in WORDS[:2]
    if a != b
]
PROMPTS = [{"messages": [{"role": "user", "content": f"{a} {b}"}], "answer": a} for a in WORDS for b in WORDS[:2]]
GRADER = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
          "operation": "like"}  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("clients")
    make_base(root / "models" / "tiny", "llama")
    with served(root / "home", [str(root / "models")]) as found:
        yield found


@pytest.fixture(scope="module")
def tuned(service: Served) -> Any:
    """A supervised job of the sync client that has succeeded."""
    client = service.client()
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    held = client.files.create(file=("held.jsonl", jsonl(CHAT[:4])), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, validation_file=held.id, suffix="My Fox", seed=7, metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": FAST}},
    )  # fmt: skip
    assert job.status == "validating_files" and job.seed == 7
    return ended(client, job)


def test_the_printed_lines_are_enough_and_the_key_is_shown_once(service: Served) -> None:
    code = service.said[service.said.index("from openai") :]
    exec(code, {"print": lambda answer: answer.choices[0].message.content})
    with served(service.home, [], "--workers", "0") as again:
        assert not again.key and "tw-…" in again.said


def test_a_tuned_model_answers_and_tells_how_it_came_about(service: Served, tuned: Any) -> None:
    client = service.client()
    assert tuned.status == "succeeded" and tuned.trained_tokens > 0 and tuned.error is None
    assert tuned.fine_tuned_model.startswith("ft:tiny:default:my-fox:")
    events = list(client.fine_tuning.jobs.list_events(tuned.id, limit=2))
    numbers = [event.data for event in events if event.type == "metrics"]
    assert {one["step"] for one in numbers} == set(range(1, 7)) and all(one["total_steps"] == 6 for one in numbers)
    assert any("full_valid_loss" in one for one in numbers)
    assert [event.created_at for event in events] == sorted((e.created_at for e in events), reverse=True)
    checkpoints = client.fine_tuning.jobs.checkpoints.list(tuned.id).data
    assert [one.step_number for one in checkpoints] == [6, 3] and checkpoints[0].metrics.train_loss
    table = base64.b64decode(client.files.content(tuned.result_files[0]).read()).decode()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["step"] for row in rows] == [str(i) for i in range(1, 7)] and float(rows[0]["train_loss"]) > 0
    names = [
        "tiny",
        tuned.fine_tuned_model,
        f"{tuned.fine_tuned_model}@0.6",
        checkpoints[1].fine_tuned_model_checkpoint,
    ]
    said = {name: answer(client, name) for name in names}
    assert said["tiny"] == answer(client, f"{tuned.fine_tuned_model}@0") != said[tuned.fine_tuned_model]
    with pytest.raises(openai.BadRequestError, match="from 0 to 1"):
        answer(client, f"{tuned.fine_tuned_model}@1.5")
    listed = [model.id for model in client.models.list()]
    assert listed[0] == "tiny" and set(names[1:2]) <= set(listed)
    assert client.models.retrieve(tuned.fine_tuned_model).object == "model"
    assert client.embeddings.create(model="tiny", input=["fox", "stone"]).data[1].embedding
    report = httpx.get(
        f"{service.url}/v1/fine_tuning/jobs/{tuned.id}/report", headers={"Authorization": f"Bearer {service.key}"}
    )
    assert report.status_code == 200 and "<html" in report.text


def answer(client: Any, model: str) -> str:
    asked = [{"role": "user", "content": "fox stone"}]
    found = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=6, logprobs=True)
    return "".join(f"{token.token} {token.logprob:.4f}" for token in found.choices[0].logprobs.content)


def test_streams_say_the_same_and_end_as_clients_expect(service: Served, tuned: Any) -> None:
    client, asked = service.client(), [{"role": "user", "content": "fox stone"}]
    options: dict[str, Any] = {"model": tuned.fine_tuned_model, "messages": asked, "max_tokens": 8, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    for index, choice in enumerate(whole.choices):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert mine[0].delta.role == "assistant" and mine[-1].finish_reason == choice.finish_reason
    raw = httpx.post(
        f"{service.url}/v1/chat/completions", json={**options, "stream": True},
        headers={"Authorization": f"Bearer {service.key}"},
    )  # fmt: skip
    assert raw.text.endswith("data: [DONE]\n\n") and raw.headers["x-request-id"].startswith("req_")
    prompts = client.completions.create(model="tiny", prompt=["fox", "river"], max_tokens=3, temperature=0, n=2)
    alone = client.completions.create(model="tiny", prompt="river", max_tokens=3, temperature=0)
    assert [choice.index for choice in prompts.choices] == [0, 1, 2, 3] and prompts.choices[2].text == alone.choices[
        0
    ].text


def test_preferences_and_rewards(service: Served) -> None:
    client = service.client()
    methods = {
        "dpo": (PAIRS, {"dpo": {"hyperparameters": {**FAST, "beta": 0.2}}}),
        "reinforcement": (PROMPTS, {"reinforcement": {"grader": GRADER, "hyperparameters": {**FAST, "n_epochs": 1}}}),
    }
    for kind, (rows, settings) in methods.items():
        file = client.files.create(file=(f"{kind}.jsonl", jsonl(rows)), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method={"type": kind, **settings})
        done = ended(client, job)
        assert done.status == "succeeded", done.error
        assert getattr(done.method, kind) and answer(client, done.fine_tuned_model)
    tried = client.fine_tuning.alpha.graders.run(grader=GRADER, model_sample="a fox", item={"answer": "fox"})
    assert tried.reward == 1.0 and client.fine_tuning.alpha.graders.validate(grader=GRADER).grader


def test_what_is_wrong_with_the_rows_fails_the_job_later(service: Served) -> None:
    client = service.client()
    bad = client.files.create(file=("bad.jsonl", b'{"messages": [{"role": "user"}]}\n'), purpose="fine-tune")
    job = ended(client, client.fine_tuning.jobs.create(model="tiny", training_file=bad.id))
    assert job.status == "failed" and job.error.code == "invalid_training_file" and job.error.param == "training_file"
    assert "1" in job.error.message
    events = client.fine_tuning.jobs.list_events(job.id, limit=1).data
    assert events[0].level == "error"


def test_errors_are_those_that_clients_know(service: Served) -> None:
    client = service.client(max_retries=0)
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    limited = service.client(service.new_key("--scope", "files"), max_retries=0)
    create = client.fine_tuning.jobs.create
    code = {"recipe": {"data": {"train": "/etc/passwd"}}}
    wrong: list[tuple[type[openai.APIStatusError], Callable[[], Any]]] = [
        (openai.NotFoundError, lambda: create(model="none", training_file=file.id)),
        (openai.NotFoundError, lambda: create(model="tiny", training_file="file-none")),
        (openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ftjob-none")),
        (openai.NotFoundError, lambda: answer(client, "ft:x")),
        (openai.AuthenticationError, lambda: service.client("tw-wrong", max_retries=0).models.list()),
        (openai.BadRequestError, lambda: create(model="tiny", training_file=file.id, suffix="x" * 65)),
        (openai.BadRequestError, lambda: create(model="tiny", training_file=file.id, extra_body=code)),
        (openai.PermissionDeniedError, lambda: limited.models.list()),
    ]
    for kind, ask in wrong:
        with pytest.raises(kind) as found:
            ask()
        assert found.value.body["message"] and found.value.response.headers["x-request-id"]
        assert found.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.NotFoundError) as gone:
        client.fine_tuning.jobs.retrieve("ftjob-none")
    assert gone.value.code == "fine_tune_not_found"


def test_another_tenant_sees_nothing(service: Served, tuned: Any) -> None:
    other = service.client(service.new_key("--tenant", "other"), max_retries=0)
    assert not other.files.list().data and not other.fine_tuning.jobs.list().data
    assert [model.id for model in other.models.list()] == ["tiny"]
    for ask in (
        lambda: other.fine_tuning.jobs.retrieve(tuned.id),
        lambda: other.fine_tuning.jobs.cancel(tuned.id),
        lambda: other.fine_tuning.jobs.list_events(tuned.id),
        lambda: other.files.content(tuned.result_files[0]),
        lambda: other.models.delete(tuned.fine_tuned_model),
        lambda: answer(other, tuned.fine_tuned_model),
    ):
        with pytest.raises(openai.NotFoundError):
            ask()
    client = service.client()
    checkpoint = client.fine_tuning.jobs.checkpoints.list(tuned.id).data[0].fine_tuned_model_checkpoint
    client.fine_tuning.checkpoints.permissions.create(checkpoint, project_ids=["other"])
    assert answer(other, checkpoint)


def test_a_request_that_is_sent_again_makes_one_job(service: Served) -> None:
    client = service.client()
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    body = {"model": "tiny", "training_file": file.id, "metadata": {"twice": "yes"}}
    headers = {"Authorization": f"Bearer {service.key}"}
    made = [
        httpx.post(f"{service.url}/v1/fine_tuning/jobs", json=body, headers={**headers, **more}).json()["id"]
        for more in (
            {"x-stainless-retry-count": "0"},
            {"x-stainless-retry-count": "1"},
            {"x-stainless-retry-count": "0"},
        )
    ]
    assert made[0] == made[1] != made[2]
    found = client.fine_tuning.jobs.list(metadata={"twice": "yes"}).data
    assert {job.id for job in found} == set(made)
    for id in set(made):
        client.fine_tuning.jobs.cancel(id)
        with pytest.raises(openai.BadRequestError):
            client.fine_tuning.jobs.cancel(id)
    client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_uploads_in_parts_and_files_from_memory(service: Served) -> None:
    client, rows = service.client(), jsonl(CHAT)
    plain = client.files.create(file=rows, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (
        plain.expires_at == plain.created_at + 3600 and client.files.wait_for_processing(plain.id).status == "processed"
    )
    upload = client.uploads.create(
        filename="rows.jsonl", purpose="fine-tune", bytes=len(rows), mime_type="application/jsonl"
    )
    late, early = (client.uploads.parts.create(upload.id, data=part) for part in (rows[100:], rows[:100]))
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[early.id, late.id], md5="0" * 32)
    done = client.uploads.complete(upload.id, part_ids=[early.id, late.id], md5=hashlib.md5(rows).hexdigest())
    assert done.file and client.files.content(done.file.id).read() == rows


def test_the_async_client(service: Served, tuned: Any) -> None:
    async def story() -> None:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.key) as client:
            events = [event async for event in client.fine_tuning.jobs.list_events(tuned.id, limit=3)]
            assert len(events) > 3
            asked = [{"role": "user", "content": f"fox {word}"} for word in WORDS]
            many = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=f"{tuned.fine_tuned_model}@{alpha}", messages=[message], temperature=0, max_tokens=5
                    )
                    for message in asked
                    for alpha in (0, 0.5, 1)
                )
            )
            alone = [
                await client.chat.completions.create(
                    model=f"{tuned.fine_tuned_model}@{alpha}", messages=[message], temperature=0, max_tokens=5
                )
                for message in asked
                for alpha in (0, 0.5, 1)
            ]
            assert [one.choices[0].message.content for one in many] == [one.choices[0].message.content for one in alone]

    asyncio.run(story())


@pytest.mark.parametrize("style", ["deployments", "v1"])
def test_azure(service: Served, tuned: Any, style: str) -> None:
    if style == "v1":
        client: Any = openai.OpenAI(base_url=f"{service.url}/openai/v1/", api_key=service.key)
    else:
        client = openai.AzureOpenAI(azure_endpoint=service.url, api_version="2024-10-21", api_key=service.key)
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 1})
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert answer(client, tuned.fine_tuned_model) == answer(service.client(), tuned.fine_tuned_model)
    assert client.fine_tuning.jobs.list_events(tuned.id).data and client.models.list().data
    assert client.embeddings.create(model="tiny", input="fox").data[0].embedding


def test_google(service: Served, tuned: Any) -> None:
    file = service.client().files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    client = genai.Client(vertexai=True, api_key=service.key, http_options=types.HttpOptions(base_url=service.url))
    job = client.tunings.tune(
        base_model="tiny",
        training_dataset=types.TuningDataset(gcs_uri=file.id),
        config=types.CreateTuningJobConfig(
            epoch_count=1, adapter_size="ADAPTER_SIZE_FOUR", tuned_model_display_name="g"
        ),
    )
    assert job.name
    end = time.monotonic() + 180
    while not job.has_ended:
        assert time.monotonic() < end, job
        time.sleep(0.2)
        job = client.tunings.get(name=job.name)
    assert job.has_succeeded and job.tuned_model and job.tuned_model.model, job
    assert any(one.name == job.name for one in client.tunings.list())
    config = types.GenerateContentConfig(max_output_tokens=5, temperature=0)
    whole = client.models.generate_content(model=job.tuned_model.model, contents="fox stone", config=config)
    pieces = client.models.generate_content_stream(model=job.tuned_model.model, contents="fox stone", config=config)
    assert whole.text is not None and "".join(piece.text or "" for piece in pieces) == whole.text
    other = client.tunings.tune(
        base_model="tiny", training_dataset=types.TuningDataset(gcs_uri=file.id),
        config=types.CreateTuningJobConfig(epoch_count=50),
    )  # fmt: skip
    client.tunings.cancel(name=other.name or "")
    assert client.tunings.get(name=other.name or "").state == "JOB_STATE_CANCELLED"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(service: Served, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(CHAT))

    def curl(path: str, *options: str) -> Any:
        command = ["curl", "-sS", f"{service.url}{path}", "-H", f"Authorization: Bearer {service.key}", *options]
        return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    file = curl("/v1/files", "-F", "purpose=fine-tune", "-F", f"file=@{tmp_path / 'rows.jsonl'}")
    asked = {"model": "tiny", "training_file": file["id"], "hyperparameters": {"n_epochs": 1}}
    job = curl("/v1/fine_tuning/jobs", "-H", "Content-Type: application/json", "-d", json.dumps(asked))
    assert job["status"] == "validating_files"
    assert curl(f"/v1/fine_tuning/jobs/{job['id']}/cancel", "-X", "POST")["status"] == "cancelled"
    assert curl("/healthz") == {"status": "ok"} and curl("/readyz")["database"] == "ok"


def test_pause_and_resume(service: Served) -> None:
    """That a paused run ends with the weights that it would have had anyway is a test of the worker."""
    client = service.client()
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT * 40)), purpose="fine-tune")
    chosen = {"n_epochs": 50, "batch_size": 1}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters=chosen)

    def until(status: str, *before: str) -> None:
        while (now := client.fine_tuning.jobs.retrieve(job.id).status) != status:
            assert now in before, now
            time.sleep(0.05)

    until("running", "validating_files", "queued")
    assert client.fine_tuning.jobs.pause(job.id).status in ("pausing", "paused")
    until("paused", "pausing")
    assert client.fine_tuning.jobs.resume(job.id).status == "queued"
    until("running", "queued")
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"


def test_no_key_is_in_the_log(service: Served) -> None:
    log = (service.home.parent / "home.log").read_text()
    assert '"event": "request"' in log and service.key not in log and service.key[5:20] not in log
