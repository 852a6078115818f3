"""What a recipe would do, before it does it: rows, parameters, time and memory. Nothing is trained or left behind."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunewright import shapes
from tunewright.account import describe_data, describe_parameters, preview
from tunewright.chain import Chain, named, supposed
from tunewright.composing import composed
from tunewright.data.repeats import find_repeats
from tunewright.engine.device import pick_device
from tunewright.errors import TunewrightError
from tunewright.forecast.advice import advice, fixed_advice, least_needed, refusal
from tunewright.forecast.forecast import forecast
from tunewright.forecast.meter import available
from tunewright.launch.stages import naming
from tunewright.prepare import Prepared
from tunewright.reading import read_rows
from tunewright.recipe import Recipe
from tunewright.run import rehearsed

KEPT = "What it takes to fill data.cache_latents and data.cache_captions before the first step is not foreseen."


def check(recipe: Recipe | Mapping[str, Any] | str | Path | None = None, **fields: Any) -> dict[str, Any]:
    """Say what a recipe would train, on which rows, how long it would take and how much memory it would need.

    Rows are read and checked, repeated ones are found, and a few steps are taken and thrown away. A model that
    cannot fit is not loaded; then there is neither an account of tokens nor of time.

    Args:
        recipe: a whole recipe or the file of one; its keys may be given as arguments too. Or recipes by name, `stages`.

    Returns:
        `task`, `method`, `base`, `notices`; `parameters` (total, trained, share, names); `data` by set (rows, tokens,
        lengths, labels); `repeats`; `preview` (rows as pieces of text, each with its weight); `steps`; `forecast`
        (`time` in seconds, `memory` and `disk` in bytes); `advice`, sentences on what to change if it does not fit.
        Of a chain `stages`: this of each by its name, as far as it can be known before those before it are done.

    Raises:
        TunewrightError: what `train` would refuse, with the same words.
    """
    return _of(composed(recipe, fields), _check)


def dry_run(recipe: Recipe | dict[str, Any]) -> dict[str, Any]:
    """What a recipe would train, from shapes alone; of a chain `stages`: what each of them would."""
    return _of(composed(recipe, {}), shapes.dry_run)


def _of(chosen: Recipe | Chain, what: Callable[[Recipe], dict[str, Any]]) -> dict[str, Any]:
    return {"stages": dict(_of_stages(chosen, what))} if isinstance(chosen, Chain) else what(chosen)


def _of_stages(chain: Chain, what: Callable[[Recipe], dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in chain.stages:
        recipe = supposed(chain, name)
        with naming(chain, name):
            found = what(recipe)
        yield name, {**found, "notices": [*_suppositions(chain, name), *found["notices"]]}


def _suppositions(chain: Chain, name: str) -> list[str]:
    """What stands for earlier stages, in words."""
    recipe = chain.stages[name]
    base, *asked = named(recipe)
    said = [f"The base stands for what the stage {base} will make of it."] if base in chain.stages else []
    asked = [one for one in dict.fromkeys(asked) if one in chain.stages]
    return [*said, *(f"A constant stands for the reward that the stage {one} will give." for one in asked)]


def _check(chosen: Recipe) -> dict[str, Any]:
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
        shape, room = shapes.dry_run(recipe), available(pick_device(recipe.training.device))
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
        prepared, job = rehearsed(recipe, folder)
        prepared.notices += [KEPT] if recipe.data.cache_latents or recipe.data.cache_captions else []
        said = _described(prepared)
        cost = forecast(prepared, job)
        longest = max(job.lengths)
        changes = advice(prepared.recipe, cost, longest, said["parameters"]["trained"])
        return {**said, "steps": len(job.plan), "forecast": cost.to_dict(_place(recipe)), "advice": changes}


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
