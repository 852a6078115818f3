"""SIGKILL at random instants, again and again: the run that is resumed ends bit for bit like one that never stopped.

Children are forked from this process, which has imported everything already, so that a kill costs a second and not ten.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.runs import CONTRARY, left_behind, recipe
from tunewright.engine import checkpoint
from tunewright.folder import INFO

KILLS = 17  # of each case, of runs that have begun: 68 in all
BERT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
OFTEN = {"checkpoint_every": 1, "micro_batch_tokens": 24}  # accumulation, and a checkpoint in every other instant
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": {"type": "lora", "rank": 4, "dropout": 0.3}, "training": {**OFTEN, "ema": 0.9}},
    "full": {**CONTRARY, "method": "full",
             "training": {**OFTEN, "patience": 4, "evaluate_every": 1, "learning_rate": 0.003}},
    "freeze": {"task": "text-classification", "method": {"type": "freeze", "last": 2},
               "training": {**OFTEN, "head_first": 1, "keep": "last"}},
    "ppo": {"method": {"type": "lora", "rank": 4}, "training": OFTEN,
            "objective": {"type": "rl", "algorithm": "ppo", "passes": 2, "parts": 2, "max_new_tokens": 5,
                          "kl_target": 0.1, "rewards": [{"type": "pattern", "pattern": "a"}]}},
}  # fmt: skip


def train_or_resume(folder: Path, document: Any) -> None:
    """In a forked child: go on with what there is."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if (folder / INFO).exists():
        tw.resume(folder)
    else:
        tw.train(document)


def killed(folder: Path, document: Any, after: float) -> bool:
    """Whether a child that was given `after` seconds had to be killed."""
    child = multiprocessing.get_context("fork").Process(target=train_or_resume, args=(folder, document))
    child.start()
    child.join(after)
    if child.exitcode is None:
        os.kill(child.pid, signal.SIGKILL)  # type: ignore[arg-type]
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL), child.exitcode
    return child.exitcode != 0


def killed_while_writing(folder: Path, document: Any, call: int) -> None:
    """A child that ends itself at a call of `checkpoint._sync`: the fourth for each checkpoint is after its naming."""

    def work() -> None:
        left, real = [call], checkpoint._sync

        def sync(path: Path) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            real(path)

        checkpoint._sync = sync
        train_or_resume(folder, document)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL


def test_a_run_that_is_killed_while_a_checkpoint_is_written(tiny_base: Any, tmp_path: Path) -> None:
    """Before each of its files is safe, before it has its name, and after; then again as it goes on."""
    base = tiny_base("llama", attention_dropout=0.1)
    whole = tw.train(recipe(base, tmp_path / "whole", **CASES["lora"]))
    for call in range(1, 5):
        folder = tmp_path / f"run-{call}"
        document = recipe(base, folder, **CASES["lora"])
        for again in range(2):
            killed_while_writing(folder, document, call + 4 * again)
            place = folder / "checkpoints"
            assert bool(list(place.glob(".step-*.draft"))) == (call < 4)
            assert again or bool(checkpoint.steps(place)) == (call == 4)
        tw.resume(folder)
        assert left_behind(folder) == left_behind(whole.folder)


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_is_killed_at_any_instant_ends_as_if_it_had_not_been(
    name: str, tiny_base: Any, tmp_path: Path
) -> None:
    changes = CASES[name]
    base = tiny_base("bert", **BERT) if "task" in changes else tiny_base("llama", attention_dropout=0.1)
    began = time.perf_counter()
    whole = tw.train(recipe(base, tmp_path / "whole", **changes))
    length, draw = time.perf_counter() - began, random.Random(name)
    kills = attempts = 0
    while kills < KILLS:
        folder = tmp_path / f"run-{attempts}"
        document = recipe(base, folder, **changes)
        while killed(folder, document, draw.uniform(0.02, length)):
            kills += (folder / INFO).exists()
            if not (folder / INFO).exists():  # killed before the first word: nothing but an empty folder may be left
                assert all(path.name in (".lock", "start") or path.name.startswith(".") for path in folder.glob("*"))
                break
        else:
            assert left_behind(folder) == left_behind(whole.folder)
            assert tw.open_run(folder).info["best"] == whole.info["best"]
            assert tw.open_run(folder).info["weights"] == whole.info["weights"]
        attempts += 1
        assert attempts < 10 * KILLS
