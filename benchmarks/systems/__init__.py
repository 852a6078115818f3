"""Who is measured: one adapter file a system, and its settings as data.

An adapter has `run(job, watch) -> Path`: train on `job.train` within `with watch:`, save, and return the folder of
what was saved, a PEFT adapter or a whole transformers model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OWN = "tunewright"


@dataclass(frozen=True)
class System:
    """One system in one setting.

    Attributes:
        family, setting: its adapter here, and what distinguishes it from others of that adapter.
        requires: packages, as pip names them.
        tasks: what its adapter can do, by the hub's names.
        options: passed to the system's own configuration, over the workload's hyperparameters.
        packs: puts several rows into one sequence, so that the same rows may take another number of steps.
        note: what the setting means, for the report.
    """

    family: str
    setting: str
    requires: tuple[str, ...]
    tasks: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    packs: bool = False
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.family}-{self.setting}".rstrip("-")

    def answers_to(self, name: str) -> bool:
        """`trl` means all its settings, `trl-packed` one."""
        return name in (self.family, self.label)

    @property
    def module(self) -> str:
        return f"benchmarks.systems.{self.family}"


TEXT, LABELS = "text-generation", "text-classification"
GROUPED = {"train_sampling_strategy": "group_by_length"}

SYSTEMS = (
    System(OWN, "", ("torch", "transformers", "peft"), (TEXT, LABELS), note="its defaults"),
    System(
        "trl",
        "default",
        ("trl", "peft", "accelerate"),
        (TEXT,),
        note="SFTTrainer with its defaults: random order, activations recomputed in the backward pass",
    ),
    System(
        "trl",
        "grouped",
        ("trl", "peft", "accelerate"),
        (TEXT,),
        GROUPED,
        note="SFTTrainer, rows of similar length together, else its defaults",
    ),
    System(
        "trl",
        "tuned",
        ("trl", "peft", "accelerate"),
        (TEXT,),
        {**GROUPED, "gradient_checkpointing": False},
        note="SFTTrainer, rows of similar length together, nothing recomputed",
    ),
    System(
        "trl",
        "packed",
        ("trl", "peft", "accelerate"),
        (TEXT,),
        {"packing": True, "gradient_checkpointing": False},
        packs=True,
        note="SFTTrainer, rows packed into blocks of one step's mean number of tokens, a block a step, nothing "
        "recomputed; the same rows once, in as many steps as there are blocks",
    ),
    System(
        "trainer",
        "default",
        ("transformers", "peft", "accelerate"),
        (TEXT, LABELS),
        note="transformers' Trainer with its defaults: random order",
    ),
    System(
        "trainer",
        "grouped",
        ("transformers", "peft", "accelerate"),
        (TEXT, LABELS),
        GROUPED,
        note="transformers' Trainer, rows of similar length together",
    ),
)
