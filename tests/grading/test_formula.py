"""Formulas: what they compute, and that nothing but arithmetic is computed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.grading.formula import Undefined, parse

VALUES = {"a": 0.5, "b": 3.0, "name": -2.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.7 * a + 0.3 * b", 1.25),
        ("a", 0.5),
        ("2 * b ^ 2", 18),  # Python's own ^ binds less than *
        ("-b ^ 2", -9),
        ("2 ^ 3 ^ 2", 512),
        ("b ** -1", 1 / 3),
        ("b // 2 + 7 % b", 2),
        ("7 % -3", -2),
        ("(a + b) / +2 - -1", 2.75),
        ("min(a, b, 1) + max(a, b)", 3.5),
        ("max(name)", -2),
        ("abs(name) + floor(-a) + ceil(a)", 2),
        ("sqrt(b + 1) + log(exp(b))", 5),
        (" 1e-3\n", 0.001),
        ("0 ^ 0", 1),
        ("+".join(["a"] * 99), 49.5),
    ],
)
def test_values(text: str, value: float) -> None:
    found = parse(text, VALUES)(VALUES)
    assert isinstance(found, float) and math.isclose(found, value, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("__import__('os').system('true')", "no arithmetic"),
        ("a.real", "no arithmetic"),
        ("a[0]", "no arithmetic"),
        ("lambda: a", "no arithmetic"),
        ("[a for a in b]", "no arithmetic"),
        ("(a := 1)", "no arithmetic"),
        ("a if b else 1", "no arithmetic"),
        ("a < b", "no arithmetic"),
        ("a and b", "no arithmetic"),
        ("'a' * 9", "no arithmetic"),
        ("True + 1", "no arithmetic"),
        ("1j", "no arithmetic"),
        ("a @ b", "no arithmetic"),
        ("~a", "no arithmetic"),
        ("min(*a)", "no arithmetic"),
        ("min(a, key=b)", "no arithmetic"),
        ("min(a)(b)", "no arithmetic"),
        ("eval(a)", "no function eval"),
        ("sqr(a)", "Did you mean sqrt"),
        ("nam + 1", "Did you mean name"),
        ("zzzz", "There are a, b, name"),
        ("sqrt", "no such grader"),
        ("sqrt(a, b)", "takes one number"),
        ("max()", "takes numbers"),
        ("", "cannot be read"),
        ("a +", "cannot be read"),
        ("a; b", "cannot be read"),
        ("a\0", "cannot be read"),
        ("(" * 900 + ")" * 900, "cannot be read"),
        ("-" * 1900 + "1", "deep"),
        ("~" * 1900 + "1", "deep"),
        ("+".join(["a"] * 101), "deep"),
        ("a+" * 1000 + "a", "characters"),
        ("9" * 400, "too large"),
        ("1e999", "too large"),
    ],
)
def test_what_is_no_arithmetic_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text, VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "a / 0",
        "a // 0",
        "a % 0",
        "9 ** 9 ** 9 ** 9",
        "9^9^9",
        "name ^ a",
        "0 ^ name",
        "sqrt(name)",
        "log(0)",
        "exp(1000)",
        "1e308 * 10",
        "floor(1e308 * 10)",
        "1 / (1e308 * 10)",
    ],
)
def test_what_has_no_finite_value_says_where(text: str) -> None:
    with pytest.raises(Undefined, match=r"has no value at|too large at"):
        parse(text, VALUES)(VALUES)


@given(st.text(alphabet="ab1.9+-*/%^()<,= ~'[]:", max_size=30))
def test_any_text_has_a_finite_value_or_a_reason(text: str) -> None:
    try:
        value = parse(text, VALUES)(VALUES)
    except (ValueError, Undefined):
        return
    assert isinstance(value, float) and math.isfinite(value)
