"""RE2 finds what Python's `re` finds: no more, no less."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.data.labeling import patterns as module
from tunewright.data.labeling.patterns import Patterns

ODD = "".join(map(chr, (0x0B, 0x1C, 0x85, 0x130, 0x131, 0x17F, 0x212A, 0x660, 0x2028, 0xB5, 0x3BC, 0x1F600)))
LETTERS = st.sampled_from([*"abAkKsSiI_09 .-\n\t$^ßéÉ", *ODD])
CLASSES = [
    r"\w",
    r"\W",
    r"\d",
    r"\D",
    r"\s",
    r"\S",
    ".",
    "[a-c]",
    "[^a-c]",
    r"[^\w]",
    r"[\s-]",
    "[éa]",
    "[^\n]",
    "[k-sÉ]",
]
ATOMS = LETTERS.map(re.escape) | st.sampled_from([*CLASSES, r"\b", r"\B", "^", "$", r"\A", r"\Z", "(?=a)", "(?<!a)"])
REPEATS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "{2}", "{,2}", "{1,3}", "++"])
PIECES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(st.sampled_from(["(?:", "(?i:", "(?s:", "(?m:", "(?-i:", "("]), inner, REPEATS).map(
            lambda three: f"{three[0]}{three[1]}){three[2]}"
        ),
    ),
    max_leaves=6,
)
FLAGS = st.sampled_from([0, re.IGNORECASE, re.MULTILINE, re.DOTALL, re.ASCII, re.IGNORECASE | re.ASCII])


def compiled(pattern: str, flags: int = 0) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern, flags)
    except (re.error, RecursionError):
        return None


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(PIECES, FLAGS), min_size=1, max_size=4), st.lists(st.text(LETTERS, max_size=8), min_size=1))
def test_votes_are_those_of_re(written: list[tuple[str, int]], texts: list[str]) -> None:
    found = [pattern for text, flags in written if (pattern := compiled(text, flags))]
    together = Patterns(found)
    for text in texts:
        assert together.found_in(text) == [i for i, pattern in enumerate(found) if pattern.search(text)], text


@pytest.mark.parametrize(
    "pattern, flags, text",
    [
        ("i", re.IGNORECASE, "\u0130"),
        ("$\n", 0, "\n"),
        ("(?:b|a$)\n", 0, "a\n"),
        ("(?:b|a$)", 0, "a\n"),
        ("k", re.IGNORECASE, "\u212a"),
        ("s", re.IGNORECASE, "\u017f"),
        (r"\d", 0, "\u0660"),
        (r"\bé", 0, "a é"),
        ("a$", 0, "a\n"),
        (r"\s", 0, "\x1c"),
        (r"(a+)b\1$", 0, "aabaa"),
        ("(?<=x)y", 0, "xy"),
        ("a{2000}", 0, "a" * 2000),
        ("(?:a{900}){900}", 0, "a" * 900),
    ],
)
def test_where_the_two_differ(pattern: str, flags: int, text: str) -> None:
    one = re.compile(pattern, flags)
    assert Patterns([one]).found_in(text) == ([0] if one.search(text) else [])


HARD = [re.compile(f"({letter}.{{14}}|x)y") for letter in "abcdef"]
TEXTS = [f"{letter}{'abcdef' * 40}{letter}{'z' * 14}y" for letter in "abcdef"]


@pytest.mark.parametrize("memory", [20_000, 50_000], ids=["no set at all", "hardly a state"])
def test_with_too_little_memory_re_looks(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", memory)
    together = Patterns(HARD)
    assert (together._of_ascii.set is None) == (memory == 20_000)
    for text in TEXTS:
        assert together.found_in(text) == [i for i, pattern in enumerate(HARD) if pattern.search(text)]


def test_an_answer_without_what_is_in_every_text_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """RE2's set finds nothing, and says nothing, where its memory does not suffice for a text."""
    import re2

    monkeypatch.setattr(re2.Set, "Match", lambda self, text: [])
    assert Patterns(HARD).found_in(TEXTS[0]) == [0]
