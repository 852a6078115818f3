"""Pictures of the rows of an image run: some of each class, and the worst mistakes, each with what was predicted.

They are chosen as the run ends, made small, and kept in RUN/pictures.json, since the report is made of the run's own
files alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.kinds import LabelledImage
from tunewright.data.pictures import thumbnail
from tunewright.evaluation.evaluate import answer, in_words
from tunewright.evaluation.formats import percent, row_name
from tunewright.evaluation.scores import Array

if TYPE_CHECKING:
    from tunewright.tasks.base import Predictions

PICTURES = "pictures.json"
MOST = 12


def gallery(
    predictions: Predictions, records: Sequence[Any], labels: Sequence[str], count: int
) -> dict[str, list[dict[str, Any]]]:
    """`shown`: rows of all classes in turn; `worst`: the mistakes with the highest loss. Empty for rows of texts.

    Args:
        predictions: of the records, but for those that were dropped.
        count: how many rows of each, 12 at most.
    """
    by_source = {r.source: r for r in records if isinstance(r, LabelledImage) and r.label is not None}
    rows = [i for i, source in enumerate(predictions.sources) if source in by_source]
    if not rows:
        return {}
    loss_N, wrong_N = _loss(predictions), _wrong(predictions)
    truths = {i: in_words(by_source[predictions.sources[i]])[1] for i in rows}
    worst = sorted((i for i in rows if wrong_N[i]), key=lambda i: -loss_N[i])

    def card(i: int) -> dict[str, Any]:
        return {
            "source": predictions.sources[i],
            "image": thumbnail(by_source[predictions.sources[i]].image),
            "truth": truths[i],
            "answer": answer(predictions, i, labels),
            "right": not wrong_N[i],
            **_chances(predictions, i),
        }

    chosen = {"shown": _in_turn(rows, truths), "worst": worst}
    return {name: [card(i) for i in found[: min(count, MOST)]] for name, found in chosen.items()}


def _in_turn(rows: Sequence[int], truths: Mapping[int, Any]) -> list[int]:
    """The first row of each class, then the second of each, and so on."""
    seen: Counter[Any] = Counter()
    place = {}
    for i in rows:
        place[i] = seen[truths[i]]
        seen[truths[i]] += 1
    return sorted(rows, key=lambda i: place[i])


def _soft(predictions: Predictions) -> tuple[Array, Array]:
    """Outputs and targets, both [N, C]."""
    assert predictions.output_NC is not None and predictions.gold is not None
    output_NC, gold = predictions.output_NC, predictions.gold
    if predictions.kind == "single_label" and gold.ndim == 1:
        gold = np.eye(output_NC.shape[1])[gold]
    return output_NC, gold.reshape(output_NC.shape)


def _loss(predictions: Predictions) -> Array:
    """Of each row [N]: the cross-entropy in nats, or the squared error."""
    output_NC, gold_NC = _soft(predictions)
    if predictions.kind == "regression":
        return ((output_NC - gold_NC) ** 2).sum(-1)
    log_NC = np.log(np.maximum(output_NC, 1e-300))
    loss_NC = -gold_NC * log_NC
    if predictions.kind == "multi_label":
        loss_NC = loss_NC - (1 - gold_NC) * np.log(np.maximum(1 - output_NC, 1e-300))
    return loss_NC.sum(-1)


def _wrong(predictions: Predictions) -> Array:
    """Whether each row is a mistake [N]: another class, not just these labels; a number is never met exactly."""
    output_NC, gold_NC = _soft(predictions)
    if predictions.kind == "single_label":
        return output_NC.argmax(-1) != gold_NC.argmax(-1)
    if predictions.kind == "multi_label":
        return ((output_NC > 0.5) != (gold_NC > 0.5)).any(-1)
    return (output_NC != gold_NC).any(-1)


def _chances(predictions: Predictions, row: int) -> dict[str, float]:
    """The probabilities of what was answered and of the truth, where there is one class a row."""
    if predictions.kind != "single_label":
        return {}
    output_NC, gold_NC = _soft(predictions)
    return {"chance": float(output_NC[row].max()), "chance_of_truth": float(output_NC[row, gold_NC[row].argmax()])}


# In the report


@dataclass(frozen=True)
class Card:
    """A picture with what was predicted, and the truth where that is something else."""

    source: str
    image: str
    answer: str
    truth: str
    right: bool


def cards(found: Mapping[str, Any] | None) -> list[tuple[str, str, list[Card]]]:
    """(the set, "shown" or "worst", its pictures) of what pictures.json holds; nothing where somebody has broken it."""
    try:
        return [
            (name, kind, [_card(one) for one in kinds[kind]])
            for name, kinds in (found or {}).items()
            for kind in ("shown", "worst")
            if kinds.get(kind)
        ]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []


def _card(found: Mapping[str, Any]) -> Card:
    def with_chance(what: str, key: str) -> str:
        return f"{what} {percent(found[key], 0)}" if key in found else what

    image = str(found["image"])
    return Card(
        row_name(str(found["source"])),
        image if image.startswith("data:image/") else "data:,",  # the file may have come from elsewhere
        with_chance(str(found["answer"]), "chance"),
        with_chance(str(found["truth"]), "chance_of_truth"),
        bool(found["right"]),
    )
