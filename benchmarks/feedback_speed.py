"""DPO and GRPO beside TRL's, in turns: `python -m benchmarks.feedback_speed dpo grpo grpo-tiny`.

    [--rounds 2] [--steps N] [--data ../shared/data] [--models ../shared/models] [--results benchmarks/results]

dpo: LoRA r16 of a Llama of 34 M parameters with random weights, on pairs of harmless dialogues whose prompts have at
most 1,200 characters. grpo: the same of GSM8K questions, 8 questions × 8 answers of 64 tokens a step, no KL. grpo-tiny:
full training of stories260k on a few words each. Counted are CPU seconds of one thread in a fresh process, from the
first forward pass to the last optimizer step, sampling included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.workloads import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("tunewright", "trl")
STEPS = {"dpo": 8, "grpo": 3, "grpo-tiny": 20}
BATCH, LONGEST_PROMPT = 8, 1200
COPIES, NEW_TOKENS = 8, 64
RATE = {"dpo": 2e-4, "grpo": 2e-4, "grpo-tiny": 1e-4}
OPENINGS = ("Once upon a time", "One day", "There was a", "Lily and Tom", "The little dog", "A big cat", "In the park")
LORA = {"type": "lora", "rank": 16, "alpha": 32}
NAMES = ("Lily", "Tom", "Mia", "Ben", "Anna", "Sam", "Lucy", "Max", "Sue", "Tim", "Amy", "Jack")


def pairs(data: Path, count: int) -> list[dict[str, Any]]:
    """The first pairs whose prompt is short enough, as texts."""
    found = []
    for row in read_jsonl(data / "hh_harmless" / "preferences.jsonl"):
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in row["prompt"]) + "\nassistant:\n"
        chosen, rejected = (row[name][0]["content"].strip() for name in ("chosen", "rejected"))
        if len(prompt) <= LONGEST_PROMPT and chosen and rejected and chosen != rejected:
            found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return found[:count]


def prompts(count: int) -> list[dict[str, str]]:
    """Openings of stories, each with another name."""
    return [{"prompt": f"{OPENINGS[i % len(OPENINGS)]} {NAMES[i // 7 % len(NAMES)]}"} for i in range(count)]


def questions(data: Path, count: int) -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"]} for row in read_jsonl(data / "gsm8k" / "train.jsonl")[:count]]


def mentions_dog(texts: Sequence[str]) -> list[float]:
    """1 for each answer with a dog in it."""
    return [float("dog" in text) for text in texts]


# What runs in a fresh process


def child(work: str, system: str, base: str, rows: str, steps: int, out: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    run = globals()[f"{system}_{work.split('-')[0]}"]
    return run(work, base, read_jsonl(Path(rows)), steps, out)  # type: ignore[no-any-return]


def tunewright_dpo(work: str, base: str, rows: list[dict[str, Any]], steps: int, out: str) -> dict[str, Any]:
    import tunewright as tw
    from benchmarks.measure import Stopwatch

    with Stopwatch() as watch:
        run = tw.train(
            base=base,
            data={"train": rows, "validation": 0},
            method=LORA,
            objective={"type": "preference", "loss": "dpo", "beta": 0.1},
            training=_settings(work, steps),
            evaluation={"before": False},
            output=out,
        )
    margin = 0.1 * run.metrics[-1]["reward_margin"]  # TRL logs it times β
    return {"seconds": watch.seconds, "last": margin, "first_loss": run.metrics[0]["loss"]}


def trl_dpo(work: str, base: str, rows: list[dict[str, Any]], steps: int, out: str) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from benchmarks.measure import Stopwatch

    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        args=DPOConfig(**_arguments(work, out), per_device_train_batch_size=BATCH, max_steps=steps, beta=0.1),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=_lora(),
    )
    with Stopwatch() as watch:
        trainer.train()
    logged = [line for line in trainer.state.log_history if "loss" in line]
    return {"seconds": watch.seconds, "last": logged[-1]["rewards/margins"], "first_loss": logged[0]["loss"]}


def tunewright_grpo(work: str, base: str, rows: list[dict[str, Any]], steps: int, out: str) -> dict[str, Any]:
    import tunewright as tw
    from benchmarks.measure import Stopwatch

    with Stopwatch() as watch:
        run = tw.train(
            base=base,
            data={"train": rows, "validation": 0},
            method=LORA if work == "grpo" else "full",
            objective={
                "type": "rl",
                "algorithm": "grpo",
                "samples": COPIES,
                "max_new_tokens": NEW_TOKENS,
                "normalization": "token",
                "rewards": [{"type": "pattern", "pattern": "dog"}],
            },
            training=_settings(work, steps),
            evaluation={"before": False, "generate": 0},
            output=out,
        )
    lengths = [line["length"] for line in run.metrics if "length" in line]
    tokens = sum(lengths) * BATCH * COPIES
    return {"seconds": watch.seconds, "tokens": tokens, "last": statistics.mean(_rewards(run.metrics)[-5:])}


def _rewards(metrics: Sequence[dict[str, Any]]) -> list[float]:
    return [line["reward"] for line in metrics if "reward" in line]


def trl_grpo(work: str, base: str, rows: list[dict[str, Any]], steps: int, out: str) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.measure import Stopwatch

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    lengths: list[int] = []

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return mentions_dog(completions)

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype="float32"),
        args=GRPOConfig(
            **_arguments(work, out),
            per_device_train_batch_size=BATCH * COPIES,
            num_generations=COPIES,
            max_completion_length=NEW_TOKENS,
            max_steps=steps,
            beta=0.0,
            temperature=1.0,
        ),
        reward_funcs=reward,  # type: ignore[arg-type]
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=_lora() if work == "grpo" else None,
    )
    with Stopwatch() as watch:
        trainer.train()
    logged = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    return {"seconds": watch.seconds, "tokens": sum(lengths), "last": statistics.mean(logged[-5:])}


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def _settings(work: str, steps: int) -> dict[str, Any]:
    return {
        "max_steps": steps,
        "batch": BATCH,
        "learning_rate": RATE[work],
        "schedule": "constant",
        "warmup": 0,
        "checkpoint_every": steps,
    }


def _arguments(work: str, out: str) -> dict[str, Any]:
    return {
        "output_dir": out,
        "learning_rate": RATE[work],
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


# Turns


def measured(work: str, options: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    """A line for each process, in turns."""
    steps = options.steps or STEPS[work]
    base = str(options.models / "stories260k")
    if work == "grpo-tiny":
        rows = prompts(steps * BATCH)
    else:
        rows = pairs(options.data, steps * BATCH) if work == "dpo" else questions(options.data, steps * BATCH)
        base = str(place / f"{work}-base")
        _build_base(rows, Path(base))
    path = place / f"{work}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = []
    for turn in range(options.rounds):
        for system in SYSTEMS:
            out = str(place / f"{work}-{system}-{turn}")
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-m", "benchmarks.feedback_speed", "child", work, system, base, str(path)]
            done = subprocess.run(
                [*command, str(steps), out], capture_output=True, text=True, env=environment, check=False
            )
            if done.returncode:
                raise SystemExit(f"{system} failed at {work}:\n{done.stderr[-3000:]}")
            date = datetime.now(UTC).date().isoformat()
            line = {
                "work": work,
                "system": system,
                "turn": turn,
                "date": date,
                **json.loads(done.stdout.strip().split("\n")[-1]),
            }
            print(json.dumps(line), flush=True)
            found.append(line)
    return found


BUILD = """
import json, sys
from pathlib import Path
from benchmarks.prepare import build_llama
from benchmarks.workloads import LlamaShape

rows = json.load(sys.stdin)
texts = [{"prompt": row["prompt"], "completion": row.get("chosen", "") + row.get("rejected", "")} for row in rows]
build_llama(LlamaShape(), texts, Path(sys.argv[1]))
"""


def _build_base(rows: list[dict[str, Any]], folder: Path) -> None:
    """In a process of its own: what this one holds would count in those that it starts."""
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], input=json.dumps(rows), text=True, check=True, cwd=ROOT)


def page(lines: Sequence[dict[str, Any]]) -> list[str]:
    names = ("tunewright", "trl", "torch", "transformers", "peft")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    told = [
        "# DPO and GRPO beside TRL's\n",
        f"`python -m benchmarks.feedback_speed` · {datetime.now(UTC).date().isoformat()} · {versions} · one thread.\n",
        str(__doc__).split("\n\n")[2] + "\n",
        "| work | system | CPU seconds of each turn | answer tokens per CPU second | reached |\n|---|---|---|---|---|",
    ]
    for work in dict.fromkeys(line["work"] for line in lines):
        for system in SYSTEMS:
            own = [line for line in lines if (line["work"], line["system"]) == (work, system)]
            seconds = ", ".join(f"{line['seconds']:.1f}" for line in own)
            rate = (
                f"{statistics.median(line['tokens'] / line['seconds'] for line in own):.0f}"
                if "tokens" in own[0]
                else ""
            )
            what = "margin" if work == "dpo" else "mean reward of the last five steps"
            told.append(f"| {work} | {system} | {seconds} | {rate} | {what} {own[-1]['last']:.3f} |")
    for work in dict.fromkeys(line["work"] for line in lines):
        days = ", ".join(sorted({line["date"] for line in lines if line["work"] == work}))
        cost = {s: statistics.median(_cost(l) for l in lines if (l["work"], l["system"]) == (work, s)) for s in SYSTEMS}  # noqa: E741
        told.append(
            f"\n{work}: TRL takes {cost['trl'] / cost['tunewright']:.2f} times the CPU seconds of Tunewright ({days})."
        )
    return told


def _cost(line: dict[str, Any]) -> float:
    """Seconds, for each token that was sampled where tokens are."""
    return float(line["seconds"]) / float(line.get("tokens", 1))


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        work, system, base, rows, steps, out = sys.argv[2:]
        print(json.dumps(child(work, system, base, rows, int(steps), out)))
        return
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.feedback_speed", description=str(__doc__).split("\n\n")[0]
    )
    parser.add_argument("works", nargs="+", choices=tuple(STEPS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        lines = [line for work in options.works for line in measured(work, options, Path(place))]
    kept = options.results / "feedback-speed.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else []
    lines = [line for line in before if line["work"] not in options.works] + lines
    kept.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    (options.results / "feedback-speed.md").write_text("\n".join(page(lines)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
