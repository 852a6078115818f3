"""What an objective may ask of the run before a step: the model's answers without gradients, the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tunewright.data.batches import Example, micro_batches
from tunewright.data.groups import ends_of
from tunewright.engine.device import computing
from tunewright.engine.job import Job
from tunewright.tasks.base import PASS, Model


class Learner:
    """The run's side of `objectives.base.Learner`.

    Args:
        stand_in: whether zeros stand for what would take a pass over all rows: where nothing is really trained.
    """

    def __init__(self, job: Job, stand_in: bool = False) -> None:
        self.job, self.stand_in = job, stand_in

    @property
    def model(self) -> Model:
        return self.job.model

    def answer_scores(self, examples: Sequence[Example]) -> np.ndarray:
        """The log-likelihood of each part [S], fp64: each process computes its share, and all have all of them."""
        import torch

        job, world = self.job, self.job.processes
        counts, lengths = [len(e.parts) for e in examples], [e.length for e in examples]
        score_S = torch.zeros(sum(counts), dtype=torch.float64, device=job.device)
        if self.stand_in:
            return score_S.cpu().numpy()
        starts = [0, *ends_of(examples)]
        job.model.module.eval()
        with torch.no_grad(), computing(job.precision, job.device):
            for group in micro_batches(range(len(examples)), lengths, PASS, world.rank, world.world):
                batch = job.model.task.collate([examples[i] for i in group]).to(job.device)
                places = np.concatenate([starts[i] + np.arange(counts[i]) for i in group])
                found_S = -batch.per_sequence(job.model.task.nll(job.model.module, batch).nll_BT)
                score_S[torch.from_numpy(places).to(job.device)] = found_S.double()
        world.add([score_S])
        return score_S.cpu().numpy()


def begin(job: Job, learner: Learner) -> None:
    """Let the objective fix what the start of the run says of the rows, in place."""
    sets = job.objective.begin(learner, {"train": job.train, "validation": job.validation, **job.tests})
    job.train, job.validation = sets["train"], sets["validation"]
    job.tests = {name: sets[name] for name in job.tests}
    for name in ("lengths", "plan"):
        vars(job).pop(name, None)  # they follow from the rows
