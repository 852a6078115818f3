"""Sequences that are too long: never silently shortened, and each token trained once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.rendered import Limit, Rendered, fit
from tunewright.errors import DataError


def sequence(length: int, source: str = "a.jsonl:1", prompt: int = 1) -> Rendered:
    return Rendered(list(range(length)), [0.0] * prompt + [1.0] * (length - prompt), source)


def test_what_fits_is_left_alone():
    fitted = fit([sequence(4)], Limit(4, 100), "fail")
    assert fitted.rendered == [sequence(4)] and fitted.notices() == []


def test_fail_names_every_row_with_its_length_and_the_options():
    with pytest.raises(DataError, match="truncate, drop or split") as caught:
        fit([sequence(9, "a:1"), sequence(3, "a:2"), sequence(8, "a:3")], Limit(4, 100), "fail")
    assert caught.value.faults == ["a:1: 9 tokens", "a:3: 8 tokens"]


@pytest.mark.parametrize(("policy", "others"), [("fail", "truncate, drop or split"), ("drop", "truncate or split")])
def test_a_limit_of_the_model_cannot_be_raised(policy, others):
    """What is said then has to help: a larger data.max_length would change nothing."""
    with pytest.raises(DataError, match=f"raise data.max_length, or set data.overlength to {others}"):
        fit([sequence(9)], Limit(4, 5), policy)
    with pytest.raises(
        DataError, match=f"all that the model can hold: give .* or set data.overlength to {others}"
    ) as e:
        fit([sequence(9)], Limit(5, 5), policy)
    assert "max_length" not in str(e.value)


def test_drop_counts_what_it_drops():
    fitted = fit([sequence(9, "a:1"), sequence(3, "a:2")], Limit(4, 100), "drop")
    assert [one.source for one in fitted.rendered] == ["a:2"]
    assert fitted.dropped == ["a:1"]
    assert fitted.notices() == ["1 too long: dropped (a:1)"]


def test_truncate_cuts_the_end_and_drops_what_has_nothing_left_to_train():
    fitted = fit([sequence(9, "a:1"), sequence(9, "a:2", prompt=5)], Limit(4, 100), "truncate")
    assert [one.tokens for one in fitted.rendered] == [[0, 1, 2, 3]]
    assert (fitted.truncated, fitted.dropped) == (["a:1"], ["a:2"])


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match=r"raise data.max_length"):
        fit([sequence(9)], Limit(4, 100), "drop")


def test_a_notice_names_a_few_rows():
    fitted = fit([sequence(9, f"a:{i}") for i in range(5)], Limit(4, 100), "split")
    assert fitted.notices() == ["5 too long: split into windows (a:0, a:1, a:2, …)"]


@given(length=st.integers(1, 60), max_length=st.integers(2, 20))
def test_windows_train_each_token_once_behind_the_token_before_it(length, max_length):
    whole = Rendered(list(range(length)), [0.0, *(float(i) for i in range(1, length))], "a:1")
    windows = fit([whole, sequence(2)], Limit(max_length, 100), "split").rendered[:-1]
    trained = [
        (window.tokens[i - 1], window.tokens[i], window.weights[i])
        for window in windows
        for i in range(1, len(window.tokens))
    ]
    assert trained == [(i - 1, i, float(i)) for i in range(1, length)]
    assert all(len(window.tokens) <= max_length and window.weights[0] == 0 for window in windows)


def test_a_window_with_nothing_to_train_is_left_out():
    fitted = fit([sequence(9, prompt=7)], Limit(4, 100), "split")
    assert [one.tokens for one in fitted.rendered] == [[6, 7, 8]]
