"""What 68 labelling rules and a few clean rows are worth: TREC with MiniLM.

    python -m benchmarks.weak [--seeds 0,1,2,3,4] [--output benchmarks/results]

For each seed: MiniLM on the rows that the rules label; that model on 10 and on 50 clean rows of each class; MiniLM on
the clean rows alone; and on all true labels. A seed's line is appended as soon as it is there, so that a study that is
cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.quality import DATA, minilm
from benchmarks.workloads import read_jsonl

TREC = DATA / "trec"
FEW = (10, 50)
EPOCHS = {"many": 2, "few": 20}
ORDER = ("weak", *(f"{kind} {few}" for few in FEW for kind in ("clean only,", "weak, then clean,")), "all true labels")


def clean_rows(rows: Sequence[Mapping[str, Any]], few: int, seed: int) -> list[dict[str, Any]]:
    """So many rows of each class, or all of a rarer one."""
    shuffled = [dict(row) for row in rows]
    random.Random(seed).shuffle(shuffled)
    taken: dict[str, list[dict[str, Any]]] = {}
    for row in shuffled:
        if len(taken.setdefault(row["label"], [])) < few:
            taken[row["label"]].append(row)
    return [row for group in taken.values() for row in group]


def run_seed(seed: int, place: Path) -> dict[str, Any]:
    """Accuracies on the test set by setting, and CPU seconds."""
    rows, test = read_jsonl(TREC / "train.jsonl"), str(TREC / "test.jsonl")
    rules = str(TREC / "labeling_rules.jsonl")

    def trained(name: str, base: str, train: Any, kind: str, **data: Any) -> Any:
        import tunewright as tw

        return tw.train(
            base=base,
            task="text-classification",
            data={"train": train, "validation": 0, "test": test, **data},
            method="full",
            training={"epochs": EPOCHS[kind], "seed": seed},
            evaluation={"before": False},
            output=str(place / name.replace(" ", "-")),
        )

    bare = [{"text": row["text"]} for row in rows]
    weak = trained("weak", minilm(), bare, "many", labeling={"rules": rules})
    runs = {"weak": weak, "all true labels": trained("gold", minilm(), rows, "many")}
    for few in FEW:
        clean = clean_rows(rows, few, seed)
        runs[f"clean only, {few}"] = trained(f"clean {few}", minilm(), clean, "few")
        runs[f"weak, then clean, {few}"] = trained(f"then {few}", str(weak.folder), clean, "few")
    return {
        "seed": seed,
        "accuracy": {
            name: run.info["evaluation"]["test"]["after"]["metrics"]["accuracy"] for name, run in runs.items()
        },
        "cpu_seconds": {name: run.info["timings"].get("cpu_seconds") for name, run in runs.items()},
    }


def label_models() -> dict[str, dict[str, float]]:
    """How often each label model is right, on the training and the lower-cased test questions."""
    import tunewright as tw

    found: dict[str, dict[str, float]] = {}
    for model in ("majority", "em"):
        for name in ("train", "test"):
            rows = [{**row, "text": row["text"].lower()} for row in read_jsonl(TREC / f"{name}.jsonl")]
            told = tw.label(TREC / "labeling_rules.jsonl", rows, model=model)
            found.setdefault(model, {})[name] = told["accuracy"]["value"] * told["labelled"]
            found[model][f"{name}, labelled"] = told["accuracy"]["value"]
    return found


def page(lines: Sequence[Mapping[str, Any]], models: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("tunewright", "torch", "transformers"))
    seeds = ", ".join(str(line["seed"]) for line in lines)
    yield "# TREC with 68 labelling rules, and MiniLM\n"
    yield f"`python -m benchmarks.weak` · {datetime.now(UTC).date().isoformat()} · {versions} · one thread.\n"
    yield "Label models: share of questions whose likeliest label is the true one (a question without a vote counts as"
    yield "wrong; in brackets among those with one).\n"
    yield "| label model | train | test |\n|---|---|---|"
    for name, of in models.items():
        told = (f"{of[s]:.1%} ({of[f'{s}, labelled']:.1%})" for s in ("train", "test"))
        yield f"| {name} | {' | '.join(told)} |"
    yield f"\nEnd models: accuracy on the 500 test questions; mean ± standard deviation over seeds {seeds}.\n"
    yield "| trained on | accuracy | each seed |\n|---|---|---|"
    for name in ORDER:
        values = [100 * line["accuracy"][name]["value"] for line in lines]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        yield f"| {name} | {statistics.mean(values):.1f}{spread} | {', '.join(f'{value:.1f}' for value in values)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weak", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    path = options.output / "weak-trec.jsonl"
    done = read_jsonl(path) if path.exists() else []
    for seed in map(int, options.seeds.split(",")):
        if seed in [line["seed"] for line in done]:
            continue
        with tempfile.TemporaryDirectory() as place:
            line = run_seed(seed, Path(place))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
        done.append(line)
    path.with_suffix(".md").write_text("\n".join(page(done, label_models())) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
