"""How far `tunewright check` is off: its forecast of time and memory against the run itself, over many recipes.

    python -m benchmarks.forecast [--only NAME,NAME] [--output benchmarks/results]

Each recipe is checked, and then trained, each in a fresh process with one thread. The time is the process CPU seconds
that the run's own record gives, the memory the most that its process held. Each recipe is appended to a JSON-lines
file as soon as it is done, so that a study that is cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.quality import SHARED, minilm
from benchmarks.workloads import LlamaShape, read_jsonl
from tunewright.example import document as quickstart

GOAL = {"memory": 0.10, "time": 0.15}
"""What the median error should not exceed."""


def recipes(place: Path) -> dict[str, dict[str, Any]]:
    """Recipes by name: the quickstart, three bases, every method, and what of training costs or saves something."""
    encoder = {"base": minilm(), "data": trec(place, 480)}
    stories = {"base": str(SHARED / "models/stories260k"), "data": {**gsm8k(place, 1200), "overlength": "drop"}}
    llama = {"base": random_llama(place), "data": gsm8k(place, 64), "evaluation": {"generate": 4}}
    lora, full = {"type": "lora", "rank": 16}, {"type": "full"}
    one, two = {"epochs": 1}, {"epochs": 2}
    return {
        "quickstart": quickstart(),
        "encoder, lora": {**encoder, "method": lora, "training": two},
        "encoder, lora, batch 4": {**encoder, "method": lora, "training": {**one, "batch": 4}},
        "encoder, lora, small passes": {**encoder, "method": lora, "training": {**two, "micro_batch_tokens": 128}},
        "encoder, lora, head first": {**encoder, "method": lora, "training": {**one, "head_first": 1}},
        "encoder, dora": {**encoder, "method": {**lora, "dora": True}, "training": one},
        "encoder, adapter": {**encoder, "method": "adapter", "training": two},
        "encoder, head": {**encoder, "method": "head", "training": {"epochs": 3}},
        "encoder, freeze": {**encoder, "method": {"type": "freeze", "last": 2}, "training": two},
        "encoder, full": {**encoder, "method": full, "training": two},
        "encoder, full, average": {**encoder, "method": full, "training": {**one, "ema": 0.99}},
        "encoder, full, adafactor": {**encoder, "method": full, "training": {**one, "optimizer": "adafactor"}},
        "encoder, full, checkpoints": {**encoder, "method": full, "training": {**one, "checkpoint_every": 5}},
        "stories, lora": {**stories, "method": lora, "training": one},
        "stories, full": {**stories, "method": full, "training": one},
        "stories, full, packed": {**stories, "method": full, "training": {**one, "packing": True}},
        "stories, full, token batches": {**stories, "method": full, "training": {**one, "batch_tokens": 4096}},
        "stories, prefix": {
            **stories,
            "method": {"type": "peft", "config": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 8}},
            "training": one,
        },
        "llama, lora": {**llama, "method": lora, "training": one},
        "llama, lora, recomputed": {**llama, "method": lora, "training": {**one, "activation_checkpointing": True}},
        "llama, lora, small passes": {**llama, "method": lora, "training": {**one, "micro_batch_tokens": 512}},
        "llama, full": {**llama, "method": full, "training": one},
        "llama, full, bf16": {**llama, "method": full, "training": {**one, "precision": "bf16"}},
        "llama, freeze": {**llama, "method": {"type": "freeze", "last": 3}, "training": one},
        "llama, text": {**llama, "data": shakespeare(place), "method": lora, "training": one},
    }


def trec(place: Path, rows: int) -> dict[str, Any]:
    sets = {name: read_jsonl(SHARED / f"data/trec/{name}.jsonl") for name in ("train", "validation", "test")}
    kept = {"train": rows, "validation": 100, "test": 300}
    return {name: written(place / f"trec-{name}-{kept[name]}.jsonl", sets[name][: kept[name]]) for name in sets}


def gsm8k(place: Path, rows: int) -> dict[str, Any]:
    train, test = (read_jsonl(SHARED / f"data/gsm8k/{name}.jsonl") for name in ("train", "test"))
    return {
        "train": written(place / f"gsm8k-{rows}.jsonl", train[:rows]),
        "validation": written(place / "gsm8k-validation.jsonl", train[-16:]),
        "test": written(place / "gsm8k-test.jsonl", test[:32]),
    }


def shakespeare(place: Path) -> dict[str, Any]:
    """Plain text, cut into windows."""
    text = (SHARED / "data/tinyshakespeare.txt").read_text(encoding="utf-8")
    scenes = [{"text": text[i : i + 8000]} for i in range(0, 64000, 8000)]
    return {"train": written(place / "shakespeare.jsonl", scenes), "validation": 0.1, "max_length": 512}


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def random_llama(place: Path) -> str:
    """A Llama of 38 M parameters with random weights."""
    from benchmarks.prepare import build_llama

    folder = place / "llama"
    if not folder.exists():
        build_llama(LlamaShape(), read_jsonl(SHARED / "data/gsm8k/train.jsonl")[:2000], folder)
    return str(folder)


def compare(name: str, document: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Check a recipe, then train it; what was said and what was."""
    recipe, run = place / "recipe.json", place / "run"
    recipe.write_text(json.dumps({**document, "output": str(run)}), encoding="utf-8")
    began = cpu_seconds_of_children()
    said = command("check", str(recipe))
    spent = cpu_seconds_of_children() - began
    command("train", str(recipe))
    info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return {
        "recipe": name,
        "memory": {"said": said["forecast"]["memory"]["peak"], "was": info["peak_memory"]},
        "time": {"said": said["forecast"]["time"]["cpu_seconds"], "was": info["timings"]["cpu_seconds"]},
        "phases": said["forecast"],
        "check_cpu_seconds": round(spent, 1),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {each: version(each) for each in ("tunewright", "torch", "transformers", "peft")},
    }


def cpu_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(*arguments: str) -> dict[str, Any]:
    """What a command answers, in a fresh process with one thread."""
    surroundings = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    code = "from tunewright.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--json"], capture_output=True, text=True, env=surroundings
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def error(pair: Mapping[str, float]) -> float:
    """How far what was said is off, as a share of what was."""
    return pair["said"] / pair["was"] - 1


def page(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in lines[-1]["versions"].items())
    yield from ("# How far the forecast is off", "")
    yield f"`python -m benchmarks.forecast` · {lines[-1]['date']} · {versions} · one thread, fresh processes."
    yield from ("Time in CPU-seconds after loading, memory the most that the process held.", "")
    yield "| | recipes | median error | 9 of 10 within | worst | goal for the median |"
    yield "|---|---|---|---|---|---|"
    for what, goal in GOAL.items():
        errors = sorted((abs(error(line[what])), line["recipe"]) for line in lines)
        median = statistics.median(size for size, _ in errors)
        ninth = errors[int(0.9 * (len(errors) - 1))][0]
        worst = f"{errors[-1][0]:.1%} ({errors[-1][1]})"
        yield f"| {what} | {len(errors)} | {median:.1%} | {ninth:.1%} | {worst} | {goal:.0%} |"
    yield ""
    yield "| recipe | memory: said, MiB | was | error | time: said, s | was | error | check took, CPU-s |"
    yield "|---|---|---|---|---|---|---|---|"
    for line in lines:
        memory, spent = line["memory"], line["time"]
        said, was = (memory[key] / 2**20 for key in ("said", "was"))
        yield (
            f"| {line['recipe']} | {said:.0f} | {was:.0f} | {error(memory):+.1%} | {spent['said']:.1f} | "
            f"{spent['was']:.1f} | {error(spent):+.1%} | {line.get('check_cpu_seconds', '–')} |"
        )
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecast", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--only", default="", help="names, with semicolons")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    record = chosen.output / "forecast.jsonl"
    lines = read_jsonl(record) if record.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for name, document in recipes(Path(folder)).items():
            if (chosen.only and name not in chosen.only.split(";")) or any(line["recipe"] == name for line in lines):
                continue
            with tempfile.TemporaryDirectory() as place:
                lines.append(compare(name, document, Path(place)))
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(name, {what: f"{error(lines[-1][what]):+.1%}" for what in GOAL}, flush=True)
    told = "\n".join(page(lines))
    record.with_suffix(".md").write_text(told, encoding="utf-8")
    print(told)


if __name__ == "__main__":
    main()
