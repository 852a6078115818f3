"""Graders: OpenAI's JSON as it is, the rewards that each makes, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.grading.samples import sample
from tunewright.errors import DataError, RecipeError
from tunewright.grading import GRADER, Reward, Sample, check_items, checked

CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
SIMILAR = {**CHECK, "type": "text_similarity", "name": "similar", "evaluation_metric": "fuzzy_match"}
del SIMILAR["operation"]
SCORE = {
    "type": "score_model",
    "name": "judge",
    "input": [
        {"role": "system", "content": "Grade from 0 to 5."},
        {
            "type": "message",
            "role": "user",
            "content": {"type": "input_text", "text": "Q: {{ item.question }} A: {{ sample.output_text }}"},
        },
        {"role": "user", "content": ["now", {"type": "output_text", "text": ": {{ sample.output_json.x }}"}]},
    ],
    "model": "judge-1",
    "range": [0, 5],
    "sampling_params": {"temperature": 0.5, "top_p": 0.9, "seed": 1, "max_completions_tokens": 64},
}
MULTI = {
    "type": "multi",
    "name": "all",
    "graders": {"exact": CHECK, "similar": SIMILAR},
    "calculate_output": "0.5 * exact + 0.5 * similar ^ 2",
}


def reward(document: Mapping[str, Any], **models: Callable[..., Any]) -> Reward:
    return GRADER.validate_python(document).reward(models)


def of(document: Mapping[str, Any], *samples: Sample, **models: Callable[..., Any]) -> list[float]:
    return checked("r", reward(document, **models), samples)


def refusal(document: Mapping[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        GRADER.validate_python(document)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in caught.value.errors())


@pytest.mark.parametrize("document", [CHECK, SIMILAR, SCORE, MULTI], ids=lambda d: d["type"])
def test_openai_json_is_read_as_it_is_and_written_again(document: dict[str, Any]) -> None:
    grader = GRADER.validate_json(json.dumps(document))
    written = json.loads(GRADER.dump_json(grader))
    plain = document.keys() - {"input", "graders", "sampling_params"}  # these are written with their defaults
    assert {key: written[key] for key in plain} == {key: document[key] for key in plain}
    assert GRADER.validate_python(written) == grader  # as a resolved recipe is read again
    assert grader.weight == 1


@pytest.mark.parametrize(
    ("operation", "values"),
    [("eq", [1, 0, 0, 0]), ("ne", [0, 1, 1, 1]), ("like", [1, 1, 0, 0]), ("ilike", [1, 1, 1, 0])],
)
def test_string_check(operation: str, values: list[float]) -> None:
    samples = [sample(text, answer="Paris") for text in ("Paris", " Paris.", "PARIS", "Rome")]
    assert of({**CHECK, "operation": operation}, *samples) == values


def test_ilike_is_for_any_script() -> None:
    assert of({**CHECK, "operation": "ilike"}, sample("STRASSE", answer="straße")) == [1]


def test_text_similarity() -> None:
    assert of(SIMILAR, sample("ab", answer="ab"), sample("ab", answer="cd")) == [1, 0]
    cosine = {**SIMILAR, "evaluation_metric": "cosine"}
    vectors = {"ab": [1, 0], "cd": [3, 4]}
    assert of(cosine, sample("ab", answer="cd"), embed=lambda texts: [vectors[t] for t in texts]) == [0.6]
    assert of(cosine, embed=lambda texts: pytest.fail("nothing to embed")) == []
    with pytest.raises(RecipeError, match=r"similar \(text_similarity\) needs a model that embeds texts"):
        reward(cosine)


def test_multi() -> None:
    samples = [sample("abcd", answer="abcd"), sample("abcd", answer="abxy"), sample("", answer="abxy")]
    assert of(MULTI, *samples) == [1, 0.125, 0]
    one = {**MULTI, "graders": CHECK, "calculate_output": "1 - exact"}
    assert of(one, *samples) == [0, 1, 1]
    judge = {**MULTI, "graders": {"judge": SCORE}, "calculate_output": "judge / 5"}
    assert of(judge, *samples, score_model=lambda config: lambda s: [config.range[1]] * len(s)) == [1, 1, 1]


def test_a_formula_without_a_value_names_all_its_samples() -> None:
    samples = [sample("a", answer="a"), sample("a", answer="b", prompt="Which  letter\nis it?")]
    with pytest.raises(DataError, match=r"formula of all, '1 / exact'") as caught:
        of({**MULTI, "graders": {"exact": CHECK}, "calculate_output": "1 / exact"}, *samples)
    (fault,) = caught.value.faults
    assert fault.startswith("sample 2 (prompt 'Which letter is it?'): 1 / exact has no value at 1 and 0")


def test_what_a_grader_of_a_formula_gives_is_checked() -> None:
    judge = {**MULTI, "graders": {"judge": SCORE}, "calculate_output": "max(judge, 0)"}
    with pytest.raises(DataError, match=r"all\.judge must give a finite number"):
        of(judge, sample("a"), score_model=lambda config: lambda s: [math.nan])


@pytest.mark.parametrize(
    ("bounds", "values"),
    [
        ({"max": 10}, [1, 1, 1, 0, 0]),
        ({"min": 4}, [0, 1, 1, 1, 1]),
        ({"min": 4, "max": 10, "slack": 4}, [0, 1, 1, 0.75, 0]),
        ({"min": 8, "max": 8, "slack": 16}, [0.5, 0.75, 0.875, 0.8125, 0]),
    ],
)
def test_length(bounds: dict[str, int], values: list[float]) -> None:
    samples = [sample("x", tokens=tokens) for tokens in (0, 4, 10, 11, 99)]
    assert of({"type": "length", **bounds}, *samples) == values


def test_pattern() -> None:
    samples = [sample(text) for text in ("<a>1\n2</a>", "so <a>é</a>", "<a>")]
    pattern = {"type": "pattern", "pattern": r"(?s)<a>.*</a>"}
    assert of(pattern, *samples) == [1, 1, 0]
    assert of({**pattern, "match": "full"}, *samples) == [1, 0, 0]
    assert of({**pattern, "forbidden": True}, *samples) == [0, 0, 1]


CODE = """
def words(samples):
    return [len(s.text.split()) + s.item["bonus"] for s in samples]

def fails(samples):
    return [1 / s.item["zero"] for s in samples]

def clears(samples):
    samples.clear()
    return []

def exits(samples):
    raise SystemExit(0)

SCALE = 3
"""


def test_python_of_a_file_and_of_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for place in (tmp_path / "my_rewards.py", "my_rewards.py", "my_rewards"):
        assert of({"type": "python", "function": f"{place}:words"}, sample("a b", bonus=0.5)) == [2.5]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("r.py:word", r"r\.py has no word\. Did you mean words\?"),
        ("r.py:SCALE", "is no function"),
        ("other.py:words", r"no Python file other\.py"),
        ("broken.py:words", "broken.py fails with NameError: name 'nope'"),
        ("tunewright_exits:words", "tunewright_exits cannot be imported: SystemExit: 0"),
        ("tunewright_no_such_module:f", "no Python module tunewright_no_such_module"),
        ("broken:words", "broken cannot be imported: NameError"),
    ],
)
def test_python_that_cannot_be_had(function: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "r.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("nope")
    (tmp_path / "tunewright_exits.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match=reason):
        reward({"type": "python", "function": function})


def test_code_runs_when_the_reward_is_made_and_not_when_a_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text("raise SystemExit")
    GRADER.validate_python({"type": "python", "function": f"{tmp_path / 'r.py'}:words"})


def test_python_that_empties_its_list_is_told_how_many_numbers_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(CODE)
    samples = [sample("x"), sample("y")]
    with pytest.raises(DataError, match="mine returns 0 numbers for 2 samples"):
        checked("mine", reward({"type": "python", "function": f"{tmp_path / 'r.py'}:clears"}), samples)
    assert len(samples) == 2


def test_python_that_exits_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(CODE)
    exits = reward({"type": "python", "function": f"{tmp_path / 'r.py'}:exits"})
    with pytest.raises(DataError, match=r"The reward mine fails with SystemExit for sample 1 .*: 0"):
        checked("mine", exits, [sample("x")])


def test_python_that_throws_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.py").write_text(CODE)
    fails = reward({"type": "python", "function": f"{tmp_path / 'r.py'}:fails"})
    with pytest.raises(DataError, match=r"The reward mine fails with ZeroDivisionError.*: division by zero") as caught:
        checked("mine", fails, [sample("x", zero=0)])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (None, "returns None, a NoneType"),
        (1.0, "returns 1.0, a float"),
        (np.float64(1), "returns 1.0, a float64"),
        ("ab", "returns 'ab', a str"),
        ({"a": 1, "b": 2}, "a dict"),
        ([1.0], "returns 1 number for 2 samples"),
        ([1, 2, 3], "returns 3 numbers for 2 samples"),
        ([1, None], r"sample 2 \(prompt 'What is 2 \+ 2\?'\): None"),
        (["1", 1], r"sample 1 .*: '1'"),
        ([1, 1j], "sample 2"),
        ([math.inf, 1], "sample 1 .*: inf"),
        (np.array([1, np.nan]), "sample 2 .*: nan"),
        (np.ones((2, 1)), r"sample 1 .*: \[1.0\]"),
    ],
)
def test_what_a_reward_must_not_return(values: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        checked("mine", lambda samples: values, [sample("x"), sample("y")])
    assert "reward mine" in str(caught.value)


@pytest.mark.parametrize("values", [[1, 0.5], (True, 0.5), np.array([1, 0.5], np.float32), [np.float32(1), 0.5]])
def test_what_a_reward_may_return(values: Any) -> None:
    found = checked("mine", lambda samples: values, [sample("x"), sample("y")])
    assert found == [1, 0.5] and {type(value) for value in found} == {float}


def test_messages_to_a_model_that_scores() -> None:
    judge = GRADER.validate_python(SCORE)
    assert judge.messages(0, sample('{"x": 7}', question="Why?")) == [
        {"role": "system", "content": "Grade from 0 to 5."},
        {"role": "user", "content": 'Q: Why? A: {"x": 7}'},
        {"role": "user", "content": "now: 7"},
    ]


ASKING: Sequence[dict[str, Any]] = (
    SCORE,
    {"type": "reward_model", "run": "runs/rm"},
    {"type": "classifier", "run": "runs/c", "label": "kind", "input": "both"},
    {"type": "rules", "run": "runs/r", "rules": ["Give no medical advice."], "weight": 0.3},
)


@pytest.mark.parametrize("document", ASKING, ids=lambda d: d["type"])
def test_graders_that_ask_a_model_get_their_reward_from_above(document: dict[str, Any]) -> None:
    kind = document["type"]
    assert of(document, sample("x"), **{kind: lambda config: lambda s: [len(config.type)]}) == [len(kind)]
    with pytest.raises(RecipeError, match=rf"\({kind}\) needs a model, and none was given as '{kind}'"):
        reward(document)


def test_names_are_those_of_the_types_where_none_is_given() -> None:
    assert [GRADER.validate_python(document).name for document in ASKING] == [
        "judge",
        "reward_model",
        "classifier",
        "rules",
    ]


def test_what_names_code_or_folders_is_local_only() -> None:
    schema = GRADER.json_schema()["$defs"]
    local = {(k, f) for k, v in schema.items() for f, s in v.get("properties", {}).items() if s.get("local_only")}
    assert local == {("Python", "function"), ("RewardModel", "run"), ("Classifier", "run"), ("Rules", "run")}


def test_rows_that_lack_a_column_are_found_before_training() -> None:
    graders = [GRADER.validate_python(document) for document in (MULTI, SCORE)]
    check_items(graders, [("rows.jsonl:1", {"answer": "a", "question": "q"})])
    with pytest.raises(DataError) as caught:
        check_items(
            graders, [("a:1", {"answer": "a", "question": "q"}), ("a:2", {"question": "q"}), ("b:1", {"answer": "a"})]
        )
    assert [fault.split(";")[0] for fault in caught.value.faults] == [
        "a:2: there is no item.answer",
        "b:1: there is no item.question",
    ]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({**SIMILAR, "evaluation_metric": "meteor"}, "meteor needs a word net"),
        ({**SIMILAR, "pass_threshold": 0.5}, "pass_threshold tells pass from fail"),
        ({**CHECK, "input": "{{ output }}"}, "is neither"),
        ({**CHECK, "operation": "neq"}, "operation"),
        ({**CHECK, "weight": math.inf}, "weight"),
        ({**CHECK, "weights": 1}, "weights: Extra"),
        ({**CHECK, "name": ""}, "name"),
        ({"type": "label_model"}, "label_model"),
        ({"type": "length"}, "every length has a full reward"),
        ({"type": "length", "min": 3, "max": 2}, "min 3 is more than max 2"),
        ({"type": "length", "max": 2, "slack": -1}, "slack"),
        ({"type": "pattern", "pattern": "("}, r"'\(' is not a regular expression"),
        ({"type": "pattern", "pattern": ""}, "pattern"),
        ({"type": "python", "source": "def grade(sample, item): …"}, "put the code in a file"),
        ({"type": "python", "function": "os.system"}, "neither path/to/file.py:name nor"),
        ({"type": "python", "function": "a b:c"}, "neither path/to/file.py:name nor"),
        ({**SCORE, "range": [5, 0]}, "is no range"),
        ({**SCORE, "input": []}, "input"),
        ({**SCORE, "input": [{"role": "user", "content": {"type": "input_image", "image_url": "u"}}]}, "input_text"),
        ({**SCORE, "input": [{"role": "user", "content": "{{ x }}"}]}, "is neither"),
        ({"type": "rules", "run": "r", "rules": []}, "rules"),
        ({**MULTI, "calculate_output": "exact + simlar"}, "Did you mean similar"),
        ({**MULTI, "calculate_output": "exact"}, "does not use similar"),
        ({**MULTI, "graders": {}}, "graders"),
        ({**MULTI, "graders": {"all right": CHECK}, "calculate_output": "1"}, "'all right': a formula can name"),
        ({**MULTI, "graders": {"lambda": CHECK}, "calculate_output": "1"}, "'lambda': a formula can name"),
        ({**MULTI, "graders": {"a": {**CHECK, "weight": 2}}, "calculate_output": "a"}, "a: a weight has no effect"),
        ({**MULTI, "graders": {"a": MULTI}, "calculate_output": "a"}, "multi"),
    ],
)
def test_what_cannot_be_used_is_refused(document: dict[str, Any], reason: str) -> None:
    said = refusal(document)
    assert re.search(reason, said), said
