"""Google's formats: what google-genai sends is understood, and what is answered is what its types say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from google import genai
from google.genai import errors, types

from tunewright.service.entities import Checkpoint, Hyperparameters, Job, JobSpec, Status, Teaching
from tunewright.service.errors import Refused, missing
from tunewright.service.inference.protocol import Piece, Sampling, Token, Usage
from tunewright.service.wire import google as wire
from tunewright.service.wire import google_chat
from tunewright.service.wire.chat import Answer, Reply, ToolCall
from tunewright.service.wire.openai import ListQuery

REPLY = Reply("r-1", 1_700_000_000, "ft:m:acme::1")
HI, NO, END = (
    Token(text, tuple(text.encode()), logprob) for text, logprob in (("Hi", -0.5), ("No", -2.0), ("!", -1.5))
)
TOKENS = (replace(HI, top=(HI, NO)), replace(END, top=(END,)))
SPEC = JobSpec(model="m", training_file="file-a", suffix="name", metadata={"a": "b", "description": "d"})


def client(answer: Any, seen: list[httpx.Request] | None = None) -> genai.Client:
    """A client whose server answers this, whatever is asked: a status and JSON, or the lines of a stream."""

    class Server(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            request.read()
            (seen if seen is not None else []).append(request)
            if isinstance(answer, bytes):
                return httpx.Response(200, content=answer, headers={"content-type": "text/event-stream"})
            return httpx.Response(answer[0], json=answer[1])

    options = types.HttpOptions(base_url="http://here", client_args={"transport": Server()})
    return genai.Client(vertexai=True, api_key="tw-x", http_options=options)


def asked_of(answer: Any, call: Callable[[genai.Client], Any]) -> Any:
    """What a client makes of an answer. It closes itself when nobody holds it any more."""
    asking = client(answer)
    return call(asking)


def sent(call: Callable[[genai.Client], Any], answer: Any = None) -> httpx.Request:
    seen: list[httpx.Request] = []
    asking = client((200, answer or {"name": "tuningJobs/ftjob-1"}), seen)
    call(asking)
    return seen[0]


def tune(method: str | None = None, base: str = "m", **config: Any) -> dict[str, Any]:
    chosen = types.CreateTuningJobConfig(method=method, **config)  # type: ignore[arg-type]
    rows = types.TuningDataset(gcs_uri="file-a")
    body: dict[str, Any] = json.loads(
        sent(lambda c: c.tunings.tune(base_model=base, training_dataset=rows, config=chosen)).content
    )
    return body


def test_a_client_s_tuning_becomes_a_job() -> None:
    body = tune(
        epoch_count=2,
        learning_rate_multiplier=0.5,
        adapter_size="ADAPTER_SIZE_FOUR",
        tuned_model_display_name="my model",
        labels={"team": "search"},
        description="d",
        validation_dataset=types.TuningValidationDataset(gcs_uri="file-b"),
    )
    assert wire.create_tuning(body) == JobSpec(
        model="m",
        training_file="file-a",
        validation_file="file-b",
        method=Teaching(hyperparameters=Hyperparameters(n_epochs=2, learning_rate_multiplier=0.5)),
        suffix="my-model",
        metadata={"team": "search", "description": "d"},
        recipe={"method": {"type": "lora", "rank": 4}},
    )
    preferred = wire.create_tuning(tune("PREFERENCE_TUNING", base="ft:m:acme::1", beta=0.2, epoch_count=1))
    assert preferred.model == "ft:m:acme::1"
    assert preferred.method == Teaching(type="dpo", hyperparameters=Hyperparameters(n_epochs=1, beta=0.2))
    full = wire.create_tuning(tune(tuning_mode="TUNING_MODE_FULL", batch_size=4, learning_rate=1e-4))
    assert full.recipe == {"method": {"type": "full"}, "training": {"learning_rate": 1e-4}}
    assert full.method.hyperparameters == Hyperparameters(batch_size=4)


@pytest.mark.parametrize(
    "changes, param",
    [
        ({"baseModel": None}, "baseModel"),
        ({"baseModel": "m@0.5"}, "baseModel"),
        ({"supervisedTuningSpec": None}, "supervisedTuningSpec"),
        ({"supervisedTuningSpec": {}}, "supervisedTuningSpec.trainingDatasetUri"),
        ({"supervisedTuningSpec": {"trainingDatasetUri": "f", "hyperParameters": {"epochCount": "99"}}},
         "supervisedTuningSpec.hyperParameters.epochCount"),
        ({"supervisedTuningSpec": {"trainingDatasetUri": "f", "hyperParameters": {"epochCount": "x"}}},
         "supervisedTuningSpec.hyperParameters.epochCount"),
        ({"supervisedTuningSpec": {"trainingDatasetUri": "f", "hyperParameters": {"beta": 0.5}}},
         "supervisedTuningSpec.hyperParameters.beta"),
        ({"supervisedTuningSpec": {"trainingDatasetUri": "f", "hyperParameters": {"adapterSize": "ADAPTER_SIZE_TEN"}}},
         "supervisedTuningSpec.hyperParameters.adapterSize"),
        ({"outputUri": "gs://x"}, "outputUri"),
        ({"labels": {"k" * 65: "v"}}, "labels"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        wire.create_tuning({"baseModel": "m", "supervisedTuningSpec": {"trainingDatasetUri": "f"}, **changes})
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize("kind", ["supervised", "dpo", "reinforcement"])
@pytest.mark.parametrize("status", Status)
def test_a_job_is_what_the_client_reads(status: Status, kind: str) -> None:
    teaching = Teaching(type=kind, hyperparameters=Hyperparameters(n_epochs=2))  # type: ignore[arg-type]
    spec = SPEC.model_copy(update={"method": teaching})
    kept = Job("ftjob-1", 1, "acme", spec, status, 1_700_000_000, fine_tuned_model="ft:m:acme:name:1")
    kept = replace(kept, error={"code": "x", "message": "bad"}, resolved={"batch_size": 4}, finished_at=1_700_000_060)
    told = wire.tuning_job(kept, [Checkpoint("c", 1, "ftjob-1", "ft:m:acme:name:1:ckpt-step-9", 9, 1)])
    types.TuningJob.model_validate(told)  # refuses what it does not know
    read = asked_of((200, told), lambda c: c.tunings.get(name="tuningJobs/ftjob-1"))
    assert read.state and read.state.value == f"JOB_STATE_{wire.STATES[status]}"
    assert read.name == "tuningJobs/ftjob-1" and read.error and read.error.message == "bad"
    assert read.tuned_model and read.tuned_model.endpoint == "ft:m:acme:name:1"
    assert read.tuned_model.checkpoints and read.tuned_model.checkpoints[0].endpoint == "ft:m:acme:name:1:ckpt-step-9"
    assert read.labels == {"a": "b"} and read.description == "d" and read.tuned_model_display_name == "name"
    assert read.end_time and read.create_time and (read.end_time - read.create_time).total_seconds() == 60
    if kind == "supervised":
        chosen = read.supervised_tuning_spec and read.supervised_tuning_spec.hyper_parameters
        assert chosen and (chosen.epoch_count, chosen.batch_size) == (2, 4)


def test_lists() -> None:
    request = sent(lambda c: list(c.tunings.list(config={"page_size": 2, "page_token": "ftjob-9"})), {"tuningJobs": []})
    assert wire.list_query(request.url.params.multi_items()) == ListQuery("ftjob-9", 2)
    assert wire.list_query([("pageSize", "0")]) == ListQuery()
    job = wire.tuning_job(Job("ftjob-1", 1, "acme", SPEC, Status.QUEUED, 1))
    pages = asked_of((200, wire.tuning_page([job], None)), lambda c: list(c.tunings.list()))
    assert [one.name for one in pages] == ["tuningJobs/ftjob-1"]
    assert wire.tuning_page([job], "ftjob-1")["nextPageToken"] == "ftjob-1"


def test_an_error_in_the_client_s_own_words() -> None:
    with pytest.raises(errors.ClientError, match="There is no job x") as raised:
        asked_of((404, wire.error(missing("job", "x"))), lambda c: c.tunings.get(name="tuningJobs/x"))
    assert raised.value.code == 404 and raised.value.status == "NOT_FOUND"


@pytest.mark.parametrize("name", ["m", "ft:m:acme::1@0.6", "tunewright/tiny", "ft:tunewright/tiny:acme::1"])
def test_names_of_models_survive_the_client(name: str) -> None:
    request = sent(lambda c: c.models.generate_content(model=name, contents="Hi"), {"candidates": []})
    path, _, method = request.url.path.removeprefix("/v1beta1/").rpartition(":")
    assert method == "generateContent" and wire.model_of(path) == name
    assert wire.model_of(f"projects/p/locations/l/endpoints/{name}") == name


def test_a_request_for_candidates() -> None:
    function = types.FunctionDeclaration(
        name="weather", parameters=types.Schema(type="OBJECT", properties={"type": types.Schema(type="STRING")})
    )
    config = types.GenerateContentConfig(
        system_instruction="Be brief.", temperature=0, top_p=0.5, top_k=40, candidate_count=2, max_output_tokens=5,
        seed=3, stop_sequences=["a"], response_logprobs=True, logprobs=2,
        tools=[types.Tool(function_declarations=[function])],
    )  # fmt: skip
    contents = [
        types.Content(role="user", parts=[types.Part(text="Hi"), types.Part(text="!")]),
        types.Content(
            role="model", parts=[types.Part(function_call=types.FunctionCall(name="weather", args={"a": 1}))]
        ),
        types.Content(role="user", parts=[types.Part.from_function_response(name="weather", response={"r": 2})]),
    ]
    body = json.loads(
        sent(
            lambda c: c.models.generate_content(model="m", contents=contents, config=config), {"candidates": []}
        ).content
    )
    asked = google_chat.generate("publishers/google/models/m@0.25", body)
    assert (asked.model, asked.alpha, asked.named) == ("m", 0.25, "m@0.25")
    assert asked.sampling == Sampling(0.0, 0.5, 3, 5, ("a",), 2, 2, top_k=40)
    system, user, call, returned = asked.messages or []
    assert system == {"role": "system", "content": "Be brief."} and user == {"role": "user", "content": "Hi!"}
    assert call["tool_calls"][0]["id"] == returned["tool_call_id"] and json.loads(returned["content"]) == {"r": 2}
    assert asked.tools and asked.tools[0]["function"]["parameters"] == {
        "type": "object", "properties": {"type": {"type": "string"}}
    }  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"generationConfig": {"thinkingConfig": {"thinkingBudget": 0}}},
        {"contents": []},
        {"contents": [{"parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]}]},
        {"contents": [{"parts": [{"functionResponse": {"name": "f", "response": {}}}]}]},
        {"generationConfig": {"topK": 0}},
        {"generationConfig": {"topK": 2.5}},
        {"generationConfig": {"logprobs": 4}},
        {"generationConfig": {"responseMimeType": "text/x.enum"}},
        {"generationConfig": {"responseSchema": {"type": "OBJECT"}}},
        {
            "generationConfig": {"responseMimeType": "application/json"},
            "tools": [{"functionDeclarations": [{"name": "f"}]}],
        },
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        google_chat.generate("m", {"contents": [{"parts": [{"text": "Hi"}]}], **changes})
    assert refused.value.status == 400 and refused.value.param


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"generationConfig": {"topK": 2.5}}, "generationConfig.topK: Input should be a multiple of 1"),
        ({"generationConfig": {"thinkingConfig": {}}}, "generationConfig.thinkingConfig: models that are tuned here"),
        ({"generationConfig": {"maxOutputToken": 4}}, "maxOutputToken. Did you mean maxOutputTokens?"),
        ({"contents": [{"parts": [{"txt": "Hi"}]}]}, "Unknown field contents.0.parts.0.txt. Did you mean text?"),
        (
            {"tools": [{"functionDeclarations": [{"name": "f", "paramters": {}}]}]},
            "paramters. Did you mean parameters?",
        ),
        ({"generationConfig": {"zzz": 4}}, "Unknown field generationConfig.zzz."),
        ({"systemInstructions": {}}, "Unknown field systemInstructions. Did you mean systemInstruction?"),
        ({"contents": [{"parts": [{"fileData": {"fileUri": "gs://a"}}]}]}, "0.fileData: images and files are not read"),
        ({"contents": [{"parts": [{}]}]}, "contents.0.parts.0: give one of text, functionCall and functionResponse"),
        (
            {"contents": [{"role": "user", "parts": [{"functionCall": {"name": "f"}}]}]},
            'contents.0.parts: a functionCall is made by the role "model" alone',
        ),
    ],
)
def test_what_to_do_about_it_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=re.escape(said)) as refused:
        google_chat.generate("m", {"contents": [{"parts": [{"text": "Hi"}]}], **changes})
    assert refused.value.status == 400 and ("Did you mean" in said) == ("Did you mean" in str(refused.value))


def test_both_spellings_of_names_are_taken() -> None:
    """As Google's own JSON takes them."""
    asked = google_chat.generate("m", {
        "contents": [{"role": "model", "parts": [{"function_call": {"name": "f", "args": {"a_b": 1}}}]},
                     {"parts": [{"function_response": {"name": "f"}}]}],
        "system_instruction": {"role": "system", "parts": [{"text": "Be brief."}]},
        "tools": [{"function_declarations": [{"name": "f", "parameters_json_schema": {"type": "object"}}]}],
        "generation_config": {"max_output_tokens": 4},
    })  # fmt: skip
    assert asked.sampling.max_tokens == 4 and asked.messages and asked.messages[0]["content"] == "Be brief."
    assert asked.messages[1]["tool_calls"][0]["function"]["arguments"] == '{"a_b": 1}'
    assert asked.tools and asked.tools[0]["function"]["parameters"] == {"type": "object"}


def test_answers_and_streams() -> None:
    call = ToolCall("call_1", "weather", '{"city": "Oslo"}')
    told = google_chat.answer(
        REPLY, [Answer("Hi!", "stop", TOKENS), Answer("", "length", (), (call,))], Usage(3, 2), True
    )
    types.GenerateContentResponse.model_validate(told)
    read = asked_of((200, told), lambda c: c.models.generate_content(model="m", contents="Hi"))
    assert read.candidates and read.candidates[0].avg_logprobs == -1.0 and read.usage_metadata
    assert read.usage_metadata.total_token_count == 5
    first, second = read.candidates
    assert first.content and first.content.parts and first.content.parts[0].text == "Hi!"
    assert first.logprobs_result and first.logprobs_result.top_candidates and first.finish_reason == "STOP"
    assert second.content and second.content.parts and second.content.parts[0].function_call
    assert second.content.parts[0].function_call.args == {"city": "Oslo"} and second.finish_reason == "MAX_TOKENS"
    pieces = [
        google_chat.piece(REPLY, Piece(0, "Hi")),
        google_chat.piece(REPLY, Piece(0, "!", finish="stop")),
        google_chat.end(REPLY, Usage(3, 2)),
    ]
    lines = b"".join(b"data: " + json.dumps(one).encode() + b"\r\n\r\n" for one in pieces)
    chunks = asked_of(lines, lambda c: list(c.models.generate_content_stream(model="m", contents="Hi")))
    assert "".join(chunk.text or "" for chunk in chunks) == "Hi!"
    assert chunks[-1].usage_metadata and chunks[-1].usage_metadata.candidates_token_count == 2


def test_schemas_are_in_googles_words_or_in_those_of_json_schema() -> None:
    def schema(**chosen: Any) -> Any:
        asked = google_chat.generate("m", {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": chosen})
        return asked.sampling.schema and json.loads(asked.sampling.schema)

    json_type = {"responseMimeType": "application/json"}
    assert schema() is None and schema(**json_type) == {"type": "object"}
    plain = {"type": "object", "properties": {"type": {"type": ["string", "null"]}, "n": {"type": "array", "items": {
        "anyOf": [{"type": "integer"}, {"enum": ["A"], "type": "string"}]}}}, "required": ["type"]}  # fmt: skip
    assert schema(**json_type, responseJsonSchema=plain) == plain
    google = {"type": "OBJECT", "properties": {"type": {"type": "STRING", "nullable": True}, "n": {"type": "ARRAY",
        "items": {"anyOf": [{"type": "INTEGER"}, {"enum": ["A"], "type": "STRING"}]}}}, "required": ["type"],
        "propertyOrdering": ["type", "n"]}  # fmt: skip
    assert schema(**json_type, responseSchema=google) == {**plain, "additionalProperties": False}
