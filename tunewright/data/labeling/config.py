"""The `labeling` part of a recipe's data: how rules' votes become labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tunewright.options import Options


class Labeling(Options):
    """Rules label the training rows (weak supervision)."""

    rules: str = Field(
        description="the rules: a JSONL file, or a Python file of functions, which is run",
        json_schema_extra={"local_only": True},
    )
    ignore_case: bool = Field(False, description="whether patterns are found in either case")
    model: Literal["em", "majority"] = Field(
        "em", description="how votes become a distribution: em weighs each rule by an accuracy that it estimates"
    )
    ties: Literal["share", "abstain"] = Field("share", description="majority: a tie is shared, or leaves no label")
    accuracy: float = Field(0.7, gt=0, lt=1, description="em: how accurate a rule is believed to be beforehand")
    certainty: float = Field(100, ge=2, description="em: how many rows this belief is worth")
    balance: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        None, description="em: how frequent each class is; none: all alike"
    )
    uncovered: Literal["drop", "uniform"] = Field(
        "drop", description="rows that no rule votes on: left out, or all classes alike"
    )
    then_clean: str | list[dict[str, Any]] | None = Field(
        None,
        description="rows with true labels, on which the training goes on; a run on these alone stands beside it",
        json_schema_extra={"local_only": True},
    )
    confidence: bool = Field(True, description="rows weigh in the loss by how sure their label is")

    @model_validator(mode="after")
    def _idle(self) -> Labeling:
        of = {"em": ("accuracy", "certainty", "balance"), "majority": ("ties",)}
        other = "majority" if self.model == "em" else "em"
        fields = type(self).model_fields
        if idle := [name for name in of[other] if getattr(self, name) != fields[name].default]:
            raise ValueError(f"{', '.join(idle)}: for model: {other}, and this is {self.model}")
        if self.uncovered == "uniform" and self.confidence:
            raise ValueError("uncovered: uniform gives labels that are not sure at all: set confidence: false too")
        return self

    @property
    def prior(self) -> tuple[float, float]:
        """(α, β) of the beta prior of a rule's accuracy."""
        return 1 + self.accuracy * (self.certainty - 2), 1 + (1 - self.accuracy) * (self.certainty - 2)
