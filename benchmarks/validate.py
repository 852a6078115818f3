"""How good the trained model is: one function for all systems, from the files that they saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.workloads import Job, read_jsonl


@dataclass(frozen=True)
class Encoded:
    """A row in tokens. Of a prompt with completion, `start` is where the completion begins; EOS is its last token."""

    ids: list[int]
    start: int | None = None

    @property
    def weighted(self) -> int:
        """Positions with a loss: the tokens of the completion; one for a classifier."""
        return 1 if self.start is None else len(self.ids) - self.start


def encode(tokenizer: Any, row: dict[str, Any]) -> Encoded:
    """The tokens that every system makes of a row."""
    if "text" in row:
        return Encoded(tokenizer(row["text"])["input_ids"])
    prompt = tokenizer(row["prompt"])["input_ids"]
    whole = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
    assert whole[: len(prompt)] == prompt, "a token straddles the prompt and its completion"
    return Encoded(whole, len(prompt))


def validation_loss(job: Job, trained: Path | None) -> dict[str, float]:
    """Mean loss in nats on the held-out rows: per token of the completions, or per row of a classifier.

    Args:
        trained: a PEFT adapter of the base or a whole model; None: the base itself.
    """
    rows = read_jsonl(job.validation)
    with torch.inference_mode():
        if job.workload.task == "text-generation":
            return _completion_loss(job, trained, rows)
        return _label_loss(trained or job.base, rows)


def _completion_loss(job: Job, trained: Path | None, rows: list[dict[str, Any]]) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32)
    if trained is not None:
        model = _with_adapter(model, trained)
    total, count = 0.0, 0
    for row in rows:  # one at a time: no padding that could differ
        encoded = encode(tokenizer, row)
        logits_TV = model.eval()(input_ids=torch.tensor([encoded.ids[:-1]])).logits[0, encoded.start - 1 :]  # type: ignore[operator]
        total += cross_entropy(logits_TV.double(), torch.tensor(encoded.ids[encoded.start :]), reduction="sum").item()
        count += encoded.weighted
    return {"validation_loss": total / count}


def _with_adapter(model: Any, folder: Path) -> Any:
    if not (folder / "adapter_config.json").exists():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder))


def _label_loss(folder: Path, rows: list[dict[str, Any]]) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    total, right = 0.0, 0
    for row in rows:
        logits_1C = model(**tokenizer(row["text"], return_tensors="pt")).logits.double()
        target = torch.tensor([model.config.label2id[row["label"]]])
        total += cross_entropy(logits_1C, target).item()
        right += int(logits_1C.argmax(-1) == target)
    return {"validation_loss": total / len(rows), "validation_accuracy": right / len(rows)}
