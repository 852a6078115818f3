"""Unmodified clients go through the whole story, and do what clients do: "What real clients do" of the wire facts."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.service.clients import BASE, DRIVERS, Curl, Driver, Google, OpenAI, make_stories, until
from tests.service.served import CHAT, WORDS, Served, ended, jsonl, served

TWICE = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 5}
GRADER = {"type": "string_check", "name": "same", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
          "operation": "like"}  # fmt: skip
STORIES = [(name, kind) for name, made in DRIVERS.items() for kind in made.rows]
KNOWN = {"validating_files", "queued", "running", "succeeded", "failed", "cancelled"}
"""The statuses that all clients know."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("clients")
    make_stories(root / "models" / BASE)
    with served(root / "home", [str(root / "models")]) as found:
        yield found


@pytest.fixture(scope="module")
def driver(service: Served, request: pytest.FixtureRequest) -> Iterator[Driver]:
    if request.param == "curl" and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with closing(DRIVERS[request.param](service)) as made:
        yield made


@pytest.fixture(scope="module")
def tuned(service: Served) -> Any:
    """A supervised job of the sync client that has succeeded, on a file from memory."""
    client = service.client()
    file = client.files.create(file=jsonl(CHAT), purpose="fine-tune")
    held = client.files.create(file=("held.jsonl", jsonl(CHAT[:4])), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=file.id, validation_file=held.id, suffix="My Fox", seed=7, metadata={"team": "a"},
        method={"type": "supervised", "supervised": {"hyperparameters": TWICE}},
    )  # fmt: skip
    assert job.status == "validating_files" and job.seed == 7
    return ended(client, job)


@pytest.mark.parametrize(("driver", "kind"), STORIES, indirect=["driver"])
def test_the_whole_story(service: Served, driver: Driver, kind: str) -> None:
    rows = jsonl(driver.rows[kind])
    file = driver.upload_in_parts(rows) if kind == "dpo" else driver.upload(rows)
    assert service.client().files.content(file).read() == rows
    done = driver.wait(driver.create(file, kind))
    assert done.model.startswith(f"ft:{BASE}:default:{kind}:")
    assert len(done.checkpoints) == 1 and done.checkpoints[0].startswith(f"{done.model}:ckpt-step-")
    if done.results is not None:  # some take the first results file, decode it and look for the column
        table = list(csv.DictReader(io.StringIO(base64.b64decode(done.results, validate=True).decode())))
        assert done.steps == [2, 1] and [row["step"] for row in table] == ["1", "2"]
        assert all(math.isfinite(float(row["train_loss"])) for row in table)
    base = driver.chat(BASE)
    said = {alpha: driver.chat(f"{done.model}{alpha}") for alpha in ("", "@1", "@0.5", "@0")}
    assert said["@0"] == base and said["@1"] == said[""] == driver.chat(done.checkpoints[0])
    assert len({base, said["@0.5"], said[""]}) == 3
    assert driver.stream(done.model) == said[""].text


@pytest.mark.parametrize("driver", DRIVERS, indirect=True)
def test_a_file_may_be_deleted_right_after_its_job_was_cancelled(service: Served, driver: Driver) -> None:
    file = driver.upload(jsonl(CHAT))
    job = driver.create(file, "supervised")
    assert driver.cancel(job) == "cancelled"
    driver.delete(file)
    client = service.client()
    assert client.fine_tuning.jobs.retrieve(job.removeprefix("tuningJobs/")).status == "cancelled"
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file)


def test_a_file_that_is_deleted_is_there_for_jobs_that_need_it(service: Served) -> None:
    """A job is cancelled as it runs, and its file is deleted: another that waits still finds it."""
    client, driver = service.client(), OpenAI(service)
    file = client.files.create(file=jsonl(CHAT), purpose="fine-tune")
    create = client.fine_tuning.jobs.create
    running = create(model=BASE, training_file=file.id, hyperparameters={"n_epochs": 50, "batch_size": 1})
    waiting = create(model=BASE, training_file=file.id, hyperparameters={"n_epochs": 1})
    until(lambda: client.fine_tuning.jobs.retrieve(running.id), lambda now: now.status == "running")
    driver.delete(file.id)
    assert driver.cancel(running.id) == "cancelled"
    assert ended(client, waiting).status == "succeeded"


def test_the_printed_lines_are_enough_and_the_key_is_shown_once(service: Served) -> None:
    code = service.said[service.said.index("from openai") :]
    exec(code, {"print": lambda answer: answer.choices[0].message.content})
    with served(service.home, [], "--workers", "0") as again:
        assert not again.key and "tw-…" in again.said


def test_a_tuned_model_answers_and_tells_how_it_came_about(service: Served, tuned: Any) -> None:
    client = service.client()
    assert tuned.status == "succeeded" and tuned.trained_tokens > 0 and tuned.error is None
    assert tuned.fine_tuned_model.startswith(f"ft:{BASE}:default:my-fox:")
    events = list(client.fine_tuning.jobs.list_events(tuned.id))
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
        BASE,
        tuned.fine_tuned_model,
        f"{tuned.fine_tuned_model}@0.6",
        checkpoints[1].fine_tuned_model_checkpoint,
    ]
    said = {name: answer(client, name) for name in names}
    assert said[BASE] == answer(client, f"{tuned.fine_tuned_model}@0") != said[tuned.fine_tuned_model]
    with pytest.raises(openai.BadRequestError, match="from 0 to 1"):
        answer(client, f"{tuned.fine_tuned_model}@1.5")
    listed = [model.id for model in client.models.list()]
    assert listed[0] == BASE and set(names[1:2]) <= set(listed)
    assert client.models.retrieve(tuned.fine_tuned_model).object == "model"
    assert client.embeddings.create(model=BASE, input=["fox", "stone"]).data[1].embedding
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
    prompts = client.completions.create(model=BASE, prompt=["fox", "river"], max_tokens=3, temperature=0, n=2)
    alone = client.completions.create(model=BASE, prompt="river", max_tokens=3, temperature=0)
    assert [choice.index for choice in prompts.choices] == [0, 1, 2, 3] and prompts.choices[2].text == alone.choices[
        0
    ].text


def test_graders_are_tried(service: Served) -> None:
    graders = service.client().fine_tuning.alpha.graders
    tried = graders.run(grader=GRADER, model_sample="a fox", item={"answer": "fox"})
    assert tried.reward == 1.0 and graders.validate(grader=GRADER).grader


BAD = {
    "no JSON": (b"\x00\xff\n" * 12, "supervised", "invalid_training_file", "give JSONL"),
    "a row without an answer": (b'{"messages": [{"role": "user"}]}\n', "supervised", "invalid_training_file", "line 1"),
    "rows of another method": (jsonl(CHAT), "dpo", "invalid_training_file", "preference"),
    "too few": (jsonl(CHAT[:9]), "supervised", "invalid_n_examples", "9 examples"),
}


@pytest.mark.parametrize("content, kind, code, said", BAD.values(), ids=BAD)
def test_what_is_wrong_with_the_rows_fails_the_job_later(
    service: Served, content: bytes, kind: str, code: str, said: str
) -> None:
    """Some clients try again for ever when a job cannot be created."""
    driver = OpenAI(service)
    client, file = driver.client, driver.upload(content)
    job = ended(client, client.fine_tuning.jobs.retrieve(driver.create(file, kind)))
    assert job.status == "failed" and job.error.code == code and job.error.param == "training_file"
    assert said in job.error.message
    assert client.fine_tuning.jobs.list_events(job.id, limit=1).data[0].level == "error"
    waited = client.files.wait_for_processing(file, poll_interval=0.1, max_wait_seconds=5)
    assert waited.status == "error" and waited.status_details == job.error.message


def test_errors_are_those_that_clients_know(service: Served, tuned: Any) -> None:
    """And none of them is asked again: a client tries 408, 409, 429 and what the service calls its own fault twice."""
    asked: list[Any] = []
    client = service.client(http_client=openai.DefaultHttpxClient(event_hooks={"request": [asked.append]}))
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    limited = service.client(service.new_key("--scope", "files"), max_retries=0)
    create = client.fine_tuning.jobs.create
    code = {"recipe": {"data": {"train": "/etc/passwd"}}}
    wrong: list[tuple[type[openai.APIStatusError], Callable[[], Any]]] = [
        (openai.NotFoundError, lambda: create(model="none", training_file=file.id)),
        (openai.NotFoundError, lambda: create(model=BASE, training_file="file-none")),
        (openai.NotFoundError, lambda: client.fine_tuning.jobs.retrieve("ftjob-none")),
        (openai.NotFoundError, lambda: answer(client, "ft:x")),
        (openai.AuthenticationError, lambda: service.client("tw-wrong", max_retries=0).models.list()),
        (openai.BadRequestError, lambda: create(model=BASE, training_file=file.id, suffix="x" * 65)),
        (openai.BadRequestError, lambda: create(model=BASE, training_file=file.id, extra_body=code)),
        (openai.BadRequestError, lambda: client.fine_tuning.jobs.cancel(tuned.id)),
        (openai.BadRequestError, lambda: client.fine_tuning.jobs.pause(tuned.id)),
        (openai.BadRequestError, lambda: client.fine_tuning.jobs.resume(tuned.id)),
        (openai.PermissionDeniedError, lambda: limited.models.list()),
    ]
    for kind, ask in wrong:
        asked.clear()
        with pytest.raises(kind) as found:
            ask()
        assert len(asked) <= 1 and found.value.status_code not in (408, 409, 429)
        assert found.value.body["message"] and found.value.response.headers["x-request-id"]
        assert found.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.NotFoundError) as gone:
        client.fine_tuning.jobs.retrieve("ftjob-none")
    assert gone.value.code == "fine_tune_not_found"


def test_another_tenant_sees_nothing(service: Served, tuned: Any) -> None:
    other = service.client(service.new_key("--tenant", "other"), max_retries=0)
    assert not other.files.list().data and not other.fine_tuning.jobs.list().data
    assert [model.id for model in other.models.list()] == [BASE, "tiny"]
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
    """The answer to a first request is lost behind a gateway: the client asks again, and tells only that it does."""
    answers: list[Any] = []

    def lose_first(response: Any) -> None:
        answers.append(response)
        response.status_code = 502 if len(answers) == 1 else response.status_code

    client = service.client()
    unlucky = service.client(http_client=openai.DefaultHttpxClient(event_hooks={"response": [lose_first]}))
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    asked: Any = {"model": BASE, "training_file": file.id, "metadata": {"twice": "yes"}}
    job = unlucky.fine_tuning.jobs.create(**asked)
    assert [one.status_code for one in answers] == [502, 200]
    assert [one.id for one in client.fine_tuning.jobs.list(metadata={"twice": "yes"})] == [job.id]
    again = client.fine_tuning.jobs.create(**asked)
    assert again.id != job.id, "who asks twice gets two"
    for one in (job, again):
        client.fine_tuning.jobs.cancel(one.id)


def test_who_looks_at_the_newest_event_alone_is_told_one(service: Served) -> None:
    """Some clients ask `list_events(limit=1)` in a loop until the status is one of the six that they know."""
    jobs = service.client().fine_tuning.jobs
    driver = OpenAI(service)
    id, seen = driver.create(driver.upload(jsonl(CHAT)), "supervised"), list[str]()
    while True:
        job, page = jobs.retrieve(id), jobs.list_events(id, limit=1)
        assert job.status in KNOWN and len(page.data) == 1 and page.has_more
        seen += [page.data[0].id] if page.data[0].id not in seen else []
        if job.finished_at:
            break
        time.sleep(0.1)
    newest_first = [event.id for event in jobs.list_events(id)]
    assert seen[-1] == newest_first[0] and len(seen) > 2
    assert [one for one in reversed(newest_first) if one in seen] == seen


@pytest.mark.parametrize("driver", ["openai", "async", "azure", "azure-v1"], indirect=True)
def test_clients_page_through_lists_on_their_own(driver: OpenAI, tuned: Any) -> None:
    """They go on after the last of a page until there is no more."""
    jobs, files = driver.client.fine_tuning.jobs, driver.client.files
    driver.upload(jsonl(CHAT))
    lists: list[tuple[Callable[..., Any], int]] = [
        (lambda **page: jobs.list_events(tuned.id, **page), 1000),
        (lambda **page: jobs.checkpoints.list(tuned.id, **page), 100),
        (jobs.list, 100),
        (files.list, 10_000),
    ]
    driver.cancel(driver.create(driver.upload(jsonl(CHAT)), "supervised"))
    for ask, most in lists:
        whole = [one.id for one in driver.every(ask(limit=most))]
        first = driver.run(ask(limit=1))
        assert [one.id for one in first.data] == whole[:1] and first.has_more and len(whole) >= 2
        assert len(set(whole)) == len(whole)
        for size in (1, 3):
            assert [one.id for one in driver.every(ask(limit=size))] == whole


@pytest.mark.parametrize("driver", ["google"], indirect=True)
def test_google_pages_through_tunings(driver: Google) -> None:
    made = [driver.create(driver.upload(jsonl(CHAT)), "supervised") for _ in range(3)]
    assert [driver.cancel(name) for name in made] == ["cancelled"] * 3
    pages = driver.client.tunings.list(config={"page_size": 2})
    assert [one.name for one in pages.page] == made[:0:-1]
    assert [one.name for one in pages][:3] == made[::-1]


def test_a_file_from_memory_is_trained_on(service: Served, tuned: Any) -> None:
    """It comes without a name that would tell what it is."""
    file = service.client().files.retrieve(tuned.training_file)
    assert file.filename == "upload" and tuned.status == "succeeded" and tuned.trained_tokens > 0


def test_uploads_in_parts_and_files_that_expire(service: Served) -> None:
    client, rows = service.client(), jsonl(CHAT)
    plain = client.files.create(file=rows, purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
    assert plain.expires_at == plain.created_at + 3600
    assert client.files.wait_for_processing(plain.id, poll_interval=0.1, max_wait_seconds=5).status == "processed"
    upload = client.uploads.create(
        filename="rows.jsonl", purpose="fine-tune", bytes=len(rows), mime_type="application/jsonl"
    )
    late, early = (client.uploads.parts.create(upload.id, data=part) for part in (rows[100:], rows[:100]))
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(upload.id, part_ids=[early.id, late.id], md5="0" * 32)
    done = client.uploads.complete(upload.id, part_ids=[early.id, late.id], md5=hashlib.md5(rows).hexdigest())
    assert done.file and client.files.content(done.file.id).read() == rows


def test_answers_that_are_asked_for_at_once_are_those_of_each_alone(service: Served, tuned: Any) -> None:
    async def story() -> None:
        async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.key) as client:
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


@pytest.mark.parametrize("driver", ["azure", "azure-v1"], indirect=True)
def test_azure(service: Served, driver: OpenAI, tuned: Any) -> None:
    """What is not of the story, under Azure's addresses."""
    client, plain = driver.client, service.client()
    assert answer(client, tuned.fine_tuned_model) == answer(plain, tuned.fine_tuned_model)
    assert [one.id for one in client.models.list()] == [one.id for one in plain.models.list()]
    for ask in (
        lambda one: one.embeddings.create(model=BASE, input="fox").data[0].embedding,
        lambda one: one.completions.create(model=BASE, prompt="fox", max_tokens=5, temperature=0).choices[0].text,
    ):
        assert ask(client) == ask(plain)


class Ending(BaseModel):
    """What clients let an answer be parsed as."""

    what: Literal["happy", "sad"]
    wise: bool


def test_answers_are_parsed_as_what_was_asked_for(service: Served) -> None:
    messages: Any = [{"role": "user", "content": "Once upon a time"}]
    chat = service.client().chat.completions.parse(model=BASE, messages=messages, response_format=Ending)
    assert isinstance(chat.choices[0].message.parsed, Ending) and chat.choices[0].finish_reason == "stop"
    wanted: Any = {"response_mime_type": "application/json", "response_schema": Ending}
    with closing(Google(service)) as google:
        found = google.client.models.generate_content(model=BASE, contents="Once upon a time", config=wanted)
    assert isinstance(found.parsed, Ending)


@pytest.mark.parametrize("driver", ["google"], indirect=True)
def test_google_finds_models_and_counts_what_they_are_fed(driver: Google, tuned: Any) -> None:
    ask, name = driver.client.models, tuned.fine_tuned_model
    assert [one.name for one in ask.list()] == [BASE, "tiny"]
    assert name in [one.name for one in ask.list(config={"query_base": False})]
    for model in (BASE, "tiny", f"{name}@0.5"):
        config: Any = {"system_instruction": "Be brief."}
        count = ask.count_tokens(model=model, contents=["fox", "stone"], config=config)
        said = ask.generate_content(model=model, contents=["fox", "stone"], config={**config, "max_output_tokens": 1})
        assert count.total_tokens and said.usage_metadata
        assert count.total_tokens == said.usage_metadata.prompt_token_count


@pytest.mark.parametrize("driver", ["curl"], indirect=True)
def test_curl_finds_the_service_well(driver: Curl) -> None:
    assert driver.get("/healthz") == {"status": "ok"} and driver.get("/readyz")["database"] == "ok"


def test_pause_and_resume(service: Served) -> None:
    """That a paused run ends with the weights that it would have had anyway is a test of the worker."""
    client = service.client()
    file = client.files.create(file=("rows.jsonl", jsonl(CHAT * 40)), purpose="fine-tune")
    chosen = {"n_epochs": 50, "batch_size": 1}
    job = client.fine_tuning.jobs.create(model=BASE, training_file=file.id, hyperparameters=chosen)

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
