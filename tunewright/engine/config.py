"""`training:` in a recipe: the knobs of the loop. Torch is not needed to read them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from tunewright.options import Options

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]

PROMPT = "a photo of a {label}."
OPTIMIZERS = ("adamw", "adafactor", "adamw8bit")


class TrainingConfig(Options):
    """How long, how fast, and what is kept.

    The two automatic rules: `learning_rate: auto` is the method's own rate (2e-5 full and freeze, 2e-4 lora and peft,
    5e-4 adapter, 5e-3 head; all at hidden size 4096) times sqrt(4096 / hidden size), and ten times that where batch
    norms of the trunk train; in text-to-image, whatever the width, 1e-5 full and freeze, 5e-5 lora (for its alpha of
    twice the rank), 1e-4 peft, 5e-3 textual_inversion. `batch: auto` is 16 rows, or less where an epoch would then
    have fewer than 20 steps; at least 8 where batch norms train.
    """

    epochs: float = Field(3.0, gt=0, allow_inf_nan=False, description="Passes over the training rows.")
    head_first: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Epochs that a new head first trains alone, on the frozen base."
    )
    gradual_unfreezing: Positive | None = Field(
        None, description="Epochs after which one more block trains, from the top down; null: all train at once."
    )
    zero_shot: list[str] | None = Field(
        None,
        min_length=1,
        description=f"Begin with a head of prompts, read by the base's text tower (CLIP, SigLIP); true: '{PROMPT}'.",
    )
    max_steps: int | None = Field(None, ge=1, description="Stop after so many steps, whatever the epochs say.")
    learning_rate: Positive | Literal["auto"] = Field("auto", description="Peak learning rate.")
    rate_multiplier: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="What the automatic learning rate is multiplied by."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Rate of a block over that of the block above it; the head has the full rate."
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field("cosine", description="Shape after the warm-up.")
    warmup: float = Field(
        0.05, ge=0, allow_inf_nan=False, description="Share of the steps (below 1) or number of steps to warm up over."
    )
    optimizer: Literal["adamw", "adafactor", "adamw8bit"] = Field(
        "adamw", description="adafactor and adamw8bit (extra [bnb]) keep less state."
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of matrices.")
    gradient_clip: float | None = Field(1.0, gt=0, description="Largest norm of the gradient; null: none.")
    batch: Count | Literal["auto"] = Field("auto", description="Rows a step, over all forward passes and processes.")
    batch_tokens: int | None = Field(
        None, ge=1, description="Make a step of at most so many positions instead of rows; a longer row is a step."
    )
    micro_batch_tokens: Count | Literal["auto"] = Field(
        "auto",
        description="Positions of one forward pass; a step is cut to fit (auto: 2048 on a CPU, 16384 on a GPU).",
    )
    packing: bool = Field(False, description="Put several rows into one sequence, kept apart by position ids.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Of the computation; trained weights are fp32."
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass to save memory."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    processes: int = Field(1, ge=1, description="Data-parallel processes on this machine.")
    seed: Seed = Field(0, description="Of the new head, the order of rows, and dropout.")
    seeds: list[Seed] | None = Field(
        None, min_length=2, description="Train once with each: the output is then a folder of runs, with one report."
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between evaluations on the validation rows; null: each epoch."
    )
    patience: int | None = Field(
        None, ge=1, description="Stop after so many evaluations without a better validation loss."
    )
    keep: Literal["best", "last"] = Field(
        "best", description="Which weights the run ends with: of the best validation loss, or the last."
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an average of the trained weights, which is then evaluated and saved."
    )
    checkpoint_every: int | None = Field(
        None, ge=1, description="Steps between checkpoints; null: with each evaluation."
    )
    snapshots: bool = Field(
        False, description="Also save the model of each evaluation, as snapshots/step-N, a model of its own."
    )
    prefix_cache: float = Field(
        2.0,
        ge=0,
        description="Largest size in GB of what frozen first blocks compute, kept for later epochs; 0: not kept.",
    )
    track: list[Literal["tensorboard", "wandb", "mlflow"]] = Field([], description="Also log there (extra [track]).")

    @field_validator("zero_shot", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return [PROMPT] if value else None
        return [value] if isinstance(value, str) else value

    @field_validator("zero_shot")
    @classmethod
    def _with_a_place_for_the_label(cls, value: list[str] | None) -> list[str] | None:
        if bad := [template for template in value or () if "{label}" not in template]:
            raise ValueError(f"{bad[0]!r} has no {{label}}, in whose place the name of a class comes")
        return value

    @model_validator(mode="after")
    def _no_idle_option(self) -> TrainingConfig:
        if self.batch_tokens is not None and self.batch != "auto":
            raise ValueError("give `batch` or `batch_tokens`, not both")
        if self.rate_multiplier != 1 and self.learning_rate != "auto":
            raise ValueError("rate_multiplier is for `learning_rate: auto`, and a rate is given: leave one of them out")
        if self.seeds is not None and "seed" in self.model_fields_set:
            raise ValueError("give `seed` or `seeds`, not both")
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` names one twice")
        return self

    @model_serializer(mode="wrap")
    def _without_idle_option(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is written can be read again: with `seeds`, there is no `seed`."""
        document: dict[str, Any] = write(self)
        if self.seeds is not None:
            document.pop("seed", None)
        return document
