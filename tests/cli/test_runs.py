"""`runs` and `show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke


def test_runs_lists_what_there_is(invoke: Invoke, classifier: Path) -> None:
    plain, document = invoke("runs", classifier.parent), json.loads(invoke("runs", classifier.parent, "--json").stdout)
    (run,) = document["runs"]
    assert plain.exit_code == 0
    assert (run["run"], run["status"], run["method"]) == (str(classifier), "finished", "lora")
    assert all(
        words in plain.stdout for words in ("classifier", "finished", "lora", run["result"].replace("\u00a0", " "))
    )
    assert all(len(line) <= 80 for line in plain.stdout.splitlines())


def test_no_runs_is_no_error(invoke: Invoke) -> None:
    assert invoke("runs").stdout == "There are no runs in runs.\n"
    assert json.loads(invoke("runs", "elsewhere", "--json").stdout) == {"runs": []}


def test_a_run_that_was_killed_is_not_called_running(invoke: Invoke) -> None:
    folder = Path("runs/killed")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "running", "method": {"type": "lora"}}))
    assert json.loads(invoke("runs", "--json").stdout)["runs"][0]["status"] == "killed"


def test_show(invoke: Invoke, classifier: Path) -> None:
    plain, document = invoke("show", classifier), json.loads(invoke("show", classifier, "--json").stdout)
    info = json.loads((classifier / "run.json").read_text())
    assert document == {"run": str(classifier), "report": str(classifier / "report.html"), "info": info}
    for words in (
        "lora (rank 16",
        "Trains ",
        "train: 12 rows",
        "finished: ",
        "2 steps",
        "Kept: ",
        "Accuracy",
        "report.html",
    ):
        assert words in plain.stdout


def test_show_of_a_run_that_failed_early(invoke: Invoke, classifier: Path) -> None:
    info = json.loads((classifier / "run.json").read_text())
    kept = {key: value for key, value in info.items() if key not in ("evaluation", "timings", "steps", "weights")}
    Path("failed").mkdir()
    Path("failed/run.json").write_text(json.dumps({**kept, "status": "failed", "error": "The disk is full."}))
    done = invoke("show", "failed")
    assert done.exit_code == 0 and "failed: " in done.stdout and "Error: The disk is full." in done.stdout


@pytest.mark.parametrize("status", ["running", "stopped", "failed"])
def test_show_of_a_run_that_was_broken_off(status: str, invoke: Invoke, classifier: Path) -> None:
    """How to go on, no report that was never written, and of how many rows it learns."""
    info = json.loads((classifier / "run.json").read_text())
    info["data"]["train"] |= {"rows": 276, "tokens": 79612, "bad_rows": 4, "overlength": {"dropped": 33}}
    Path("a run").mkdir()
    Path("a run/run.json").write_text(json.dumps({**info, "status": status}))
    done = invoke("show", "a run")
    assert "Report" not in done.stdout and "Go on    tunewright resume 'a run'" in done.stdout
    assert "train: 243 of 280 rows, 79,612 tokens" in done.stdout
    assert json.loads(invoke("show", "a run", "--json").stdout)["report"] is None
    whole = invoke("show", classifier).stdout
    assert f"Report   {classifier / 'report.html'}" in whole.replace("\n", "") and "Go on" not in whole


def test_show_needs_a_run(invoke: Invoke) -> None:
    done = invoke("show", "nowhere")
    assert done.exit_code == 2 and "nowhere is no run" in done.stderr


def test_a_folder_of_seeds_is_one_run(invoke: Invoke, encoder: str, rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "study"
    keys = ["training.seeds=[0,1]", "training.max_steps=2", "data.validation=0.25"]
    done = invoke("train", "--base", encoder, "--data", rows / "tickets.jsonl", "--output", folder, *keys)
    assert done.exit_code == 0 and "Each seed" in done.stdout and " ± " in done.stdout, done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)
    plain, document = invoke("show", folder), json.loads(invoke("show", folder, "--json").stdout)
    assert plain.exit_code == 0 and "2 seeds" in plain.stdout and "seed-1: finished  accuracy" in plain.stdout
    assert document["info"]["seeds"] == [0, 1] and "over_seeds" in document["info"]
    (one,) = json.loads(invoke("runs", folder.parent, "--json").stdout)["runs"]
    assert (one["run"], one["method"]) == (str(folder), "lora") and "±" in one["result"]
    assert len(json.loads(invoke("runs", folder, "--json").stdout)["runs"]) == 2
    again = json.loads(invoke("resume", folder, "--json").stdout)
    assert again["seeds"] == [0, 1] and again["over_seeds"]["validation"]["seeds"] == [0, 1]
