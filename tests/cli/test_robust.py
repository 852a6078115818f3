"""`interpolate` and `soup`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Invoke, trained, write_jsonl
from tunewright.cli import _progress
from tunewright.cli.robust import _show_curve


def test_interpolate(invoke: Invoke, talker: Path, rows: Path) -> None:
    arguments = ["interpolate", talker, "--alphas", "0,0.5,1", "--shift", f"facts={rows / 'talk.jsonl'}"]
    plain, document = invoke(*arguments), json.loads(invoke(*arguments, "--json").stdout)
    assert plain.exit_code == 0 and document["shifts"] == ["facts"] and document["alphas"] == [0.0, 0.5, 1.0]
    assert "oracle" in plain.stdout and "Chosen: α = " in plain.stdout
    table = plain.stdout.split("In brackets")[0]
    assert all(len(line) <= 80 for line in table.splitlines())


def test_it_says_how_far_it_is(invoke: Invoke, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_progress, "SECONDS_BETWEEN_LINES", 0.0)
    done = invoke("interpolate", talker, "--alphas", "0,0.5,1")
    assert [line for line in done.stderr.splitlines() if line.startswith("Measured ")] == [
        f"Measured {count} of 3 points." for count in (1, 2, 3)
    ]


def test_what_stands_beside_the_curve(invoke: Invoke, classifier: Path, rows: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "then", str(classifier), rows / "tickets.jsonl", "training.ema=0.9")
    plain = invoke("interpolate", run, "--alphas", "0,1")
    assert plain.exit_code == 0, plain.output
    table = plain.stdout.split("In brackets")[0]
    for name in ("ensemble", "linear probe", "without averaging"):
        assert name in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_a_comma_in_a_file_name(invoke: Invoke, talker: Path, rows: Path) -> None:
    file = Path("my,shift.jsonl")
    renamed = [json.loads(line) for line in (rows / "talk.jsonl").read_text().splitlines()]
    write_jsonl(file, [{"turns": row["messages"]} for row in renamed])
    done = invoke("interpolate", talker, "--alphas", "0,1", "--shift", f"a={file},b={file}", "--columns",
                  "messages=turns", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["shifts"] == ["a", "b"]


def found(shifts: list[str]) -> dict[str, Any]:
    """As of a classifier with all that may stand beside the curve; the last shift is the worst one."""
    figure = {"value": 0.905, "low": 0.856, "high": 0.938, "n": 200}
    sets = {name: {**figure, "value": 0.905 - i / 100} for i, name in enumerate(["test", *shifts])}
    over = {"mean": figure, "worst": {"name": shifts[-1], **figure}} if shifts else {}
    beside = ("ensemble", "linear probe", "without averaging")
    return {
        "alphas": [0.0, 0.5, 1.0], "metric": "accuracy", "reference": "test", "shifts": shifts,
        "start_is": "linear probe", "curve": {name: {"test": [one] * 3} for name, one in sets.items()},
        "over_shifts": [over] * 3, "chosen": {"rule": "balanced", "alpha": 0.5}, "oracle": 0.5,
        "baselines": {name: {"sets": sets, "over_shifts": over} for name in beside},
        "against_tuned": {name: [{**figure, "value": 0.0, "low": -0.233, "high": 0.2}] * 3 for name in sets},
    }  # fmt: skip


@pytest.mark.parametrize(
    "shifts", [[], ["far"], ["far", "photographs"], ["a", "b", "c", "d", "e", "street-photographs"]]
)
def test_the_table_keeps_names_and_figures_whole(shifts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    _show_curve("runs/x", found(shifts))
    told = capsys.readouterr().out
    head, *lines = told.split("In brackets")[0].splitlines()
    assert all(len(line) <= 80 for line in (head, *lines))
    names = [line.split("  ")[0].strip() for line in lines[1:]]
    assert [name for name in names if name] == ["0", "0.5 *†", "1", "ensemble", "linear probe", "without averaging"]
    shown = shifts if len(shifts) <= 2 else ["mean shift", "worst shift"]
    assert head.rstrip().endswith((shown or ["test"])[-1])
    assert ("% street-photographs" in told) == (len(shifts) == 6)
    assert all("[85.6\u201393.8]" in line for line in lines[2 :: 2 if shown[1:] else 1])
    assert "[\u221223.3, +20], cannot tell" in told
    assert "ensemble: mean of the logits of both ends" in told and "α = 0 is the linear probe" in told


def test_wrong_options(invoke: Invoke, talker: Path, classifier: Path) -> None:
    for arguments, said in (
        (["--shift", "facts"], "--shift: 'facts' is no NAME=VALUE"),
        (["--shift", "a=x.jsonl", "--shift", "a=y.jsonl"], "--shift: a is given twice"),
        (["--choose", "best"], "balanced, reference, or a number"),
        (["--alphas", "0:1"], "first:last:step"),
        (["--batch-norm", "recompute"], "this model has no batch norm: leave it out"),
    ):
        done = invoke("interpolate", talker, *arguments)
        assert done.exit_code == 2 and said in done.stderr
    done = invoke("interpolate", classifier)
    assert done.exit_code == 2 and "training.head_first=1" in done.stderr


def test_soup(invoke: Invoke, talker: Path, completer: Path, tmp_path: Path) -> None:
    document = json.loads(invoke("soup", talker, completer, "--to", tmp_path / "soup", "--json").stdout)
    assert document["folder"] == str(tmp_path / "soup") and (tmp_path / "soup" / "adapter_config.json").is_file()
    assert invoke("soup", talker, "--to", tmp_path / "one").exit_code == 2
    twice = invoke("soup", talker, completer, talker / ".." / "talker", "--to", tmp_path / "twice")
    assert twice.exit_code == 2 and "is named twice" in twice.stderr and not (tmp_path / "twice").exists()
