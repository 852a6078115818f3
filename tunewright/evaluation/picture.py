"""The picture of WiSE-FT: the reference on x, the shifts on y, the path from start to end as a curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.evaluation.formats import is_share, metric_name


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write what `robustness.document` found as `path`.svg and `path`.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = 100 if is_share(found["metric"]) else 1
    unit = " (%)" if scale == 100 else ""
    metric, alphas = metric_name(found["metric"]), found["alphas"]
    x = _values(found["curve"][found["reference"]]["test"], scale)
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shifts = {name: _values(found["curve"][name]["test"], scale) for name in found["shifts"]}
    if not shifts:  # one set alone: its curve over α
        axes.plot(alphas, x, marker=".")
        axes.set_xlabel("α")
        axes.set_ylabel(f"{metric} on {found['reference']}{unit}")
    else:
        if len(shifts) > 1:
            shifts = {"mean of shifts": _values([one["mean"] for one in found["over_shifts"]], scale), **shifts}
        for number, (name, y) in enumerate(shifts.items()):
            _path(axes, x, y, name, found, first=number == 0)
        axes.set_xlabel(f"{metric} on {found['reference']}{unit}")
        axes.set_ylabel(f"{metric} under shift{unit}")
        axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    for kind in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=160, metadata={"Date": None} if kind == "svg" else {})


def _values(points: Sequence[Mapping[str, Any]], scale: float) -> list[float]:
    """NaN where a point is undefined: a gap in the curve."""
    return [math.nan if point["value"] is None else scale * point["value"] for point in points]


def _path(axes: Any, x: list[float], y: list[float], name: str, found: Mapping[str, Any], first: bool) -> None:
    """One curve with its ends and the chosen point; the first is the one that is read, the others stand behind."""
    (line,) = axes.plot(x, y, marker=".", label=name, linewidth=2 if first else 1, alpha=1 if first else 0.5)
    if not first:
        return
    chosen = found["alphas"].index(found["chosen"]["alpha"])
    ends = ((0, "s", f"{found['start_is']} (α = 0)"), (-1, "D", "tuned (α = 1)"))
    for at, mark, label in (*ends, (chosen, "*", f"chosen (α = {found['chosen']['alpha']:g})")):
        axes.plot(x[at], y[at], mark, color=line.get_color(), markersize=11 if mark == "*" else 7, label=label)
