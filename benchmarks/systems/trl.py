"""TRL's SFTTrainer, given rows of prompt and completion; it tokenizes, masks, groups or packs them itself."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks.measure import Stopwatch
from benchmarks.systems._arguments import lora_config, training_arguments
from benchmarks.workloads import Job, read_jsonl


def run(job: Job, watch: Stopwatch) -> Path:
    arguments = training_arguments(job)
    if arguments.get("packing"):
        arguments |= {"per_device_train_batch_size": 1, "max_length": _block(job)}
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(job.base, dtype="float32"),
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(read_jsonl(job.train)),
        processing_class=AutoTokenizer.from_pretrained(job.base),
        peft_config=lora_config(job),
    )
    with watch:
        trainer.train()
    trainer.save_model(str(job.out / "model"))
    return job.out / "model"


def _block(job: Job) -> int:
    """Tokens of a packed block: what a step of `batch` rows has on average, and never less than the longest row."""
    facts = json.loads((job.work / "facts.json").read_text(encoding="utf-8"))
    return max(round(job.workload.batch * facts["tokens"] / facts["rows"]), facts["longest"])
