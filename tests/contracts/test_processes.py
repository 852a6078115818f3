"""Two processes compute what one does: weights, metrics, and what is kept.

Starting processes costs ten seconds, so each test looks at several things.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import tunewright as tw
from tests.runs import recipe, stop_at
from tests.tiny import completions
from tunewright.engine import checkpoint
from tunewright.errors import DataError, TrainingDiverged


def test_two_processes_equal_one(tiny_base: Any, tmp_path: Path) -> None:
    """A batch of three, so that one has more rows; forward passes of a row or two; a start to be written once."""
    dora = {"type": "lora", "rank": 2, "dora": True}
    before = tw.train(recipe(tiny_base("llama"), tmp_path / "before", method=dora, training={"epochs": 1}))
    seen: dict[int, list[Any]] = {1: [], 2: []}
    one, two = (
        tw.train(
            recipe(
                str(before.folder), tmp_path / str(processes),
                training={"epochs": 1, "micro_batch_tokens": 20, "ema": 0.5, "processes": processes},
            ),
            watchers=[seen[processes].append],
        )
        for processes in (1, 2)
    )  # fmt: skip
    assert two.info["status"] == "finished"
    assert [(line.keys(), line.get("step")) for line in seen[2]] == [
        (line.keys(), line.get("step")) for line in seen[1]
    ]
    same_metrics(one, two)
    same_weights(one, two)


def test_one_process_goes_on_as_two_of_which_one_has_no_rows(tiny_base: Any, tmp_path: Path) -> None:
    """How many processes there are is no part of a checkpoint; with a batch of one row the second is idle."""
    changes = {
        "task": "text-classification",
        "method": "full",
        "objective": {"class_weights": "balanced"},
        "training": {"batch": 1, "max_steps": 4, "checkpoint_every": 1, "learning_rate": 1e-3},
    }
    one = tw.train(recipe(tiny_base("bert"), tmp_path / "one", **changes))
    two = tw.train(recipe(tiny_base("bert"), tmp_path / "two", **changes))
    (two.folder / "checkpoints" / "step-4" / "state.json").unlink()
    document = two.folder / "recipe.yaml"
    document.write_text(document.read_text().replace("processes: 1", "processes: 2"))
    (two.folder / "run.json").write_text(json.dumps({**two.info, "status": "stopped"}))
    (two.folder / "model" / "model.safetensors").unlink()
    two = tw.resume(two.folder)
    same_metrics(one, two)
    same_weights(one, two)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "preference"},
        {"objective": {"type": "preference", "loss": "kto"}},
        {"objective": "reward", "task": "text-classification"},
    ],
    ids=["dpo", "kto", "reward"],
)
def test_answers_are_compared_alike_by_two_processes(changes: Any, tiny_base: Any, tmp_path: Path) -> None:
    """What is fixed of the rows is computed by both, a share each: likelihoods at the start, z0 of each step."""
    training = {"epochs": 1, "micro_batch_tokens": 30, "learning_rate": 1e-3}
    base = tiny_base("bert" if "task" in changes else "llama")
    one, two = (
        tw.train(
            recipe(base, tmp_path / str(n), method="full", training={**training, "processes": n}, **changes)
        )
        for n in (1, 2)
    )  # fmt: skip
    same_metrics(one, two)
    same_weights(one, two)


def test_a_refusal_of_the_processes_is_that_of_one(tiny_base: Any, tmp_path: Path, capfd: Any) -> None:
    said = []
    for processes in (1, 2):
        changes = {
            "data": {"train": completions(8), "max_length": 4, "validation": 0},
            "training": {"processes": processes},
        }
        with pytest.raises(DataError) as raised:
            tw.train(recipe(tiny_base("llama"), tmp_path / "run", **changes))
        said.append((type(raised.value), str(raised.value), raised.value.faults))
        assert not (tmp_path / "run").exists()
    assert said[0] == said[1]
    printed = capfd.readouterr()
    assert not printed.out
    assert not any(words in printed.err for words in ("Traceback", "longer than", "torch/distributed"))


def test_a_run_that_diverges_in_one_of_the_processes_says_so(tiny_base: Any, tmp_path: Path) -> None:
    """The other one only notices that it is alone, and must not have the last word. Watchers run in the caller."""
    training = {"processes": 2, "learning_rate": 1e30, "gradient_clip": None}
    seen: list[Any] = []
    with pytest.raises(TrainingDiverged, match="not finite at step 2") as raised:
        tw.train(recipe(tiny_base("llama"), tmp_path / "run", training=training), watchers=[seen.append])
    info = tw.open_run(tmp_path / "run").info
    assert (info["status"], info["error"]) == ("failed", str(raised.value))
    assert [line.get("step") for line in seen] == [None, 1]


def test_a_fault_of_a_watcher_ends_the_processes(tiny_base: Any, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the roof fell in")

    with pytest.raises(RuntimeError, match="roof"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run", **LONG), watchers=[stop_at(2, fail)])
    info = tw.open_run(tmp_path / "run").info
    assert (info["status"], info["error"]) == ("failed", "the roof fell in")
    assert not left(tmp_path / "run") and checkpoint.steps(tmp_path / "run" / "checkpoints")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes_with_a_checkpoint(number: int, tiny_base: Any, tmp_path: Path) -> None:
    process = begun(tiny_base("llama"), tmp_path)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    wait_for(lambda: not left(tmp_path / "run"))
    info, steps = tw.open_run(tmp_path / "run").info, checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert info["status"] == "stopped" and len(steps) == 1 and "Traceback" not in stderr
    if number != signal.SIGKILL:
        error = json.loads(stdout)["error"]
        assert process.returncode == 130 and error["type"] == "Interrupted"
        assert f"at step {steps[0]};" in error["message"] and "tunewright resume" in error["message"]


def test_a_process_that_is_killed_is_named(tiny_base: Any, tmp_path: Path) -> None:
    process = begun(tiny_base("llama"), tmp_path)
    os.kill(left(tmp_path / "run")[-1], signal.SIGKILL)
    error = json.loads(process.communicate(timeout=60)[0])["error"]
    assert process.returncode == 2 and "killed by signal 9" in error["message"]
    assert tw.open_run(tmp_path / "run").info["error"] == error["message"] and not left(tmp_path / "run")


LONG: dict[str, Any] = {"training": {"processes": 2, "max_steps": 5000, "evaluate_every": 5000}}
COMMAND = [sys.executable, "-c", "from tunewright.cli import main; main()", "train", "--json"]


def begun(base: str, folder: Path) -> subprocess.Popen[str]:
    """A run of two processes by the command line, which has taken its first step."""
    (folder / "recipe.yaml").write_text(recipe(base, folder / "run", **LONG).to_yaml())
    process = subprocess.Popen(
        [*COMMAND, str(folder / "recipe.yaml")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None and any(line.startswith("Step 1/5000") for line in process.stderr)
    assert len(left(folder / "run")) == 3
    return process


def left(folder: Path) -> list[int]:
    """The processes of a run that are there: torchrun and its two."""
    lines = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in lines.splitlines() if "tunewright.launch._worker" in line]
    return sorted(int(pid) for pid, *words in found if str(folder) in words)


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def same_metrics(one: Any, two: Any) -> None:
    assert len(one.metrics) == len(two.metrics)
    for mine, other in zip(map(flat, one.metrics), map(flat, two.metrics), strict=True):
        margins = [line.pop("reward_margin", 0.0) for line in (mine, other)]  # differences of sums of tens of nats
        assert margins[1] == pytest.approx(margins[0], rel=2e-6, abs=1e-5)
        assert other == pytest.approx(mine, rel=2e-6, abs=1e-6)


def flat(line: dict[str, Any]) -> dict[str, float]:
    return {**{k: v for k, v in line.items() if k != "validation"}, **line.get("validation", {})}


def same_weights(one: Any, two: Any) -> None:
    """To 1e-6, but for those that Adam moves by chance, since it divides a gradient of rounding errors by its own size.

    The bias of attention's keys is one such: it moves all scores alike, so its gradient is 0.
    """
    for path in (one.folder / "model").glob("*.safetensors"):
        mine, other = load_file(path), load_file(two.folder / "model" / path.name)
        assert mine.keys() == other.keys()
        kept = [name for name in mine if not name.endswith("key.bias")]
        apart = sum(int(((mine[n] - other[n]).abs() > 1e-6 * (1 + mine[n].abs())).sum()) for n in kept)
        assert apart <= 1e-3 * sum(mine[n].numel() for n in kept)
