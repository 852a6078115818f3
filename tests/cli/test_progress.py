"""What is printed while a run goes on, with and without a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tunewright.cli import _progress
from tunewright.cli._progress import _Bar, _Lines

STARTED = {
    "task": "text-classification",
    "method": {"type": "lora"},
    "base": "some/base",
    "parameters": {
        "trained": 1_000,
        "total": 100_000,
        "share": 0.01,
        "names": [f"part.{i}: 2 × 3×4" for i in range(14)],
    },
    "data": {"train": {"rows": 1_200, "tokens": 9_000}, "validation": {"rows": 100, "tokens": 800}},
    "notices": ["A new head."],
}


def step(number: int) -> dict[str, Any]:
    speed = {"tokens_per_second": 1234.5, "rows_per_second": 2.25}
    return {"step": number, "total": 3, "epoch": number / 3, "loss": 0.5, **speed, "eta": 75.0}


LINES = [{"started": STARTED}, step(1), step(2), step(3), {"step": 3, "validation": {"loss": 0.4, "accuracy": 0.91}}]


def test_images_are_counted_as_such_and_a_module_has_its_factory(capsys: pytest.CaptureFixture[str]) -> None:
    images = {**STARTED, "data": {"train": {"rows": 12}}, "factory": {"name": "nets:make"}}
    watcher = _Lines()
    for line in ({"started": images}, step(1)):
        watcher(line)
    found = capsys.readouterr().err
    assert "  2.2 images/s  " in found and "on nets:make" in found and "some/base" not in found


def test_rows_are_counted_without_those_that_were_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    _progress.say_started({**STARTED, "data": {"train": {"rows": 5, "overlength": {"dropped": 1, "truncated": 2}}}})
    assert "Rows: train 4\n" in capsys.readouterr().err


def test_lines_name_the_first_and_last_step(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = _Lines()
    for line in LINES:
        watcher(line)
    found = capsys.readouterr().err
    assert "Trains 1,000 of 100,000 parameters (1 %):" in found and "… and 2 more kinds" in found
    assert "Rows: train 1,200, validation 100" in found and "Note: A new head." in found
    assert "Step 1/3  epoch 0.33  loss 0.500  1,234 tokens/s  ETA 1\u00a0min 15\u00a0s" in found
    assert "Step 2/3" not in found and "Step 3/3" in found
    assert "Validation after step 3 (epoch 1.00): loss 0.400, accuracy 91.0\u00a0%" in found


def test_names_that_differ_at_their_ends() -> None:
    """Are cut in the middle; the two matrices of a LoRA are one row, and others stay as they are."""
    block = "down_blocks.*.attentions.*.transformer_blocks.*.attn1"
    names = [
        f"{block}.{layer}.lora_{letter}.weight: 8 × {shape}"
        for layer in ("to_q", "to_k")
        for letter, shape in (("A", "4×320"), ("B", "320×4"))
    ]
    names += ["conv.lora_A.weight: 2 × 4×8", "conv.lora_B.weight: 1 × 8×4", "lora_B.weight: 1 × 3×4"]
    stream = io.StringIO()
    console = Console(file=stream, width=60, highlight=False, markup=False)
    _progress.say_trained({**STARTED["parameters"], "names": names}, "title", console)
    rows = [line.split(maxsplit=4) for line in stream.getvalue().splitlines()[4:]]
    assert len(rows) == 5 and max(map(len, stream.getvalue().splitlines())) <= 60
    assert [row[:4] for row in rows[:2]] == [["8", "×", "4×320,", "320×4"]] * 2
    assert rows[0][4].startswith("down_blocks.*") and rows[0][4].rstrip().endswith("attn1.to_q.lora_A, lora_B")
    assert rows[1][4].rstrip().endswith("attn1.to_k.lora_A, lora_B") and rows[1][4].count("…") == 1
    assert [row[-1].strip() for row in rows[2:]] == ["conv.lora_A.weight", "conv.lora_B.weight", "lora_B.weight"]


def test_lines_come_every_so_often(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)
    watcher = _Lines()
    watcher(step(2))
    assert "Step 2/3" in capsys.readouterr().err


def test_the_bar_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, highlight=False, markup=False, no_color=True)
    monkeypatch.setattr(_progress, "err", lambda: console)
    with _Bar() as bar:
        for line in LINES:
            bar(line)
            bar.progress.refresh()
    found = stream.getvalue()
    assert "Preparing" in found and "Step 2/3" in found and "Measuring" in found
    assert "Validation after step 3" in found and "ETA 1\u00a0min 15\u00a0s" in found
