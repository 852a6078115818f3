"""What lies between a run's start and its end, on real data: does the chosen α cost anything, what does it give back?

    python -m benchmarks.robustness sst2 [--methods full,lora] [--seeds 0,1,2] [--output benchmarks/results]

Studies: sst2 (tuned on film reviews, shifted to customer reviews), again (an SST-2 model tuned once more on 500
customer reviews; the shift is what it could do before), stories (a story teller tuned on arithmetic; the shift is its
own stories). Each (method, seed) is appended to a JSON-lines file as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.quality import SHARED, minilm
from benchmarks.workloads import read_jsonl

METHODS: dict[str, Any] = {"full": {"type": "full"}, "lora": {"type": "lora", "rank": 16}}
TITLES = {
    "sst2": "MiniLM tuned on SST-2 with `head_first`, shifted to customer reviews",
    "again": "An SST-2 model tuned again on 500 customer reviews; the shift is SST-2, what it could do before",
    "stories": "stories260k tuned on GSM8K; the shift is its own stories (loss in nats per token)",
}


def sst2(method: str, seed: int, place: Path, head_first: float = 1) -> dict[str, Any]:
    data = SHARED / "data"
    return {
        "base": minilm(),
        "data": {
            "train": str(data / "sst2/train.jsonl"),
            "validation": str(data / "sst2/validation.jsonl"),
            "test": {"sst2": str(data / "sst2/test.jsonl"), "reviews": str(data / "customer_reviews.jsonl")},
        },
        "method": METHODS[method],
        "training": {"epochs": 2, "seed": seed, "head_first": head_first},
        "evaluation": {"before": False},
        "output": str(place / "sst2"),
    }


def again(method: str, seed: int, place: Path) -> dict[str, Any]:
    """The run of `sst2` goes on with reviews: 500 to learn, 500 to choose on, the rest as the reference."""
    import tunewright as tw

    rows = read_jsonl(SHARED / "data/customer_reviews.jsonl")
    random.Random(seed).shuffle(rows)
    first = tw.train(sst2(method, seed, place))
    return {
        "base": str(first.folder),
        "data": {
            "train": rows[:500],
            "validation": rows[500:1000],
            "test": {"reviews": rows[1000:], "sst2": str(SHARED / "data/sst2/test.jsonl")},
        },
        "method": METHODS[method],
        "training": {"epochs": 3, "seed": seed},
        "evaluation": {"before": False},
        "output": str(place / "again"),
    }


def stories(method: str, seed: int, place: Path) -> dict[str, Any]:
    import tunewright as tw

    base = str(SHARED / "models/stories260k")
    told = [
        {"text": tw.chat(tw.load(base), "Once upon a time", max_new_tokens=200, temperature=1.0, seed=i)}
        for i in range(64)
    ]
    rows = [
        {"text": f"{row['prompt']}\n{row['completion']}"}
        for row in read_jsonl(SHARED / "data/gsm8k/train.jsonl")[:2000]
    ]
    test = [
        {"text": f"{row['prompt']}\n{row['completion']}"} for row in read_jsonl(SHARED / "data/gsm8k/test.jsonl")[:200]
    ]
    return {
        "base": base,
        "data": {"train": rows, "validation": 0.1, "overlength": "drop", "test": {"gsm8k": test, "stories": told}},
        "method": METHODS[method],
        "training": {"epochs": 1, "seed": seed},
        "evaluation": {"before": False},
        "output": str(place / "stories"),
    }


STUDIES = {"sst2": sst2, "again": again, "stories": stories}


def run_one(study: str, method: str, seed: int) -> dict[str, Any]:
    """Train, walk the path, and give the line of results."""
    import torch

    import tunewright as tw

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        run = tw.train(STUDIES[study](method, seed, Path(place)))
        found = {rule: tw.interpolate(run.folder, choose=rule) for rule in ("balanced", "reference")}
    keep = ("alphas", "metric", "reference", "shifts", "oracle", "curve", "baselines")
    return {
        "method": method,
        "seed": seed,
        **{key: found["balanced"][key] for key in keep},
        "chosen": {rule: one["chosen"]["alpha"] for rule, one in found.items()},
        "against_tuned": {rule: one["against_tuned"] for rule, one in found.items()},
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("tunewright", "torch", "transformers", "peft")},
    }


def table(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: a row for each method, seed and rule."""
    sets = [lines[0]["reference"], *lines[0]["shifts"]]
    yield (
        "| method | seed | "
        + " | ".join(f"{n}: α = 0 / ½ / 1" for n in sets)
        + " | rule | α | "
        + " | ".join(f"{n}: against tuned" for n in sets)
        + " | oracle |"
    )
    yield "|---" * (5 + 2 * len(sets)) + "|"
    for line in sorted(lines, key=lambda line: (line["method"], line["seed"])):
        ends = [" / ".join(figure(line, line["curve"][n]["test"][i]["value"]) for i in (0, 5, 10)) for n in sets]
        for rule, alpha in line["chosen"].items():
            told = [change(line, line["against_tuned"][rule][n]) for n in sets]
            start = f"| {line['method']} | {line['seed']} | {' | '.join(ends)} "
            yield f"{start}| {rule} | {alpha:g} | {' | '.join(told)} | {line['oracle']:g} |"


def figure(line: Mapping[str, Any], value: float) -> str:
    return f"{100 * value:.1f}" if line["metric"] == "accuracy" else f"{value:.3f}"


def change(line: Mapping[str, Any], metric: Mapping[str, float]) -> str:
    scale = 100 if line["metric"] == "accuracy" else 1
    low, value, high = (scale * metric[key] for key in ("low", "value", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" if math.isfinite(value) else "–"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    record = chosen.output / f"robustness-{chosen.study}.jsonl"
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.exists() else []
    done = {(line["method"], line["seed"]) for line in lines}
    for seed in map(int, chosen.seeds.split(",")):
        for method in chosen.methods.split(","):
            if (method, seed) not in done:
                lines.append(run_one(chosen.study, method, seed))
                with record.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(method, seed, lines[-1]["chosen"], flush=True)
    page = "\n".join(page_of(chosen.study, lines))
    record.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


def page_of(study: str, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in lines[-1]["versions"].items())
    yield from (f"# {TITLES[study]}", "")
    yield f"`python -m benchmarks.robustness {study}` · {lines[-1]['date']} · {versions} · one thread."
    yield "Figures are of test rows (accuracy in percent), α was chosen on validation rows; differences are paired."
    yield from ("In brackets: 95 % intervals.", "", *table(lines), "")


if __name__ == "__main__":
    main()
