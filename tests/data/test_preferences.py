"""Rows that compare or rate answers, in every form; and each that cannot be used, with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.steps import prepared
from tests.tiny import preferences, words
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Completion, Conversation, Prompt, Ranking, Rated
from tunewright.data.messages import weight_of
from tunewright.data.records import Records, load_records, split_validation
from tunewright.errors import DataError
from tunewright.prepare import prepare
from tunewright.recipe import make_recipe

KINDS = ("preference", "rated")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(*rows: dict[str, Any], kinds: Any = KINDS, **options: Any) -> Records:
    return load_records(list(rows), DataConfig(train="-", **options), kinds=kinds)


def asked_and_answered(record: Any) -> list[tuple[Any, Any]]:
    """(prompt, answer) of each answer; of conversations the contents of the messages without weight, and with."""
    answers = record.answers if isinstance(record, Ranking) else (record.answer,)
    found: list[tuple[Any, Any]] = []
    for one in answers:
        if isinstance(one, Completion):
            found.append((one.prompt, one.completion))
        else:
            trained = [bool(weight_of(m)) for m in one.messages]
            texts = [m["content"] for m in one.messages]
            found.append(tuple([t for t, own in zip(texts, trained, strict=True) if own is w] for w in (False, True)))
    return found


TEXTS = [("q", "good"), ("q", "bad")]
MESSAGES = [(["q"], ["good"]), (["q"], ["bad"])]
TURNS = [(["a", "b", "q"], ["good"]), (["a", "b", "q"], ["bad"])]
BEFORE = [user("a"), said("b"), user("q")]

FORMS: dict[str, tuple[dict[str, Any], list[tuple[Any, Any]]]] = {
    "texts": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, TEXTS),
    "messages": ({"prompt": BEFORE, "chosen": [said("good")], "rejected": [said("bad")]}, TURNS),
    "messages and texts": ({"prompt": BEFORE, "chosen": "good", "rejected": "bad"}, TURNS),
    "a text and messages": ({"prompt": "q", "chosen": [said("good")], "rejected": [said("bad")]}, MESSAGES),
    "an implicit prompt": ({"chosen": [*BEFORE, said("good")], "rejected": [*BEFORE, said("bad")]}, TURNS),
    "a prompt that stands in the conversations": (
        {"prompt": "q", "chosen": [user("q"), said("good")], "rejected": [user("q"), said("bad")]},
        MESSAGES,
    ),
    "answers of several turns": (
        {"chosen": [user("q"), said("good"), user("more"), said("fine")], "rejected": [user("q"), said("bad")]},
        [(["q", "more"], ["good", "fine"]), (["q"], ["bad"])],
    ),
    "OpenAI's": (
        {
            "input": {"messages": BEFORE, "tools": []},
            "preferred_output": [said("good")],
            "non_preferred_output": [said("bad")],
        },
        TURNS,
    ),
    "a ranking": ({"prompt": "q", "answers": ["good", "so so", "bad"]}, [("q", a) for a in ("good", "so so", "bad")]),
    "a ranking of messages": (
        {"prompt": BEFORE, "answers": [[said("good")], [said("bad")]]},
        TURNS,
    ),
}


@pytest.mark.parametrize(("row", "expected"), FORMS.values(), ids=FORMS)
def test_a_comparison_is_its_answers_each_with_the_prompt(row: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    records = read(row)
    assert records.kind == "preference" and asked_and_answered(records.records[0]) == expected
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert asked_and_answered(load_records(str(file), DataConfig(train="-")).records[0]) == expected


@pytest.mark.parametrize("label", [True, 1, "true", "True", "1", 1.0])
def test_a_rated_answer(label: Any) -> None:
    good = read({"prompt": "q", "completion": "x", "label": label}).records[0]
    assert isinstance(good, Rated) and good.good and asked_and_answered(good) == [("q", "x")]


@pytest.mark.parametrize("label", [False, 0, "false", "0"])
def test_an_answer_that_is_rated_bad(label: Any) -> None:
    bad = read({"prompt": [user("q")], "completion": [said("x")], "label": label}).records[0]
    assert isinstance(bad, Rated) and not bad.good and isinstance(bad.answer, Conversation)


def test_a_margin_and_columns_by_other_names() -> None:
    row = {"question": "q", "better": "good", "worse": "bad", "by": 0.5}
    columns = {"prompt": "question", "chosen": "better", "rejected": "worse", "margin": "by"}
    record = read(row, columns=columns).records[0]
    assert isinstance(record, Ranking) and record.margin == 0.5


def test_prompts_alone_keep_their_columns() -> None:
    """Only for somebody who asks for prompts: else these rows are what they are to everybody."""
    row = {"prompt": "2 + 2 =", "completion": "4", "level": 3}
    record = read(row, kinds=("prompt",)).records[0]
    assert isinstance(record, Prompt) and record.prompt == "2 + 2 =" and record.item["level"] == 3
    assert read(row, kinds=("chat", "prompt_completion", "prompt")).kind == "prompt_completion"
    assert isinstance(read({"messages": BEFORE}, kinds=("prompt",)).records[0], Prompt)
    with pytest.raises(DataError, match="ends with an answer"):
        read({"messages": [*BEFORE, said("x")]}, kinds=("prompt",))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "equal answers": ({"prompt": "q", "chosen": "x", "rejected": "x"}, "chosen and rejected are equal: neither is"),
    "equal conversations": ({"chosen": [user("q"), said("x")], "rejected": [user("q"), said("x")]}, "are equal"),
    "equal in a ranking": ({"prompt": "q", "answers": ["x", "y", "x"]}, r"answers\[0\] and answers\[2\] are equal"),
    "an empty answer": ({"prompt": "q", "chosen": "", "rejected": "x"}, "chosen: completion is empty"),
    "an answer of white space": ({"prompt": "q", "chosen": "x", "rejected": " \n"}, "rejected: completion is empty"),
    "white space apart": (
        {"prompt": "q", "chosen": "a ", "rejected": "a"},
        "chosen and rejected differ in white space alone",
    ),
    "messages, white space apart": (
        {"prompt": [user("q")], "answers": ["b", "a", "\na"]},
        r"answers\[1\] and answers\[2\] differ in white space alone",
    ),
    "an empty prompt": ({"prompt": " ", "chosen": "x", "rejected": "y"}, "prompt is empty: there is nothing to answer"),
    "no messages before": ({"prompt": [], "chosen": "x", "rejected": "y"}, "prompt is empty"),
    "an empty prompt of a rated answer": ({"prompt": "", "completion": "x", "label": 1}, "prompt is empty"),
    "no text": ({"prompt": "q", "chosen": "x", "rejected": None}, "rejected: must be a text"),
    "other prompts": (
        {"chosen": [user("q"), said("x")], "rejected": [user("p"), said("y")]},
        "the prompts differ: chosen and rejected do not begin with the same message",
    ),
    "another prompt than the column's": (
        {"prompt": "p", "chosen": [user("q"), said("x")], "rejected": [user("q"), said("y")]},
        "the prompts differ: chosen does not begin with the prompt",
    ),
    "one form beside another": (
        {"prompt": "q", "chosen": "x", "rejected": [said("y")]},
        "of chosen and rejected some are texts and some messages",
    ),
    "no prompt": ({"chosen": "x", "rejected": "y"}, "prompt must be a text"),
    "an answer by the user": ({"prompt": "q", "chosen": [user("x")], "rejected": [said("y")]}, "assistant message"),
    "one answer": ({"prompt": "q", "answers": ["x"]}, "answers must be a list of two or more"),
    "an input without messages": (
        {"input": "q", "preferred_output": [said("x")], "non_preferred_output": [said("y")]},
        "input must be",
    ),
    "a rating in words": ({"prompt": "q", "completion": "x", "label": "fine"}, "label is 'fine': give true"),
    "a margin below 0": ({"prompt": "q", "chosen": "x", "rejected": "y", "margin": -1}, "margin"),
    "half of a pair": ({"prompt": "q", "chosen": "x"}, "fit no format|no column"),
}


@pytest.mark.parametrize(("row", "reason"), BAD.values(), ids=BAD)
def test_a_row_that_cannot_be_used_is_named(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(row)


@pytest.mark.parametrize(("row", "reason"), [v for k, v in BAD.items() if k not in ("half of a pair",)])
def test_it_is_skipped_where_that_is_wanted(row: dict[str, Any], reason: str) -> None:
    pair = "chosen" in row
    good = {
        True: {"prompt": "q", "chosen": "x", "rejected": "y"},
        "answers" in row: {"prompt": "q", "answers": ["x", "y"]},
        "input" in row: FORMS["OpenAI's"][0],
        "label" in row: {"prompt": "q", "completion": "x", "label": True},
    }[True]
    good = {"prompt": "q", "chosen": "x", "rejected": "y"} if pair else good
    records = read(good, row, on_bad_rows="skip")
    assert len(records.records) == 1 and records.bad_rows[0].startswith("rows[1]: ")


def test_forms_are_not_mixed() -> None:
    with pytest.raises(DataError, match=r"this row is ranking, the file's first is preference"):
        read({"prompt": "q", "chosen": "x", "rejected": "y"}, {"prompt": "q", "answers": ["x", "y"]})
    with pytest.raises(DataError, match=r"preference of messages, the file's first is preference"):
        read({"prompt": "q", "chosen": "x", "rejected": "y"}, {"prompt": BEFORE, "chosen": "x", "rejected": "y"})


def test_all_rows_with_one_prompt_are_on_one_side() -> None:
    pairs = [{"prompt": words(i % 10, 5), "chosen": f"{i} x", "rejected": "y"} for i in range(60)]
    chats = [{"prompt": [user(str(i % 10))], "chosen": f"{i} x", "rejected": "y"} for i in range(60)]
    rates = [{"prompt": words(i % 10, 5), "completion": f"{i}", "label": i % 2} for i in range(60)]
    for rows in (pairs, chats, rates):
        train, validation = split_validation(read(*rows), 0.3, seed=1)
        sides = [{str(asked_and_answered(r)[0][0]) for r in side.records} for side in (train, validation)]
        assert sides[0] and sides[1] and not sides[0] & sides[1]


# Rows that are too long

LONG = [{"prompt": words(1, 30) + " ", "chosen": "a fox", "rejected": words(2, 12)}, *preferences(4)]


def fitted(base: str, objective: Any, policy: str) -> Any:
    return prepared(base, LONG, objective=objective, data={"overlength": policy, "max_length": 40})


@pytest.mark.parametrize("objective, kind", [("preference", "llama"), ("reward", "llama"), ("reward", "bert")])
def test_both_answers_keep_the_same_prompt(objective: str, kind: str, tiny_base: Any) -> None:
    base = tiny_base(kind)
    whole = prepared(base, LONG, objective=objective)
    lengths = [max(p.length for p in e.parts) for e in whole.examples("train")]
    assert lengths[0] > 40 > max(lengths[1:])
    with pytest.raises(DataError, match=r"overlength") as raised:
        fitted(base, objective, "fail")
    assert "rows[0]" in str(raised.value) and "answer" not in str(raised.value)
    dropped = fitted(base, objective, "drop")
    assert [e.source for e in dropped.examples("train")] == [f"rows[{i}]" for i in range(1, 5)]
    assert any(notice == "train: 1 too long: dropped (rows[0])" for notice in dropped.notices)
    cut = fitted(base, objective, "truncate_prompt")
    first = next(e for e in cut.examples("train") if e.source == "rows[0]")
    tokens = [part.inputs["input_ids"].tolist() for part in first.parts]
    own = next(e for e in whole.examples("train") if e.source == "rows[0]")
    before = [part.inputs["input_ids"].tolist() for part in own.parts]
    over = max(map(len, before)) - max(map(len, tokens))
    assert over > 0 and max(p.length for p in first.parts) <= 40
    assert [[t[0], *t[1 + over :]] for t in before] == tokens
    assert [p.target.tolist()[-1:] for p in first.parts] == [p.target.tolist()[-1:] for p in own.parts]
    assert any(notice == "train: 1 too long: truncated (rows[0])" for notice in cut.notices)
    with pytest.raises(DataError, match="split is for plain text"):
        fitted(base, objective, "split")


# The wrong objective


@pytest.mark.parametrize(
    "objective, row, said_so",
    [
        (
            "supervised",
            {"prompt": "q", "chosen": "x", "rejected": "y"},
            "preference rows. Set objective: preference",
        ),
        (
            "preference",
            {"prompt": "q", "completion": "x"},
            "prompt_completion rows. Set objective: supervised",
        ),
        ("reward", {"text": "q", "label": "x"}, "classification rows. Set objective: supervised"),
    ],
)
def test_rows_for_another_objective_say_which(objective: str, row: Any, said_so: str, tiny_base: Any) -> None:
    with pytest.raises(Exception, match=said_so):
        recipe = {"base": tiny_base("llama"), "data": {"train": [row, row], "validation": 0}, "objective": objective}
        prepare(make_recipe(recipe), Path("/nonexistent"))
