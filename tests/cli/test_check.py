"""`check`: what is shown, as a document and at 80 columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.cli.conftest import Invoke
from tunewright import rehearsal


def test_check(invoke: Invoke, encoder: str, rows: Path, tmp_path: Path) -> None:
    arguments = ["check", "--base", encoder, "--data", rows / "tickets.jsonl", "data.validation=0.25"]
    plain, document = invoke(*arguments), json.loads(invoke(*arguments, "--json").stdout)
    assert plain.exit_code == 0, plain.output
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    assert document["repeats"]["duplicates"]["exact"]["count"] == 9 and document["forecast"]["memory"]["fits"]
    for said in ("Trains ", "Longest", "rows stand in the training rows before, word for word",
                 "Time    ", "Memory  ", "Disk    ", "It fits."):  # fmt: skip
        assert said in plain.stdout, said
    unwrapped = ("text-classification", "Note: ")  # they may hold a path to be copied
    assert all(len(line) <= 80 for line in plain.stdout.splitlines() if not line.startswith(unwrapped))
    assert "⟦ → billing⟧" in plain.stdout, "a classifier's label is what trains"


def test_trained_tokens_are_marked_where_there_is_no_colour(invoke: Invoke, decoder: str, rows: Path) -> None:
    done = invoke("check", "--base", decoder, "--data", rows / "talk.jsonl", "evaluation.generate=0")
    assert done.stdout.count("⟦This one.") == 3
    assert "⟦Which" not in done.stdout


def test_mirrored_images_are_told(
    invoke: Invoke, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    random = np.random.default_rng(0)
    for i in range(6):
        image = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((90, 70))
        image.save(_made(tmp_path / "rows" / "ab"[i % 2] / f"{i}.png"))
    ImageOps.mirror(image).save(tmp_path / "rows" / "b" / "mirrored.png")
    done = invoke("check", "--base", tiny_base("resnet"), "--data", tmp_path / "rows", "data.validation=0")
    told = "train: 1 of 7 rows are nearly like an earlier training row, 1 of them mirrored (mirrored.png and 5.png"
    assert told in " ".join(done.stdout.split()), done.output


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_does_not_fit(invoke: Invoke, decoder: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "available", lambda _: 1000)
    done = invoke("check", "--base", decoder, "--data", rows / "talk.jsonl", "--method", "full")
    assert done.exit_code == 0 and "It does not fit. What would help:" in done.stdout
    assert "over 1\xa0MiB of 0\xa0MiB" in done.stdout and "- method: lora trains" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to train"),
        (["--base", "nowhere", "--data", "none.jsonl"], "none.jsonl"),
        (["recipe.yaml"], "no recipe"),
        (["--base", "x", "--data", "y", "training.epoch=1"], "Did you mean epochs?"),
    ],
)
def test_wrong_options(invoke: Invoke, arguments: list[Any], said: str) -> None:
    done = invoke("check", *arguments)
    assert done.exit_code == 2 and said in done.stderr
