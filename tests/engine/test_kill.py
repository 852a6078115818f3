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
from tunewright.folder import INFO

KILLS = 17  # of each case: 51 in all
BERT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}
OFTEN = {"checkpoint_every": 1, "micro_batch_tokens": 24}  # accumulation, and a checkpoint in every other instant
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": {"type": "lora", "rank": 4, "dropout": 0.3}, "training": {**OFTEN, "ema": 0.9}},
    "full": {**CONTRARY, "method": "full",
             "training": {**OFTEN, "patience": 4, "evaluate_every": 1, "learning_rate": 0.003}},
    "freeze": {"task": "text-classification", "method": {"type": "freeze", "last": 2},
               "training": {**OFTEN, "head_first": 1, "keep": "last"}},
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
            kills += 1
            if not (folder / INFO).exists():  # killed before the first word: nothing but an empty folder may be left
                assert all(path.name in (".lock", "start") or path.name.startswith(".") for path in folder.glob("*"))
                break
        else:
            assert left_behind(folder) == left_behind(whole.folder)
            assert tw.open_run(folder).info["best"] == whole.info["best"]
            assert tw.open_run(folder).info["weights"] == whole.info["weights"]
        attempts += 1
        assert attempts < 10 * KILLS
