"""What lies between a run's start and its end, on real data: does the chosen α cost anything, what does it give back?

    python -m benchmarks.robustness sst2 [--methods full,lora] [--seeds 0,1,2] [--runs DIR] [--output DIR]

Studies: sst2 (tuned on film reviews with and without `head_first`, shifted to customer reviews), again (the SST-2 model
tuned once more on 500 customer reviews; the shift is what it could do before), stories (a story teller tuned on
arithmetic; the shift is its own stories), cifar (a ResNet-20 tuned on noisy pictures; the shifts are clean ones, and
others that are spoilt otherwise). Each run is appended to a JSON-lines file as soon as it is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.conditions import CONDITIONS, pictures
from benchmarks.quality import SHARED, minilm, resnet20
from benchmarks.workloads import read_jsonl

METHODS: dict[str, Any] = {
    "full": {"type": "full"},
    "lora": {"type": "lora", "rank": 16},
    "freeze": {"type": "freeze", "last": 3},
    "adapter": {"type": "adapter"},
    "head": {"type": "head"},
}
TITLES = {
    "sst2": "MiniLM tuned on SST-2, shifted to customer reviews",
    "again": "An SST-2 model tuned again on 500 customer reviews; the shift is SST-2, what it could do before",
    "cifar": "ResNet-20 of CIFAR-10 tuned on 3,000 pictures with noise (σ = .1), shifted to five other conditions",
    "stories": "stories260k tuned on GSM8K; the shift is its own stories (bits per token)",
}


def sst2(method: str, seed: int, place: Path, head_first: bool = True) -> dict[str, Any]:
    data = SHARED / "data"
    return {
        "base": minilm(),
        "data": {
            "train": str(data / "sst2/train.jsonl"),
            "validation": str(data / "sst2/validation.jsonl"),
            "test": {"sst2": str(data / "sst2/test.jsonl"), "reviews": str(data / "customer_reviews.jsonl")},
        },
        "method": METHODS[method],
        "training": {"epochs": 2, "seed": seed, "head_first": int(head_first)},
        "evaluation": {"before": False},
        "output": str(place / f"sst2-{method}-{seed}{'' if head_first else '-at-once'}"),
    }


def again(method: str, seed: int, place: Path) -> dict[str, Any]:
    """The run of `sst2` goes on with reviews: 500 to learn, 500 to choose on, the rest as the reference."""
    rows = read_jsonl(SHARED / "data/customer_reviews.jsonl")
    random.Random(seed).shuffle(rows)
    first = trained(sst2(method, seed, place))
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
        "output": str(place / f"again-{method}-{seed}"),
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
        "output": str(place / f"stories-{method}-{seed}"),
    }


def cifar(method: str, seed: int, place: Path) -> dict[str, Any]:
    data = SHARED / "data/cifar10"
    return {
        **resnet20(),
        "data": {
            "train": pictures(data / "train.parquet", "noise"),
            "validation": 0.1,
            "test": {name: pictures(data / "test.parquet", name) for name in CONDITIONS},
        },
        "method": METHODS[method],
        "training": {"epochs": 5, "seed": seed},
        "evaluation": {"before": False},
        "output": str(place / f"cifar-{method}-{seed}"),
    }


STUDIES = {"sst2": sst2, "again": again, "stories": stories, "cifar": cifar}


def trained(recipe: Mapping[str, Any]) -> Any:
    """The run of a recipe; one that is there already is used again, or goes on."""
    import tunewright as tw

    there = (Path(recipe["output"]) / "run.json").exists()
    return tw.resume(recipe["output"]) if there else tw.train(dict(recipe))


def measure(study: str, method: str, seed: int, head_first: bool, place: Path) -> dict[str, Any]:
    """Train, walk the path where there is one, and give the line of results."""
    import torch

    import tunewright as tw

    torch.set_num_threads(1)
    if study == "sst2" and not head_first:
        run = trained(sst2(method, seed, place, head_first=False))
        found: dict[str, Any] = {"tuned": tuned_figures(run.info["evaluation"])}
    else:
        run = trained(STUDIES[study](method, seed, place))
        walked = tw.interpolate(run.folder)
        keep = ("alphas", "metric", "reference", "shifts", "oracle", "choices", "curve", "baselines", "against_tuned")
        found = {"tuned": tuned_figures(run.info["evaluation"]), **{key: walked[key] for key in keep}}
    return {
        "method": method,
        "seed": seed,
        "head_first": head_first,
        **found,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("tunewright", "torch", "transformers", "peft")},
    }


def tuned_figures(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The primary metric on every row of each set, after training."""
    return {
        name: scores["after"]["metrics"][scores["after"]["primary"]]["value"] for name, scores in evaluation.items()
    }


def curves(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: a row for each run and rule."""
    sets = [lines[0]["reference"], *lines[0]["shifts"]]
    ends = " | ".join(f"{name}: α = 0 / ½ / 1" for name in sets)
    yield f"| method | seed | {ends} | rule | α | {' | '.join(f'{n}: against tuned' for n in sets)} | oracle |"
    yield "|---" * (5 + 2 * len(sets)) + "|"
    for line in sorted(lines, key=lambda line: (line["method"], line["seed"])):
        path = [" / ".join(figure(line, line["curve"][n]["test"][i]["value"]) for i in (0, 5, 10)) for n in sets]
        for rule, alpha in line["choices"].items():
            told = [change(line, at(line, name, alpha)) for name in sets]
            start = f"| {line['method']} | {line['seed']} | {' | '.join(path)} "
            yield f"{start}| {rule} | {alpha:g} | {' | '.join(told)} | {line['oracle']:g} |"


def over_seeds(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: for each method and rule the mean of the changes, and in how many seeds the interval excludes zero."""
    sets = [lines[0]["reference"], *lines[0]["shifts"]]
    yield f"| method | rule | mean α | {' | '.join(f'{name}: mean change (better, worse)' for name in sets)} |"
    yield "|---" * (3 + len(sets)) + "|"
    for method in dict.fromkeys(line["method"] for line in lines):
        mine = [line for line in lines if line["method"] == method]
        for rule in mine[0]["choices"]:
            alphas = [line["choices"][rule] for line in mine]
            told = [averaged([at(line, name, line["choices"][rule]) for line in mine], mine[0]) for name in sets]
            yield f"| {method} | {rule} | {statistics.mean(alphas):.2g} | {' | '.join(told)} |"


def averaged(changes: Sequence[Mapping[str, float]], line: Mapping[str, Any]) -> str:
    sign = -1 if line["metric"] == "loss" else 1
    better, worse = (sum(sign * way * change[end] > 0 for change in changes) for way, end in ways(sign))
    mean = scale(line) * statistics.mean(change["value"] for change in changes)
    return f"{mean:+.2f} ({better} of {len(changes)}, {worse} of {len(changes)})"


def ways(sign: int) -> tuple[tuple[int, str], tuple[int, str]]:
    """The end of an interval that is nearer to zero where a change is better, and where it is worse."""
    return ((1, "low"), (-1, "high")) if sign > 0 else ((1, "high"), (-1, "low"))


def head_first_or_not(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown: the tuned models with and without the head trained alone first."""
    sets = list(lines[0]["tuned"])
    yield f"| method | head first | seeds | {' | '.join(f'{name}: tuned' for name in sets)} |"
    yield "|---" * (3 + len(sets)) + "|"
    for method, first in dict.fromkeys((line["method"], line["head_first"]) for line in lines):
        mine = [line for line in lines if (line["method"], line["head_first"]) == (method, first)]
        told = [spread([100 * line["tuned"][name] for line in mine]) for name in sets]
        seeds = ", ".join(str(line["seed"]) for line in mine)
        yield f"| {method} | {'yes' if first else 'no'} | {seeds} | {' | '.join(told)} |"


def spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def at(line: Mapping[str, Any], name: str, alpha: float) -> Mapping[str, float]:
    """The paired change from the tuned model to the point α, on a set's test rows."""
    found: Mapping[str, float] = line["against_tuned"][name][line["alphas"].index(alpha)]
    return found


def scale(line: Mapping[str, Any]) -> float:
    """To percent, or from nats to bits."""
    return 1 / math.log(2) if line["metric"] == "loss" else 100


def figure(line: Mapping[str, Any], value: float) -> str:
    return f"{scale(line) * value:.{3 if line['metric'] == 'loss' else 1}f}"


def change(line: Mapping[str, Any], metric: Mapping[str, float]) -> str:
    low, value, high = (scale(line) * metric[key] for key in ("low", "value", "high"))
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" if math.isfinite(value) else "–"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robustness", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", type=Path, help="keep the trained runs there, and use those that are there")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    record = chosen.output / f"robustness-{chosen.study}.jsonl"
    with tempfile.TemporaryDirectory() as place:
        for seed in map(int, chosen.seeds.split(",")):
            for head_first in (True, False) if chosen.study == "sst2" else (False,):
                for method in chosen.methods.split(","):
                    if not any(key(line) == (method, seed, head_first) for line in read(record)):
                        line = measure(chosen.study, method, seed, head_first, chosen.runs or Path(place))
                        with record.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")
                        print(method, seed, head_first, line.get("choices"), flush=True)
    page = "\n".join(page_of(chosen.study, read(record)))
    record.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


def read(record: Path) -> list[dict[str, Any]]:
    return read_jsonl(record) if record.exists() else []


def key(line: Mapping[str, Any]) -> tuple[str, int, bool]:
    return line["method"], line["seed"], line["head_first"]


def page_of(study: str, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in lines[-1]["versions"].items())
    walked = [line for line in lines if "curve" in line]
    yield from (f"# {TITLES[study]}", "")
    yield f"`python -m benchmarks.robustness {study}` · {lines[-1]['date']} · {versions} · one thread."
    unit = "bits per token" if walked[0]["metric"] == "loss" else "accuracy in percent"
    yield f"Figures are of test rows ({unit}); α was chosen on validation rows. Differences are paired, and"
    yield from ("better or worse where their 95 % interval (in brackets) excludes zero.", "")
    yield from (*over_seeds(walked), "", *curves(walked), "")
    if study == "sst2":
        yield "The whole tuned models, on every row of each set, with and without a head that was trained alone first:"
        yield from ("", *head_first_or_not(lines), "")


if __name__ == "__main__":
    main()
