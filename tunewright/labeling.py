"""Weak supervision: rules vote on rows without labels, and a label model makes soft labels of their votes.

The rows are read twice and never held: the first time the rules vote, the second time each row gets its label. What is
kept between are the distinct ballots, with a count and a first row of each, and for each row the number of its ballot.
"""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.artifacts.load import load
from tunewright.data.config import Location
from tunewright.data.formats import row_weight
from tunewright.data.given import as_location
from tunewright.data.labeling.config import Labeling
from tunewright.data.labeling.label_model import Ballot, Fitted, Votes, em, majority
from tunewright.data.labeling.rules import Classifier, Functions, Voter, names_of, read_rules
from tunewright.data.pictures import as_text
from tunewright.data.row import Fault, Row, Rows, renamed
from tunewright.data.stream import stream_rows
from tunewright.engine.device import pick_device
from tunewright.errors import BaseModelError, DataError, OutputError, RecipeError, counted
from tunewright.evaluation.rules import account
from tunewright.recipe import checked

Columns = Mapping[str, str]
EMPTY: Columns = {}
SHOWN = 5  # faults
UNREAD = -1  # in place of a ballot's number: a row that cannot be used
Number = tuple[int, str]


@dataclass
class Poll:
    """What the rules voted.

    Attributes:
        rules: their names.
        labels: the classes that they vote for, sorted.
        ballots: each distinct ballot; of each how many rows have it, and the first of these.
        ballot_N: for each row of the file the number of its ballot, or UNREAD.
        gold: how often a row with this ballot (its number) has this label, where rows have one.
        faults: the rows that cannot be used.
        failures: how many votes were lost since a rule threw, by rule, and the first few in words.
    """

    rules: list[str]
    labels: list[str] = field(default_factory=list)
    ballots: list[Ballot] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    firsts: list[Row] = field(default_factory=list)
    ballot_N: array[int] = field(default_factory=lambda: array("i"))
    gold: Counter[Number] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    failures: dict[str, tuple[int, list[str]]] = field(default_factory=dict)

    def votes(self) -> Votes:
        return Votes(self.ballots, np.array(self.rows, dtype=float), len(self.rules), len(self.labels))


def poll(
    location: Location,
    voters: Sequence[Voter],
    gold: str = "label",
    columns: Columns = EMPTY,
    watch: Callable[[int], None] = lambda rows: None,
) -> Poll:
    """Let every rule vote on every row.

    Args:
        columns: standard column name -> name in the file: rules know the standard ones.
        gold: the column that holds true labels, where a row has it: only the account looks at it.
        watch: is told again and again how many rows have been voted on.

    Raises DataError where no rule votes at all.
    """
    found = Poll(names_of(voters))
    standard = {column: name for name, column in columns.items()}
    numbers: dict[tuple[tuple[int, str], ...], int] = {}
    for chunk in _chunks(_weighed(stream_rows(location), columns), min(voter.at_once for voter in voters)):
        rows = [renamed(one, standard) if standard else one for one in chunk if isinstance(one, Row)]
        found.faults += [one for one in chunk if isinstance(one, Fault)]
        cast = _cast(voters, rows)
        for one in chunk:
            if isinstance(one, Fault):
                found.ballot_N.append(UNREAD)
                continue
            ballot = next(cast)
            number = numbers.setdefault(ballot, len(numbers))
            if number == len(found.rows):
                found.rows.append(0)
                found.firsts.append(one)
            found.rows[number] += 1
            found.ballot_N.append(number)
            if isinstance(label := one.values.get(columns.get(gold, gold)), str | int) and label != "":
                found.gold[number, str(label)] += 1
        watch(len(found.ballot_N))
    found.labels = sorted({label for ballot in numbers for _, label in ballot})
    if not found.labels:
        raise DataError(
            "No rule votes on any row, so nothing is labelled. Look at the rules, and at the column they read."
        )
    index = {label: k for k, label in enumerate(found.labels)}
    found.ballots = [tuple((rule, index[label]) for rule, label in ballot) for ballot in numbers]
    found.failures = {
        name: (fails.count, fails.first)
        for voter in voters
        if isinstance(voter, Functions)
        for name, fails in voter.fails.items()
        if fails.count
    }
    return found


def _weighed(rows: Iterable[Row | Fault], columns: Columns) -> Iterator[Row | Fault]:
    """The rows, of which those are faults whose own weight is none."""
    for row in rows:
        try:
            if isinstance(row, Row):
                _weight(row, columns)
            yield row
        except DataError as error:
            yield Fault(row.source, str(error), row.values if isinstance(row, Row) else row.raw)


def _weight(row: Row, columns: Columns) -> float:
    return row_weight({"weight": row.values.get(columns.get("weight", "weight"))})


def _chunks(rows: Iterator[Row | Fault], size: int) -> Iterator[list[Row | Fault]]:
    while chunk := list(islice(rows, size)):
        yield chunk


def _cast(voters: Sequence[Voter], rows: Sequence[Row]) -> Iterator[tuple[tuple[int, str], ...]]:
    """The votes on each row, (rule, label), the rules numbered through."""
    values, sources = [row.values for row in rows], [row.source for row in rows]
    columns, offset = [], 0
    for voter in voters:
        columns.append([(offset, votes) for votes in voter.votes(values, sources)])
        offset += len(voter.names)
    for row in zip(*columns, strict=True):
        yield tuple((start + rule, label) for start, votes in row for rule, label in sorted(votes.items()))


def fit(config: Labeling, found: Poll) -> Fitted:
    """What the label model makes of the votes. Raises DataError for a balance of other classes."""
    votes = found.votes()
    if config.model == "majority":
        return majority(votes, config.ties)
    balance_K = None
    if config.balance:
        if set(config.balance) != set(found.labels):
            raise DataError(
                f"labeling.balance names {', '.join(config.balance)}; the rules vote for {', '.join(found.labels)}."
            )
        balance_K = np.array([config.balance[label] for label in found.labels])
        balance_K /= balance_K.sum()
    return em(votes, config.prior, balance_K)


def labelled(
    config: Labeling, location: Location, found: Poll, fitted: Fitted, columns: Columns = EMPTY
) -> Iterator[Row]:
    """The rows that have a label now: their columns, with `label` a distribution over the classes, and `weight`.

    The weight is how sure the label is, (max p − 1/K) / (1 − 1/K), times the row's own, if it has one; where
    `confidence` is off the row's own stays.
    """
    soft_SK, classes = fitted.soft_SK, len(found.labels)
    if config.uncovered == "uniform":
        soft_SK = np.where(soft_SK.any(-1, keepdims=True), soft_SK, 1 / classes)
    sure_S = (soft_SK.max(-1) - 1 / classes) / max(1 - 1 / classes, 1e-12) if classes > 1 else np.ones(len(soft_SK))
    names = [dict(zip(found.labels, map(float, soft_K.round(6)), strict=True)) for soft_K in soft_SK]
    drawn: np.ndarray = soft_SK.any(-1)  # type: ignore[assignment]
    for row, number in zip(stream_rows(location), found.ballot_N, strict=True):
        if number == UNREAD or not isinstance(row, Row) or not drawn[number]:
            continue
        sure = round(float(sure_S[number]) * _weight(row, columns), 6)
        weight = {columns.get("weight", "weight"): sure} if config.confidence else {}
        yield Row({**row.values, columns.get("label", "label"): names[number], **weight}, row.source)


def weak_rows(config: Labeling, location: Location, columns: Columns) -> tuple[Rows, dict[str, Any]]:
    """The rows of a location that rules give a label, with the faults of those that cannot be used; and the account."""
    found = poll(location, read_rules(config.rules, classifier, config.ignore_case), columns=columns)
    fitted = fit(config, found)
    rows = list(labelled(config, location, found, fitted, columns))
    told = {**describe(config, found, fitted), "written": len(rows)}
    return Rows(rows, found.faults, _doubts(told)), told


def _doubts(told: Mapping[str, Any]) -> list[str]:
    """What is said of rows that rules label."""
    bare = told["rows"] - told["written"]
    said = [f"{counted(bare, 'training row', 'training rows')} without a label of any rule: left out."] if bare else []
    for name, failed in told["failed"].items():
        rows = counted(failed["count"], "row")
        said.append(f"The rule {name} fails on {rows} and abstains there: {failed['first'][0]}")
    return said


def classifier(where: str, device: str = "auto") -> Classifier:
    """What a classifier says of texts or images, as a rule asks it. Raises BaseModelError where it is none."""
    model = load(where, device=str(pick_device(device)))
    if not hasattr(model.task, "classify") or not getattr(model.task, "labels", []):
        raise BaseModelError(f"{where} is no classifier, and so cannot label: name the run or folder of one.")

    def classify(given: Sequence[Any]) -> list[Mapping[str, float]]:
        predictions, _ = model.task.classify(model, list(given))  # type: ignore[attr-defined]
        labels = model.task.labels  # type: ignore[attr-defined]
        return [dict(zip(labels, map(float, output_C), strict=True)) for output_C in predictions.output_NC]

    return classify


def label(
    rules: str | Path,
    data: Location,
    to: str | Path | None = None,
    *,
    gold: str = "label",
    device: str = "auto",
    watch: Callable[[int], None] = lambda rows: None,
    **options: Any,
) -> dict[str, Any]:
    """Label rows by rules: each gets a distribution over the classes in `label`, and with `confidence` a `weight`.

    Args:
        rules: a JSONL file of rules, or a Python file of functions, which is run.
        data: the rows; what lies beyond memory is read piece by piece from JSONL and Parquet.
        to: a JSONL file for the rows that have a label now; None: only the account is given.
        gold: the column of true labels, of which the account tells how often rules and label model are right.
        watch: is told again and again how many rows have been voted on.
        options: those of `data.labeling`.

    Returns the account: see `tunewright.evaluation.rules.account`.

    Raises:
        DataError: rules or rows that cannot be used, each named; or rows without any vote.
        OutputError: the file is there already, or cannot be written.
        RecipeError: options that cannot be used.
    """
    config = checked(Labeling, {"rules": str(rules), **options})
    if config.then_clean is not None:
        raise RecipeError(
            "then_clean is for training: data.labeling.then_clean of a recipe. Here nothing is trained: leave it out."
        )
    target = Path(to).expanduser() if to is not None else None
    if target is not None and target.exists():
        raise OutputError(f"{target} is there already. Name another file.")
    data = as_location(data, "data")
    voters = read_rules(config.rules, lambda where: classifier(where, device), config.ignore_case)
    found = poll(data, voters, gold, watch=watch)
    fitted = fit(config, found)
    told = describe(config, found, fitted)
    if target is not None:
        written = (json.dumps(as_text(row.values), ensure_ascii=False) for row in labelled(config, data, found, fitted))
        told = {**told, "to": str(target), "written": _write(target, written)}
    return told


def describe(config: Labeling, found: Poll, fitted: Fitted) -> dict[str, Any]:
    """The account of a poll, with what could not be read and which rules threw."""
    firsts = [(row.source, row.values) for row in found.firsts]
    return {
        "model": config.model,
        **account(found.rules, found.labels, found.votes(), fitted, found.gold, firsts),
        "unread": {"count": len(found.faults), "first": [str(fault) for fault in found.faults[:SHOWN]]},
        "failed": {name: {"count": count, "first": first} for name, (count, first) in found.failures.items()},
    }


def _write(target: Path, lines: Iterable[str]) -> int:
    """Write the lines beside and rename, so that a file of this name is whole. How many there are."""
    draft = target.with_name(f"{target.name}.{os.getpid()}.part")
    count = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            for count, line in enumerate(lines, 1):  # noqa: B007  counts them
                file.write(f"{line}\n")
        draft.rename(target)
    except OSError as error:
        raise OutputError(f"{target} could not be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return count
