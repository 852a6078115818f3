"""What the report shows of a run as it went, from the lines of metrics.jsonl: curves, and what a policy answered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.evaluation.charts import Chart, Points, frontier_chart, line_chart
from tunewright.evaluation.formats import PART, number, row_name
from tunewright.evaluation.verdict import Comparison

Row = Mapping[str, Any]

RIGHT = ("reward_accuracy", "accuracy_per_token", "accuracy")
MARGINS = ("reward_margin", "margin")
MAIN_CURVES = ("loss", *RIGHT, *MARGINS, "learning_rate", "grad_norm")
"""Shown at once; every other recorded value is a click away."""
OF_POLICIES = ("reward", "kl", "length", "entropy", "clip_fraction", "ended")
"""The same where answers are drawn and rewarded; the loss is then about 0 at every step."""
MOST_PARTS = 6
"""More parts of a reward than this are a click away."""
NOT_CURVES = frozenset({"step", "epoch", "tokens", "trained_tokens", "examples", "rows"})
"""What only counts up or describes the batch says nothing as a curve."""
BASELINE = "longer_is_better"
MOST_DRAWN = 12  # steps whose answers are shown
LONGEST_ANSWER = 400


def curves(steps: Iterable[Row], sets: Sequence[Comparison] = ()) -> tuple[list[Chart], list[Chart]]:
    """The main charts and the others. Reward against KL is the first where both were recorded.

    Args:
        sets: what was measured before and after; of comparisons also how often the longer answer is the better one.
    """
    recorded = _by_metric(steps)
    names = [name for name in _main(recorded) if name in recorded]
    others = sorted(recorded.keys() - set(names) - NOT_CURVES)
    level = _baseline(sets) if not recorded.keys().isdisjoint(MARGINS) else None
    levels = dict.fromkeys(RIGHT, level) if level else {}
    main, more = (
        [chart for name in some if (chart := line_chart(name, recorded[name], levels.get(name)))]
        for some in (names, others)
    )
    frontier = frontier_chart(_frontier(recorded))
    return [*([frontier] if frontier else []), *main], more


def _main(recorded: Mapping[str, Any]) -> list[str]:
    parts = sorted(name for name in recorded if name.startswith(PART))
    if "reward" not in recorded:
        return list(MAIN_CURVES)
    first, *rest = OF_POLICIES
    return [first, *(parts if len(parts) <= MOST_PARTS else []), *rest]


def _baseline(sets: Sequence[Comparison]) -> tuple[str, float] | None:
    """How often the longer of two answers is the better one: what an accuracy has to be above."""
    for compared in sets:
        scores = compared.after or compared.before
        if scores and BASELINE in scores.metrics:
            return f"the longer answer, on {compared.name}", scores.metrics[BASELINE].value
    return None


def _frontier(recorded: Mapping[str, Mapping[str, Points]]) -> dict[str, list[tuple[float, float]]]:
    """By where it was measured (KL, reward) of each step that has both."""
    found: dict[str, list[tuple[float, float]]] = {}
    for place, reward in recorded.get("reward", {}).items():
        kl = recorded.get("kl", {}).get(place, {})
        pairs = [(kl.get(step), reward[step]) for step in sorted(reward)]
        found[place] = [(x, y) for x, y in pairs if x is not None and y is not None]
    return found


def _by_metric(steps: Iterable[Row]) -> dict[str, dict[str, Points]]:
    """Metric → where it was measured ("training", "validation", …) → step → value. After a resume, the later counts."""
    recorded: dict[str, dict[str, dict[int, float | None]]] = {}
    for row in steps:
        places = {"training": row} | {name: value for name, value in row.items() if isinstance(value, Mapping)}
        for place, values in places.items():
            for name, value in values.items():
                if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
                    recorded.setdefault(name, {}).setdefault(place, {})[int(row["step"])] = value
    return {name: dict(places) for name, places in recorded.items()}


@dataclass(frozen=True)
class Drawn:
    """An answer that the policy drew in a step, and what it got."""

    step: int
    prompt: str
    answer: str
    reward: str


def drawn_answers(steps: Sequence[Row]) -> list[Drawn]:
    """Of some steps from the first to the last the answers that their lines quote."""
    quoting = {row["step"]: row for row in steps if isinstance(row.get("samples"), list) and row["samples"]}
    rows = [quoting[step] for step in sorted(quoting)]
    chosen = rows
    if len(rows) > MOST_DRAWN:
        chosen = [rows[round(i * (len(rows) - 1) / (MOST_DRAWN - 1))] for i in range(MOST_DRAWN)]
    return [drawn for row in chosen for drawn in _drawn(row)]


def _drawn(row: Row) -> Iterator[Drawn]:
    for one in row["samples"][:1]:
        if isinstance(one, Mapping):
            answer, reward = str(one.get("answer", "")), one.get("reward")
            rest = len(answer) - LONGEST_ANSWER
            shown = answer if rest <= 0 else f"{answer[:LONGEST_ANSWER]} … and {rest:,} more characters"
            asked = str(one.get("asked") or row_name(str(one.get("prompt", ""))))
            yield Drawn(int(row["step"]), asked, shown, number(reward))
