"""`interpolate` and `soup`."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Invoke, trained


def test_interpolate(invoke: Invoke, talker: Path, rows: Path) -> None:
    arguments = ["interpolate", talker, "--alphas", "0,0.5,1", "--shift", f"facts={rows / 'talk.jsonl'}"]
    plain, document = invoke(*arguments), json.loads(invoke(*arguments, "--json").stdout)
    assert plain.exit_code == 0 and document["shifts"] == ["facts"] and document["alphas"] == [0.0, 0.5, 1.0]
    assert "oracle" in plain.stdout and "Chosen: α = " in plain.stdout
    table = plain.stdout.split("In brackets")[0]
    assert all(len(line) <= 80 for line in table.splitlines())


def test_what_stands_beside_the_curve(invoke: Invoke, classifier: Path, rows: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "then", str(classifier), rows / "tickets.jsonl", "training.ema=0.9")
    plain = invoke("interpolate", run, "--alphas", "0,1")
    assert plain.exit_code == 0, plain.output
    table = plain.stdout.split("In brackets")[0]
    for name in ("ensemble", "linear probe", "without averaging"):
        assert name in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_wrong_options(invoke: Invoke, talker: Path, classifier: Path) -> None:
    for arguments, said in (
        (["--shift", "facts"], "--shift: 'facts' is no NAME=VALUE"),
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
