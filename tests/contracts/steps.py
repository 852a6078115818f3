"""One step of the loop, taken apart: what the contracts compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tunewright.engine.job import Job
from tunewright.engine.learner import Learner, begin
from tunewright.engine.loop import Step
from tunewright.engine.processes import Processes
from tunewright.engine.state import TrainState
from tunewright.methods.base import enter_training
from tunewright.prepare import Prepared, prepare
from tunewright.recipe import make_recipe
from tunewright.run import make_job

ALL = 10**6  # positions: everything in one forward pass
NOWHERE = Path("/nonexistent")  # a run from a plain base writes no start


def prepared(base: str, rows: Sequence[Mapping[str, Any]], *, start: Path = NOWHERE, **recipe: Any) -> Prepared:
    """A recipe on rows without validation, ready to run; `start` takes the merged start of a run that goes on."""
    data = {"train": list(rows), "validation": 0, **recipe.pop("data", {})}
    return begun(prepare(make_recipe({"base": base, "data": data, **recipe}), start))


def begun(ready: Prepared) -> Prepared:
    """With what the objective fixes of the rows by the model as it is now."""
    job = job_of(ready)
    begin(job, Learner(job))
    ready.adopt(job)
    return ready


def moved(ready: Prepared, by: float = 0.02, dtype: torch.dtype = torch.float64) -> Prepared:
    """With weights that have gone away from where they began; in fp64, as differences of likelihoods lose digits."""
    generator = torch.Generator().manual_seed(5)
    ready.model.module.to(dtype)
    with torch.no_grad():
        for parameter in ready.model.module.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
    ready.model.module.float().to(dtype)  # as a run keeps them
    return ready


def job_of(ready: Prepared, **training: Any) -> Job:
    recipe = ready.recipe
    config = recipe.training.model_copy(update=training)
    decided = replace(ready, recipe=recipe.model_copy(update={"training": config}), notices=[])
    return make_job(decided, NOWHERE, Processes())


def gradient(ready: Prepared, budget: int = ALL, **training: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The named means and the gradient of all training rows as one step, in forward passes of `budget` positions."""
    job, dtype = job_of(ready, **training), next(ready.model.module.parameters()).dtype
    step = Step(job, TrainState(ready.model, job.method, job.config, "fp32"))
    step.budget = budget
    ready.model.module.to(dtype)  # a run trains in fp32; see `moved`
    ready.model.module.zero_grad(set_to_none=True)
    examples = job.objective.prepare(step.learner, job.train, 0)
    enter_training(ready.model, ready.recipe.method)
    terms = step._accumulate(examples, job.objective.counts(examples))
    return terms, {n: p.grad.clone() for n, p in step.state.parameters.items() if p.grad is not None}


def assert_same(one: Any, other: Any, relative: float = 1e-6) -> None:
    """Terms agree, and gradients as one long vector."""
    (terms, gradients), (other_terms, other_gradients) = one, other
    assert terms.keys() == other_terms.keys()
    for name, value in terms.items():
        assert abs(value - other_terms[name]) <= relative * max(1e-3, abs(value)), name
    assert gradients.keys() == other_gradients.keys()
    size = sum(float(g.double().square().sum()) for g in gradients.values()) ** 0.5
    apart = sum(float((g - other_gradients[n]).double().square().sum()) for n, g in gradients.items()) ** 0.5
    assert size > 0
    assert apart <= relative * size


def likelihood(ready: Prepared, rows: Sequence[int]) -> torch.Tensor:
    """The negative log-likelihood summed over each of these rows' positions, as one batch."""
    ready.model.module.eval()
    with torch.no_grad():
        task = ready.model.task
        batch = task.collate([ready.examples("train")[i] for i in rows])
        return (task.nll(ready.model.module, batch).nll_BT * batch.weight).sum(-1)
