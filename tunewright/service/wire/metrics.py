"""A run's metrics.jsonl in the API's words: data of events, metrics of checkpoints, the results file.

A line is of a step ({"step": 3, "loss": …, "accuracy": …}) or of an evaluation ({"step": 3, "validation": {…}}), which
is always of all validation rows: `valid_loss` and `full_valid_loss` are the same. What the API calls accuracy of tokens
is what the objective calls accuracy: of pairs for preferences, of rows for classes.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

NAMES = {"loss": "loss", "accuracy": "mean_token_accuracy"}
FURTHER = {"reward": "mean_reward", "margin": "mean_margin", "kl": "mean_kl", "length": "mean_length"}
"""Of preferences and rewards. The API has no words for them."""
COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
}
"""Of the results file, which is read by name; the last two are Azure's."""


def figures(line: Mapping[str, Any]) -> dict[str, float]:
    """What a line says, under the API's names. A figure that was not finite is left out."""
    if "validation" not in line:
        return _named("train", {**NAMES, **FURTHER}, line)
    found = line["validation"]
    return _named("valid", {**NAMES, **FURTHER}, found) | _named("full_valid", NAMES, found)


def _named(prefix: str, names: Mapping[str, str], found: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}_{name}": found[own] for own, name in names.items() if found.get(own) is not None}


def event_data(line: Mapping[str, Any], total: int) -> dict[str, Any]:
    """The data of an event of type metrics, for a run of `total` steps."""
    return {"step": line["step"], "total_steps": total, **figures(line)}


def event_message(line: Mapping[str, Any], total: int) -> str:
    """`Step 3/30: training loss=2.10`."""
    found = figures(line)
    said = [
        f"{word} loss={found[name]:.2f}"
        for name, word in (("train_loss", "training"), ("valid_loss", "validation"))
        if name in found
    ]
    return f"Step {line['step']}/{total}" + (f": {', '.join(said)}" if said else "")


def checkpoint_metrics(lines: Iterable[Mapping[str, Any]], step: int) -> dict[str, float]:
    """All that is known of a step: of its training, and of the evaluation behind it."""
    return {name: value for line in lines if line["step"] == step for name, value in figures(line).items()}


def results_csv(lines: Iterable[Mapping[str, Any]]) -> str:
    """A row a step; what was not measured there is empty. Rewards and the like follow where the run has them."""
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        rows.setdefault(line["step"], {"step": line["step"]}).update(figures(line))
    further = dict.fromkeys(name for row in rows.values() for name in row if name not in COLUMNS.values())
    columns = {**COLUMNS, **{name: name for name in further}}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[row.get(name, "") for name in columns.values()] for row in rows.values()])
    return text.getvalue()


def results_file(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """The content of a job's results file: its CSV in base64, which is how OpenAI serves it and clients expect it."""
    return base64.b64encode(results_csv(lines).encode())
