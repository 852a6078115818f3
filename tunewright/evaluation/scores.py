"""A measured number with its 95 % interval, and the set of them that one evaluation gives.

Two intervals are in use. A share of independent rows (accuracy, exact match) has Wilson's, which holds even for few
rows and for shares near 0 or 1. Everything else has the bootstrap's percentiles over rows, with a fixed seed, so that
the same predictions always give the same interval. A single row can only be drawn again: it has no such interval.

Rows that share a prompt are no independent rows: they are drawn together, all or none (a bootstrap of clusters).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tunewright.errors import TunewrightError, counted

Array = npt.NDArray[Any]
Statistic = Callable[[Array], float]

RESAMPLES = 1_000
SEED = 0
Z_95 = 1.959963984540054
"""The normal distribution's quantile at 97.5 %."""
LEVEL = 0.05
"""A difference counts where its p-value is below this, and its interval excludes zero."""

VIOLATED = "violated/"
"""In front of a rule: the metric is the share of answers that break it."""
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "mse", "mae"})
NEITHER_IS_BETTER = frozenset({"kl", "length", "ended", "longer_is_better"})
"""Metrics that say how a model answers, or what the rows are like, and not how well."""


@dataclass(frozen=True)
class Draws:
    """What an interval was made of: two measurements of the same rows are paired by it.

    Attributes:
        units: how many are drawn independently: rows, or prompts with all their rows.
        values: what the metric was on each resample, NaN where undefined; None of a mean over rows, which `each` gives.
        each: where the metric is a mean, that of each unit.
    """

    units: int
    values: Array | None = None
    each: Array | None = None


@dataclass(frozen=True)
class Metric:
    """A value and its 95 % interval over `n` rows: `low <= value <= high`.

    All three are NaN where the value is undefined, and both ends where rows to resample are lacking. `draws` is known
    only to who has measured it.
    """

    value: float
    low: float
    high: float
    n: int
    draws: Draws | None = field(default=None, compare=False, repr=False)

    @property
    def is_defined(self) -> bool:
        return math.isfinite(self.value)

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def overlaps(self, other: Metric) -> bool:
        """Whether the rows do not tell the two values apart: their intervals share a point, or one has none."""
        return not (self.low > other.high or other.low > self.high)

    def excludes(self, value: float) -> bool:
        """Whether the interval tells this value from the one that was measured."""
        return self.low > value or self.high < value

    def to_dict(self) -> dict[str, float | int | None]:
        """JSON has neither NaN nor infinity: both become null."""
        return {
            "value": _finite_or_none(self.value),
            "low": _finite_or_none(self.low),
            "high": _finite_or_none(self.high),
            "n": self.n,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Metric:
        value, low, high = (math.nan if data[key] is None else float(data[key]) for key in ("value", "low", "high"))
        return cls(value, low, high, int(data["n"]))


@dataclass(frozen=True)
class Scores:
    """What one evaluation of one model on one set of rows found.

    Attributes:
        metrics: by name, in the order in which a reader wants them.
        primary: the name of the metric that answers "is it better?".
        higher_is_better: the direction of `primary`.
        confusion: `{"labels": [C names], "counts": [C rows of C]}`; a row is a gold label, a column a predicted one.
        notes: sentences that a reader of these numbers must know, such as rows that were left out.
    """

    metrics: Mapping[str, Metric]
    primary: str
    higher_is_better: bool
    confusion: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.primary in self.metrics, f"primary {self.primary!r} is not one of {list(self.metrics)}"

    @property
    def answer(self) -> Metric:
        """The metric that answers "is it better?"."""
        return self.metrics[self.primary]

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "primary": self.primary,
            "higher_is_better": self.higher_is_better,
        }
        if self.confusion is not None:
            data["confusion"] = dict(self.confusion)
        if self.notes:
            data["notes"] = list(self.notes)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Scores:
        return cls(
            metrics={name: Metric.from_dict(metric) for name, metric in data["metrics"].items()},
            primary=data["primary"],
            higher_is_better=data["higher_is_better"],
            confusion=data.get("confusion"),
            notes=tuple(data.get("notes", ())),
        )


def proportion(hits_N: npt.ArrayLike) -> Metric:
    """The share of rows that are hits, with Wilson's interval.

    Args:
        hits_N: one truth value a row; the rows must be independent.
    """
    hits = np.asarray(hits_N, dtype=bool)
    return replace(share_of(float(hits.sum()), len(hits)), draws=Draws(len(hits), each=hits))


def share_of(hits: float, rows: int) -> Metric:
    """The share of rows that are hits, with Wilson's interval.

    Wilson 1927; formula as in https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval.
    """
    n = _require_rows(rows)
    share = hits / n
    z2_n = Z_95**2 / n
    center = (share + z2_n / 2) / (1 + z2_n)
    half = Z_95 / (1 + z2_n) * math.sqrt(share * (1 - share) / n + z2_n / (4 * n))
    # At a share of 0 or 1 one end is the share itself, up to rounding.
    return Metric(share, max(0.0, min(center - half, share)), min(1.0, max(center + half, share)), n)


def mean(values_N: npt.ArrayLike, group_N: Array | None = None) -> Metric:
    """The mean over rows, with the bootstrap's interval. For `group_N` see `bootstrap`."""
    values = np.asarray(values_N, dtype=np.float64)
    found = bootstrap(lambda rows: float(values[rows].mean()), len(values), group_N)
    if found.draws is None:
        return found
    each = values if group_N is None else np.array([values[rows].mean() for rows in members(group_N)])
    return replace(found, draws=replace(found.draws, each=each))


def bootstrap(statistic: Statistic, n: int, group_N: Array | None = None) -> Metric:
    """A statistic of `n` rows, with the 2.5 % and 97.5 % percentiles of its values on 1,000 resamples of the rows.

    Efron & Tibshirani 1993, chapter 13. The interval is widened to contain the value itself, which the percentiles of
    a biased statistic (macro F1 with rare labels) may miss. Resamples where the statistic is undefined are left out.
    A single row has no interval, and neither have the rows of a single group.

    Args:
        statistic: takes row numbers (with repetitions) and gives the statistic of these rows, NaN where undefined.
        n: how many rows there are.
        group_N: what each row belongs to; rows of one group are drawn together. None: each stands for itself.
    """
    value = statistic(np.arange(_require_rows(n)))
    if math.isnan(value):
        return Metric(math.nan, math.nan, math.nan, n)
    found = resampled(statistic, n, group_N=group_N)
    return replace(within(value, found, n), draws=Draws(units_of(n, group_N), found))


def units_of(n: int, group_N: Array | None) -> int:
    """How many of the rows are independent: the groups, where there are some."""
    return n if group_N is None else len(np.unique(group_N))


def members(group_N: Array) -> list[Array]:
    """The row numbers of each group."""
    order = np.argsort(group_N, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_N[order])) + 1)


def resampled(statistic: Statistic, n: int, seed: int = SEED, group_N: Array | None = None) -> Array:
    """A statistic on 1,000 resamples of `n` rows, NaN where it is undefined; nothing of a single row or group.

    The resamples are the same for whatever is measured on as many rows in the same groups.
    """
    units = units_of(n, group_N)
    if units < 2:
        return np.empty(0)
    random = np.random.default_rng(seed)
    rows_U = None if group_N is None or units == n else members(group_N)
    drawn = (random.integers(units, size=units) for _ in range(RESAMPLES))
    chosen = drawn if rows_U is None else (np.concatenate([rows_U[u] for u in one]) for one in drawn)
    return np.array([statistic(rows) for rows in chosen])


def within(value: float, found: Array, n: int) -> Metric:
    """A value with the percentiles of what its statistic was on resamples where it was defined, if there are any."""
    found = found[~np.isnan(found)]
    if not len(found):
        return Metric(value, math.nan, math.nan, n)
    low, high = np.percentile(found, [2.5, 97.5])
    return Metric(value, min(float(low), value), max(float(high), value), n)


def _require_rows(n: int) -> int:
    if n == 0:
        raise TunewrightError("there are no rows to evaluate on; give an evaluation set with at least one row")
    return n


def _finite_or_none(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def scored(metrics: dict[str, Metric], primary: str, **more: Any) -> Scores:
    """Metrics with the one that counts, and whether it is better high or low."""
    return Scores(metrics, primary, higher_is_better=primary not in LOWER_IS_BETTER, **more)


def finite(numbers: npt.ArrayLike) -> Array:
    """The model's numbers as float64. NaN must not pass: `argmax` takes it for the largest probability."""
    array = np.asarray(numbers, dtype=np.float64)
    finite_N = np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    bad = np.flatnonzero(~finite_N)
    if len(bad):
        raise TunewrightError(
            f"the model's output is not finite for {len(bad):,} of {counted(len(array), 'row')}, first row "
            f"{bad[0] + 1}; lower the learning rate, or compute in a wider number format"
        )
    return array
