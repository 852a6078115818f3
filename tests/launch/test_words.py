"""What several processes tell the one that started them arrives as it was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunewright import errors
from tunewright.launch._words import Listener, describe_error, tell

OURS: list[BaseException] = [
    errors.DataError("Two rows are bad:", ["a.jsonl:1: empty", "a.jsonl:2: empty"]),
    errors.MissingExtra("optimizer: adamw8bit", "bnb"),
    errors.TrainingDiverged("The loss is not finite."),
    errors.OutputError("The disk is full."),
    errors.Interrupted(7),
    KeyboardInterrupt(),
]


@pytest.fixture
def heard(tmp_path: Path) -> Any:
    seen: list[Any] = []
    return Listener(tmp_path / "words", [seen.append]), tmp_path / "words", seen


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_was_raised(error: BaseException, heard: Any) -> None:
    listener, path, _ = heard
    tell(path, "error", describe_error(error))
    tell(path, "error", describe_error(RuntimeError("Connection closed by peer")))
    listener.listen()
    found = listener.error
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_an_error_that_nobody_expected_shows_where_it_was(heard: Any) -> None:
    listener, path, _ = heard
    try:
        raise ZeroDivisionError("by 0")
    except ZeroDivisionError as error:
        tell(path, "error", describe_error(error))
    listener.listen()
    assert type(listener.error) is RuntimeError and str(listener.error) == "ZeroDivisionError: by 0"
    assert "test_words.py" in listener.error.__notes__[0]


def test_a_line_is_heard_once_and_whole(heard: Any) -> None:
    listener, path, seen = heard
    tell(path, "line", {"step": 1})
    with path.open("a") as file:
        file.write('{"line": {"st')
    listener.listen()
    assert seen == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}}\n')
    listener.listen()
    listener.listen()
    assert seen == [{"step": 1}, {"step": 2}] and listener.started and listener.error is None
