"""What runs that differ in their seed say together: the mean, and how far it is from seed to seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tunewright.evaluation.formats import is_share, metric_name, number, value_of
from tunewright.evaluation.verdict import Comparison, comparisons

Info = Mapping[str, Any]


def seed_folder(seed: int) -> str:
    """Where the run of a seed lies, within the folder of all."""
    return f"seed-{seed}"


def over_seeds(infos: Sequence[Info]) -> dict[str, Any]:
    """{set: {"primary", "rows", "seeds", "metrics": {metric: {"before", "after"}}}}: each {"mean", "sd", "values"}.

    Values are those of the seeds that are finished, in their order.

    The standard deviation is that of the seeds (n − 1), not of their mean.

    Args:
        infos: run.json of each seed, in their order.
    """
    finished = [info for info in infos if info["status"] == "finished"]
    found: dict[str, list[Comparison]] = {}
    for info in finished:
        for compared in comparisons(info):
            found.setdefault(compared.name, []).append(compared)
    seeds = [info["recipe"]["training.seed"] for info in finished]
    return {
        name: {
            "primary": sets[0].metric,
            "rows": sets[0].rows,
            "seeds": seeds,
            "metrics": {metric: _spread(sets, metric) for metric in (sets[0].after.metrics if sets[0].after else ())},
        }
        for name, sets in found.items()
    }


def _spread(sets: Sequence[Comparison], metric: str) -> dict[str, Any]:
    """Of one metric before, where that was measured, and after."""
    values = {
        when: [each.value for compared in sets if (each := compared.of(getattr(compared, when), metric))]
        for when in ("before", "after")
    }
    return {when: _summary(found) for when, found in values.items() if found}


def _summary(values: Sequence[float]) -> dict[str, Any]:
    """JSON has no NaN: what is undefined is null."""
    defined = [value for value in values if math.isfinite(value)]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "sd": statistics.stdev(defined) if len(defined) > 1 else None,
        "values": [value if math.isfinite(value) else None for value in values],
    }


# In words


def in_words(info: Info) -> str:
    """`Accuracy on test: 87.0 % ± 1.2 over 3 seeds, from 12.5 % ± 2.0 before.`"""
    found = info.get("over_seeds") or {}
    for name, one in found.items():
        spread = one["metrics"][one["primary"]]
        after, before = spread["after"], spread.get("before")
        earlier = f", from {spread_of(one['primary'], before)} before" if before else ""
        seeds = f"over {len(after['values'])} seed{'' if len(after['values']) == 1 else 's'}"
        return f"{metric_name(one['primary'])} on {name}: {spread_of(one['primary'], after)} {seeds}{earlier}."
    return "No seed has been measured yet."


def spread_of(metric: str, spread: Mapping[str, Any] | None) -> str:
    """`87.0 % ± 1.2`: mean and standard deviation."""
    if not spread or spread["mean"] is None:
        return number(None)
    value = value_of(metric, spread["mean"])
    return value if spread["sd"] is None else f"{value} ± {_width(metric, spread['sd'])}"


def _width(metric: str, sd: float) -> str:
    return f"{100 * sd:.1f}" if is_share(metric) else number(sd)


def table(info: Info) -> Iterator[tuple[str, str, str, str, tuple[str, ...]]]:
    """(set, metric, before, after, the value of each seed after)."""
    for name, one in (info.get("over_seeds") or {}).items():
        for metric, spread in one["metrics"].items():
            values = tuple(value_of(metric, math.nan if v is None else v) for v in spread["after"]["values"])
            before, after = (spread_of(metric, spread.get(when)) for when in ("before", "after"))
            yield name, metric_name(metric), before, after, values
