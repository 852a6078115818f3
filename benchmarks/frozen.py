"""What it saves to keep what frozen blocks compute: runs with and without, over epochs.

    python -m benchmarks.frozen [--rounds 2] [--data ../shared/data] [--output benchmarks/results]

Each work is trained with `training.prefix_cache: 0` and with its default in turns (A B A B …), each in a fresh process
with one thread. Counted are CPU seconds from the first forward pass to the end of the last step, evaluations and
checkpoints between them included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.quality import minilm
from benchmarks.speed import OFFLINE, ONE_THREAD, ROOT
from benchmarks.workloads import read_jsonl

TRAIN, VALIDATION, EPOCHS = 500, 100, 5
HEAD, LAST = "head", {"type": "freeze", "last": 1}
SIDES = {"anew": 0.0, "kept": 2.0}


def works(data: Path, place: Path) -> dict[str, dict[str, Any]]:
    """Recipes by name: a real encoder on sentences, and image models of usual shapes, whose weights are random."""
    sentences = {
        name: written(place / f"{name}.jsonl", read_jsonl(data / f"sst2/{name}.jsonl")[:rows])
        for name, rows in (("train", TRAIN), ("validation", VALIDATION))
    }
    text = {"base": minilm(), "task": "text-classification", "data": sentences}
    images = {"train": parquet(data, place, "train", TRAIN), "validation": parquet(data, place, "test", VALIDATION)}
    pictures = {"task": "image-classification", "data": images}
    return {
        "MiniLM, head": {**text, "method": HEAD},
        "MiniLM, freeze last 1": {**text, "method": LAST},
        "ViT, head": {**pictures, "base": vision(place, "vit"), "method": HEAD},
        "ViT, freeze last 1": {**pictures, "base": vision(place, "vit"), "method": LAST},
        "ResNet, head": {**pictures, "base": vision(place, "resnet"), "method": HEAD},
        "ResNet, freeze last 1": {**pictures, "base": vision(place, "resnet"), "method": LAST},
    }


def written(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet(data: Path, place: Path, name: str, rows: int) -> str:
    """The first rows of CIFAR-10."""
    import pyarrow.parquet as pq

    path = place / f"cifar-{name}.parquet"
    pq.write_table(pq.read_table(data / f"cifar10/{name}.parquet").slice(0, rows), path)
    return str(path)


def vision(place: Path, kind: str) -> str:
    """ViT-Ti/16 (12 blocks, 192 wide) on 112 × 112 pixels, or ResNet-18 on 64 × 64."""
    import torch
    import transformers as hf

    folder = place / kind
    if folder.exists():
        return str(folder)
    side = {"vit": 112, "resnet": 64}[kind]
    configs: dict[str, Any] = {
        "vit": hf.ViTConfig(hidden_size=192, intermediate_size=768, num_attention_heads=3, image_size=side),
        "resnet": hf.ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"),
    }
    torch.manual_seed(0)
    hf.AutoModel.from_config(configs[kind]).save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return str(folder)


def train(document: Mapping[str, Any]) -> dict[str, Any]:
    """Train once, in this process."""
    import torch

    import tunewright as tw
    from benchmarks.measure import Stopwatch

    torch.set_num_threads(1)
    with Stopwatch() as watch:
        run = tw.train(document)
    losses = [line["validation"]["loss"] for line in run.metrics if "validation" in line]
    notices = [notice for notice in run.info["notices"] if "Frozen blocks" in notice]
    return {
        "seconds": watch.seconds,
        "loss": losses[-1],
        "peak_memory": run.info["peak_memory"],
        "notices": notices,
    }


def in_fresh_process(document: Mapping[str, Any]) -> dict[str, Any]:
    code = "import json, sys; from benchmarks.frozen import train; print(json.dumps(train(json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(document)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, **ONE_THREAD, **OFFLINE},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(name: str, work: Mapping[str, Any], rounds: int) -> dict[str, Any]:
    """Both sides in turns."""
    measured: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, size in SIDES.items():
            with tempfile.TemporaryDirectory() as folder:
                training = {"epochs": EPOCHS, "prefix_cache": size}
                quiet = {"before": False, "samples": 0}
                document = {**work, "training": training, "evaluation": quiet, "output": f"{folder}/run"}
                measured[side].append(in_fresh_process(document))
    return {
        "work": name,
        "rounds": measured,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {each: version(each) for each in ("tunewright", "torch", "transformers")},
    }


def page(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in lines[-1]["versions"].items())
    yield from ("# What frozen blocks compute, anew or kept", "")
    yield f"`python -m benchmarks.frozen` · {lines[-1]['date']} · {versions} · one thread, fresh processes in turns."
    yield (
        f"{TRAIN:,} training and {VALIDATION} validation rows, {EPOCHS} epochs; CPU seconds from the first forward "
        "pass to the end of the last step, the least of the rounds (the lines beside have all). MiniLM is real "
        "and reads SST-2; ViT-Ti/16 (112 pixels) and ResNet-18 (64 pixels) have random weights and see CIFAR-10."
    )
    yield ""
    yield "| work | anew, s | kept, s | ratio | validation loss, anew | kept | rounds |"
    yield "|---|---|---|---|---|---|---|"
    for line in lines:
        anew, kept = (min(r["seconds"] for r in line["rounds"][side]) for side in SIDES)
        losses = (statistics.median(r["loss"] for r in line["rounds"][side]) for side in SIDES)
        told = " | ".join(f"{loss:.5f}" for loss in losses)
        rounds = len(line["rounds"]["anew"])
        yield f"| {line['work']} | {anew:.1f} | {kept:.1f} | {anew / kept:.2f} | {told} | {rounds} |"
    yield ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frozen", description=str(__doc__).split("\n\n")[0])
    data = os.environ.get("TUNEWRIGHT_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path(data), help="default: $TUNEWRIGHT_DATA, else ../shared/data")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    chosen = parser.parse_args()
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name, work in works(chosen.data, Path(place)).items():
            lines.append(compare(name, work, chosen.rounds))
            print(name, {s: [round(r["seconds"], 1) for r in lines[-1]["rounds"][s]] for s in SIDES}, flush=True)
    told = "\n".join(page(lines))
    (chosen.output / "frozen.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (chosen.output / "frozen.md").write_text(told, encoding="utf-8")
    print(told)


if __name__ == "__main__":
    main()
