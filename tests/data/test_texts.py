"""Texts and messages that are given to a model: what it cannot read is said with its place."""

from __future__ import annotations

from typing import Any

import pytest

from tunewright.data.messages import check_prompt
from tunewright.data.texts import check_texts
from tunewright.errors import DataError

ASK, EMPTY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}
CALLS = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "is None: give a string, or two in a tuple"),
        (3.5, "is 3.5: give"),
        (("a", None), "is ('a', None): give"),
        (["a", "b"], "is ['a', 'b']: give"),
        (("a", "b", "c"), "is ('a', 'b', 'c'): give"),
        ("half \ud83d", "holds half of a character"),
        (("a", "\ude00"), "holds half of a character"),
    ],
)
def test_a_text_that_cannot_be_read_is_named_by_its_place(text: Any, fault: str) -> None:
    with pytest.raises(DataError, match="2 of 3 texts cannot be read: mend or remove them") as caught:
        check_texts(["fine \U0001f600", text, None])
    first, second = caught.value.faults
    assert first.startswith(f"texts[1] {fault}") and second.startswith("texts[2] is None")


def test_texts_that_can_be_read() -> None:
    check_texts(["a", ("a", "b"), ("a", ""), ("", "b"), ""])


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "messages must be a list that is not empty"),
        (None, "messages must be a list"),
        ([ASK, {"content": "Hi"}], "messages[1].role is None: give one of system"),
        (["Hi"], "messages[0] must be an object with role and content"),
        ([ASK, {"role": "user", "content": None}], "messages[1].content must be a string"),
        ([ASK, {"role": "user", "content": "\ud83d"}], "1 of 2 messages cannot be read: mend them.\n  messages[1]"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_answered(messages: Any, fault: str) -> None:
    with pytest.raises(DataError) as caught:
        check_prompt(messages)
    assert str(caught.value).startswith(fault)


def test_messages_that_are_answered_need_no_answer_and_may_hold_an_empty_one() -> None:
    assert check_prompt([ASK]) == [ASK]
    assert check_prompt([ASK, EMPTY, ASK])[1] == EMPTY | {"weight": 0}
    assert check_prompt([ASK, CALLS, {"role": "function", "name": "add", "content": "4"}])[2]["role"] == "tool"
