"""Rules: what each kind votes, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tunewright.data.labeling.rules import Functions, names_of, read_rules
from tunewright.errors import DataError

ROWS: list[dict[str, Any]] = [{"text": text, "from": "shop"} for text in ("How many?", "a GREAT, awful, great day", "")]


def nobody(where: str) -> Any:
    raise AssertionError(where)


def written(folder: Path, *rules: Mapping[str, Any] | str) -> Path:
    path = folder / "rules.jsonl"
    path.write_text("\n".join(rule if isinstance(rule, str) else json.dumps(rule) for rule in rules))
    return path


def votes(path: Path, rows: Sequence[Mapping[str, Any]] = ROWS, classifier: Any = nobody, **how: Any) -> list[Any]:
    """The votes of all rules on each row, by their names."""
    sources = [f"row {i}" for i in range(len(rows))]
    found: list[dict[str, str]] = [{} for _ in rows]
    for voter in read_rules(path, classifier, **how):
        for row, cast in zip(found, voter.votes(rows, sources), strict=True):
            row |= {voter.names[number]: label for number, label in cast.items()}
    return found


def test_a_pattern_is_what_re_takes_it_for(tmp_path: Path) -> None:
    path = written(tmp_path, {"label": "number", "pattern": r"^how (many|much)\b"})
    assert votes(path) == [{}, {}, {}]
    assert votes(path, ignore_case=True) == [{"number 1": "number"}, {}, {}]


def test_keywords_are_whole_words_in_either_case(tmp_path: Path) -> None:
    path = written(tmp_path, {"name": "k", "label": "x", "keywords": ["how man", "awful", "C++"]})
    assert votes(path, [*ROWS, {"text": "in c++ or C"}]) == [{}, {"k": "x"}, {}, {"k": "x"}]


def test_a_dictionary_votes_for_the_label_of_most_of_its_words(tmp_path: Path) -> None:
    path = written(tmp_path, {"dictionary": {"great": "good", "Awful": "bad"}})
    rows = [*ROWS, {"text": "great and awful"}, {"text": "awful"}]
    assert votes(path, rows) == [{}, {"dictionary 1": "good"}, {}, {}, {"dictionary 1": "bad"}]


def test_words_with_letters_that_only_re_takes_for_the_same(tmp_path: Path) -> None:
    """The long s, the sign of Kelvin, the Turkish letters."""
    path = written(tmp_path, {"name": "d", "dictionary": {"sad": "bad", "kind": "good", "iii": "three"}})
    rows = [{"text": "\u017fad day"}, {"text": "\u212aIND"}, {"text": "\u0130\u0131I"}]
    assert votes(path, rows) == [{"d": "bad"}, {"d": "good"}, {"d": "three"}]
    path = written(tmp_path, {"name": "d", "dictionary": {"\u0130x": "dotted"}})
    assert votes(path, [{"text": "Ix"}, {"text": "\u0130X"}]) == [{"d": "dotted"}] * 2


def test_a_separator_in_a_string_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "rules.jsonl"
    path.write_bytes('\ufeff{"name": "s", "label": "x\u2028y", "pattern": "\x85|\u2028"}\r\n\r\n'.encode())
    assert votes(path, [{"text": "a\u2028b"}, {"text": "b"}]) == [{"s": "x\u2028y"}, {}]


def test_rules_may_read_other_columns(tmp_path: Path) -> None:
    path = written(tmp_path, {"label": "x", "pattern": "day"}, {"label": "y", "keywords": ["shop"], "column": "from"})
    assert votes(path) == [{"y 2": "y"}, {"x 1": "x", "y 2": "y"}, {"y 2": "y"}]


def test_a_model_votes_where_it_is_sure(tmp_path: Path) -> None:
    path = written(tmp_path, {"name": "m", "model": "runs/one", "threshold": 0.7})
    told = [{"a": 0.6, "b": 0.4}, {"a": 0.1, "b": 0.9}]
    assert votes(path, ROWS[:2], lambda where: lambda texts: told) == [{}, {"m": "b"}]


def test_a_model_abstains_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    path = written(tmp_path, {"name": "m", "model": "runs/one"})
    rows: list[Any] = [{"text": None}, {"text": "yes"}, {}, {"text": ""}, {"text": 3}]
    asked: list[Any] = []
    assert votes(path, rows, lambda where: lambda texts: [asked.append(t) or {"a": 1.0} for t in texts]) == [  # type: ignore[func-returns-value]
        {}, {"m": "a"}, {}, {}, {}
    ]  # fmt: skip
    assert asked == ["yes"] and votes(path, rows[:1], lambda where: nobody) == [{}]


def test_functions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text(
        "from os.path import join\n"
        "def long(row):\n    return 'long' if len(row['text']) > 10 else None\n"
        "def first(row):\n    row['text'] += '!'\n    return 'q' if row['text'][0] == 'H' else None\n"
        "def _help(row):\n    return 'never'\n"
        "def number(row):\n    return 3.5 if row['text'] else 4\n"
    )
    assert votes(path, [*ROWS, {}]) == [{"first": "q"}, {"long": "long"}, {"number": "4"}, {}]


def test_a_function_that_throws_abstains_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text("def bad(row):\n    return row['title']\ndef good(row):\n    return 'x'\n")
    (voter,) = read_rules(path, nobody)
    assert isinstance(voter, Functions)
    assert voter.votes(ROWS, ["a:1", "a:2", "a:3"]) == [{1: "x"}] * 3
    assert voter.fails["bad"].count == 3 and not voter.fails["good"].count
    assert voter.fails["bad"].first[0] == "bad: a:1: KeyError: 'title'"


@pytest.mark.parametrize("said, vote", [("numpy.int64(3)", "3"), ("numpy.str_('a')", "a"), ("7", "7")])
def test_what_a_function_may_return(said: str, vote: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text(f"import numpy\ndef f(row):\n    return {said}\n")
    assert votes(path, ROWS[:1]) == [{"f": vote}]


@pytest.mark.parametrize("said", ["True", "numpy.bool_(False)", "''", "' '", "1.5", "['a']"])
def test_what_names_no_class_is_reported(said: str, tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text(f"import numpy\ndef f(row):\n    return {said}\n")
    (voter,) = read_rules(path, nobody)
    assert isinstance(voter, Functions) and voter.votes(ROWS[:1], ["a:1"]) == [{}]
    assert "a rule returns a label or None, not" in voter.fails["f"].first[0]


def test_a_function_that_exits_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text("import sys\ndef bad(row):\n    sys.exit('enough')\ndef good(row):\n    return 'x'\n")
    (voter,) = read_rules(path, nobody)
    assert voter.votes(ROWS[:1], ["a:1"]) == [{1: "x"}]
    assert isinstance(voter, Functions) and voter.fails["bad"].first == ["bad: a:1: SystemExit: enough"]


@pytest.mark.parametrize(
    "rule, said",
    [
        ("{", "rules.jsonl:2: Expecting property name"),
        ("[]", "rules.jsonl:2: Input should be"),
        ({"label": "a", "pattern": "(a"}, "rules.jsonl:2: missing ), unterminated subpattern"),
        ({"pattern": "a"}, "rules.jsonl:2: pattern and keywords need the label"),
        ({"label": "a"}, "has one of pattern, keywords, dictionary, model; this one has none"),
        ({"label": "a", "pattern": "a", "keywords": ["b"]}, "this one has pattern and keywords"),
        ({"label": "a", "patern": "a"}, "rules.jsonl:2: patern: Extra inputs"),
        ({"label": "a", "pattern": "a", "threshold": 0.5}, "threshold is for a model"),
        ({"label": "", "pattern": "a"}, "rules.jsonl:2: the label is empty"),
        ({"dictionary": {"a": " "}}, "rules.jsonl:2: the label is empty"),
        ({"label": "a", "keywords": ["b", ""]}, "rules.jsonl:2: an empty word"),
        ({"label": "a", "keywords": []}, "rules.jsonl:2: keywords: List should have at least 1"),
        ({"name": "b 1", "label": "a", "pattern": "a"}, "Two rules are called b 1"),
    ],
)
def test_lines_that_are_no_rules_are_named(rule: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_rules(written(tmp_path, {"label": "b", "pattern": "b"}, rule), nobody)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("rules.jsonl", "\n", "holds no rules"),
        ("rules.py", "x = 1\n", "has no function"),
        ("rules.py", "def f(row:\n", "fails with SyntaxError"),
        ("rules.py", "import nothing_there\n", "fails with ModuleNotFoundError"),
        ("rules.py", "raise SystemExit(0)\n", "fails with SystemExit: 0"),
        ("rules.yaml", "a: b\n", "rules.jsonl"),
    ],
)
def test_files_that_hold_no_rules(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said if name != "rules.yaml" else ":1: "):
        read_rules(tmp_path / name, nobody)
    with pytest.raises(DataError, match="There is no file of rules"):
        read_rules(tmp_path / "none.jsonl", nobody)


def test_two_rules_may_not_share_a_name() -> None:
    class Other:
        names = ("a",)

    with pytest.raises(ValueError, match="Two rules are called a"):
        names_of([Other(), Other()])  # type: ignore[list-item]
