"""What the stages of a chain came to, beside one another: such as a run on clean rows alone beside the whole chain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunewright.evaluation.formats import metric_name, with_interval
from tunewright.evaluation.seeds import spread_of
from tunewright.evaluation.verdict import comparisons

STAGES = "stages.json"
"""Of the last run of a chain: the figures of all its stages, from which its report is made."""


def figures(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of each run.json, by stage, what `rows` needs."""
    return {name: {"evaluation": _measured(info), "over_seeds": info.get("over_seeds")} for name, info in infos.items()}


def _measured(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"after": one.get("after")} for name, one in (info.get("evaluation") or {}).items()}


def rows(infos: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """(stage, set, metric, after) of each set: the figure that answers whether it is better."""
    for stage, info in infos.items():
        for name, one in (info.get("over_seeds") or {}).items():
            metric = one["primary"]
            yield stage, name, metric_name(metric), spread_of(metric, one["metrics"][metric]["after"])
        for compared in comparisons(info):
            metric = compared.metric
            yield stage, compared.name, metric_name(metric), with_interval(metric, compared.of(compared.after, metric))
