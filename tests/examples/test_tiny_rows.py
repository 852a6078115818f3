"""The rows that the tiny base learns from: true, the same for the same seed, and none of them measured too."""

from __future__ import annotations

import calendar
import importlib
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "tiny_base"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("rows")


def exchanges(found: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What was asked in each turn, and the answer."""
    turns = [pair for row in found for pair in pairwise(row["messages"])]
    return [(a["content"], b["content"]) for a, b in turns if (a["role"], b["role"]) == ("user", "assistant")]


def passages(row: dict[str, Any]) -> list[str]:
    """Every run of messages in a row."""
    some = row["messages"]
    return [json.dumps(some[i:j]) for i in range(len(some)) for j in range(i + 2, len(some) + 1)]


def of_kind(rows: Any, kind: str, count: int = 300) -> list[tuple[str, str]]:
    import random

    draw = random.Random(5)
    return exchanges([{"messages": rows.KINDS[kind][1](draw).messages} for _ in range(count)])


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def quoted(question: str) -> str:
    """The last word of a question, or the one before what says how to treat it."""
    plain = re.sub(r"[?.]|(in|with) (upper case|capital letters)| spelled", "", question)
    return plain.split()[-1]


def counted(question: str, answer: str) -> bool:
    start, end = numbers(question)
    step = 1 if start <= end else -1
    return numbers(answer) == list(range(start, end + step, step))


def days(question: str, answer: str) -> bool:
    if not numbers(answer):
        return True
    month = list(calendar.month_name).index(answer.split()[0])
    return answer.split()[0].lower() in question.lower() and numbers(answer) == [calendar.monthrange(2023, month)[1]]


TRUE: dict[str, Callable[[str, str], bool]] = {
    "addition": lambda q, a: sum(numbers(q)) == numbers(a)[2] and numbers(q) == numbers(a)[:2],
    "subtraction": lambda q, a: max(numbers(q)) - min(numbers(q)) == numbers(a)[2] >= 0,
    "comparing": lambda q, a: numbers(a) == [(max if "bigger" in q else min)(numbers(q))],
    "counting": counted,
    "neighbour": lambda q, a: numbers(a) == [numbers(q)[0] + (1 if "after" in q else -1), numbers(q)[0]],
    "calendar": days,
    "spelling": lambda q, a: a.replace(" ", "") == quoted(q).lower(),
    "letters": lambda q, a: a[-2] == quoted(q).lower()[0 if "first" in q.lower() else -1],
    "upper": lambda q, a: a == a.upper() and a.split()[-1] == quoted(q).upper(),
    "echo": lambda q, a: q.rstrip(".").endswith(a),
    "unknown": lambda _, a: a == "I do not know that.",
}


@pytest.mark.parametrize("kind", TRUE)
def test_answers_are_right(rows: Any, kind: str) -> None:
    asked = of_kind(rows, kind)
    assert len(asked) == 300
    assert [(q, a) for q, a in asked if not TRUE[kind](q, a)] == []


def test_the_calendar_goes_round(rows: Any) -> None:
    names = [*calendar.day_name], [*calendar.month_name][1:]
    for _, answer in of_kind(rows, "calendar"):
        if found := re.fullmatch(r"(\w+) comes (after|before) (\w+)\.", answer):
            circle = next(one for one in names if found[3] in one)
            distance = circle.index(found[1]) - circle.index(found[3])
            assert distance % len(circle) == (1 if found[2] == "after" else len(circle) - 1)


def test_questions_about_what_was_said_are_answered_by_it(rows: Any) -> None:
    for asked, answer in of_kind(rows, "reading"):
        assert answer in asked


def test_the_same_seed_gives_the_same_rows(rows: Any) -> None:
    first, again, other = (list(rows.conversations(300, seed)) for seed in (3, 3, 4))
    assert first == again != other
    assert rows.held_out(5) == rows.held_out(5)
    assert list(rows.documents(20)) == list(rows.documents(20))


def test_what_is_measured_is_never_trained_on(rows: Any) -> None:
    found = list(rows.conversations(20_000))
    trained = {passage for row in found for passage in passages(row)}
    held = rows.held_out(20)
    assert set(held) == set(rows.KINDS) and all(len(some) >= 5 for some in held.values())
    assert [row for some in held.values() for row in some if json.dumps(row["messages"]) in trained] == []
    answers = exchanges(found)
    assert len(set(answers)) > 10_000, "the rows vary"
    sums = {tuple(sorted(numbers(answer)[:2])) for _, answer in answers if " + " in answer}
    asked = {tuple(sorted(numbers(answer)[:2])) for _, answer in exchanges(held["addition"])}
    assert len(sums) > 150 and not sums & asked
