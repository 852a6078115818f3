"""Python's regular expressions as RE2's, which finds many of them in one pass over a text.

Python's `re` decides what a pattern means. RE2 has no backreferences and no lookaround, and reads classes, case and
`$` a little differently; so a pattern is parsed by Python and written anew for RE2. What RE2 cannot say is widened
to something that matches wherever the pattern could, and `re` has the last word there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

BEYOND = r"\x{80}-\x{10ffff}"  # what is not ASCII
MOST = 1000  # repetitions that RE2 writes out


@dataclass(frozen=True)
class Translated:
    """A pattern for RE2.

    Attributes:
        pattern: matches wherever Python's does.
        exact: and nowhere else, in a text of ASCII that does not end with a line break.
    """

    pattern: str
    exact: bool


def translate(pattern: re.Pattern[str], ascii_only: bool) -> Translated:
    """A pattern for RE2.

    Args:
        ascii_only: whether the texts are of ASCII alone: then words and cases are what RE2 takes them for.
    """
    writer = _Writer(ascii_only)
    written = writer.sequence(parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG), pattern.flags, last=True)
    return Translated(written, writer.exact)


class _Writer:
    def __init__(self, ascii_only: bool) -> None:
        self.ascii_only, self.exact = ascii_only, True

    def sequence(self, nodes: Iterable[Any], flags: int, last: bool = False) -> str:
        """Args: last: whether nothing comes behind these nodes."""
        listed = list(nodes)
        end = len(listed) - 1
        return "".join(self.node(name, value, flags, last and i == end) for i, (name, value) in enumerate(listed))

    def node(self, name: Any, value: Any, flags: int, last: bool) -> str:
        if name is op.LITERAL:
            return self.characters([(name, value)], flags)
        if name is op.NOT_LITERAL:
            return self.characters([(op.NEGATE, None), (op.LITERAL, value)], flags)
        if name is op.IN:
            return self.characters(value, flags)
        if name is op.ANY:
            return "(?s:.)" if flags & re.DOTALL else r"[^\n]"
        if name is op.BRANCH:
            return f"(?:{'|'.join(self.sequence(branch, flags, last) for branch in value[1])})"
        if name is op.SUBPATTERN:
            _, added, removed, inner = value
            return f"(?:{self.sequence(inner, (flags | added) & ~removed, last)})"
        if name in (op.MAX_REPEAT, op.MIN_REPEAT):
            low, high, inner = value
            return self.repeated(low, high, inner, flags)
        if name is op.AT:
            return self.place(value, flags, last)
        return self.wider(name, value, flags)

    def characters(self, items: Any, flags: int) -> str:
        """One character of a set: its ASCII as `re` decides for each, and of the rest all where that is in doubt."""
        found = _ascii_of(items, flags)
        beyond = "" if self.ascii_only else _beyond(items, flags)
        if len(found) == 1 and not beyond:
            return re.escape(found) if found.isprintable() else rf"\x{{{ord(found):x}}}"
        inside = "".join(rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in _ranges(map(ord, found))) + beyond
        return f"[{inside}]" if inside else r"[^\x{0}-\x{10ffff}]"

    def repeated(self, low: int, high: Any, inner: Any, flags: int) -> str:
        written = f"(?:{self.sequence(inner, flags)})"
        if low > MOST or (high is not op.MAXREPEAT and high > MOST):
            self.exact = False
            low, high = min(low, MOST), op.MAXREPEAT
        return f"{written}{{{low},{'' if high is op.MAXREPEAT else high}}}"

    def place(self, where: Any, flags: int, last: bool) -> str:
        several = flags & re.MULTILINE
        if where is op.AT_BEGINNING_STRING or (where is op.AT_BEGINNING and not several):
            return r"\A"
        if where is op.AT_BEGINNING:
            return "(?m:^)"
        if where is op.AT_END_STRING:
            return r"\z"
        if where is op.AT_END and several:
            return "(?m:$)"
        if where is op.AT_END and self.ascii_only:  # or in front of a last line break, which `exact` leaves out
            return r"\z"
        if where is op.AT_END and last:  # else what comes behind it could be that line break
            return r"(?:\n?\z)"
        if self.ascii_only and where is op.AT_BOUNDARY:
            return r"\b"
        if self.ascii_only and where is op.AT_NON_BOUNDARY:
            self.exact = False  # Python's \B does not match in an empty text, before 3.14
            return ""
        self.exact = False
        return ""

    def wider(self, name: Any, value: Any, flags: int) -> str:
        """Something that matches wherever what RE2 has no word for could."""
        self.exact = False
        if name in (op.ASSERT, op.ASSERT_NOT):
            return ""
        if name is op.ATOMIC_GROUP:
            return f"(?:{self.sequence(value, flags)})"
        if name is op.POSSESSIVE_REPEAT:
            low, high, inner = value
            return self.repeated(low, high, inner, flags)
        return "(?s:.*)"  # a backreference, a condition, whatever comes


def _ascii_of(items: list[Any], flags: int) -> str:
    """The characters of ASCII that a set holds."""
    if _is_plain(items, flags) and len(items) == 1 and items[0][0] is op.LITERAL:
        return chr(items[0][1]) if items[0][1] < 128 else ""
    state = parser.State()
    state.flags = flags
    one = re._compiler.compile(parser.SubPattern(state, [(op.IN, items)]), flags)  # type: ignore[attr-defined]
    return "".join(filter(one.fullmatch, map(chr, range(128))))


def _beyond(items: list[Any], flags: int) -> str:
    """What else a set may hold. Letters in either case and classes depend on tables that differ: all of it."""
    if not _is_plain(items, flags):
        return BEYOND
    runs = [(value, value) if name is op.LITERAL else value for name, value in items]
    return "".join(rf"\x{{{max(first, 128):x}}}-\x{{{last:x}}}" for first, last in runs if last > 127)


def _is_plain(items: list[Any], flags: int) -> bool:
    """Whether a set is its letters and ranges, in the case in which they are written."""
    return not flags & re.IGNORECASE and all(name in (op.LITERAL, op.RANGE) for name, _ in items)


def _ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs, first and last of each."""
    runs: list[tuple[int, int]] = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1] = (runs[-1][0], code)
        else:
            runs.append((code, code))
    return runs
