"""Templates: what is filled in, and what is said of places that name nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.grading.samples import sample
from tunewright.errors import DataError
from tunewright.grading.templates import check, check_items, filled

ITEM: dict[str, Any] = {
    "answer": "vier",
    "full name": "Ada",
    "n": 4,
    "ok": True,
    "list": ["a", {"b": ["é", 1.5]}],
    "none": None,
    "map": {"0": "zero", "x": {"y": "deep"}},
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("no place { here }", "no place { here }"),
        ("{{item.answer}}|{{ item.answer }}|{{\titem.answer\n}}", "vier|vier|vier"),
        ("{{ item.full name }}", "Ada"),
        ("{{ item.n }} {{ item.ok }}", "4 true"),
        ("{{ item.list[1].b[0] }}{{ item.list.1.b.1 }}", "é1.5"),
        ("{{ item.list }}", '["a", {"b": ["é", 1.5]}]'),
        ("{{ item.map.0 }} {{ item.map.x.y }}", "zero deep"),
        ("{{ sample.output_text }}", '{"x": {"y": [1, "{{ item.answer }}"]}, "null": null}'),
        ("{{ sample.output_json.x.y[0] }}", "1"),
        ("{{ sample.output_json.x.y[1] }}", "{{ item.answer }}"),  # what is filled in is not read again
        ("{{ sample.output_json.x }}", '{"y": [1, "{{ item.answer }}"]}'),
        ("<{{ sample.output_json.x.y[2] }}{{ sample.output_json.z.q }}{{ sample.output_json.null }}>", "<>"),
    ],
)
def test_filled(template: str, text: str) -> None:
    answer = '{"x": {"y": [1, "{{ item.answer }}"]}, "null": null}'
    assert filled(check(template), 0, sample(answer, **ITEM)) == text


@pytest.mark.parametrize("answer", ["", "no json", "[" * 100_000, "9" * 5_000, "```json\n{}\n```"])
def test_an_answer_that_is_no_json_is_empty(answer: str) -> None:
    assert filled("<{{ sample.output_json }}{{ sample.output_json.a.b }}>", 0, sample(answer)) == "<>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ item }}",
        "{{ sample }}",
        "{{ sample.output_tools }}",
        "{{ sample.output_text.x }}",
        "{{ other.x }}",
        "{{ items.x }}",
        "{{}}",
        "{{ item. }}",
        "{{ item..x }}",
        "{{ item.x[-1] }}",
        "{{ item.x[y] }}",
        "{{ 1 + 1 }}",
        "{{ item.x",
        "item.x }}",
        "{{{ item.x }}}",
        "{{ item.x }} }}",
    ],
)
def test_a_place_that_names_nothing_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"neither|other half"):
        check(template)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ item.anser }}", "there is no item.anser; its columns are answer, full name, n, ok, list, none, map"),
        ("{{ item.map.z }}", "there is no item.map.z; its columns are 0, x"),
        ("{{ item.list[2] }}", "there is no item.list.2; it is a list of 2"),
        ("{{ item.list." + "9" * 5_000 + " }}", "it is a list of 2"),
        ("{{ item.answer[0] }}", "there is no item.answer.0; it is 'vier'"),
        ("{{ item.answer.__class__ }}", "there is no item.answer.__class__; it is 'vier'"),
        ("{{ item.none }}", "item.none is null"),
    ],
)
def test_what_a_row_lacks_is_named(template: str, reason: str) -> None:
    with pytest.raises(DataError, match="sample 3") as caught:
        filled(check(template), 2, sample("x", **ITEM))
    assert reason in str(caught.value) and "What is 2 + 2?" in str(caught.value)


def test_all_rows_that_lack_something_are_named_at_once() -> None:
    templates = ["{{ item.a }} {{ sample.output_json.q }}", "{{ item.b.c }}{{ item.a }}"]
    check_items(templates, [("1", {"a": 1, "b": {"c": 2}})])
    with pytest.raises(DataError) as caught:
        check_items(templates, [("1", {"a": 1, "b": {"c": 2}}), ("2", {"b": {"c": 1}}), ("3", {"a": None, "b": 1})])
    assert caught.value.faults == [
        "2: there is no item.a; its columns are b",
        "3: item.a is null",
        "3: there is no item.b.c; it is 1",
    ]
