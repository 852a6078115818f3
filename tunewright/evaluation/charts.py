"""The geometry of a line chart: numbers in, SVG coordinates out. `charts.svg.jinja` draws them.

Drawn by hand rather than by matplotlib: the page's own colors (light, dark, print) and font apply, the text stays text,
and a chart weighs 5 kB.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tunewright.evaluation.formats import metric_name, number, spoken, ticks, value_of
from tunewright.evaluation.scores import LOWER_IS_BETTER

Floats = npt.NDArray[np.float64]
Points = Mapping[int, float | None]
"""Step to value; None where the value is not finite, which is a gap in the line."""

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 448, 10, 190
"""The plotting area within the drawing."""

MOST_POINTS = 120
"""A longer line is drawn as the mean of so many stretches, inside the band from their smallest to largest value."""

ROUNDING = 1e-6  # of single precision

MOST_DOTS = 400
"""Of more steps, neighbours share a point."""

FEW_POINTS = 30
"""Up to so many points are also marked one by one."""


@dataclass(frozen=True)
class Tick:
    position: float
    text: str


@dataclass(frozen=True)
class Line:
    """One line. `path` and `band` are SVG path data; `band` is empty where every point is drawn."""

    label: str
    path: str
    band: str
    dots: tuple[tuple[float, float], ...]
    summary: str


@dataclass(frozen=True)
class Chart:
    title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    x_name: str = "step"


@dataclass(frozen=True)
class Scale:
    """Maps `low` … `high` to `start` … `end` of the drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


def line_chart(metric: str, series: Mapping[str, Points], level: tuple[str, float] | None = None) -> Chart | None:
    """A chart of a metric over steps, a line for each place where it is measured; None where no value is finite.

    Args:
        level: a value to compare with, and what it is: a horizontal line.
    """
    drawn = {label: points for label, points in series.items() if _finite(points)}
    if not drawn:
        return None
    steps = [step for points in drawn.values() for step in points]
    values = [value for points in drawn.values() for value in _finite(points)] + ([level[1]] if level else [])
    x_low, x_high = _apart(min(steps), max(steps))
    y_low, y_high, y_values = _y_axis(min(values), max(values))
    x, y = Scale(x_low, x_high, LEFT, RIGHT), Scale(y_low, y_high, BOTTOM, TOP)
    x_values = multiples(x_low, x_high, max(1.0, round_step(x_low, x_high)))
    return Chart(
        metric_name(metric),
        _ticks("step", x_values, x),
        _ticks(metric, y_values, y),
        (*(_line(metric, label, points, x, y) for label, points in drawn.items()), *(_level(metric, level, x, y))),
    )


def _level(metric: str, level: tuple[str, float] | None, x: Scale, y: Scale) -> Iterator[Line]:
    if level:
        name, value = level
        ends = np.array([x.low, x.high]), np.array([value, value])
        yield Line(name, _segment(*ends, x, y), "", (), f"{spoken(name)}: {value_of(metric, value)}")


def frontier_chart(series: Mapping[str, Sequence[tuple[float, float]]]) -> Chart | None:
    """What answers got over how far the policy had gone from its start for that; None where nothing was measured.

    Args:
        series: by where it was measured (KL in nats, reward) of each step, in their order. Training steps are points
            alone, since their KL goes to and fro; the rest is joined.
    """
    found = {label: np.array(points) for label, points in series.items() if len(points)}
    if not found:
        return None
    every = np.concatenate(list(found.values()))
    x_low, x_high, x_values = _y_axis(every[:, 0].min(), every[:, 0].max())
    y_low, y_high, y_values = _y_axis(every[:, 1].min(), every[:, 1].max())
    x, y = Scale(x_low, x_high, LEFT, RIGHT), Scale(y_low, y_high, BOTTOM, TOP)
    lines = [_steps(label, points, x, y) for label, points in found.items()]
    return Chart(
        "Reward against KL", _ticks("kl", x_values[1:], x), _ticks("reward", y_values, y), tuple(lines), "nats"
    )


def _steps(label: str, points: Floats, x: Scale, y: Scale) -> Line:
    shown = np.array([stretch.mean(0) for stretch in np.array_split(points, min(len(points), MOST_DOTS))])
    path = "" if label == "training" else _segment(shown[:, 0], shown[:, 1], x, y)
    (kl, reward), (last_kl, last_reward) = points[0], points[-1]
    summary = (
        f"{spoken(label)}: reward {number(float(reward))} at a KL of {number(float(kl))} nats, in the end "
        f"{number(float(last_reward))} at {number(float(last_kl))}"
    )
    return Line(label, path, "", tuple((x(across), y(up)) for across, up in shown), summary)


def reliability_chart(title: str, series: Mapping[str, tuple[Sequence[tuple[float, float]], str]]) -> Chart:
    """How often answers are right over how sure they were, and the diagonal, on which both are the same.

    Args:
        series: by the name of the line its points (sure, right), both shares, and its summary.
    """
    x, y = Scale(0, 1, LEFT, RIGHT), Scale(0, 1, BOTTOM, TOP)
    drawn = {
        **series,
        "as sure as right": ([(0.0, 0.0), (1.0, 1.0)], "On the dotted line, answers are as sure as right"),
    }
    lines = [_through(label, np.array(sorted(points)), summary, x, y) for label, (points, summary) in drawn.items()]
    shares = multiples(0, 1, 0.25)
    x_ticks = _ticks("accuracy", shares[1:], x)  # the axis' name stands at its beginning
    return Chart(title, x_ticks, _ticks("accuracy", shares, y), tuple(lines), x_name="sure")


def _through(label: str, points: Floats, summary: str, x: Scale, y: Scale) -> Line:
    dots = tuple((x(across), y(up)) for across, up in points)
    return Line(label, _segment(points[:, 0], points[:, 1], x, y), "", dots, summary)


def _ticks(name: str, values: list[float], scale: Scale) -> tuple[Tick, ...]:
    return tuple(Tick(scale(value), text) for value, text in zip(values, ticks(name, values), strict=True))


def round_step(low: float, high: float, count: int = 4) -> float:
    """1, 2 or 5 times a power of ten, so that about `count` such steps span `low` … `high`."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.75)


def multiples(low: float, high: float, step: float) -> list[float]:
    """The multiples of `step` within `low` … `high`."""
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounding takes away what binary fractions add: 3 · 0.1 is not 0.3.
    return [round(n * step, 3 - math.floor(math.log10(step))) for n in range(first, last + 1)]


def _y_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """The axis begins at zero where that costs less than half of the height, and ends on round numbers."""
    low, high = _apart(0.0 if 0 <= low < high / 2 else low, high)
    step = round_step(low, high)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return low, high, multiples(low, high, step)


def _apart(low: float, high: float) -> tuple[float, float]:
    """A constant needs an axis too, and so does what is one but for rounding."""
    return (
        (low, high)
        if high - low > ROUNDING * max(abs(low), abs(high))
        else (low - abs(low) / 2, high + (abs(high) / 2 or 1.0))
    )


def _line(metric: str, label: str, points: Points, x: Scale, y: Scale) -> Line:
    steps = np.array(sorted(points), dtype=np.float64)
    values = np.array([math.nan if points[step] is None else points[step] for step in sorted(points)])
    low, middle, high = _thinned(values)
    at = np.array([stretch.mean() for stretch in _stretches(steps)])
    return Line(
        label,
        path=" ".join(_segment(at[run], middle[run], x, y) for run in _runs(middle)),
        band=" ".join(_band(at[run], low[run], high[run], x, y) for run in _runs(middle))
        if len(at) < len(steps)
        else "",
        dots=tuple((x(s), y(v)) for s, v in zip(steps, values, strict=True) if math.isfinite(v))
        if len(steps) <= FEW_POINTS
        else (),
        summary=_summary(metric, label, steps, values),
    )


def _stretches(array: Floats) -> list[Floats]:
    return np.array_split(array, min(len(array), MOST_POINTS))


def _thinned(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Smallest, mean and largest finite value of each stretch; NaN where a stretch has none."""
    finite = [stretch[np.isfinite(stretch)] for stretch in _stretches(values)]
    low, middle, high = (
        np.array([float(reduce(stretch)) if len(stretch) else math.nan for stretch in finite])
        for reduce in (np.min, np.mean, np.max)
    )
    return low, middle, high


def _runs(values: Floats) -> Iterator[slice]:
    """The stretches between gaps."""
    edges = np.flatnonzero(np.diff(np.isfinite(values), prepend=False, append=False))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        yield slice(int(start), int(end))


def _segment(steps: Floats, values: Floats, x: Scale, y: Scale) -> str:
    """A line through the points. A single one becomes a line of no length, which a round cap makes a dot."""
    points = [f"{x(step)} {y(value)}" for step, value in zip(steps, values, strict=True)]
    return "M" + "L".join(points if len(points) > 1 else points * 2)


def _band(steps: Floats, low: Floats, high: Floats, x: Scale, y: Scale) -> str:
    return _segment(np.concatenate([steps, steps[::-1]]), np.concatenate([high, low[::-1]]), x, y) + "Z"


def _summary(metric: str, label: str, steps: Floats, values: Floats) -> str:
    """The line in words. `Training: 2.56 to 0.19, lowest 0.12 at step 615`."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    word, extreme = ("lowest", values.argmin()) if metric in LOWER_IS_BETTER else ("highest", values.argmax())
    first, last, peak = (value_of(metric, float(values[n])) for n in (0, -1, int(extreme)))
    return f"{spoken(label)}: {first} to {last}, {word} {peak} at step {int(steps[extreme]):,}"


def _finite(points: Points) -> list[float]:
    return [value for value in points.values() if value is not None and math.isfinite(value)]
