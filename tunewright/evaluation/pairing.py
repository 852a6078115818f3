"""Before and after the training, paired by row: what was measured first is kept beside the run for what comes later.

Both measure the same rows and draw the same resamples of them, so that what makes a row hard cancels out, as in
`paired`. Of each metric its values on the resamples are kept, and where it is a mean what it was on each row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.errors import OutputError
from tunewright.evaluation.paired import mcnemar, two_sided
from tunewright.evaluation.scores import RESAMPLES, SEED, Array, Draws, Metric, Scores, within

BEFORE = "before.safetensors"
"""The name of that file in a run's folder."""
NAMES = "names"
"""The key of that file's metadata which tells the set and metric of each number in front of its tensors' keys."""
Kept = Mapping[str, Mapping[str, Draws]]
"""By set and metric."""


def keep(sets: Mapping[str, Scores], path: Path) -> None:
    """Write what the metrics of each set were made of. Raises OutputError where that fails."""
    from safetensors.numpy import save

    made = [(name, metric, f.draws) for name, s in sets.items() for metric, f in s.metrics.items() if f.draws]
    tensors: dict[str, Array] = {}
    for i, (_, _, draws) in enumerate(made):
        parts = {"units": np.array([draws.units]), "values": draws.values, "each": draws.each}
        tensors |= {f"{i}.{key}": np.ascontiguousarray(part) for key, part in parts.items() if part is not None}
    names = json.dumps([(name, metric) for name, metric, _ in made])  # apart: those of rules are free text
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_bytes(save(tensors, {NAMES: names}))
        os.replace(draft, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error


def kept(path: Path) -> Kept:
    """What `keep` wrote; nothing where there is no such file, or one without names, as of runs of earlier versions."""
    from safetensors import safe_open

    found: dict[str, dict[str, Draws]] = {}
    if not path.is_file():
        return found
    with safe_open(path, framework="np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        names = json.loads((file.metadata() or {}).get(NAMES, "[]"))
    for i, (name, metric) in enumerate(names):
        made = Draws(int(tensors[f"{i}.units"][0]), tensors.get(f"{i}.values"), tensors.get(f"{i}.each"))
        found.setdefault(name, {})[metric] = made
    return found


def changes(before: Mapping[str, Any], draws: Mapping[str, Draws], after: Scores) -> dict[str, dict[str, Any]]:
    """Of each metric after − before with its paired interval, and the p-value of that, were there no difference.

    Args:
        before: the metrics as run.json has them.
        draws: what they were made of. Metrics without are left out, and so are those of other rows now.
    """
    found = {}
    for name, metric in after.metrics.items():
        a, b = draws.get(name), metric.draws
        if name in before and a and b and a.units == b.units:
            difference, p = _changed(Metric.from_dict(before[name]), a, metric, b)
            found[name] = {**difference.to_dict(), "p": p}
    return found


def _changed(before: Metric, a: Draws, after: Metric, b: Draws) -> tuple[Metric, float]:
    drawn = _on_resamples(a, b)
    changed = within(after.value - before.value, drawn, after.n)
    if a.each is None or b.each is None:
        return changed, two_sided(drawn, a.units)
    if a.each.dtype == b.each.dtype == bool:
        return changed, mcnemar(b.each, a.each)
    return changed, two_sided(drawn, int((a.each != b.each).sum()))


def _on_resamples(a: Draws, b: Draws) -> Array:
    """The difference on each resample: both were drawn by the same numbers."""
    if a.values is not None and b.values is not None and len(a.values) == len(b.values):
        return np.asarray(b.values - a.values)
    if a.units < 2 or a.each is None or b.each is None:
        return np.empty(0)
    change_U, random = b.each.astype(np.float64) - a.each, np.random.default_rng(SEED)
    return np.array([change_U[random.integers(a.units, size=a.units)].mean() for _ in range(RESAMPLES)])
