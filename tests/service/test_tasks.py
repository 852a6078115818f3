"""A base may be for any task: jobs of every kind are made by the same call, and their models answer."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.pipelines import make_pipeline
from tests.service.served import CHAT, Served, ended, jsonl, served
from tests.tiny import make_base


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("tasks")
    for name, kind in (("texts", "bert"), ("pictures", "resnet"), ("chats", "llama")):
        make_base(root / "models" / name, kind)
    make_pipeline(root / "models" / "drawings", "sd1")
    with served(root / "home", [str(root / "models")]) as found:
        yield found


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()


def archive(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return packed.getvalue()


def tuned(service: Served, base: str, name: str, content: bytes, **recipe: Any) -> str:
    """The name of a model that a job made of these rows."""
    client = service.client()
    file = client.files.create(file=(name, content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        extra_body={"recipe": recipe},
    )
    done = ended(client, job)
    assert done.status == "succeeded", done.error
    return str(done.fine_tuned_model)


def asked(service: Served, path: str, **body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {service.key}"}
    return httpx.post(f"{service.url}/v1{path}", json=body, headers=headers, timeout=120)


def post(service: Served, path: str, **body: Any) -> Any:
    answer = asked(service, path, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def test_bases_answer_before_they_are_tuned(service: Served) -> None:
    body = {"model": "drawings", "prompt": "a dog", "size": "16x16", "steps": 2}
    (one,) = post(service, "/images/generations", **body)
    assert Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size == (16, 16)


@pytest.mark.parametrize(
    "path, model, remedy",
    [
        ("/predictions", "pictures", "tune it first"),
        ("/predictions", "texts", "tune it first"),
        ("/predictions", "chats", "/chat/completions"),
        ("/embeddings", "pictures", "tune it first"),
        ("/embeddings", "drawings", "/images/generations"),
        ("/images/generations", "chats", "/chat/completions"),
        ("/images/generations", "texts", "tune it first"),
        ("/completions", "drawings", "/images/generations"),
    ],
)
def test_what_a_base_cannot_do_is_refused(service: Served, path: str, model: str, remedy: str) -> None:
    body = {"model": model, **({"prompt": "a"} if path in ("/completions", "/images/generations") else {"input": "a"})}
    answer = asked(service, path, **body)
    assert answer.status_code == 400 and remedy in answer.json()["error"]["message"], answer.text


def test_texts_are_classified(service: Served) -> None:
    rows = jsonl([{"text": f"{word} {i}", "label": word} for i in range(6) for word in ("fox", "apples")])
    model = tuned(service, "texts", "rows.jsonl", rows)
    found = post(service, "/predictions", model=model, input=["fox", "apples"])
    assert [set(one["probabilities"]) for one in found] == [{"fox", "apples"}] * 2
    with pytest.raises(openai.BadRequestError):
        service.client().chat.completions.create(model=model, messages=[{"role": "user", "content": "a"}])


def test_pictures_are_classified(service: Served) -> None:
    files = {f"{colour}/{i}.png": picture(colour) for colour in ("red", "blue") for i in range(6)}
    model = tuned(service, "pictures", "pictures.zip", archive(files), method={"type": "head"})
    found = post(service, "/predictions", model=model, input=[base64.b64encode(picture("red")).decode()])
    assert found[0]["label"] in ("red", "blue")


def test_pictures_are_drawn(service: Served) -> None:
    captioned = {
        f"{i}.{kind}": content for i in range(4) for kind, content in (("png", picture("red")), ("txt", b"a dog"))
    }
    training = {"max_steps": 2}
    model = tuned(service, "drawings", "dogs.zip", archive(captioned), training=training, data={"resolution": 32})
    body = {"model": f"{model}@0.5", "prompt": "a dog", "size": "32x32", "steps": 2, "n": 2}
    found = post(service, "/images/generations", **body)
    sizes = [Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))).size for one in found]
    assert sizes == [(32, 32), (32, 32)]


def test_a_model_that_was_tuned_whole_answers_at_every_point(service: Served) -> None:
    model = tuned(
        service, "chats", "rows.jsonl", jsonl(CHAT), method={"type": "full"}, training={"learning_rate": 0.01}
    )
    client = service.client()

    def said(name: str) -> str:
        asked: Any = [{"role": "user", "content": "fox stone"}]
        found = client.chat.completions.create(model=name, messages=asked, temperature=0, max_tokens=6, logprobs=True)
        return str([(one.token, round(one.logprob, 3)) for one in found.choices[0].logprobs.content])

    points = [said(f"{model}@{alpha}") for alpha in (0, 0.5, 1)]
    assert points[0] == said("chats") and points[2] == said(model) and len(set(points)) == 3
