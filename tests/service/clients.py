"""Unmodified clients of the service, each driven by the same few methods; and the base and rows of their jobs."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from google import genai
from google.genai import types

from tests.conftest import SHARED
from tests.service.served import CHAT, WORDS, Served
from tests.tiny import make_base

BASE = "stories"
SIZE = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "num_attention_heads": 8,
        "num_key_value_heads": 4}  # fmt: skip
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"

FAST = {"n_epochs": 1, "batch_size": 6, "learning_rate_multiplier": 5}
FEW_SAMPLES = {"compute_multiplier": 0.25}


def contents(message: Any) -> dict[str, Any]:
    """A message as Google says it."""
    role = "model" if message["role"] == "assistant" else "user"
    return {"role": role, "parts": [{"text": message["content"]}]}


GRADER = {"type": "text_similarity", "name": "near", "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
          "evaluation_metric": "fuzzy_match"}  # fmt: skip
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
ROWS: dict[str, Sequence[Any]] = {"supervised": CHAT, "dpo": PAIRS, "reinforcement": PROMPTS}
"""By the method that trains on them."""
CONTENTS = [{"contents": [contents(one) for one in row["messages"]]} for row in CHAT]
COMPLETIONS = [
    {
        "contents": [contents(one) for one in row["input"]["messages"]],
        "completions": [
            {"score": score, "completion": contents(row[name][0])}
            for score, name in enumerate(("non_preferred_output", "preferred_output"))
        ],
    }
    for row in PAIRS
]
"""The same rows as Vertex AI takes them."""
SETTINGS: dict[str, dict[str, Any]] = {
    "supervised": {"hyperparameters": FAST},
    "dpo": {"hyperparameters": {**FAST, "beta": 0.2}},
    "reinforcement": {"hyperparameters": {**FAST, **FEW_SAMPLES}, "grader": GRADER},
}
ASKED = [{"role": "user", "content": "fox stone"}]
SAMPLING: dict[str, Any] = {"messages": ASKED, "temperature": 0, "max_tokens": 6}


def make_stories(folder: Path) -> None:
    """stories260k with a chat template, which it lacks; a random model of its size where it is absent."""
    stories = SHARED / "models" / "stories260k"
    if not stories.is_dir():
        make_base(folder, "llama", **SIZE)
        return
    shutil.copytree(stories, folder, copy_function=shutil.copyfile)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


@dataclass(frozen=True)
class Outcome:
    """What a client is told of a job that has succeeded.

    Attributes:
        checkpoints: the names of models, the newest first.
        steps: those that events of metrics are of, the newest first. None where a client has no events.
        results: the results file as it is served. None where a client has none.
    """

    model: str
    checkpoints: list[str]
    steps: list[int] | None = None
    results: bytes | None = None


@dataclass(frozen=True)
class Said:
    """An answer, with the log probability of each token, which tells models apart that say the same."""

    text: str
    logprobs: tuple[float, ...]


def said(text: str, logprobs: Iterable[float]) -> Said:
    return Said(text, tuple(round(one, 4) for one in logprobs))


def job_of(file: str, kind: str) -> dict[str, Any]:
    """What openai's protocol asks for."""
    method = {"type": kind, kind: SETTINGS[kind]}
    return {"model": BASE, "training_file": file, "suffix": kind, "seed": 1, "method": method}


class OpenAI:
    """The client openai. `rows` are by the methods of training that a client's protocol has, and in its form."""

    rows: Mapping[str, Sequence[Any]] = ROWS

    def __init__(self, service: Served) -> None:
        self.client = self.make(service)

    def make(self, service: Served) -> Any:
        return openai.OpenAI(base_url=f"{service.url}/v1", api_key=service.key)

    def run(self, call: Any) -> Any:
        """The result of a call."""
        return call

    def every(self, pages: Any) -> list[Any]:
        """All that a list or a stream has, on whatever page."""
        return list(pages)

    def upload(self, rows: bytes) -> str:
        """Upload a small file from memory. Returns its id."""
        return str(self.run(self.client.files.create(file=rows, purpose="fine-tune")).id)

    def upload_in_parts(self, rows: bytes) -> str:
        sent = self.client.uploads.upload_file_chunked(
            file=rows, filename="rows.jsonl", bytes=len(rows), mime_type="application/jsonl", purpose="fine-tune",
            part_size=len(rows) // 3,
        )  # fmt: skip
        return str(self.run(sent).file.id)

    def delete(self, file: str) -> None:
        assert self.run(self.client.files.delete(file)).deleted

    def create(self, file: str, kind: str) -> str:
        """Create a job. Returns its id."""
        return str(self.run(self.client.fine_tuning.jobs.create(**job_of(file, kind))).id)

    def cancel(self, job: str) -> str:
        """Returns the status that the job then has."""
        return str(self.run(self.client.fine_tuning.jobs.cancel(job)).status)

    def wait(self, job: str) -> Outcome:
        jobs = self.client.fine_tuning.jobs
        done = until(lambda: self.run(jobs.retrieve(job)), lambda now: now.finished_at)
        assert done.status == "succeeded", done.error
        return Outcome(
            done.fine_tuned_model,
            [one.fine_tuned_model_checkpoint for one in self.every(jobs.checkpoints.list(job, limit=1))],
            [one.data["step"] for one in self.every(jobs.list_events(job, limit=2)) if one.type == "metrics"],
            self.run(self.client.files.content(done.result_files[0])).content,
        )

    def chat(self, model: str) -> Said:
        found = self.run(self.client.chat.completions.create(model=model, logprobs=True, **SAMPLING)).choices[0]
        return said(found.message.content, [token.logprob for token in found.logprobs.content])

    def stream(self, model: str) -> str:
        chunks = self.every(self.run(self.client.chat.completions.create(model=model, stream=True, **SAMPLING)))
        assert chunks[-1].choices[0].finish_reason
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def close(self) -> None:
        self.run(self.client.close())


class AsyncOpenAI(OpenAI):
    """Its asynchronous half."""

    def make(self, service: Served) -> Any:
        self.runner = asyncio.Runner()
        return openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=service.key)

    def run(self, call: Awaitable[Any]) -> Any:
        async def result() -> Any:
            return await call

        return self.runner.run(result())

    def every(self, pages: Any) -> list[Any]:
        async def collected() -> list[Any]:
            return [one async for one in pages]

        return self.runner.run(collected())

    def close(self) -> None:
        super().close()
        self.runner.close()


class Azure(OpenAI):
    """AzureOpenAI, which asks models under the addresses of deployments."""

    def make(self, service: Served) -> Any:
        return openai.AzureOpenAI(azure_endpoint=service.url, api_version="2024-10-21", api_key=service.key)


class AzureV1(OpenAI):
    """Azure's newer addresses."""

    def make(self, service: Served) -> Any:
        return openai.OpenAI(base_url=f"{service.url}/openai/v1/", api_key=service.key)


class Google:
    """google-genai. It has no uploads for tuning: rows come to where jobs find them by other ways."""

    rows: Mapping[str, Sequence[Any]] = {"supervised": CONTENTS, "dpo": COMPLETIONS}

    def __init__(self, service: Served) -> None:
        self.files = OpenAI(service)
        self.client = genai.Client(
            vertexai=True, api_key=service.key, http_options=types.HttpOptions(base_url=service.url)
        )
        self.upload, self.upload_in_parts = self.files.upload, self.files.upload_in_parts
        self.delete = self.files.delete

    def create(self, file: str, kind: str) -> str:
        chosen: dict[str, Any] = {"method": "SUPERVISED_FINE_TUNING", "batch_size": FAST["batch_size"]}
        if kind == "dpo":
            chosen = {"method": "PREFERENCE_TUNING", "beta": 0.2}
        config = types.CreateTuningJobConfig(
            **chosen,
            epoch_count=FAST["n_epochs"],
            learning_rate_multiplier=FAST["learning_rate_multiplier"],
            adapter_size=types.AdapterSize.ADAPTER_SIZE_FOUR,
            tuned_model_display_name=kind,
        )
        rows = types.TuningDataset(gcs_uri=file)
        return str(self.client.tunings.tune(base_model=BASE, training_dataset=rows, config=config).name)

    def cancel(self, job: str) -> str:
        self.client.tunings.cancel(name=job)
        state = self.client.tunings.get(name=job).state
        assert state is not None
        return state.value.removeprefix("JOB_STATE_").lower()

    def wait(self, job: str) -> Outcome:
        done = until(lambda: self.client.tunings.get(name=job), lambda now: now.has_ended)
        assert done.has_succeeded, done.error
        tuned = done.tuned_model
        return Outcome(tuned.model, [one.endpoint for one in reversed(tuned.checkpoints)])

    def _sampling(self, **more: Any) -> types.GenerateContentConfig:
        return types.GenerateContentConfig(temperature=0, max_output_tokens=SAMPLING["max_tokens"], **more)

    def chat(self, model: str) -> Said:
        config, asked = self._sampling(response_logprobs=True), ASKED[0]["content"]
        found = self.client.models.generate_content(model=model, contents=asked, config=config)
        assert found.text is not None and found.candidates and found.candidates[0].logprobs_result
        tokens = found.candidates[0].logprobs_result.chosen_candidates or []
        return said(found.text, [token.log_probability or 0.0 for token in tokens])

    def stream(self, model: str) -> str:
        asked = ASKED[0]["content"]
        pieces = self.client.models.generate_content_stream(model=model, contents=asked, config=self._sampling())
        return "".join(piece.text or "" for piece in pieces)

    def close(self) -> None:
        self.files.close()
        self.client.close()


class Curl:
    """curl, as in the examples of API references."""

    rows: Mapping[str, Sequence[Any]] = ROWS

    def __init__(self, service: Served) -> None:
        self.service = service

    def ask(self, path: str, *options: str, sent: bytes = b"") -> bytes:
        key = f"Authorization: Bearer {self.service.key}"
        command = ["curl", "-sS", "--fail-with-body", f"{self.service.url}{path}", "-H", key, *options]
        found = subprocess.run(command, input=sent, capture_output=True)
        assert found.returncode == 0, found
        return found.stdout

    def get(self, path: str) -> Any:
        return json.loads(self.ask(path))

    def post(self, path: str, body: Any) -> Any:
        return json.loads(self.ask(path, *AS_JSON, sent=json.dumps(body).encode()))

    def upload(self, rows: bytes) -> str:
        return str(json.loads(self.ask("/v1/files", "-F", "purpose=fine-tune", "-F", "file=@-", sent=rows))["id"])

    def upload_in_parts(self, rows: bytes) -> str:
        about = {"filename": "rows.jsonl", "purpose": "fine-tune", "bytes": len(rows), "mime_type": "text/plain"}
        upload, half = self.post("/v1/uploads", about)["id"], len(rows) // 2
        parts = [
            json.loads(self.ask(f"/v1/uploads/{upload}/parts", "-F", "data=@-", sent=part))["id"]
            for part in (rows[:half], rows[half:])
        ]
        return str(self.post(f"/v1/uploads/{upload}/complete", {"part_ids": parts})["file"]["id"])

    def delete(self, file: str) -> None:
        assert json.loads(self.ask(f"/v1/files/{file}", "-X", "DELETE"))["deleted"]

    def create(self, file: str, kind: str) -> str:
        return str(self.post("/v1/fine_tuning/jobs", job_of(file, kind))["id"])

    def cancel(self, job: str) -> str:
        return str(json.loads(self.ask(f"/v1/fine_tuning/jobs/{job}/cancel", "-X", "POST"))["status"])

    def wait(self, job: str) -> Outcome:
        at = f"/v1/fine_tuning/jobs/{job}"
        done = until(lambda: self.get(at), lambda now: now["finished_at"])
        assert done["status"] == "succeeded", done["error"]
        return Outcome(
            done["fine_tuned_model"],
            [one["fine_tuned_model_checkpoint"] for one in self.get(f"{at}/checkpoints")["data"]],
            [one["data"]["step"] for one in self.get(f"{at}/events?limit=100")["data"] if one["type"] == "metrics"],
            self.ask(f"/v1/files/{done['result_files'][0]}/content"),
        )

    def chat(self, model: str) -> Said:
        found = self.post("/v1/chat/completions", {"model": model, "logprobs": True, **SAMPLING})["choices"][0]
        return said(found["message"]["content"], [token["logprob"] for token in found["logprobs"]["content"]])

    def stream(self, model: str) -> str:
        body = json.dumps({"model": model, "stream": True, **SAMPLING}).encode()
        events = self.ask("/v1/chat/completions", "-N", *AS_JSON, sent=body).decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    def close(self) -> None: ...


AS_JSON = ("-H", "Content-Type: application/json", "--data-binary", "@-")
Driver = OpenAI | Google | Curl
DRIVERS: dict[str, type[OpenAI] | type[Google] | type[Curl]] = {
    "openai": OpenAI, "async": AsyncOpenAI, "azure": Azure, "azure-v1": AzureV1, "google": Google, "curl": Curl
}  # fmt: skip


def until(look: Callable[[], Any], true: Callable[[Any], Any], seconds: float = 180) -> Any:
    """What is seen once it is true."""
    end = time.monotonic() + seconds
    while not true(now := look()):
        assert time.monotonic() < end, now
        time.sleep(0.25)
    return now
