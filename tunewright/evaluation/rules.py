"""What labelling rules did: how many rows they reach, where they agree, and how often they are right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tunewright.data.labeling.label_model import Ballot, Fitted, Votes
from tunewright.errors import counted, nearest
from tunewright.evaluation.formats import ABSENT, percent, with_interval
from tunewright.evaluation.scores import Metric, share_of

FIGHTS = 10
"""Rows that are shown on which rules fight."""


def account(
    rules: Sequence[str],
    labels: Sequence[str],
    votes: Votes,
    fitted: Fitted,
    gold: Mapping[tuple[int, str], int],
    firsts: Sequence[tuple[str, Any]],
) -> dict[str, Any]:
    """The account of a poll, as a document.

    Coverage is the share of rows with a vote; overlap, with a vote beside another; conflict, beside one for another
    class. Accuracies are on the rows whose true label is known, with Wilson's interval.

    Args:
        gold: how often a ballot (its number) goes with a true label.
        firsts: where the first row of each ballot is, and what it holds.
    """
    total = int(votes.rows_S.sum())
    beside_V, against_V = _company(votes)
    cast_R = votes.by_rule(np.ones(len(votes.rule)))
    overlap_R, conflict_R = votes.by_rule(beside_V), votes.by_rule(against_V)
    hits, known = _right(rules, labels, votes.ballots, gold)
    table = [
        {
            "rule": name,
            "labels": sorted({labels[k] for k in votes.label[votes.rule == r]}),
            "coverage": cast_R[r] / total,
            "overlap": overlap_R[r] / total,
            "conflict": conflict_R[r] / total,
            **({"accuracy": share_of(hits[r], known[r]).to_dict()} if known[r] else {}),
            **({"believed": float(fitted.accuracy_R[r])} if fitted.accuracy_R is not None and cast_R[r] else {}),
        }
        for r, name in enumerate(rules)
    ]
    decided_S = fitted.soft_SK.any(-1)
    return {
        "rows": total,
        "labels": {label: float((votes.rows_S * fitted.soft_SK[:, k]).sum()) for k, label in enumerate(labels)},
        "coverage": _share(votes, np.array([len(b) > 0 for b in votes.ballots])),
        "overlap": _share(votes, np.array([len(b) > 1 for b in votes.ballots])),
        "conflict": _share(votes, np.array([len({k for _, k in b}) > 1 for b in votes.ballots])),
        "labelled": _share(votes, decided_S),
        **_against_gold(labels, fitted, gold),
        "true": sorted({label for _, label in gold}),
        "rules": table,
        "fights": _fights(rules, labels, votes, firsts),
    }


def _share(votes: Votes, of_S: Any) -> float:
    return float(votes.rows_S[of_S].sum() / votes.rows_S.sum())


def _company(votes: Votes) -> tuple[np.ndarray, np.ndarray]:
    """For each vote whether another rule votes on the row, and whether one votes for another class."""
    ones_V = np.ones(len(votes.rule))
    all_S, same_SK = votes.summed(ones_V), votes.by_class(ones_V)
    others_V = all_S[votes.place]
    return others_V > 1, others_V > same_SK[votes.place, votes.label]


def _right(
    rules: Sequence[str], labels: Sequence[str], ballots: Sequence[Ballot], gold: Mapping[tuple[int, str], int]
) -> tuple[list[int], list[int]]:
    """How many votes of each rule are right, and how many are on rows whose label is known."""
    hits, known = [0] * len(rules), [0] * len(rules)
    for (number, label), rows in gold.items():
        for rule, vote in ballots[number]:
            known[rule] += rows
            hits[rule] += rows * (labels[vote] == label)
    return hits, known


def _against_gold(labels: Sequence[str], fitted: Fitted, gold: Mapping[tuple[int, str], int]) -> dict[str, Any]:
    """How often the likeliest class is the true one, on the labelled rows; a tie counts by its share."""
    hits, known = 0.0, 0
    for (number, label), rows in gold.items():
        soft_K = fitted.soft_SK[number]
        if soft_K.any():
            first_K = soft_K == soft_K.max()
            known += rows
            hits += rows * float(first_K[labels.index(label)] / first_K.sum()) if label in labels else 0
    return {"accuracy": share_of(hits, known).to_dict()} if known else {}


def _fights(
    rules: Sequence[str], labels: Sequence[str], votes: Votes, firsts: Sequence[tuple[str, Any]]
) -> list[dict[str, Any]]:
    """The most frequent ballots with votes for several classes, each with its first row."""
    fighting = [s for s, ballot in enumerate(votes.ballots) if len({k for _, k in ballot}) > 1]
    worst = sorted(fighting, key=lambda s: (-votes.rows_S[s], s))[:FIGHTS]
    return [
        {
            "rows": int(votes.rows_S[s]),
            "first": firsts[s][0],
            "row": firsts[s][1],
            "votes": {rules[rule]: labels[k] for rule, k in votes.ballots[s]},
        }
        for s in worst
    ]


def never_true(found: Mapping[str, Any], elsewhere: Iterable[str] = ()) -> list[str]:
    """A sentence for each class that rules vote for and that is no row's true label, where some are known.

    Args:
        elsewhere: true labels of other rows, as of those that are measured on.
    """
    known = sorted({*found["true"], *elsewhere})
    strange = [label for label in found["labels"] if known and label not in known]
    return [
        f"Rules vote for {label}, which is no row's true label and becomes a class of its own. {nearest(label, known)}"
        for label in strange
    ]


def table(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An account in words, for a page; None where no rules labelled anything."""
    if not found:
        return None
    rows = [
        {
            "name": rule["rule"],
            "labels": ", ".join(rule["labels"]),
            **{key: percent(rule[key], 1) for key in ("coverage", "overlap", "conflict")},
            "right": right(rule),
            "believed": percent(rule["believed"], 1) if "believed" in rule else ABSENT,
        }
        for rule in sorted(found["rules"], key=lambda rule: -rule["coverage"])
    ]
    fights = [
        {
            "rows": counted(fight["rows"], "row"),
            "first": fight["first"],
            "votes": ", ".join(f"{rule} says {label}" for rule, label in fight["votes"].items()),
        }
        for fight in found["fights"]
    ]
    return {"rows": rows, "fights": fights, "sums": sums(found)}


def sums(found: Mapping[str, Any]) -> str:
    """An account in a sentence or two."""
    reach = {"some rule votes": "coverage", "several do": "overlap", "they disagree": "conflict"}
    said = ", ".join(f"{words} on {percent(found[key], 1)}" for words, key in reach.items())
    known = f" Where the true label is known, {right(found)} are right." if "accuracy" in found else ""
    return f"Of {found['rows']:,} rows {said}.{known}"


def right(found: Mapping[str, Any]) -> str:
    """How often a rule or all of them are right, with the interval; nothing where no true label is known."""
    return with_interval("accuracy", Metric.from_dict(found["accuracy"])) if "accuracy" in found else ABSENT
