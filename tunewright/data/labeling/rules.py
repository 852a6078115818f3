"""Labelling rules: each votes for a label of a row, or abstains.

A rule file is JSON lines, one rule a line:

    {"label": "number", "pattern": "\\bhow (many|much)\\b"}           a regular expression, as Python's `re` reads it
    {"label": "number", "keywords": ["how many", "how much"]}         whole words, in either case
    {"dictionary": {"great": "positive", "awful": "negative"}}        the label of most of its words; a tie abstains
    {"model": "runs/zero_shot", "threshold": 0.8}                     what a classifier says, where it is that sure

each with an optional `name`, and an optional `column` (else `text`); or it is a Python file, where each function whose
name begins with no underscore is a rule: it is given the row, a dict, and returns a label, or None.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tunewright.data.labeling.patterns import Patterns
from tunewright.data.python_files import THROWN, run_file
from tunewright.errors import DataError

Row = Mapping[str, Any]
Cast = dict[int, str]
"""The votes on a row: the number of a rule, and the label that it votes for. Who abstains is not in it."""
Classifier = Callable[[Sequence[Any]], list[Mapping[str, float]]]
"""Texts → the probability of each label."""
FORMS = ("pattern", "keywords", "dictionary", "model")


class RuleRow(BaseModel):
    """One line of a rule file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = None
    label: str | None = None
    column: str = "text"
    pattern: str | None = None
    keywords: list[str] | None = Field(None, min_length=1)
    dictionary: dict[str, str] | None = Field(None, min_length=1)
    model: str | None = None
    threshold: float = Field(0.0, ge=0, le=1)
    example: str | None = None

    @model_validator(mode="after")
    def _has_one_form(self) -> RuleRow:
        given = [form for form in FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            raise ValueError(f"a rule has one of {', '.join(FORMS)}; this one has {' and '.join(given) or 'none'}")
        if (self.label is None) != (given[0] in ("dictionary", "model")):
            raise ValueError("pattern and keywords need the label that they vote for; the others name their own")
        if self.threshold and self.model is None:
            raise ValueError("threshold is for a model, which says how sure it is")
        words = [*(self.keywords or ()), *(self.dictionary or ())]
        if any(not word.strip() for word in words):
            raise ValueError("an empty word is found everywhere: leave it out")
        if any(not label.strip() for label in (self.label, *(self.dictionary or {}).values()) if label is not None):
            raise ValueError("the label is empty: name the class that the rule votes for")
        return self


@dataclass
class Fails:
    """The rows on which a rule threw: it abstains there, and the others go on."""

    count: int = 0
    first: list[str] = field(default_factory=list)  # "rules.py: is_long: file:17: KeyError: 'x'"

    SHOWN = 5

    def note(self, rule: str, source: str, error: BaseException) -> None:
        self.count += 1
        if len(self.first) < self.SHOWN:
            self.first.append(f"{rule}: {source}: {type(error).__name__}: {error}")


class Voter(Protocol):
    """Some rules that vote together: they share the reading of a text. `at_once`: of how many rows at the most."""

    names: list[str]
    at_once: int

    def votes(self, rows: Sequence[Row], sources: Sequence[str]) -> list[Cast]: ...


def read_rules(path: str | Path, classifier: Callable[[str], Classifier], ignore_case: bool = False) -> list[Voter]:
    """The rules of a file.

    Args:
        ignore_case: whether patterns are found in either case, as keywords are anyway.
        classifier: loads the model that a rule names.

    Raises DataError that names each line that is no rule.
    """
    place = Path(path)
    if not place.is_file():
        raise DataError(f"There is no file of rules {path}.")
    if place.suffix == ".py":
        return [Functions(place)]
    rows = _rule_rows(place)
    names = [row.name or f"{row.label or row.model or 'dictionary'} {number}" for number, row in enumerate(rows, 1)]
    named = list(zip(names, rows, strict=True))
    voters: list[Voter] = []
    for column in dict.fromkeys(row.column for row in rows):
        if texts := [(name, row) for name, row in named if row.column == column and row.model is None]:
            voters.append(Words(column, texts, ignore_case))
    voters += [Told(name, row, classifier(row.model)) for name, row in named if row.model is not None]
    names_of(voters)
    return voters


def _rule_rows(path: Path) -> list[RuleRow]:
    rows, faults = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):  # U+2028 in a string ends none
        if not line.strip():
            continue
        try:
            row = RuleRow.model_validate(json.loads(line))
            _compiled(row)
        except (ValidationError, ValueError, re.error) as error:
            faults.append(f"{path}:{number}: {_reason(error)}")
        else:
            rows.append(row)
    if faults:
        raise DataError("The rules cannot be used. Mend these lines:", faults)
    if not rows:
        raise DataError(f"{path} holds no rules.")
    return rows


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
    return str(error)


def _compiled(row: RuleRow, ignore_case: bool = False) -> re.Pattern[str] | None:
    if row.pattern is not None:
        return re.compile(row.pattern, re.IGNORECASE if ignore_case else 0)
    words = row.keywords or list(row.dictionary or ())
    return re.compile(rf"(?i)(?<!\w)(?:{'|'.join(sorted(map(re.escape, words), key=len, reverse=True))})(?!\w)")


class Words:
    """Patterns, keywords and dictionaries on one column."""

    at_once = 1024

    def __init__(self, column: str, rules: Sequence[tuple[str, RuleRow]], ignore_case: bool = False) -> None:
        self.column = column
        self.names = [name for name, _ in rules]
        self.rules = [row for _, row in rules]
        patterns = [_compiled(row, ignore_case) for row in self.rules]
        self.patterns = [pattern for pattern in patterns if pattern]
        self.together = Patterns(self.patterns)
        self.words = [{word.lower(): label for word, label in (row.dictionary or {}).items()} for row in self.rules]

    def votes(self, rows: Sequence[Row], sources: Sequence[str]) -> list[Cast]:
        return [self._votes(row.get(self.column)) for row in rows]

    def _votes(self, text: Any) -> Cast:
        found = self.together.found_in(text) if isinstance(text, str) else ()
        votes = {number: self._vote(number, text) for number in found}
        return {number: label for number, label in votes.items() if label is not None}

    def _vote(self, number: int, text: str) -> str | None:
        """The label of a rule that found something; of a dictionary that of most of its words."""
        if self.rules[number].label is not None:
            return self.rules[number].label
        counted = Counter(self._label(number, match.group()) for match in self.patterns[number].finditer(text))
        (label, most), *others = counted.most_common(2)
        return None if others and others[0][1] == most else label

    def _label(self, number: int, found: str) -> str:
        """Of a dictionary's word as a text has it: `re` takes more letters for the same than `lower` does (ſ, K)."""
        words, key = self.words[number], found.lower()
        if key not in words:
            given = (self.rules[number].dictionary or {}).items()
            words[key] = next(label for word, label in given if re.fullmatch(re.escape(word), found, re.IGNORECASE))
        return words[key]


class Told:
    """What a model says; of a row without a text or an image it says nothing, as other rules do."""

    at_once = 128

    def __init__(self, name: str, rule: RuleRow, classify: Classifier) -> None:
        self.names, self.rule, self.classify = [name], rule, classify

    def votes(self, rows: Sequence[Row], sources: Sequence[str]) -> list[Cast]:
        given = [row.get(self.rule.column) for row in rows]
        asked = [i for i, one in enumerate(given) if not (one is None or isinstance(one, int | float) or one == "")]
        told = self.classify([given[i] for i in asked]) if asked else []
        best = {i: max(one.items(), key=lambda pair: pair[1]) for i, one in zip(asked, told, strict=True)}
        return [{0: best[i][0]} if i in best and best[i][1] >= self.rule.threshold else {} for i in range(len(rows))]


class Functions:
    """The functions of a Python file, which runs because the user named it."""

    at_once = 16  # each may take its time

    def __init__(self, path: Path) -> None:
        found = run_file(path)
        self.functions = {
            name: value
            for name, value in found.items()
            if inspect.isfunction(value) and not name.startswith("_") and value.__code__.co_filename == str(path)
        }
        if not self.functions:
            raise DataError(f"{path} has no function whose name begins without an underscore: each such one is a rule.")
        self.names = list(self.functions)
        self.fails = {name: Fails() for name in self.names}

    def votes(self, rows: Sequence[Row], sources: Sequence[str]) -> list[Cast]:
        return [self._votes(row, source) for row, source in zip(rows, sources, strict=True)]

    def _votes(self, row: Row, source: str) -> Cast:
        votes = {number: self._vote(name, row, source) for number, name in enumerate(self.names)}
        return {number: label for number, label in votes.items() if label is not None}

    def _vote(self, name: str, row: Row, source: str) -> str | None:
        try:
            vote = self.functions[name](dict(row))
            if vote is not None and not _is_label(vote):
                raise TypeError(f"a rule returns a label or None, not {vote!r}")
        except THROWN as error:
            self.fails[name].note(name, source, error)
            return None
        return None if vote is None else str(vote)


def _is_label(vote: Any) -> bool:
    """Whether it names a class: a text, or a whole number, also one of numpy's. True and False answer a question."""
    return bool(vote.strip()) if isinstance(vote, str) else isinstance(vote, Integral) and not isinstance(vote, bool)


def names_of(voters: Iterable[Voter]) -> list[str]:
    """The names of all rules, in order. Raises DataError where two are alike."""
    names = [name for voter in voters for name in voter.names]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"Two rules are called {twice[0]}: rename one.")
    return names
