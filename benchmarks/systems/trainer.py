"""transformers' Trainer with a plain padding collator: what a careful user writes without a fine-tuning library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.measure import Stopwatch
from benchmarks.systems._arguments import SEED, lora_config, training_arguments
from benchmarks.validate import encode
from benchmarks.workloads import Job, read_jsonl


def run(job: Job, watch: Stopwatch) -> Path:
    torch.manual_seed(SEED)
    trainer = (_language_model if job.workload.task == "text-generation" else _classifier)(job)
    with watch:
        trainer.train()
    trainer.save_model(str(job.out / "model"))
    return job.out / "model"


def _language_model(job: Job) -> Trainer:
    from peft import get_peft_model

    tokenizer = AutoTokenizer.from_pretrained(job.base)
    base = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    encoded = [encode(tokenizer, row) for row in read_jsonl(job.train)]
    rows = [{"input_ids": e.ids, "labels": [-100] * (e.start or 0) + e.ids[e.start :]} for e in encoded]
    return Trainer(
        model=get_peft_model(base, lora_config(job)),
        args=TrainingArguments(**training_arguments(job)),
        train_dataset=Dataset.from_list(rows),
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
    )


def collate(batch: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Pad on the right to the longest row: [B, T] token ids, attention mask, and labels (-100: no loss)."""
    longest = max(len(row["input_ids"]) for row in batch)
    gaps = [longest - len(row["input_ids"]) for row in batch]
    return {
        "input_ids": torch.tensor([row["input_ids"] + [pad] * gap for row, gap in zip(batch, gaps, strict=True)]),
        "attention_mask": torch.tensor([[1] * (longest - gap) + [0] * gap for gap in gaps]),
        "labels": torch.tensor([row["labels"] + [-100] * gap for row, gap in zip(batch, gaps, strict=True)]),
    }


def _classifier(job: Job) -> Trainer:
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    rows = read_jsonl(job.train)
    names = sorted({row["label"] for row in rows})
    numbers = {name: i for i, name in enumerate(names)}
    model = AutoModelForSequenceClassification.from_pretrained(
        job.base, dtype=torch.float32, num_labels=len(names), label2id=numbers, id2label=dict(enumerate(names))
    )
    encoded = [{**tokenizer(row["text"]), "label": numbers[row["label"]]} for row in rows]
    return Trainer(
        model=model,
        args=TrainingArguments(**training_arguments(job)),
        train_dataset=Dataset.from_list(encoded),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
