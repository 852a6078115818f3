"""Rows that stand twice, in all words or nearly."""

from __future__ import annotations

from typing import Any

import pytest

from tunewright.data import repeats
from tunewright.data.config import DataConfig
from tunewright.data.records import Records, load_records
from tunewright.data.repeats import NEAR, find_repeats, normal, pieces, similarity

SENTENCE = "The parcel that I ordered three weeks ago never came, and nobody answers the phone; number {}."


def records(rows: list[dict[str, Any]]) -> Records:
    return load_records(rows, DataConfig(train=rows))


def labelled(*texts: str, label: str = "a") -> Records:
    return records([{"text": one, "label": label} for one in texts])


WORDS = ["oak", "elm", "ash", "fir", "yew", "bay", "fig", "ivy", "hay", "rye"]


def distinct(count: int) -> list[str]:
    """Texts that share hardly any piece."""
    return [
        f"{WORDS[i % 10]} {i * 7919} {WORDS[i // 10 % 10]} {i * 104729 % 9973} {WORDS[-i % 10]}" for i in range(count)
    ]


def test_duplicates_and_contradictions_within_the_training_rows() -> None:
    rows = [
        {"text": "One text", "label": "a"},
        {"text": "another", "label": "b"},
        {"text": "one  TEXT", "label": "a"},
        {"text": "One text", "label": "b"},
    ]
    found = find_repeats({"train": records(rows)})
    assert found["duplicates"]["exact"] == {"count": 1, "rows": 4, "pairs": [["rows[2]", "rows[0]", 1.0]]}
    assert found["contradictions"] == {"count": 1, "rows": 4, "pairs": [["rows[3]", "rows[0]", 1.0]]}
    assert found["leaks"] == {} and not found["sampled"]


def test_near_duplicates() -> None:
    one, other = SENTENCE.format("17"), SENTENCE.format("18")
    assert similarity(pieces(one), pieces(other)) >= NEAR
    found = find_repeats({"train": labelled(*distinct(20), one, other)})
    near = found["duplicates"]["near"]
    assert near["count"] == 1 and near["pairs"][0][:2] == ["rows[21]", "rows[20]"] and NEAR <= near["pairs"][0][2] < 1
    assert found["duplicates"]["exact"]["count"] == 0


def test_leaks_are_exact_or_near() -> None:
    train = labelled(*distinct(30), SENTENCE.format("17"))
    test = labelled(distinct(30)[4].upper(), SENTENCE.format("44"), "something else altogether", label="b")
    leaks = find_repeats({"train": train, "test": test})["leaks"]["test"]
    assert leaks["exact"] == {"count": 1, "rows": 3, "pairs": [["rows[0]", "rows[4]", 1.0]]}
    assert leaks["near"]["count"] == 1 and leaks["near"]["pairs"][0][:2] == ["rows[1]", "rows[30]"]


def test_nothing_is_found_where_nothing_repeats() -> None:
    found = find_repeats({"train": labelled(*distinct(60)[:40]), "test": labelled(*distinct(60)[40:])})
    assert found["leaks"]["test"]["exact"]["count"] == found["leaks"]["test"]["near"]["count"] == 0
    assert found["duplicates"]["exact"]["count"] == found["duplicates"]["near"]["count"] == 0


def test_the_system_prompt_does_not_make_conversations_alike() -> None:
    system = {"role": "system", "content": "You are a careful assistant of a parcel service. " * 20}

    def chat(number: int) -> dict[str, Any]:
        question, answer = distinct(40)[number], distinct(40)[39 - number]
        return {"messages": [system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    found = find_repeats({"train": records([chat(i) for i in range(10)]), "test": records([chat(3), chat(12)])})
    assert found["duplicates"]["near"]["count"] == 0
    leaks = found["leaks"]["test"]
    assert leaks["exact"]["count"] == 1 and leaks["near"]["count"] == 0


def test_beyond_a_number_of_rows_near_ones_are_looked_for_in_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MOST_ROWS", 5)
    rows = [*distinct(20), distinct(20)[0]]
    found = find_repeats({"train": labelled(*rows)})
    assert found["sampled"] and found["duplicates"]["exact"]["count"] == 1


def test_rows_that_are_all_alike_are_compared_with_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else n rows of one template would need n²/2 comparisons."""
    compared: list[int] = []
    real = repeats.similarity
    monkeypatch.setattr(repeats, "similarity", lambda one, other: (compared.append(1), real(one, other))[1])
    rows = [SENTENCE.format(i) for i in range(200)]
    assert find_repeats({"train": labelled(*rows)})["duplicates"]["near"]["count"] > 190
    assert len(compared) <= 200 * repeats.COMPARED


def test_texts_of_other_kinds() -> None:
    asked = records(
        [{"prompt": "Why?", "completion": "Because."}, {"prompt": "Why?", "completion": "No reason at all."}]
    )
    found = find_repeats({"train": asked})
    assert found["duplicates"]["exact"]["count"] == 0, "two answers to one question are two rows"
    assert found["contradictions"]["count"] == 0
    assert find_repeats({"train": records([{"text": "é"}, {"text": "É"}])})["duplicates"]["exact"]["count"] == 1
    assert normal(" A\n\tb ") == "a b" and pieces("ab") == {"ab"} and pieces("") == {""}
