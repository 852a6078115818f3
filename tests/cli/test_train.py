"""`train` and `resume`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import TICKETS, Invoke, trained, write_jsonl
from tunewright import api
from tunewright.cli.train import compose
from tunewright.errors import Interrupted, RecipeError
from tunewright.folder import open_run

NONE = dict.fromkeys(("base", "data.train", "method", "objective", "output"))


def test_train_says_what_it_trains_and_what_came_of_it(invoke: Invoke, encoder: str, rows: Path) -> None:
    done = invoke("train", "--base", encoder, "--data", rows / "tickets.jsonl", "--output", "out", "training.epochs=1")
    info = open_run("out").info
    assert done.exit_code == 0
    assert f"Trains {info['parameters']['trained']:,} of {info['parameters']['total']:,} parameters" in done.stderr
    assert "3 × 16×32, 32×16  bert.encoder.layer.*.attention.self.query.lora_A, lora_B" in done.stderr
    assert "Step 1/" in done.stderr and "tokens/s" in done.stderr and "ETA" in done.stderr
    assert "Validation after step" in done.stderr and "Rows: train" in done.stderr
    assert "Accuracy" in done.stdout and "Before" in done.stdout and "95 % intervals" in done.stdout
    assert "out/report.html" in done.stdout and (Path("out") / "report.html").is_file()
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_train_as_json_is_one_object(invoke: Invoke, encoder: str, rows: Path) -> None:
    keys = ["training.max_steps=2", "evaluation.before=false"]
    done = invoke("train", "--base", encoder, "--data", rows / "tickets.jsonl", "--method", "head", *keys, "--json")
    document = json.loads(done.stdout)
    assert document["run"] == "runs/bert-head" and Path(document["report"]).is_file()
    assert (document["status"], document["steps"]) == ("finished", 2)
    assert 0 < document["parameters"]["share"] < 1
    assert "accuracy" in document["evaluation"]["validation"]["after"]["metrics"]
    assert "Step 2/2" in done.stderr


def test_a_recipe_with_keys_on_top(invoke: Invoke, encoder: str, rows: Path) -> None:
    document = {"base": "elsewhere", "data": str(rows / "tickets.jsonl"), "method": {"type": "lora", "rank": 2}}
    Path("recipe.yaml").write_text(yaml.safe_dump(document))
    done = invoke(
        "train", "recipe.yaml", "training.max_steps=1", "--base", encoder, "--output", "out", "--method", "lora"
    )
    recipe = open_run("out").recipe
    assert done.exit_code == 0
    assert (recipe.base, recipe.training.max_steps) == (encoder, 1)
    assert recipe.method.model_dump()["rank"] == 2


def test_another_method_drops_the_options_of_the_first() -> None:
    Path("recipe.yaml").write_text("base: b\ndata: d\nmethod: {type: lora, rank: 2}\n")
    assert compose(["recipe.yaml"], {**NONE, "method": "head"})["method"] == "head"
    assert compose(["recipe.yaml"], {**NONE, "method": "lora"})["method"] == {"type": "lora", "rank": 2}
    assert compose(["recipe.yaml", "method.alpha=4"], NONE)["method"] == {"type": "lora", "rank": 2, "alpha": 4}
    assert compose(["recipe.yaml"], {**NONE, "data.train": "other"})["data"] == {"train": "other"}


def test_keys_win_over_options() -> None:
    assert compose(["base=c"], {**NONE, "base": "b"}) == {"base": "c"}


@pytest.mark.parametrize("arguments", [[], ["a.yaml", "b.yaml"], ["missing.yaml"], ["base"], ["=1"]])
def test_what_is_no_recipe_is_refused(arguments: list[str]) -> None:
    with pytest.raises(RecipeError):
        compose(arguments, NONE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is nothing to train"),
        (["missing.yaml"], "There is no recipe missing.yaml"),
        (["--data", "rows.jsonl"], "base is missing"),
        (["--base", "b", "--data", "d", "training.epoch=2"], "Did you mean epochs?"),
        (["--base", "b", "--data", "d", "method.width=2"], "lora has no option width"),
        (["--base", "b", "--data", "d", "--method", "lroa"], "Did you mean lora?"),
        (["--base", "./b", "--data", "missing.jsonl"], "missing.jsonl does not exist"),
    ],
)
def test_faults_are_named_and_exit_with_2(invoke: Invoke, arguments: list[str], words: str) -> None:
    plain, as_json = invoke("train", *arguments), invoke("train", *arguments, "--json")
    assert (plain.exit_code, plain.stdout) == (2, "") and words in plain.stderr and "Traceback" not in plain.stderr
    assert as_json.exit_code == 2 and words in json.loads(as_json.stdout)["error"]["message"]
    assert not list(Path().glob("runs/*"))


def test_a_used_folder_is_refused_with_how_to_go_on(invoke: Invoke, encoder: str, rows: Path, classifier: Path) -> None:
    done = invoke("train", "--base", encoder, "--data", rows / "tickets.jsonl", "--output", classifier)
    assert done.exit_code == 2 and "holds a run already. Name another" in done.stderr and "resume" not in done.stderr
    document = json.loads((classifier / "run.json").read_text())
    stopped = classifier.with_name("stopped")
    shutil.copytree(classifier, stopped)
    (stopped / "run.json").write_text(json.dumps({**document, "status": "stopped"}))
    again = invoke("train", "--base", encoder, "--data", rows / "tickets.jsonl", "--output", stopped)
    assert again.exit_code == 2 and f"tunewright resume {stopped}" in again.stderr


def test_dry_run_needs_no_weights(invoke: Invoke, encoder: str, rows: Path) -> None:
    Path("shapes").mkdir()
    shutil.copy(Path(encoder) / "config.json", "shapes")
    tickets = str(rows / "tickets.jsonl")
    arguments = ["train", "--base", "./shapes", "--data", tickets, "--method", "freeze", "--dry-run"]
    plain, document = invoke(*arguments), json.loads(invoke(*arguments, "--json").stdout)
    assert plain.exit_code == 0 and f"Trains {document['trained']:,} of {document['total']:,}" in plain.stdout
    assert document["task"] == "text-classification" and any("layer.*" in name for name in document["names"])
    assert "Note: The rows are not checked in a dry run: `tunewright check` does that." in plain.stderr
    assert not Path("runs").exists()
    missing = invoke("train", "--base", "./shapes", "--data", "missing.jsonl", "--dry-run")
    assert missing.exit_code == 2 and "missing.jsonl does not exist" in missing.stderr


def test_resume_ends_where_the_run_would_have(invoke: Invoke, encoder: str, rows: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", encoder, rows / "tickets.jsonl")
    before = (run / "metrics.jsonl").read_text()
    finished = invoke("resume", run)
    assert finished.exit_code == 0 and "Trains" not in finished.stderr, "a finished run is left as it is"
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**info, "status": "stopped"}))
    plain = invoke("resume", run)
    (run / "run.json").write_text(json.dumps({**info, "status": "stopped"}))
    document = json.loads(invoke("train", "--output", run, "training.max_steps=2", "--resume", "--json").stdout)
    assert plain.exit_code == 0 and "Trains" in plain.stderr
    assert document["status"] == "finished" and (run / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resume", "nowhere"], "nowhere is no run"),
        (["train", "--resume", "--base", "b"], "needs the run's folder"),
        (["train", "--resume", "--output", "nowhere"], "nowhere is no run"),
    ],
)
def test_resume_needs_a_run(invoke: Invoke, arguments: list[str], words: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2 and words in done.stderr


def test_resume_refuses_a_changed_recipe(invoke: Invoke, classifier: Path) -> None:
    done = invoke("train", "--resume", "--output", classifier, "training.epochs=9", "--method", "head")
    assert done.exit_code == 2
    assert "training.epochs: 9.0, but the run began with 3.0" in done.stderr and "method.type: head" in done.stderr
    assert f"start a new run with base: {classifier}." in " ".join(done.stderr.split())


@pytest.mark.parametrize("checkpoint", [True, False])
def test_an_interruption_says_how_to_continue(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, checkpoint: bool
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise Interrupted(7) if checkpoint else KeyboardInterrupt

    monkeypatch.setattr(api, "train", interrupted)
    arguments = ["train", "--base", "b", "--data", "d", "--output", "out"]
    plain, as_json = invoke(*arguments), invoke(*arguments, "--json")
    words = (
        "at step 7; a checkpoint is written. To continue: tunewright resume out"
        if checkpoint
        else "nothing is left behind"
    )
    assert plain.exit_code == 130 and words in plain.stderr and "Traceback" not in plain.stderr
    error = json.loads(as_json.stdout)["error"]
    assert as_json.exit_code == 130 and (error["type"], error["run"]) == ("Interrupted", "out")


def test_ctrl_c_writes_a_checkpoint_to_continue_from(invoke: Invoke, encoder: str, rows: Path) -> None:
    """With a real signal, in a process of its own."""
    keys = ["training.max_steps=120", "training.evaluate_every=120", "evaluation.before=false", "--output", "out"]
    command = [sys.executable, "-c", "from tunewright.cli import main; main()", "train", "--json", "--base", encoder]
    process = subprocess.Popen(
        [*command, "--data", str(rows / "tickets.jsonl"), *keys],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    assert process.stderr is not None
    assert any(line.startswith("Step 1/120") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=60)
    error = json.loads(stdout)["error"]
    assert process.returncode == 130 and "tunewright resume out" in error["message"]
    assert open_run("out").info["status"] == "stopped"
    assert json.loads(invoke("resume", "out", "--json").stdout)["steps"] == 120


def test_resume_takes_paths_as_they_were_given(invoke: Invoke, encoder: str, tmp_path: Path) -> None:
    Path("base").symlink_to(encoder)
    write_jsonl(Path("rows.jsonl"), TICKETS)
    trained(Path("run"), "base", Path("rows.jsonl"))
    given = ["--base", "base", "--data", "rows.jsonl", "training.max_steps=2", "data.validation=0.25"]
    done = invoke("train", *given, "--output", "run", "--resume")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("option", ["--epochs=3", "--num-train-epochs=3", "--training.epochs=3"])
def test_a_key_that_is_given_as_an_option_is_pointed_to(option: str, invoke: Invoke) -> None:
    found = invoke("train", "--base", "x", "--data", "y", option, "--json")
    said = json.loads(found.stdout)["error"]["message"]
    assert found.exit_code == 2 and f"No such option: {option.partition('=')[0]}. It is training.epochs: " in said
    assert "It is" not in json.loads(invoke("chat", "x", option, "--json").stdout)["error"]["message"]
