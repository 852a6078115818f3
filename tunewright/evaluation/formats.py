"""Numbers as a reader wants them: few digits, units, an interval with the digits of its value.

Each function takes what run.json may hold: what is not a number comes out as its own text, null as a dash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tunewright.evaluation.scores import VIOLATED, Metric

EN_DASH, MINUS = "\u2013", "\u2212"
NO_BREAK = "\u00a0"
ABSENT = EN_DASH

METRIC_NAMES = {
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "r2": "R²",
    "mse": "Mean squared error",
    "mae": "Mean absolute error",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "rouge_l": "ROUGE-L",
    "auc": "AUC",
    "auc_per_token": "AUC per token",
    "auc_of_length": "AUC of the length",
    "reward_auc": "AUC of the reward",
    "grad_norm": "Gradient norm",
    "kl": "KL from the start",
    "kl_loss": "KL in the loss",
    "z0": "z₀: KL of a step, estimated",
    "ended": "Answers ended",
    "length": "Length, tokens",
}
PART = "reward/"
"""What the names of a reward's parts begin with."""
SHARES = frozenset(
    {
        "accuracy",
        "accuracy_per_token",
        "reward_accuracy",
        "longer_is_better",
        "answers_ended",
        "clip_fraction",
        "ended",
        "exact_match",
        "macro_f1",
        "micro_f1",
        "calibration_error",
        "pattern_match",
        "recall",
        "rouge_l",
        "subset_accuracy",
        "token_accuracy",
    }
)
"""Metrics between 0 and 1 that are written in percent."""


def is_share(name: str) -> bool:
    """Whether a metric is written in percent: how often a rule is broken too, whose name has the rule in it."""
    return name in SHARES or name.startswith(VIOLATED)


def metric_name(name: str) -> str:
    if name.startswith(VIOLATED):
        return f"Violated: {name.removeprefix(VIOLATED)}"
    if name.startswith(PART):
        return f"Reward: {name.removeprefix(PART)}"
    return METRIC_NAMES.get(name, spoken(name))


def row_name(source: str) -> str:
    """`data/test.jsonl:4` becomes `test.jsonl:4`: the table of the data names the folder."""
    return source.rsplit("/", 1)[-1]


def spoken(key: str) -> str:
    """`trained_tokens` becomes `Trained tokens`."""
    words = str(key).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def unbroken(sentence: str) -> str:
    """Keeps an interval on one line: a browser may break after a dash, but not before a word joiner."""
    return sentence.replace(EN_DASH, EN_DASH + "\u2060")


def number(value: Any) -> str:
    """Three significant digits, thousands separated, exact integers."""
    if not _is_number(value):
        return ABSENT if value is None else str(value)
    if not math.isfinite(value):
        return ABSENT
    if isinstance(value, int):
        return _signed(f"{value:,}")
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e9:
        return _fixed(value, _decimals(value))
    return _signed(_scientific(value))


def exact(value: float) -> str:
    """A number that somebody chose, such as a learning rate: no rounding, no padding."""
    if value == 0:
        return "0"
    return _signed(f"{value:,.10g}" if 1e-3 <= abs(value) < 1e9 else _scientific(value, digits=6))


def ticks(name: str, values: Sequence[float]) -> list[str]:
    """The labels of one axis, all written in one way: percent for a share, powers of ten for a small scale."""
    if is_share(name):
        return [percent(value, 0) for value in values]
    if max(abs(value) for value in values) < 1e-3:
        return [_signed(_scientific(value)) if value else "0" for value in values]
    return [_signed(f"{value:,.10g}") for value in values]


def percent(share: Any, decimals: int = 1) -> str:
    if not _is_number(share):
        return number(share)
    return _fixed(100 * share, decimals) + NO_BREAK + "%" if math.isfinite(share) else ABSENT


def value_of(name: str, value: float) -> str:
    """`91.0 %`, or `0.412`."""
    return percent(value) if is_share(name) else number(float(value))


def interval_of(name: str, metric: Metric) -> str:
    """The two ends with a dash between them, in the units and digits of the value; empty where there are none."""
    if not metric.has_interval:
        return ""
    scale, decimals = (100, 1) if is_share(name) else (1, _decimals(metric.value))
    low, high = (_fixed(scale * end, decimals) for end in (metric.low, metric.high))
    return f"{low} to {high}" if MINUS in low else low + EN_DASH + high


def with_interval(name: str, metric: Metric | None) -> str:
    """`91.0 % [86.2–94.2]`."""
    if metric is None or not metric.is_defined:
        return ABSENT
    interval = interval_of(name, metric)
    return f"{value_of(name, metric.value)} [{interval}]" if interval else value_of(name, metric.value)


def difference_of(name: str, metric: Metric) -> str:
    """`+5.5 points [+1.2, +9.8]`: shares differ by points."""
    if not metric.is_defined:
        return ABSENT
    scale, unit = (100, " points") if is_share(name) else (1, "")
    value, low, high = (
        _signed(f"{scale * number:+.3g}") if number else "0" for number in (metric.value, metric.low, metric.high)
    )
    return f"{value}{unit} [{low}, {high}]" if metric.has_interval else f"{value}{unit}"


def duration(seconds: Any) -> str:
    """`2 h 5 min`, `3 min 20 s`, `4.2 s`."""
    if not _is_number(seconds) or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"
    return f"{minutes // 60:,}{NO_BREAK}h {minutes % 60}{NO_BREAK}min"


def size(count: float) -> str:
    """Bytes as `2.02 GiB`, or as `640 MiB` below one."""
    mebibytes = count / 2**20
    return f"{mebibytes / 1024:.2f}{NO_BREAK}GiB" if mebibytes >= 1024 else f"{mebibytes:.0f}{NO_BREAK}MiB"


def moment(iso: Any) -> str:
    """`2026-03-01 12:30` from an ISO time, in the time zone in which it was written."""
    return number(iso).replace("T", " ")[:16]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _decimals(value: float) -> int:
    """Decimals that show three significant digits; at most four."""
    return 2 if value == 0 else min(4, max(0, 2 - math.floor(math.log10(abs(value)))))


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    return _signed(text if float(text.replace(",", "")) else text.lstrip("-"))


def _scientific(value: float, digits: int = 3) -> str:
    """`2e-5`: Python's `2.00e-05` without its padding."""
    factor, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{float(factor):g}e{int(exponent)}"


def _signed(text: str) -> str:
    """The minus sign of the number itself, not of its exponent."""
    return MINUS + text[1:] if text.startswith("-") else text
