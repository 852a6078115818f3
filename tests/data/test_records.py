"""Rows become records, and every row that cannot is named before anything trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunewright.data.config import DataConfig
from tunewright.data.records import (
    Completion,
    Conversation,
    Document,
    Labelled,
    Records,
    load_records,
    split_validation,
)
from tunewright.errors import DataError

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
CALLS = {"role": "assistant", "content": None, "function_call": CALL["function"]}  # OpenAI's older form
ANSWERS = {"role": "function", "name": "add", "content": "4"}
ADD = {"name": "add", "description": "Adds.", "parameters": {}}


def load(rows: list[dict[str, Any]], *, require_label: bool = True, **config: Any) -> Records:
    return load_records(rows, DataConfig(train=rows, **config), require_label=require_label)


def faults(rows: list[dict[str, Any]], **config: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        load(rows, **config)
    return caught.value.faults or [str(caught.value)]


# Formats


def chat(*messages: dict[str, Any], tools: list | None = None) -> Conversation:
    return Conversation(list(messages), tools, "rows[0]")


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"messages": [ASK, ANSWER], "id": 7}, chat(ASK, ANSWER)),
        ({"messages": [ASK, ANSWER], "tools": [{"x": 1}]}, chat(ASK, ANSWER, tools=[{"x": 1}])),
        (
            {"messages": [ASK, ANSWER], "tools": '[{"x": 1}]', "parallel_tool_calls": False},
            chat(ASK, ANSWER, tools=[{"x": 1}]),
        ),
        ({"messages": [ASK, ANSWER | {"tool_calls": None, "weight": None}], "tools": None}, chat(ASK, ANSWER)),
        ({"messages": [ASK, ANSWER | {"weight": 0}, ANSWER]}, chat(ASK, ANSWER | {"weight": 0}, ANSWER)),
        (
            {"messages": [{"role": "developer", "content": "Go"}, ASK, {"role": "assistant", "tool_calls": [CALL]}]},
            chat({"role": "developer", "content": "Go"}, ASK, {"role": "assistant", "tool_calls": [CALL]}),
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            chat(ASK, ANSWER),
        ),
        (
            {
                "conversations": [{"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}],
                "system": "S",
            },
            chat({"role": "system", "content": "S"}, ASK, ANSWER),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "function_call", "value": '{"name": "add", "arguments": {}}'},
                    {"from": "observation", "value": "4"},
                    {"from": "gpt", "value": "Hello"},
                ]
            },
            chat(
                ASK,
                {
                    "role": "assistant",
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}],
                },
                {"role": "tool", "content": "4"},
                ANSWER,
            ),
        ),
        (
            {"messages": [ASK, CALLS, ANSWERS, ANSWER], "functions": [ADD], "function_call": "auto"},
            chat(
                ASK,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "name": "add", "content": "4"},
                ANSWER,
                tools=[{"type": "function", "function": ADD}],
            ),
        ),
        (
            {"messages": [ASK | {"function_call": None}, ANSWER], "functions": json.dumps([ADD]), "tools": None},
            chat(ASK, ANSWER, tools=[{"type": "function", "function": ADD}]),
        ),
        (
            {"prompt": [ASK], "completion": [CALLS | {"weight": 0.5}], "functions": []},
            chat(ASK, {"role": "assistant", "tool_calls": [CALL], "weight": 0.5}),
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, chat(ASK, ANSWER)),
        (
            {"instruction": "Add", "input": "1 2", "output": "Hello", "system": "S"},
            chat({"role": "system", "content": "S"}, {"role": "user", "content": "Add\n\n1 2"}, ANSWER),
        ),
        ({"prompt": "2 + 2 =", "completion": " 4"}, Completion("2 + 2 =", " 4", "rows[0]")),
        ({"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]}, chat(ASK, ANSWER | {"weight": 0}, ASK, ANSWER)),
        ({"text": "good", "label": "yes"}, Labelled("good", "yes", "rows[0]")),
        (
            {"text": "good", "label": "yes", "text_pair": "fine", "weight": 0.5},
            Labelled("good", "yes", "rows[0]", text_pair="fine", weight=0.5),
        ),
        ({"text": "Once upon a time"}, Document("Once upon a time", "rows[0]")),
    ],
)
def test_a_format_is_found_from_its_columns(row, record):
    loaded = load([row])
    assert loaded.records == [record]
    kinds = {Conversation: "chat", Completion: "prompt_completion", Labelled: "classification", Document: "text"}
    assert loaded.kind == kinds[type(record)]


def test_columns_are_renamed():
    loaded = load([{"review": "good", "stars": 5}], columns={"text": "review", "label": "stars"})
    assert loaded.records == [Labelled("good", "5", "rows[0]")]


def test_a_format_can_be_forced():
    assert load([{"text": "good", "label": "yes"}], format="text").kind == "text"


def test_unknown_columns_are_listed_with_the_formats_and_the_remedy():
    (message,) = faults([{"colour": "a", "size": 1}])
    assert "the columns found are colour, size" in message
    assert "prompt_completion (prompt + completion)" in message and "data.columns" in message
    assert len(message) < 400, "a few formats, not all"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "a", "answer": "b"}, "{prompt: question, completion: answer}"),
        ({"id": 3, "Question": "a", "completion": "b"}, "{prompt: Question}"),
        ({"sentence": "a", "stars": 1}, "{text: sentence, label: stars}"),
        ({"text": "a", "category": "b"}, None),  # plain text, whatever else there is
        ({"body": "a"}, "{text: body}"),
        ({"body": "a", "colour": "b"}, "e.g. {text: review, label: stars}"),
        ({"conversation": []}, "{messages: conversation}"),
    ],
)
def test_columns_that_are_often_called_so_are_told_by_name(row, said):
    if said is None:
        assert load([row]).kind == "text"
        return
    (message,) = faults([row])
    assert said in message and ("fit no format: say which is which" in message) == ("e.g." not in said)


def test_a_guess_is_a_renaming_that_works():
    rows = [{"question": "a", "answer": "b"}]
    assert load(rows, columns={"prompt": "question", "completion": "answer"}).kind == "prompt_completion"
    assert "{text: review}" in faults([{"review": "a", "label": "b"}], format="classification")[0]


def test_a_forced_format_that_no_row_has_is_one_error():
    (message,) = faults([{"text": "a"}, {"text": "b"}], format="chat")
    assert "the columns found are text, which fit no format: chat (messages)" in message


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": "reviw"}, "names reviw; the columns found are text, label"),
        ({"texts": "text"}, "data.columns gives texts, which no format reads. Did you mean text?"),
        ({"label": "label", "txet": "text"}, "gives txet, which no format reads. Did you mean text?"),
        ({"a": "b"}, "gives a, which no format reads. Known: messages, tools, "),
        ({"text_": "nothing"}, "which no format reads. Did you mean text?"),
    ],
)
def test_a_renaming_that_names_nothing_is_an_error(columns, message):
    assert message in faults([{"text": "a", "label": "b"}], columns=columns)[0]


def test_a_renaming_that_is_the_wrong_way_round_is_named():
    rows = [{"question": "a", "answer": "b"}]
    said = faults(rows, columns={"question": "prompt", "answer": "completion"})[0]
    assert "gives question, which no format reads. Turn it round: {prompt: question}." in said


def test_a_renaming_that_the_format_does_not_read_is_an_error():
    rows = [{"text": "a", "label": "b", "c": "d"}]
    assert "gives tools, which the format classification does not read" in faults(rows, columns={"tools": "c"})[0]


@pytest.mark.parametrize(
    ("row", "option"),
    [
        ({"prompt": "a", "completion": "b"}, {"chat_template": "plain"}),
        ({"text": "a"}, {"loss_on": "last"}),
        ({"text": "a", "label": "b"}, {"loss_on": "last"}),
        ({"text": "a", "label": "b"}, {"special_tokens": ["<x>"]}),
        ({"text": "a"}, {"labels": "numbers"}),
        ({"messages": [ASK, ANSWER]}, {"labels": "classes"}),
    ],
)
def test_an_option_for_rows_of_another_kind_is_an_error(row, option):
    (name,) = option
    with pytest.raises(DataError, match=f"data.{name} has no effect on .* rows"):
        load([row], **option)


# Faults


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "messages must be a list that is not empty"),
        ([], "messages must be a list that is not empty"),
        (["Hi", ANSWER], "messages[0] must be an object with role and content"),
        ([{"role": "bot", "content": "Hi"}, ANSWER], "messages[0].role is 'bot': give one of system"),
        ([{"role": "user", "content": 3}, ANSWER], "messages[0].content must be a string"),
        ([{"role": "user"}, ANSWER], "messages[0].content must be a string"),
        ([ASK, {"role": "assistant", "content": None}], "messages[1].content must be a string"),
        ([ASK, {"role": "assistant", "content": " "}], "messages[1] is an empty answer"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, ANSWER], "messages[0].content[0] must be"),
        ([ASK, ANSWER | {"weight": -1}], "messages[1].weight is -1"),
        ([ASK, ANSWER | {"weight": True}], "messages[1].weight is True"),
        ([ASK, ANSWER | {"weight": "1"}], "messages[1].weight is '1'"),
        ([ASK, ANSWER | {"weight": float("nan")}], "messages[1].weight is nan"),
        ([ASK | {"weight": 1}, ANSWER], "messages[0] has a weight"),
        ([ASK, ANSWER | {"weight": 0}], "no assistant message with a weight above 0"),
        ([ASK], "no assistant message with a weight above 0"),
        ([ASK, ANSWER, ASK], "ends with a user message that nobody answers"),
        ([ASK | {"tool_calls": [CALL]}, ANSWER], "messages[0] has tool_calls"),
        ([ASK, {"role": "assistant", "tool_calls": CALL}], "messages[1].tool_calls must be a list"),
        ([ASK, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0] must be"),
        (
            [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[1].tool_calls[0].function.arguments is not valid JSON",
        ),
        ([ASK, ANSWERS, ANSWER], "messages[1] answers a function that the message before it does not call: add"),
        ([{"role": "function", "content": "4"}, ANSWER], "messages[0] answers a function"),
        ([ASK, CALLS, ANSWERS | {"name": "sub"}, ANSWER], "messages[2] answers a function"),
        ([ASK, CALLS, ANSWERS, ANSWERS, ANSWER], "messages[3] answers a function"),
        ([ASK, CALLS | {"tool_calls": [CALL]}], "messages[1] has function_call and tool_calls: keep one of them"),
        ([ASK, CALLS | {"function_call": "add"}], "messages[1].function_call must be"),
        ([ASK, CALLS | {"function_call": {"arguments": "{}"}}, ANSWERS], "messages[1].function_call must be"),
    ],
)
def test_a_conversation_that_cannot_be_trained_on_says_why(messages, reason):
    (fault,) = faults([{"messages": messages}])
    assert fault.startswith(f"rows[0]: {reason}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [ASK, ANSWER], "tools": "{"}, "tools is not valid JSON"),
        ({"messages": [ASK, ANSWER], "tools": {"x": 1}}, "tools must be a list of JSON schemas"),
        ({"messages": [ASK, ANSWER], "functions": "{"}, "functions is not valid JSON"),
        ({"messages": [ASK, ANSWER], "functions": [{"x": 1}]}, "functions must be a list of objects with a name"),
        ({"messages": [ASK, ANSWER], "functions": [ADD], "tools": [CALL]}, "has tools and functions: keep one"),
        ({"conversations": [{"role": "user"}]}, "conversations[0] must be an object with from and value"),
        ({"conversations": "Hi"}, "conversations must be a list of turns"),
        ({"instruction": "Hi", "output": 3}, "output must be a string, not int"),
        ({"prompt": "Hi", "completion": ""}, "completion is empty"),
        ({"prompt": None, "completion": "x"}, "prompt must be a string, not NoneType"),
        ({"prompt": [ASK], "completion": "x"}, "prompt is a list of messages, so completion must be one, too"),
        ({"text": ""}, "text is empty"),
        ({"text": "a", "label": None}, "no label"),
        ({"text": "a", "label": " "}, "label is empty"),
        ({"text": "a", "label": float("nan")}, "label nan is neither"),
        ({"text": "a", "label": ["x", "x"]}, "label ['x', 'x'] names a class twice"),
        ({"text": "a", "label": [None]}, "label [None] must list the names"),
        ({"text": "a", "label": {"x": 0.5, "y": 0.2}}, "the probabilities of label"),
        ({"text": "a", "label": {"x": 2}}, "label {'x': 2} must give each class a probability"),
        ({"text": "a", "label": "b", "weight": "x"}, "weight is 'x'"),
        ({"text": "a", "label": "b", "text_pair": 3}, "text_pair must be a string"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, reason):
    (fault,) = faults([row])
    assert fault.startswith(f"rows[0]: {reason}")


def test_all_faults_of_a_file_are_in_one_report(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    rows = [{"messages": [ASK, ANSWER]}, {"messages": []}, {"text": "a"}, {"prompt": "a", "completion": "b"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{\n")
    with pytest.raises(
        DataError, match=r"4 of 5 rows .* cannot be used: mend them, or set data.on_bad_rows: skip"
    ) as caught:
        load_records(str(path), DataConfig(train=str(path)))
    assert [fault.split(": ")[0] for fault in caught.value.faults] == [f"{path}:{line}" for line in (5, 2, 3, 4)]
    assert "this row is prompt_completion, the file's first is chat" in caught.value.faults[-1]


def test_bad_rows_are_returned_where_they_are_skipped():
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": ""},
        {"prompt": [ASK], "completion": [ANSWER]},
    ]
    loaded = load(rows, on_bad_rows="skip")
    assert len(loaded.records) == 1
    assert [row.split(":")[0] for row in loaded.bad_rows] == ["rows[1]", "rows[2]"]
    assert loaded.bad_values == rows[1:]


def test_skipping_every_row_is_an_error():
    assert faults([{"text": ""}], on_bad_rows="skip") == ["rows[0]: text is empty: there is nothing to learn"]


def test_a_label_among_plain_texts_is_a_fault():
    (fault,) = faults([{"text": "a"}, {"text": "b", "label": "x"}])
    assert fault == "rows[1]: this row is classification, the file's first is text"


def test_a_row_of_no_format_among_others_is_a_fault():
    (fault,) = faults([{"text": "a", "label": "x"}, {"label": "y"}])
    assert fault == "rows[1]: no column text"


# Labels


@pytest.mark.parametrize(
    ("labels", "settled"),
    [
        (["yes", "no"], ["yes", "no"]),
        ([1, 0], ["1", "0"]),
        ([1.0, 0.0], ["1", "0"]),
        ([True, False], ["True", "False"]),
        ([1, 4.5], [1.0, 4.5]),
        (["1", "0"], ["1", "0"]),
        (["1", "4.5"], [1.0, 4.5]),
        (["1.0", "0", "00"], ["1", "0", "00"]),
        (["4.5", "yes"], ["4.5", "yes"]),
        ([["a", 1], []], [["a", "1"], []]),
        ([{"a": 1}, {"a": 0.25, "b": 0.75}], [{"a": 1.0}, {"a": 0.25, "b": 0.75}]),
    ],
)
def test_labels_are_settled_over_the_whole_file(labels, settled):
    loaded = load([{"text": "a", "label": label} for label in labels])
    found = [record.label for record in loaded.records if isinstance(record, Labelled)]
    assert found == settled and [type(label) for label in found] == [type(label) for label in settled]


@pytest.mark.parametrize(
    ("reading", "labels", "settled"),
    [
        ("numbers", [1, 5], [1.0, 5.0]),
        ("numbers", ["1", "2e3", "-4.5"], [1.0, 2000.0, -4.5]),
        ("classes", [1, 4.5, 4.0], ["1", "4.5", "4"]),
        ("classes", ["1", "4.5", "4.0"], ["1", "4.5", "4"]),
        ("classes", [["a"], []], [["a"], []]),
    ],
)
def test_the_recipe_may_say_what_numbers_are(reading, labels, settled):
    loaded = load([{"text": "a", "label": label} for label in labels], labels=reading)
    found = [record.label for record in loaded.records if isinstance(record, Labelled)]
    assert found == settled and [type(label) for label in found] == [type(label) for label in settled]


@pytest.mark.parametrize("label", ["good", "inf", True, ["1"], {"1": 1.0}])
def test_what_is_no_number_is_a_fault_where_labels_are_numbers(label):
    (fault,) = faults([{"text": "a", "label": 1}, {"text": "b", "label": label}], labels="numbers")
    assert fault == f"rows[1]: label {label!r} is no finite number, and labels are read as numbers"


def test_labels_of_several_forms_do_not_mix():
    (fault,) = faults([{"text": "a", "label": "x"}, {"text": "a", "label": ["x"]}])
    assert fault == "rows[1]: this label is a list of classes, the file's first is one class or number"


def test_an_unlabelled_row_among_labelled_ones_is_a_fault_unless_labels_are_not_needed():
    rows = [{"text": "a", "label": "x"}, {"text": "b"}, {"text": "c", "label": None}, {"text": "d", "label": ""}]
    assert faults(rows) == ["rows[1]: no label", "rows[2]: no label", "rows[3]: no label"]
    assert [record.label for record in load(rows, require_label=False).records] == ["x", None, None, None]


def test_texts_are_unlabelled_examples_where_labels_are_not_needed():
    assert load([{"text": "a"}], require_label=False).records == [Labelled("a", None, "rows[0]")]


# Validation


def documents(*texts: str) -> Records:
    return load([{"text": text} for text in texts])


def texts(records: Records) -> set[str]:
    return {record.text for record in records.records if isinstance(record, Document)}


def test_the_held_out_rows_depend_on_content_and_seed_alone():
    some, more = documents(*map(str, range(300))), documents(*map(str, reversed(range(600))))
    _, held_out = split_validation(some, 0.1, seed=1)
    _, more_held_out = split_validation(more, 0.1, seed=1)
    assert texts(held_out) == {text for text in texts(more_held_out) if int(text) < 300}
    assert 15 <= len(held_out.records) <= 45
    assert texts(held_out) != texts(split_validation(some, 0.1, seed=2)[1])


def test_no_row_is_lost_and_duplicates_stay_together():
    records = documents(*[str(i % 50) for i in range(200)])
    train, held_out = split_validation(records, 0.3, seed=0)
    assert len(train.records) + len(held_out.records) == 200
    assert not texts(train) & texts(held_out)
    assert (train.kind, train.sha256) == (records.kind, records.sha256)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_each_side_has_a_row(fraction):
    train, held_out = split_validation(documents("a", "b"), fraction, seed=0)
    assert len(train.records) == len(held_out.records) == 1


def test_one_row_cannot_be_split():
    with pytest.raises(DataError, match="too few different rows"):
        split_validation(documents("a", "a"), 0.5, seed=0)


def test_at_most_a_thousand_rows_are_held_out():
    train, held_out = split_validation(documents(*map(str, range(4000))), 0.5, seed=0)
    assert len(held_out.records) == 1000 and len(train.records) == 3000
