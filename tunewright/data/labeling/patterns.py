"""Many regular expressions over many texts: which of them are found in each, exactly as Python's `re.search` says.

RE2 reads a text once for all patterns; see `_translate`. `re` looks only where RE2 could not be sure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from tunewright.data.labeling._translate import translate

MEMORY = 256 * 2**20  # bytes for RE2's states; where they do not suffice, it says nothing, and `re` looks


class Patterns:
    """Compiled patterns that are searched for together."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self.patterns = list(patterns)

    def found_in(self, text: str) -> list[int]:
        """The numbers, ascending, of the patterns that are found in a text."""
        plain = text.isascii() and not text.endswith("\n")
        return (self._of_ascii if plain else self._of_all).found_in(text)

    @cached_property
    def _of_ascii(self) -> _Together:
        return _Together(self.patterns, ascii_only=True)

    @cached_property
    def _of_all(self) -> _Together:
        return _Together(self.patterns, ascii_only=False)


class _Together:
    """RE2's set of the patterns that it can read, written for one kind of text."""

    def __init__(self, patterns: Sequence[re.Pattern[str]], ascii_only: bool) -> None:
        import re2

        self.search = [pattern.search for pattern in patterns]
        options = re2.Options()
        options.max_mem, options.log_errors, options.never_capture = MEMORY, False, True
        self.set = re2.Set.SearchSet(options)
        self.numbers: list[int] = []  # of the patterns in the set, by their place there
        self.sure: list[bool] = []
        self.unread: list[int] = []  # those that RE2 does not take
        for number, pattern in enumerate(patterns):
            written = translate(pattern, ascii_only)
            try:
                self.set.Add(written.pattern)
            except re2.error:
                self.unread.append(number)
                continue
            self.numbers.append(number)
            self.sure.append(written.exact and ascii_only)
        self.always = len(self.numbers)  # found in every text: its absence says that RE2 ran out of memory
        self.set.Add("")
        try:
            self.set.Compile()
        except re2.error:  # too large for the memory
            self.set, self.unread = None, list(range(len(patterns)))

    def found_in(self, text: str) -> list[int]:
        places = self.set.Match(text) if self.set else [self.always]
        if self.always not in places:
            return [number for number, search in enumerate(self.search) if search(text)]
        found = [
            self.numbers[place]
            for place in places
            if place != self.always and (self.sure[place] or self.search[self.numbers[place]](text))
        ]
        return sorted(found + [number for number in self.unread if self.search[number](text)])
