"""Whether a model keeps packed rows apart: asked of the model itself, since no configuration tells."""

from __future__ import annotations

from dataclasses import replace

from tunewright.data.batches import Example, pack
from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.errors import RecipeError

LOOKED_AT = 32  # positions of each row: what leaks shows most where a row begins


def refuse_leaks(job: Job) -> None:
    """Raise RecipeError where a row behind another one in the same sequence gets another likelihood than alone.

    Models that know rows apart by `position_ids` give the same up to rounding. Those with a recurrent state, with
    convolutions, or with positions of another kind (ALiBi) read on across the border, without a word.
    """
    import torch

    first, second = (_beginning(job.train[i]) for i in (0, len(job.train) // 2))
    model = job.model
    model.module.eval()
    with torch.no_grad(), computing(job.precision, job.device):
        alone, packed = (
            model.task.nll(model.module, model.task.collate([row]).to(job.device)).nll_BT[0, -second.length :]
            for row in (second, pack([first, second]))
        )
    rounding = 1e-3 if job.precision == "fp32" else 0.05
    if (alone - packed).abs().mean() > rounding:
        raise RecipeError("training.packing: this model does not keep packed rows apart. Leave it out.")


def _beginning(example: Example) -> Example:
    length = min(example.length, LOOKED_AT)
    return replace(
        example,
        inputs={name: values[:length] for name, values in example.inputs.items()},
        target=example.target[:length],
        weight=example.weight[:length] * 0 + 1,
        length=length,
    )
