"""A run that was interrupted ends, bit for bit, as it would have without."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import tunewright as tw
from tests.runs import CONTRARY, left_behind, recipe, stop_at
from tunewright.engine import checkpoint
from tunewright.errors import BaseModelError, CheckpointError, DataError, Interrupted, RecipeError

BERT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
ENCODER: dict[str, Any] = {"task": "text-classification"}
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora with dropout": {"method": {"type": "lora", "rank": 4, "dropout": 0.3}},
    "pissa": {"method": {"type": "lora", "rank": 4, "init": "pissa"}},
    "full": {"method": "full", **ENCODER},
    "freeze": {"method": {"type": "freeze", "last": 2}, **ENCODER},
    "head": {"method": "head", **ENCODER},
    "adapter": {"method": {"type": "adapter", "width": 4}, **ENCODER},
    "prompt": {"method": {"type": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}}},
    "new tokens": {"data": {"special_tokens": ["<a>"]}},
    "accumulation": {"training": {"micro_batch_tokens": 16}},
    "packing": {"training": {"packing": True}},
    "average": {"training": {"ema": 0.9}},
    # the first evaluation is the best, so that patience has been used up in part when the run is cut
    "patience": {**CONTRARY, "training": {"patience": 4, "evaluate_every": 1, "learning_rate": 0.003}},
    "last": {"training": {"keep": "last", "evaluate_every": 3}},
    "head first": {"training": {"head_first": 1}, **ENCODER},  # cut while the head trains
    "after the head": {"training": {"head_first": 0.5, "ema": 0.9}, "method": "full", **ENCODER},
    "adafactor": {"training": {"optimizer": "adafactor"}},
    "8 bits": {"training": {"optimizer": "adamw8bit"}, "method": "full"},
    "activation checkpointing": {"training": {"activation_checkpointing": True}, "method": "full"},
    "layer decay": {"training": {"layer_decay": 0.5}, "method": "full", **ENCODER},
    # goes on from step 2, behind which one more depth trains
    "gradual unfreezing": {
        "training": {"gradual_unfreezing": 0.5, "epochs": 3, "ema": 0.9, "weight_decay": 0.1},
        "method": "full",
        **ENCODER,
    },
    "states kept": {"method": {"type": "freeze", "last": 1}, "training": {"epochs": 3}},
    "bf16": {"training": {"precision": "bf16"}},
    # the likelihoods at the start are computed anew, before the checkpoint is loaded
    "dpo": {"objective": "preference", "training": {"ema": 0.9, "micro_batch_tokens": 40}},
    "kto": {"objective": {"type": "preference", "loss": "kto"}, "method": "full", "training": {"learning_rate": 1e-3}},
    "pissa and ipo": {
        "objective": {"type": "preference", "loss": "ipo"},
        "method": {"type": "lora", "rank": 4, "init": "pissa"},
    },
    "reward": {"objective": {"type": "reward", "centring": 0.1}, **ENCODER},
}


class Cut(Exception):
    """The interruption."""


def cut() -> None:
    raise Cut


@pytest.fixture
def base(tiny_base: Any) -> Any:
    def choose(changes: dict[str, Any]) -> str:
        return tiny_base("bert", **BERT) if "task" in changes else tiny_base("llama", attention_dropout=0.1)

    return choose


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_an_interrupted_run_ends_as_if_it_had_not_been(changes: dict[str, Any], base: Any, tmp_path: Path) -> None:
    if changes.get("training", {}).get("optimizer") == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    changes = {**changes, "training": {"checkpoint_every": 2, **changes.get("training", {})}}
    whole = tw.train(recipe(base(changes), tmp_path / "whole", **changes))
    with pytest.raises(Cut):
        tw.train(recipe(base(changes), tmp_path / "cut", **changes), watchers=[stop_at(4, cut)])
    run = tw.resume(tmp_path / "cut")
    assert left_behind(run.folder) == left_behind(whole.folder)
    assert run.info["best"] == whole.info["best"]
    assert run.info["weights"] == whole.info["weights"]
    assert run.info["status"] == "finished"


@pytest.mark.parametrize("step", [1, 3, 8])
def test_sigterm_ends_the_step_and_saves(step: int, base: Any, tmp_path: Path) -> None:
    whole = tw.train(recipe(base({}), tmp_path / "whole"))
    with pytest.raises(Interrupted):
        tw.train(
            recipe(base({}), tmp_path / "cut"), watchers=[stop_at(step, lambda: os.kill(os.getpid(), signal.SIGTERM))]
        )
    assert tw.open_run(tmp_path / "cut").info["status"] == "stopped"
    assert checkpoint.steps(tmp_path / "cut" / "checkpoints")[-1] == step
    assert left_behind(tw.resume(tmp_path / "cut").folder) == left_behind(whole.folder)


def test_a_second_signal_ends_at_once(base: Any, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as raised:
        tw.train(recipe(base({}), tmp_path / "cut"), watchers=[stop_at(3, twice)])
    assert not isinstance(raised.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


KILLED = """
import os, sys
import tunewright as tw
from tests.runs import stop_at
tw.train(tw.read_recipe(sys.argv[1]), watchers=[stop_at(6, lambda: os.kill(os.getpid(), 9))])
"""


def test_kill_9(base: Any, tmp_path: Path) -> None:
    """Nothing runs after it: no handler, no `finally`."""
    whole = tw.train(recipe(base({}), tmp_path / "whole", training={"checkpoint_every": 2}))
    document = tmp_path / "recipe.yaml"
    document.write_text(recipe(base({}), tmp_path / "cut", training={"checkpoint_every": 2}).to_yaml())
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(document)], cwd=Path(__file__).parents[2], capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert tw.open_run(tmp_path / "cut").info["status"] == "running"
    assert left_behind(tw.resume(tmp_path / "cut").folder) == left_behind(whole.folder)


def broken_run(base: Any, folder: Path, **training: Any) -> Path:
    with pytest.raises(Cut):
        tw.train(recipe(base({}), folder, training={"checkpoint_every": 2, **training}), watchers=[stop_at(7, cut)])
    return folder / "checkpoints"


@pytest.mark.parametrize("damage", ["a byte", "cut short", "no numbers", "half-written numbers", "another number"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, base: Any, tmp_path: Path) -> None:
    whole = tw.train(recipe(base({}), tmp_path / "whole", training={"checkpoint_every": 2}))
    newest = broken_run(base, tmp_path / "cut") / "step-6"
    tensors, numbers = newest / checkpoint.TENSORS, newest / checkpoint.NUMBERS
    if damage == "a byte":
        content = bytearray(tensors.read_bytes())
        content[-5] ^= 1
        tensors.write_bytes(content)
    elif damage == "cut short":
        tensors.write_bytes(tensors.read_bytes()[:100])
    elif damage == "no numbers":
        numbers.unlink()
    elif damage == "another number":
        numbers.write_text(numbers.read_text().replace('"step": 6', '"step": 7'))
    else:
        numbers.write_text(numbers.read_text()[:20])
    said: list[str] = []
    run = tw.resume(tmp_path / "cut", watchers=[lambda line: said.extend(line.get("started", {}).get("notices", ()))])
    assert left_behind(run.folder) == left_behind(whole.folder)
    assert [notice for notice in run.info["notices"] if "step-6 is damaged" in notice and "before it is used" in notice]
    assert [notice for notice in said if "step-6 is damaged" in notice], "said before training goes on"


def test_no_flipped_bit_is_taken_for_a_checkpoint(tmp_path: Path) -> None:
    """In neither of its files, unless it reads the same: 1 and 1.0, or a space more."""
    numbers = {"best": {"step": 2, "loss": 4.75}, "stale": 0, "optimizer": {"w": {"step": 2}}, "scaler": {}}
    folder = checkpoint.write(tmp_path, 2, {"w": torch.arange(3.0)}, numbers)
    whole = checkpoint.read(folder)[1]
    for path in folder.iterdir():
        content = path.read_bytes()
        for place, bit in product(range(len(content)), range(8)):
            path.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :])
            try:
                assert checkpoint.read(folder)[1] == whole, (path.name, place, bit)
            except CheckpointError:
                continue
        path.write_bytes(content)


def test_where_no_checkpoint_is_whole_the_way_on_is_named(base: Any, tmp_path: Path) -> None:
    folder = broken_run(base, tmp_path / "cut")
    for numbers in folder.glob("*/state.json"):
        numbers.write_text("{}")
    with pytest.raises(CheckpointError, match=r"step-6 is damaged.*step-4 is damaged.*new folder") as found:
        tw.resume(tmp_path / "cut")
    assert "before it is used" not in str(found.value)


def test_a_draft_is_no_checkpoint(base: Any, tmp_path: Path) -> None:
    folder = broken_run(base, tmp_path / "cut")
    (folder / "step-6").rename(folder / ".step-6.draft")
    assert checkpoint.newest(folder)[1]["step"] == 4


def test_what_a_killed_process_left_of_a_model_is_removed(base: Any, tmp_path: Path) -> None:
    broken_run(base, tmp_path / "cut")
    left = tmp_path / "cut" / ".model.x7.draft"
    (left / "model").mkdir(parents=True)
    tw.resume(tmp_path / "cut")
    assert not left.exists()


def test_without_a_checkpoint_it_begins_again(base: Any, tmp_path: Path) -> None:
    whole = tw.train(recipe(base({}), tmp_path / "whole"))
    with pytest.raises(Cut):
        tw.train(recipe(base({}), tmp_path / "cut"), watchers=[stop_at(2, cut)])
    assert not checkpoint.steps(tmp_path / "cut" / "checkpoints")
    assert left_behind(tw.resume(tmp_path / "cut").folder) == left_behind(whole.folder)


def test_what_begins_again_is_measured_before(base: Any, tmp_path: Path) -> None:
    """It was stopped before the base had been measured."""
    with pytest.raises(Cut):
        tw.train(recipe(base({}), tmp_path / "cut", evaluation={"generate": 0}), watchers=[lambda line: cut()])
    assert "before" in tw.resume(tmp_path / "cut").info["evaluation"]["validation"]


def test_the_last_two_and_the_best_are_kept(base: Any, tmp_path: Path) -> None:
    training = {"checkpoint_every": 1, "evaluate_every": 1, "learning_rate": 0.003}
    run = tw.train(recipe(base(CONTRARY), tmp_path / "run", training=training, **CONTRARY))
    best = min((line["validation"]["loss"], line["step"]) for line in run.metrics if "validation" in line)[1]
    assert run.info["best"]["step"] == best < 7
    assert checkpoint.steps(run.folder / "checkpoints") == [best, 7, 8]


@pytest.mark.parametrize("which", ["train", "validation"])
def test_other_rows_are_refused(which: str, base: Any, tmp_path: Path) -> None:
    rows = recipe(base({}), tmp_path).data.model_dump()
    data = {}
    for name in ("train", "validation"):
        data[name] = str(tmp_path / f"{name}.jsonl")
        Path(data[name]).write_text("\n".join(map(json.dumps, rows[name])))
    with pytest.raises(Cut):
        tw.train(recipe(base({}), tmp_path / "cut", data=data), watchers=[stop_at(5, cut)])
    Path(data[which]).write_text("\n".join(map(json.dumps, rows[which][1:])))
    with pytest.raises(DataError, match=rf"{which}.*began with"):
        tw.resume(tmp_path / "cut")
    Path(data[which]).write_text("\n".join(map(json.dumps, rows[which])))
    assert tw.resume(tmp_path / "cut").info["status"] == "finished"


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("optimizer: adamw", "optimizer: adafactor", "training.optimizer: adafactor, but the run began with adamw"),
        ("learning_rate: 0.01", "learning_rate: auto", "training.learning_rate: auto, but the run began with 0.01"),
        ("rank: 4", "rank: 2", "method.rank: 2, but the run began with 4"),
    ],
)
def test_another_recipe_is_refused(old: str, new: str, said: str, base: Any, tmp_path: Path) -> None:
    document = broken_run(base, tmp_path / "cut").parent / "recipe.yaml"
    before = tw.open_run(tmp_path / "cut").info
    written = document.read_text()
    document.write_text(written.replace(old, new))
    with pytest.raises(RecipeError, match=rf"as it began.* base: {tmp_path / 'cut'}\. Put these back in ") as raised:
        tw.resume(tmp_path / "cut")
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [said]
    assert tw.open_run(tmp_path / "cut").info == before, "a refusal changes nothing"
    document.write_text(written)
    assert tw.resume(tmp_path / "cut").info["status"] == "finished"


def test_a_held_out_share_that_changed_is_refused(base: Any, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        tw.train(recipe(base({}), tmp_path / "cut", data={"validation": 0.2}), watchers=[stop_at(4, cut)])
    document = tmp_path / "cut" / "recipe.yaml"
    document.write_text(document.read_text().replace("validation: 0.2", "validation: 0.4"))
    with pytest.raises(RecipeError, match=r"data\.validation: 0\.4"):
        tw.resume(tmp_path / "cut")


def test_a_run_that_goes_on_elsewhere_says_so(base: Any, tmp_path: Path) -> None:
    """Another version, another machine, and rows that lie elsewhere: none of it is an error."""
    rows = recipe(base({}), tmp_path).data.train
    for name in ("here", "there"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(Cut):
        tw.train(
            recipe(base({}), tmp_path / "cut", data={"train": str(tmp_path / "here.jsonl")}),
            watchers=[stop_at(5, cut)],
        )
    (tmp_path / "here.jsonl").unlink()
    document, info = tmp_path / "cut" / "recipe.yaml", tmp_path / "cut" / "run.json"
    changed = (
        document.read_text()
        .replace("here.jsonl", "there.jsonl")
        .replace("micro_batch_tokens: 64", "micro_batch_tokens: 32")
    )
    document.write_text(changed)
    info.write_text(info.read_text().replace(f'"torch": "{version("torch")}"', '"torch": "1.0"'))
    run = tw.resume(tmp_path / "cut")
    notice = next(n for n in run.info["notices"] if n.startswith("Resumed elsewhere"))
    assert f"torch: {version('torch')}, but the run began with 1.0" in notice
    assert "micro_batch_tokens: 32, but the run began with 64" in notice and "processor" not in notice
    assert run.info["versions"]["torch"] == version("torch")


def test_the_seconds_of_all_parts_are_added_up(base: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        tw.train(
            recipe(base({}), tmp_path / "cut"), watchers=[stop_at(3, lambda: os.kill(os.getpid(), signal.SIGTERM))]
        )
    path = tmp_path / "cut" / "run.json"
    info = json.loads(path.read_text())
    assert info["timings"]["seconds"] > 0 and info["error"] is None
    path.write_text(json.dumps({**info, "timings": {"seconds": 1000.0, "cpu_seconds": 2000.0}}))
    timings = tw.resume(tmp_path / "cut").info["timings"]
    assert 1000 < timings["seconds"] < 1100 and 2000 < timings["cpu_seconds"] < 2100


def test_a_run_in_one_go_has_nothing_to_say_of_its_place(base: Any, tmp_path: Path) -> None:
    with pytest.raises(Cut):
        tw.train(recipe(base({}), tmp_path / "cut"), watchers=[stop_at(5, cut)])
    assert not any("elsewhere" in notice for notice in tw.resume(tmp_path / "cut").info["notices"])


def test_a_finished_run_stays_as_it_is(base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(base({}), tmp_path / "run"))
    before = left_behind(run.folder)
    assert left_behind(tw.resume(run.folder).folder) == before


@pytest.mark.parametrize("changes", [{}, {"training": {"ema": 0.9, "patience": 1, "epochs": 3}}])
def test_a_model_that_is_gone_is_written_again(changes: dict[str, Any], base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(base({}), tmp_path / "run", **changes))
    before, info = left_behind(run.folder), run.info
    shutil.rmtree(run.folder / "model")
    with pytest.raises(BaseModelError, match=r"model/ of the finished run .* is gone.*tunewright resume"):
        tw.load(run.folder)
    again = tw.resume(run.folder)
    assert left_behind(again.folder) == before
    assert {**again.info, **dict.fromkeys(PASSING)} == {**info, **dict.fromkeys(PASSING)}


PASSING = ("finished", "timings", "peak_memory")


def test_weights_that_are_lost_are_not_trained_again_unasked(base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(base({}), tmp_path / "run"))
    for name in ("model", "checkpoints"):
        shutil.rmtree(run.folder / name)
    before = run.info
    with pytest.raises(CheckpointError, match=r"weights are lost.*tunewright train .*recipe\.yaml"):
        tw.resume(run.folder)
    assert run.info == before


def test_timings_are_kept_apart(base: Any, tmp_path: Path) -> None:
    """metrics.jsonl is the same whenever it is written; seconds are in timings.jsonl."""
    one = tw.train(recipe(base({}), tmp_path / "one"))
    time.sleep(0.01)
    two = tw.train(recipe(base({}), tmp_path / "two"))
    assert left_behind(one.folder) == left_behind(two.folder)
    assert "seconds" in (one.folder / "timings.jsonl").read_text()
