"""`supervised`: learn the answers that the rows give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator
from pydantic.config import JsonDict

from tunewright.data.batches import Example
from tunewright.errors import RecipeError
from tunewright.objectives.base import Objective, Term
from tunewright.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import nn


NOISING = ("min_snr", "noise_offset")
"""Options of a task that learns to tell noise from images."""


GENERATING: JsonDict = {"tasks": ["text-generation"]}
CLASSIFYING: JsonDict = {"tasks": ["text-classification", "image-classification"]}
ANSWERING: JsonDict = {"tasks": ["text-generation", "text-classification", "image-classification"]}
DRAWING: JsonDict = {"tasks": ["text-to-image"]}
"""The tasks that an option is for: the report of another one leaves it out."""


class Supervised(Objective):
    """Weighted cross-entropy: Σ w·nll / Σ w over all positions of a step.

    Positions are tokens, rows, or the classes of a multi-label row. Targets may be hard or soft. Regression takes the
    squared error instead, and images the mean squared error of what tells them from noise. Class weights are folded
    into the rows' weights when the rows are read.

    With images of the class (`data.prior`) the loss is Σ w·nll / Σ w + prior_weight · Σ' w·nll / Σ' w, each sum over
    its own rows: prior preservation (Ruiz et al. 2023, arXiv 2208.12242, equation 2).
    """

    reads: ClassVar[tuple[str, ...]] = (
        "chat", "prompt_completion", "text", "classification", "image", "captioned_image",
    )  # fmt: skip
    packs: ClassVar[bool] = True
    type: Literal["supervised"] = "supervised"
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target given to all answers alike.", json_schema_extra=ANSWERING
    )
    class_weights: dict[str, Annotated[float, Field(ge=0)]] | Literal["balanced"] | None = Field(
        None,
        description="Weight of each class in the loss; balanced: rows / (classes · rows of the class).",
        json_schema_extra=CLASSIFYING,
    )
    router_loss: float = Field(
        0.0,
        ge=0,
        description="Coefficient of the load-balancing loss of a mixture of experts (its papers use 0.01).",
        json_schema_extra=GENERATING,
    )
    min_snr: float | None = Field(
        None,
        gt=0,
        description="γ of min-SNR-γ, which weighs images by their timestep (arXiv 2303.09556, uses 5).",
        json_schema_extra=DRAWING,
    )
    noise_offset: float = Field(
        0.0,
        ge=0,
        description="How much of the noise is alike in a whole image, for dark and bright ones (often 0.05).",
        json_schema_extra=DRAWING,
    )
    prior_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the loss on data.prior, the images of the class (DreamBooth, arXiv 2208.12242).",
        json_schema_extra=DRAWING,
    )

    @field_validator("class_weights", mode="before")
    @classmethod
    def _names_are_text(cls, value: Any) -> Any:
        """{0: 2.0} is written for the class "0"."""
        return {str(name): weight for name, weight in value.items()} if isinstance(value, dict) else value

    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        return {
            "weight": _weight(e for e in examples if not e.prior),
            "prior_weight": _weight(e for e in examples if e.prior),
            "positions": float(sum(e.trained for e in examples)),
            "rows": float(len(examples)),
        }

    def terms(self, task: Task, module: nn.Module, batch: Batch) -> dict[str, Term]:
        noising = {name: value for name in NOISING if (value := getattr(self, name))}
        found = task.nll(module, batch, smoothing=self.label_smoothing, router=self.router_loss > 0, **noising)
        weighted_BT = found.nll_BT * batch.weight
        if batch.prior is None:
            terms = {"loss": Term(weighted_BT.sum(), "weight", 1.0)}
        else:
            terms = {
                "loss": Term((weighted_BT * ~batch.prior).sum(), "weight", 1.0),
                "prior_loss": Term((weighted_BT * batch.prior).sum(), "prior_weight", self.prior_weight),
            }
        if found.correct_BT is not None:
            terms["accuracy"] = Term((found.correct_BT & (batch.weight != 0)).sum(), "positions")
        if found.router is not None:
            terms["router_loss"] = Term(found.router, "rows", self.router_loss)
        return terms


def _weight(examples: Iterable[Example]) -> float:
    return float(sum(e.weight.sum(dtype="float64") for e in examples))


def class_weights(
    wanted: dict[str, float] | Literal["balanced"], labels: Sequence[str], examples: Sequence[Example]
) -> np.ndarray:
    """The weight of each class, [C]. balanced: rows / (classes · rows of the class), as in scikit-learn.

    Raises RecipeError for a class that does not exist.
    """
    if wanted != "balanced":
        unknown = [name for name in wanted if name not in labels]
        if unknown:
            raise RecipeError(
                f"objective.class_weights names {', '.join(unknown)}; the classes are {', '.join(labels)}."
            )
        return np.array([wanted.get(label, 1.0) for label in labels], dtype=np.float32)
    soft_NC = [e.target if e.target.dtype.kind == "f" else np.eye(len(labels))[e.target[0]] for e in examples]
    rows_C = np.sum(soft_NC, axis=0)
    return (len(examples) / (len(labels) * np.maximum(rows_C, 1e-9))).astype(np.float32)


OBJECTIVE = Supervised
