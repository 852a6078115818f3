"""What each section of the report shows, worked out from the run's files. The template only lays it out.

Every function takes what may be missing and gives an empty result for it; the template then says so in a sentence.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.data.pictures import data_url
from tunewright.evaluation.charts import Scale
from tunewright.evaluation.formats import (
    duration,
    exact,
    interval_of,
    is_share,
    metric_name,
    number,
    percent,
    row_name,
    size,
    spoken,
    value_of,
    with_interval,
)
from tunewright.evaluation.robustness import sentence
from tunewright.evaluation.robustness import table as robustness_table
from tunewright.evaluation.scores import Metric
from tunewright.evaluation.verdict import Change, Comparison

Row = Mapping[str, Any]

MOST_COLUMNS = 6  # of sample pictures

LONGEST_TEXT = 2_000
MOST_SAMPLES = 12
MOST_LABELS = 12
"""A confusion matrix of more labels than this is given as its largest confusions."""
MOST_CONFUSIONS = 10
MOST_LABEL_COUNTS = 20


# ---- Evaluation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """An interval on a line from 0 to 100."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Measured:
    value: str
    interval: str
    bar: Bar | None


@dataclass(frozen=True)
class EvaluationRow:
    name: str
    primary: bool
    before: Measured | None
    after: Measured | None
    change: Change


@dataclass(frozen=True)
class EvaluationTable:
    name: str
    rows: int
    metrics: tuple[EvaluationRow, ...]
    notes: tuple[str, ...]


def evaluation_table(compared: Comparison) -> EvaluationTable:
    names = dict.fromkeys(name for scores in (compared.after, compared.before) if scores for name in scores.metrics)
    notes = dict.fromkeys(note for scores in (compared.before, compared.after) if scores for note in scores.notes)
    return EvaluationTable(
        compared.name, compared.rows, tuple(_evaluation_row(compared, name) for name in names), tuple(notes)
    )


def _evaluation_row(compared: Comparison, name: str) -> EvaluationRow:
    before, after = compared.of(compared.before, name), compared.of(compared.after, name)
    scale = _bar_scale(name, [metric for metric in (before, after) if metric and metric.has_interval])
    return EvaluationRow(
        metric_name(name),
        name == compared.metric,
        _measured(name, before, scale),
        _measured(name, after, scale),
        compared.change(name),
    )


def _bar_scale(name: str, metrics: Sequence[Metric]) -> Scale:
    """Shares lie between 0 and 1; for the rest, the intervals fill the line but for a margin."""
    if is_share(name) or not metrics:
        return Scale(0, 1, 0, 100)
    low, high = min(metric.low for metric in metrics), max(metric.high for metric in metrics)
    return Scale(low, high, 6, 94) if low < high < math.inf else Scale(low - 1, low + 1, 0, 100)


def _measured(name: str, metric: Metric | None, scale: Scale) -> Measured | None:
    if metric is None:
        return None
    bar = Bar(scale(metric.low), scale(metric.value), scale(metric.high)) if metric.has_interval else None
    return Measured(value_of(name, metric.value), interval_of(name, metric), bar)


# ---- Confusion and samples -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    count: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """Of one evaluation set: a matrix (a row a gold label), or the largest confusions where that is too large."""

    name: str
    when: str
    labels: tuple[str, ...]
    matrix: tuple[tuple[str, tuple[Cell, ...]], ...]
    largest: tuple[tuple[str, str, Cell], ...]


def confusions(sets: Iterable[Comparison]) -> list[Confusion]:
    """After the training, or before it where nothing was measured after."""
    found = []
    for compared in sets:
        scores, when = (compared.after, "after") if compared.after else (compared.before, "before")
        if scores and scores.confusion:
            found.append(_confusion(compared.name, when, scores.confusion["labels"], scores.confusion["counts"]))
    return found


def _confusion(name: str, when: str, labels: Sequence[str], counts: Sequence[Sequence[int]]) -> Confusion:
    cells = [tuple(Cell(count, count / max(1, sum(row))) for count in row) for row in counts]
    if len(labels) <= MOST_LABELS:
        return Confusion(name, when, tuple(labels), tuple(zip(labels, cells, strict=True)), ())
    wrong = [
        (labels[gold], labels[predicted], cell)
        for gold, row in enumerate(cells)
        for predicted, cell in enumerate(row)
        if gold != predicted and cell.count
    ]
    largest = sorted(wrong, key=lambda confusion: -confusion[2].count)[:MOST_CONFUSIONS]
    return Confusion(name, when, tuple(labels), (), tuple(largest))


@dataclass(frozen=True)
class Sample:
    source: str
    parts: tuple[tuple[str, str, bool], ...]
    """(heading, text, whether it equals the reference)."""
    picture: str = ""
    """A data: URL, where the row is an image."""


@dataclass(frozen=True)
class Pictures:
    """A sheet of sample pictures as a data URI, and what it shows in words."""

    source: str
    text: str


def drawn(prompts: Sequence[str], folder: Path) -> Pictures | None:
    """Those before and after, and of the steps between as many as find room.

    Args:
        prompts: what `prompts.json` in the folder says.
    """
    places = sorted(folder.glob("*/1.png"), key=lambda path: _when(path.parent.name))
    if not (prompts and places):
        return None
    from io import BytesIO

    from PIL import Image

    from tunewright.evaluation.sheet import sheet

    chosen = [places[round(i * (len(places) - 1) / (MOST_COLUMNS - 1))].parent for i in range(MOST_COLUMNS)]
    chosen = list(dict.fromkeys(chosen))
    names = [place.name.replace("-", " ") for place in chosen]
    images = [[Image.open(place / f"{n}.png") for place in chosen] for n in range(1, len(prompts) + 1)]
    file = BytesIO()
    sheet(prompts, names, images, side=192).save(file, "JPEG", quality=85)
    text = f"{'; '.join(prompts)}: each {', '.join(names)}."
    return Pictures(data_url(file.getvalue(), "jpeg"), text)


def _when(name: str) -> float:
    """The order of `before`, `step-40` and `after`."""
    return {"before": -1.0, "after": math.inf}.get(name, 0) or float(name.rpartition("-")[2])


def samples(run: Row) -> list[Sample]:
    found = [
        _sample(name, row)
        for name, scores in (run.get("evaluation") or {}).items()
        for row in scores.get("samples") or []
    ]
    return found[:MOST_SAMPLES]


def _sample(name: str, row: Row) -> Sample:
    reference = plain(row["reference"]).strip() if row.get("reference") is not None else None
    headings = {"input": "Input", "reference": "Reference", "before": "Before", "after": "After"}
    parts = tuple(
        (
            f"{heading}, reward {number(row[f'reward_{key}'])}" if f"reward_{key}" in row else heading,
            shortened(plain(row[key])),
            key in ("before", "after") and plain(row[key]).strip() == reference,
        )
        for key, heading in headings.items()
        if row.get(key) is not None
    )
    return Sample(f"{name}: {row_name(row['source'])}" if row.get("source") else name, parts)


# ---- Between start and end ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Robustness:
    """The curve over α: a row a point, and the picture as a data: URL."""

    sentence: str
    sets: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...], str], ...]
    """(α or a baseline, the figure on each set, what it is)."""
    picture: str


def robustness(found: Row | None, folder: Path) -> Robustness | None:
    """None where the run was not interpolated."""
    picture = folder / "interpolation.svg"
    if found is None or not picture.is_file():
        return None
    columns, points = robustness_table(found)
    metric = found["metric"]
    rows = tuple((name, tuple(with_interval(metric, m) for m in figures), role) for name, figures, role in points)
    if "kl" in found:  # at every α, not of the baselines behind them
        columns = [*columns, metric_name("kl")]
        kl = [with_interval("kl", Metric.from_dict(one)) for one in found["kl"]] + [""] * (len(rows) - len(found["kl"]))
        rows = tuple((name, (*cells, one), role) for (name, cells, role), one in zip(rows, kl, strict=True))
    return Robustness(sentence(found), tuple(columns), rows, data_url(picture.read_bytes(), "svg+xml"))


# ---- What was trained, on which data, where -------------------------------------------------------------------------


@dataclass(frozen=True)
class DataTable:
    """Facts of the data sets, a column a set."""

    sets: tuple[str, ...]
    facts: tuple[tuple[str, tuple[str, ...]], ...]
    label_counts: tuple[tuple[str, tuple[str, ...]], ...]
    more_labels: int


def data_table(data: Row) -> DataTable:
    keys = dict.fromkeys(key for facts in data.values() for key in facts if key not in ("label_counts", "sha256"))
    facts = [(_fact_name(key), tuple(_fact(key, one) for one in data.values())) for key in keys]
    if any(one.get("sha256") for one in data.values()):
        facts.append(("SHA-256", tuple(str(one.get("sha256") or number(None))[:16] for one in data.values())))
    labels = dict.fromkeys(label for one in data.values() for label in one.get("label_counts") or {})
    counts = [
        (label, tuple(number((one.get("label_counts") or {}).get(label)) for one in data.values())) for label in labels
    ]
    more = max(0, len(counts) - MOST_LABEL_COUNTS)
    return DataTable(tuple(data), tuple(facts), tuple(counts[:MOST_LABEL_COUNTS]), more)


def _fact_name(key: str) -> str:
    return {"longest": "Longest, tokens", "median": "Median, tokens", "overlength": "Too long"}.get(key, spoken(key))


def _fact(key: str, facts: Row) -> str:
    value = facts.get(key)
    if key == "trained_tokens" and isinstance(value, int) and facts.get("tokens"):
        return f"{number(value)} ({percent(value / facts['tokens'])})"
    if isinstance(value, Mapping):
        return ", ".join(f"{number(count)} {spoken(what).lower()}" for what, count in value.items()) or "none"
    return plain(value)


@dataclass(frozen=True)
class Preview:
    """A row as the model sees it: pieces of text, each with the weight that its tokens have in the loss."""

    source: str
    pieces: tuple[tuple[str, float], ...]

    @property
    def is_trained(self) -> bool:
        return any(weight for _, weight in self.pieces)


def previews(run: Row) -> list[Preview]:
    """The first three rows, each up to `LONGEST_TEXT` characters."""
    return [
        Preview(row_name(str(row.get("source", ""))), tuple(_up_to_longest(row.get("pieces") or [])))
        for row in (run.get("preview") or [])[:3]
    ]


def _up_to_longest(pieces: Sequence[Sequence[Any]]) -> Iterator[tuple[str, float]]:
    room, rest = LONGEST_TEXT, 0
    for text, weight in pieces:
        if shown := str(text)[:room]:
            yield shown, float(weight)
        room, rest = room - len(shown), rest + len(str(text)) - len(shown)
    if rest:
        yield _and_more(rest), 0.0


def speed(timings: Iterable[Row], data: Row) -> list[tuple[str, str, str]]:
    """Of every value in timings.jsonl: its name, median and largest. Texts are counted in tokens, images as such."""
    values: dict[str, list[float]] = {}
    texts = all("tokens" in one for one in data.values())
    skipped = ("step", "rows_per_second" if texts else "tokens_per_second")
    for row in timings:
        for name, value in row.items():
            if name not in skipped and isinstance(value, (int, float)) and not isinstance(value, bool):
                values.setdefault(name, []).append(value)
    return [
        (spoken(name.replace("rows", "images")), _timing(name)(statistics.median(found)), _timing(name)(max(found)))
        for name, found in values.items()
    ]


def _timing(name: str) -> Callable[[float], str]:
    return {"seconds": duration, "memory": size}.get(name, number)


SAVED = {
    "peft": "a PEFT adapter",
    "transformers": "a transformers folder",
    "adapter": "an adapter of Tunewright’s own",
    "embeddings": "a textual inversion of diffusers",
}


def saved_as(run: Row) -> str:
    """What a run's model is, in words; nothing where that is not recorded."""
    kind = str(run.get("saved_as") or "")
    if run.get("factory") and kind == "transformers":
        return "weights of the torch module"
    if run.get("task") == "text-to-image":
        return {"peft": "a LoRA of diffusers", "transformers": "a pipeline of diffusers"}.get(
            kind, SAVED.get(kind, kind)
        )
    return SAVED.get(kind, kind)


def chosen(run: Row, what: str, kinds: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The options of the run's method or objective, without those that its task has no use for.

    Args:
        kinds: the configurations by their type; a field's `tasks` says which ones it is for.
    """
    options = run.get(what)
    if not isinstance(options, Mapping):
        return []
    fields = getattr(kinds.get(str(options.get("type"))), "model_fields", {})
    extra = {name: field.json_schema_extra for name, field in fields.items()}
    tasks = {name: found["tasks"] for name, found in extra.items() if isinstance(found, dict) and "tasks" in found}
    return settings({name: v for name, v in options.items() if run.get("task") in tasks.get(name, [run.get("task")])})


def settings(options: Any) -> list[tuple[str, str]]:
    """A flat list of (name, value) from an object of run.json; empty where there is none."""
    return [(spoken(name), plain(value)) for name, value in options.items()] if isinstance(options, Mapping) else []


def plain(value: Any) -> str:
    """Any JSON value as text: numbers grouped, lists and objects without quotes where they hold no nesting."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, float) and math.isfinite(value):
        return exact(value)
    return json.dumps(value, ensure_ascii=False, indent=1) if isinstance(value, (list, dict)) else number(value)


def shortened(text: str) -> str:
    rest = len(text) - LONGEST_TEXT
    return text if rest <= 0 else text[:LONGEST_TEXT] + _and_more(rest)


def _and_more(characters: int) -> str:
    return f" … and {characters:,} more characters"
