"""`tw.check`: what a recipe would do, for every task and method, and what it says where it would not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.contracts.test_methods import CASES
from tests.runs import recipe
from tests.tiny import completions, labelled
from tunewright import rehearsal
from tunewright.engine import checkpoint
from tunewright.errors import DataError, RecipeError
from tunewright.forecast import forecast as forecasting
from tunewright.forecast import meter
from tunewright.forecast.meter import Cost, available

PAIRS = [
    *(("text-generation", name) for name in ("lora", "full", "freeze", "head", "adapter", "dora", "prefix")),
    *(("text-classification", name) for name in ("lora", "full", "head", "adapter")),
    *(("image-classification", name) for name in ("lora", "full")),
]
BASES = {"text-generation": "llama", "text-classification": "bert", "image-classification": "resnet"}
QUICK = {"epochs": 1}


@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_what_is_said_is_what_the_run_records(task: str, name: str, tiny_base: Any, tmp_path: Path) -> None:
    document = recipe(tiny_base(BASES[task]), tmp_path / "run", task=task, method=CASES[name], training=QUICK)
    said = tw.check(document)
    assert not (tmp_path / "run").exists(), "nothing is left behind"
    run = tw.train(document)
    assert said["parameters"] == run.info["parameters"] and said["data"] == run.info["data"]
    assert said["steps"] == run.info["steps"]
    assert json.loads(json.dumps(said["preview"])) == run.info["preview"]
    cost = said["forecast"]
    assert cost["memory"]["fits"] and said["advice"] == []
    assert 0.7 < cost["memory"]["peak"] / run.info["peak_memory"] < 1.5
    assert cost["time"]["seconds"] > 0 and cost["time"]["probes"] >= 1
    assert set(cost["time"]["phases"]) >= {"training", "training: validation", "checkpoints", "answers after"}


def test_the_account_of_phases(tiny_base: Any, tmp_path: Path) -> None:
    training = {"epochs": 2, "head_first": 1}
    evaluation = {"before": True}
    base = tiny_base("bert")
    document = recipe(base, tmp_path / "run", task="text-classification", training=training, evaluation=evaluation)
    phases = tw.check(document)["forecast"]["time"]["phases"]
    assert {"answers before", "head first", "head first: validation"} <= set(phases)
    talk = recipe(
        tiny_base("llama"), tmp_path / "run", evaluation={"before": True, "generate": 2, "max_new_tokens": 40}
    )
    found = tw.check(talk)["forecast"]["time"]
    assert found["phases"]["answers before"] > found["phases"]["answers after"], "a base may go on for 40 tokens"
    assert found["seconds"] == pytest.approx(sum(found["phases"].values()))


def test_what_frozen_blocks_compute_counts_once(tiny_base: Any, tmp_path: Path) -> None:
    """And its memory, where most of it is still to be filled."""
    document = recipe(tiny_base("llama"), tmp_path / "run", method="freeze", data={"train": completions(80)})
    found = tw.check(document)
    assert "training: frozen blocks" in found["forecast"]["time"]["phases"]
    assert any("is kept for later epochs" in notice for notice in found["notices"])
    one = recipe(tiny_base("llama"), tmp_path / "run", method="freeze", training={"epochs": 1})
    assert "training: frozen blocks" not in tw.check(one)["forecast"]["time"]["phases"], "no row comes twice"
    run = tw.train(document)
    assert set(found["notices"]) <= set(run.info["notices"])


def test_each_checkpoint_counts(tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as the run writes one, and once more for reading one back at the end."""
    document = recipe(tiny_base("llama"), tmp_path / "run", training={"checkpoint_every": 3, "evaluate_every": 4})
    monkeypatch.setattr(forecasting, "probe_checkpoint", lambda step: (Cost(1.0, 2.0, 7), 100))
    found = tw.check(document)["forecast"]
    written: list[int] = []
    real = checkpoint.write
    monkeypatch.setattr(
        checkpoint, "write", lambda folder, step, *state: (written.append(step), real(folder, step, *state))
    )
    tw.train(document)
    assert len(written) > 2 and found["time"]["phases"]["checkpoints"] == len(written) + 1


def test_seeds_take_their_time_each(tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("llama")
    one = tw.check(recipe(base, tmp_path / "run"))["forecast"]["time"]
    three = tw.check(recipe(base, tmp_path / "run", training={"seeds": [1, 2, 3]}))["forecast"]["time"]
    assert three["seconds"] == pytest.approx(3 * sum(three["phases"].values()))
    assert one["seconds"] == pytest.approx(sum(one["phases"].values()))


def test_what_train_refuses_check_refuses_in_the_same_words(tiny_base: Any, tmp_path: Path) -> None:
    bad = {"train": [{"prompt": "a", "completion": 3}, {"prompt": 1, "completion": "b"}]}
    document = recipe(tiny_base("llama"), tmp_path / "run", data=bad)
    with pytest.raises(DataError) as checked:
        tw.check(document)
    with pytest.raises(DataError) as trained:
        tw.train(document)
    assert str(checked.value) == str(trained.value) and len(checked.value.faults) == 3
    with pytest.raises(RecipeError, match="head_first"):
        tw.check(recipe(tiny_base("llama"), tmp_path / "run", training={"head_first": 1}))


def test_repeated_rows_are_named(tiny_base: Any, tmp_path: Path) -> None:
    rows = labelled(20)
    data = {"train": [*rows, rows[0]], "validation": [rows[3]]}
    found = tw.check(recipe(tiny_base("bert"), tmp_path / "run", task="text-classification", data=data))["repeats"]
    assert found["duplicates"]["exact"]["count"] >= 1 and found["leaks"]["validation"]["exact"]["count"] == 1


def test_a_rate_that_would_diverge_out_of_order_does_no_harm(tiny_base: Any, tmp_path: Path) -> None:
    """Steps are tried at hardly any rate, so that what they cost can be seen."""
    document = recipe(tiny_base("llama"), tmp_path / "run", method="full", training={"learning_rate": 1e8, "warmup": 0})
    assert tw.check(document)["forecast"]["memory"]["fits"]


def test_without_rows_to_measure_on(tiny_base: Any, tmp_path: Path) -> None:
    document = recipe(tiny_base("llama"), tmp_path / "run", data={"validation": 0})
    phases = tw.check(document)["forecast"]["time"]["phases"]
    assert set(phases) == {"training", "checkpoints", "answers after"} and phases["answers after"] == 0


def test_a_run_as_base_and_two_processes(tiny_base: Any, tmp_path: Path) -> None:
    first = tw.train(recipe(tiny_base("llama"), tmp_path / "first"))
    found = tw.check(recipe(str(first.folder), tmp_path / "then", training={"processes": 2}))
    one = tw.check(recipe(str(first.folder), tmp_path / "then"))
    assert found["forecast"]["memory"]["phases"]["training"] > 1.5 * one["forecast"]["memory"]["phases"]["training"]
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


# Where there is no room


def with_room(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    for module in (rehearsal, forecasting):
        monkeypatch.setattr(module, "available", lambda device: room)


def test_a_model_that_cannot_fit_is_not_loaded(tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_room(monkeypatch, 1000)
    monkeypatch.setattr(rehearsal, "rehearsed", lambda *_: pytest.fail("it was loaded"))
    found = tw.check(recipe(tiny_base("llama"), tmp_path / "run", method="full"))
    assert not found["forecast"]["memory"]["fits"] and "time" not in found["forecast"] and found["steps"] is None
    assert found["data"]["train"]["rows"] == 12 and found["repeats"]["leaks"]
    assert "needs at least" in found["advice"][0] and any("method: lora" in line for line in found["advice"])
    total, trained = (found["parameters"][name] for name in ("total", "trained"))
    assert found["forecast"]["memory"]["peak"] == 4 * total + 12 * trained


def test_a_step_that_has_no_room_is_not_taken(tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small step shows what the largest would need; it is left out, and the forecast says so."""
    rows = [*completions(11), {"prompt": "a " * 60, "completion": "b " * 60}]
    document = recipe(
        tiny_base("llama"), tmp_path / "run", data={"train": rows}, training={"micro_batch_tokens": "auto"}
    )
    steps = tw.check(document)  # warm: libraries are loaded
    taken: list[set[int]] = []
    before = available(tiny_device())
    with_room(monkeypatch, meter.available(tiny_device()) - before + 2**20 * 10)
    from tunewright.engine.loop import Step

    real = Step.take
    monkeypatch.setattr(
        Step, "take", lambda step: (taken.append({step.job.lengths[i] for i in _rows(step)}), real(step))[1]
    )
    found = tw.check(document)
    assert steps["forecast"]["memory"]["fits"] and not found["forecast"]["memory"]["fits"]
    assert taken and found["data"]["train"]["longest"] not in set().union(*taken) and found["advice"]


def _rows(step: Any) -> list[int]:
    """Of the step that is taken next."""
    return list(step.job.plan[step.state.step][1])


def tiny_device() -> Any:
    import torch

    return torch.device("cpu")
