"""What a recipe would do, before it does it: rows, parameters, time and memory. Nothing is trained or left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunewright.account import describe_data, describe_parameters, preview
from tunewright.artifacts.prior import stand_in
from tunewright.composing import composed
from tunewright.data.repeats import find_repeats
from tunewright.engine.device import pick_device
from tunewright.engine.processes import Processes
from tunewright.errors import TunewrightError
from tunewright.forecast.advice import advice, fixed_advice, least_needed, refusal
from tunewright.forecast.forecast import forecast
from tunewright.forecast.meter import available
from tunewright.prepare import Prepared, prepare
from tunewright.reading import read_rows
from tunewright.recipe import Recipe
from tunewright.run import make_job
from tunewright.shapes import dry_run

KEPT = "What it takes to fill data.cache_latents and data.cache_captions before the first step is not foreseen."


def check(recipe: Recipe | Mapping[str, Any] | str | Path | None = None, **fields: Any) -> dict[str, Any]:
    """Say what a recipe would train, on which rows, how long it would take and how much memory it would need.

    Rows are read and checked, repeated ones are found, and a few steps are taken and thrown away. A model that
    cannot fit is not loaded; then there is neither an account of tokens nor of time.

    Args:
        recipe: a whole recipe or the file of one; its keys may be given as arguments too.

    Returns:
        `task`, `method`, `base`, `notices`; `parameters` (total, trained, share, names); `data` by set (rows, tokens,
        lengths, labels); `repeats`; `preview` (rows as pieces of text, each with its weight); `steps`; `forecast`
        (`time` in seconds, `memory` and `disk` in bytes); `advice`, sentences on what to change if it does not fit.

    Raises:
        TunewrightError: what `train` would refuse, with the same words.
    """
    chosen = composed(recipe, fields)
    seeds = chosen.training.seeds or [chosen.training.seed]
    one = chosen.training.model_copy(update={"seed": seeds[0], "seeds": None})
    chosen = chosen.model_copy(update={"training": one})
    found = _without_loading(chosen) or _with_probes(chosen)
    for unit in ("seconds", "cpu_seconds"):
        if "time" in found["forecast"]:
            found["forecast"]["time"][unit] *= len(seeds)
    return found


def _without_loading(recipe: Recipe) -> dict[str, Any] | None:
    """What can be said of a model that is too large to be loaded; None for one that is not."""
    try:
        shape, room = dry_run(recipe), available(pick_device(recipe.training.device))
    except TunewrightError:
        return None  # whatever is wrong is said in the order in which `train` would say it
    needed = least_needed(recipe, shape["total"], shape["trained"])
    if needed <= room:
        return None
    rows = read_rows(recipe)
    data = {name: {"rows": len(r.records), "kind": r.kind, "location": r.location} for name, r in rows.sets().items()}
    return {
        **_named(recipe, shape["task"]),
        "notices": [*rows.notices, *shape["notices"]],
        "parameters": {name: shape[name] for name in ("total", "trained", "share", "names")},
        "data": data,
        "repeats": find_repeats(rows.sets()),
        "preview": [],
        "steps": None,
        "forecast": {"memory": {"peak": needed, "available": room, "fits": False}},
        "advice": [refusal(needed, room), *fixed_advice(recipe, shape["trained"])],
    }


def _with_probes(recipe: Recipe) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tunewright-check-") as place:
        folder = Path(place)
        prepared = prepare(_kept_apart(recipe, folder), folder / "base", rehearsal=True, draw=stand_in)
        job = make_job(prepared, folder, Processes())
        prepared.notices += [KEPT] if recipe.data.cache_latents or recipe.data.cache_captions else []
        said = _described(prepared)
        cost = forecast(prepared, job)
        longest = max(job.lengths)
        changes = advice(prepared.recipe, cost, longest, said["parameters"]["trained"])
        return {**said, "steps": len(job.plan), "forecast": cost.to_dict(_place(recipe)), "advice": changes}


def _kept_apart(recipe: Recipe, folder: Path) -> Recipe:
    """With folders of its own for what is kept."""
    data = recipe.data
    changes = {name: str(folder / name) for name in ("cache_latents", "cache_captions") if getattr(data, name)}
    return recipe.model_copy(update={"data": data.model_copy(update=changes)}) if changes else recipe


def _place(recipe: Recipe) -> Path:
    """The folder that is there already of those that the run would be written into."""
    wanted = Path(recipe.output or "runs").expanduser().absolute()
    return next(path for path in (wanted, *wanted.parents) if path.is_dir())


def _described(prepared: Prepared) -> dict[str, Any]:
    return {
        **_named(prepared.recipe, prepared.model.task.name),
        "device": str(prepared.device),
        "precision": prepared.precision,
        "notices": prepared.notices,  # the probes may add to them
        "parameters": describe_parameters(prepared.model.module),
        "data": describe_data(prepared),
        "repeats": find_repeats(prepared.rows.sets()),
        "preview": preview(prepared),
    }


def _named(recipe: Recipe, task: str) -> dict[str, Any]:
    return {"task": task, "method": recipe.method.type, "base": recipe.base}
