"""Google's rows: a file that Vertex AI takes is trained on as it is, and what is wrong is said in its own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.service.test_validation import found, jsonl, spec
from tests.tiny import chats
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Conversation, Ranking
from tunewright.data.records import load_records
from tunewright.service.unpacking import placed
from tunewright.service.wire import google_rows

WEATHER = {"name": "weather", "description": "Of a city.",
           "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}  # fmt: skip


def said(role: str | None, *parts: Any) -> dict[str, Any]:
    made = [{"text": part} if isinstance(part, str) else part for part in parts]
    return {**({"role": role} if role else {}), "parts": made}


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "systemInstruction": said("system", "Be brief."),
        "contents": [said("user", f"word {number}", "!"), said("model", f"Yes {number}")],
        **changes,
    }


def pair(number: int = 0, better: int = 0, **changes: Any) -> dict[str, Any]:
    completions = [{"score": int(i == better), "completion": said("model", f"{i} {number}")} for i in range(2)]
    asked = {"system_instruction": said(None, "Be brief."), "contents": [said("user", f"word {number}")]}
    return {**asked, "completions": completions, **changes}


CALLING = row(
    contents=[
        said("user", "Oslo?"),
        said("model", {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}}),
        said("function", {"functionResponse": {"name": "weather", "response": {"rain": True}}}),
        said("model", "It rains."),
    ],
    tools=[{"functionDeclarations": [WEATHER]}],
)
CHOICES = [
    {"score": 0, "completion": said("model", "I do not know.")},
    {"score": 1, "completion": CALLING["contents"][1]},
]


def test_a_row_becomes_a_conversation() -> None:
    made = google_rows.translated(row())
    assert made == {"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "word 0!"},
        {"role": "assistant", "content": "Yes 0"},
    ]}  # fmt: skip
    assert google_rows.translated({"contents": [said(None, "a"), said("model", "b")]})["messages"] == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    ]  # fmt: skip
    made = google_rows.translated(CALLING)
    _, _, call, returned, answer = made["messages"]
    assert call["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert returned["tool_call_id"] == call["tool_calls"][0]["id"] and returned["content"] == '{"rain": true}'
    assert answer == {"role": "assistant", "content": "It rains."}
    assert made["tools"][0]["function"] == {
        **WEATHER, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}
    }  # fmt: skip


def test_the_spelling_of_vertex_ai_s_examples() -> None:
    """Which mix both."""
    snake = json.loads(
        json.dumps(CALLING)
        .replace("systemInstruction", "system_instruction")
        .replace("functionCall", "function_call")
        .replace("functionResponse", "function_response")
        .replace("functionDeclarations", "function_declarations")
    )
    assert google_rows.translated(snake) == google_rows.translated(CALLING)


@pytest.mark.parametrize("better", [0, 1])
def test_a_comparison_becomes_a_pair(better: int) -> None:
    made = google_rows.translated(pair(better=better))
    assert made["input"] == {"messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "word 0"}
    ]}  # fmt: skip
    assert made["preferred_output"] == [{"role": "assistant", "content": f"{better} 0"}]
    assert made["non_preferred_output"] == [{"role": "assistant", "content": f"{1 - better} 0"}]


def test_files_are_read_by_the_form_of_each_row(tmp_path: Path) -> None:
    """What a file's rows are as records: all that trains and validates reads these."""
    (tmp_path / "upload").write_bytes(b"\n" + jsonl([row(1), *chats(1)]) + b"\r\n" + jsonl([CALLING, row(2)]))
    place = placed(tmp_path / "upload", tmp_path / "rows")
    records = load_records(place, DataConfig(train="-")).records
    assert [int(record.source.rpartition(":")[2]) for record in records] == [2, 3, 5, 6]
    assert all(isinstance(record, Conversation) for record in records)
    assert [record.messages[-1]["content"] for record in records if isinstance(record, Conversation)] == [
        "Yes 1", chats(1)[0]["messages"][-1]["content"], "It rains.", "Yes 2"
    ]  # fmt: skip
    assert b"systemInstruction" in (tmp_path / "upload").read_bytes(), "the client's file stays as it is"
    (tmp_path / "pairs").write_bytes(jsonl([pair(1)]))
    place = placed(tmp_path / "pairs", tmp_path / "more")
    (ranked,) = load_records(place, DataConfig(train="-")).records
    assert isinstance(ranked, Ranking) and ranked.answers[0].messages[-1]["content"] == "0 1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content, job",
    [
        (jsonl([row(i) for i in range(12)]), spec()),
        (b"\xef\xbb\xbf" + jsonl([CALLING] * 12), spec()),
        (jsonl([pair(i) for i in range(12)]), spec("dpo")),
        (jsonl([pair(i, completions=CHOICES, tools=CALLING["tools"]) for i in range(12)]), spec("dpo")),
        (jsonl([{"contents": f"word {i}", "label": "ab"[i % 2]} for i in range(12)]),
         spec(recipe={"data": {"columns": {"text": "contents"}}})),
        (jsonl([{"contents": one["messages"]} for one in chats(12)]),
         spec(recipe={"data": {"columns": {"messages": "contents"}}})),
    ],
    ids=["supervised", "functions", "preference", "preferred calls", "a column of that name", "messages of that name"],
)  # fmt: skip
def test_files_that_can_be_trained_on(content: bytes, job: Any, tmp_path: Path) -> None:
    assert found(content, tmp_path, job) is None


@pytest.mark.parametrize(
    "bad, line",
    [
        (row(contents=[]), "contents: List should have at least 1 item"),
        (row(contents=[said("user", "a"), said("model")]), "contents.1.parts: List should have at least 1 item"),
        (row(contents=[said("user", {"txt": "a"})]), "Unknown field contents.0.parts.0.txt. Did you mean text?"),
        (row(contents=[said("assistant", "a")]), "contents.0.role: Input should be 'user', 'model' or 'function'."),
        (row(contents=[said("user", "a", {"fileData": {"fileUri": "gs://a"}})]),
         "contents.0.parts.1.fileData: images and files are not read here, only text and functions: leave it out."),
        (row(contents=[said("user", {"inline_data": {"data": ""}})]), "contents.0.parts.0.inline_data: images and"),
        (row(contents=[said("user", {})]), "contents.0.parts.0: give one of text, functionCall and functionResponse."),
        (row(contents=[said("user", "a"), said("model", " ")]), "contents.1.parts: the answer is empty: write it"),
        (row(contents=[said("user", "a")]), "contents.0: nobody answers it: add a content of the model behind it."),
        (row(contents=[said("user", {"functionResponse": {"name": "f"}}), said("model", "b")]),
         "contents.0.parts: f returns what nobody called."),
        (row(contents=[said("user", {"functionCall": {"name": "f"}})]),
         'contents.0.parts: a functionCall is made by the role "model" alone.'),
        (row(system_instructions={}), "Unknown field system_instructions. Did you mean systemInstruction?"),
        (row(contents=[said("user", "a\ud800"), said("model", "b")]), "half of a character"),
        (pair(contents=[said("user", "a"), said("model", "b")]), "contents.1: the model's answers belong in completi"),
        (pair(completions=pair()["completions"][:1]), "completions: List should have at least 2 items"),
        (pair(better=2), "completions: the scores are equal: give the better one 1 and the other 0."),
        (pair(completions=[{"completion": said("model", "a")}] * 2), "completions.0.score is missing."),
        (pair(completions=[{"score": i, "completion": said("model", "a" + " " * i)} for i in range(2)]),
         "completions: they are equal: neither is better."),
        (pair(completions=[{"score": i, "completion": said("user", f"{i}")} for i in range(2)]),
         "completions.0.completion: a completion is an answer of the role"),
        (pair(completions=[{"score": 1, "completion": said("model", {"functionResponse": {"name": "f"}})}] * 2),
         "completions.0.completion: a completion is an answer of the role"),
        (pair(completions=[{"score": i, "completion": said("model", " " * i)} for i in range(2)]),
         "completions.0.completion.parts: the answer is empty: write it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_line_and_field(bad: dict[str, Any], line: str, tmp_path: Path) -> None:
    job = spec("dpo" if "completions" in bad else "supervised")
    good = [pair(i) if "completions" in bad else row(i) for i in range(12)]
    error = found(jsonl([*good[:2], bad, *good[2:]]), tmp_path, job)
    assert error["code"] == "invalid_training_file" and str(tmp_path) not in error["message"]
    first, fault = error["message"].splitlines()
    assert first.endswith("1 of 13 rows cannot be used.") and fault.startswith("line 3: ") and line in fault


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    content = jsonl([row(contents=[])] * 11) + b'{"contents": [\n' + jsonl([row()] * 12)
    lines = found(content, tmp_path)["message"].splitlines()
    assert lines[0].endswith("12 of 24 rows cannot be used.") and lines[1].startswith("line 1: contents: ")
    assert lines[-1] == "… and 2 more" and len(lines) == 12
    (tmp_path / "list").mkdir()
    message = found(b"[" + jsonl([row()]) + b"]", tmp_path / "list")["message"]
    assert "one JSON list" in message and str(tmp_path) not in message
