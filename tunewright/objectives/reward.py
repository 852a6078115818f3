"""`reward`: learn from comparisons what a good answer is, as one number an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright.data.batches import Example
from tunewright.objectives._pairs import pairs
from tunewright.objectives.base import Objective, Term
from tunewright.tasks.base import Batch

if TYPE_CHECKING:
    from torch import nn


class Reward(Objective):
    """-log σ(r(better) - r(worse) - margin), the mean over the pairs of a ranking: Bradley-Terry.

    All K (K - 1) / 2 pairs of a ranking are one element (Ouyang et al., arXiv 2203.02155, equation 1): its answers are
    scored once each, and a long ranking counts no more than a pair. A margin of the row (Llama 2, arXiv 2307.09288,
    section 3.2.2) is multiplied by how many places lie between the two. Comparisons leave the mean of the scores open;
    `centring` pulls it to 0 by (r + r')² (Eisenstein et al., arXiv 2312.09244, equation 11).
    """

    reads: ClassVar[tuple[str, ...]] = ("preference",)
    tasks: ClassVar[tuple[str, ...]] = ("text-classification",)
    type: Literal["reward"] = "reward"
    margin: float = Field(0.0, ge=0, description="By how much the better answer should score higher, at least.")
    centring: float = Field(
        0.0, ge=0, description="Coefficient of the squared sum of both scores, which keeps them round 0 (often 0.01)."
    )

    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        return {"rankings": float(len(examples))}

    def terms(self, task: Any, module: nn.Module, batch: Batch) -> dict[str, Term]:
        import torch.nn.functional as F  # noqa: N812

        assert batch.element_S is not None
        score_S = task.scores(module, batch)
        better, worse, share_P = pairs(batch.element_S)
        gap_P = score_S[better] - score_S[worse]
        margin_P = self.margin + batch.fixed["margin"][better] * (worse - better)
        both_P = score_S[better] + score_S[worse]
        return {
            "loss": Term(-(share_P * F.logsigmoid(gap_P - margin_P)).sum(), "rankings", 1.0),
            **(
                {"centring": Term((share_P * both_P.square()).sum(), "rankings", self.centring)}
                if self.centring
                else {}
            ),
            "accuracy": Term((share_P * (gap_P > 0)).sum(), "rankings"),
            "margin": Term((share_P * gap_P).sum(), "rankings"),
        }


OBJECTIVE = Reward
