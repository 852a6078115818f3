"""`compare`: what it prints, and its exit code as a gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TICKETS, Invoke, trained, write_jsonl


@pytest.fixture(scope="session")
def pupil(encoder: str, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned the tickets, where `classifier` has only begun to."""
    folder = tmp_path_factory.mktemp("runs") / "pupil"
    return trained(
        folder,
        encoder,
        rows / "tickets.jsonl",
        "training.max_steps=60",
        "training.learning_rate=0.005",
        "data.validation=0",
    )


@pytest.fixture
def tickets() -> Path:
    """60 rows with the place where each was written."""
    return write_jsonl(Path("tickets.jsonl"), [{**row, "place": f"desk {i % 2}"} for i, row in enumerate(TICKETS * 4)])


def read(done: Any) -> Mapping[str, Any]:
    return json.loads(done.stdout)


def test_tables_fit_the_terminal(invoke: Invoke, classifier: Path, pupil: Path, tickets: Path) -> None:
    done = invoke("compare", classifier, pupil, "--data", tickets, "--slice", "column=place", "--slice", "modes=mode")
    lines = done.stdout.splitlines()
    assert done.exit_code == 0, done.output
    for part in ("Accuracy", "B − A", "points [", "Class of test", "billing", "Slice of test", "place=desk 0", "modes",
                 "Calibration error on test", "is better than", "rows are better with B, the first 5"):  # fmt: skip
        assert part in done.stdout, part
    assert all(len(line) <= 80 for line in lines if not line.startswith(("A  ", "B  ")))
    assert "Holm" in done.stderr and "Required" not in done.stderr


def test_json_is_what_python_gives(invoke: Invoke, classifier: Path, pupil: Path, tickets: Path) -> None:
    import tunewright as tw

    found = read(invoke("compare", classifier, pupil, "--data", tickets, "--json", "--samples", 1))
    assert found == json.loads(json.dumps(tw.compare(classifier, pupil, str(tickets), samples=1)))
    assert "met" not in found and len(found["sets"]["test"]["flipped"]["better"]["shown"]) == 1


@pytest.mark.parametrize(
    ("better_first", "require", "code"),
    [(False, "better", 0), (False, "not-worse", 0), (True, "better", 3), (True, "not-worse", 3)],
)
def test_a_gate_exits_with_3(
    better_first: bool, require: str, code: int, invoke: Invoke, classifier: Path, pupil: Path, tickets: Path
) -> None:
    sides = (pupil, classifier) if better_first else (classifier, pupil)
    arguments = ["compare", *sides, "--data", tickets, "--require", require]
    plain, as_json = invoke(*arguments), invoke(*arguments, "--json")
    assert (plain.exit_code, as_json.exit_code) == (code, code)
    assert read(as_json)["met"] == (code == 0) and read(as_json)["sets"]["test"]["rows"] == 64
    assert ("Required: " + require + (". Met." if code == 0 else ". Not met.")) in plain.stderr


def test_cannot_tell_is_not_better_and_not_worse(invoke: Invoke, classifier: Path, tickets: Path) -> None:
    same = ["compare", classifier, classifier, "--data", tickets, "--require"]
    assert (invoke(*same, "better").exit_code, invoke(*same, "not-worse").exit_code) == (3, 0)


def test_language_models(invoke: Invoke, completer: Path, decoder: str, rows: Path) -> None:
    done = invoke("compare", f"{completer}@0.5", completer, "--data", rows / "facts.jsonl")
    assert done.exit_code == 0 and "Loss" in done.stdout and "rows are" in done.stdout
    assert "Calibration" not in done.stdout and "Class of" not in done.stdout and "Forgetting" not in done.stdout


def test_what_is_forgotten(invoke: Invoke, completer: Path, rows: Path) -> None:
    arguments = [
        "compare",
        f"{completer}@0",
        completer,
        "--data",
        rows / "facts.jsonl",
        "--forgetting",
        "--to",
        "c.html",
    ]
    done = invoke(*arguments, "--general", rows / "talk.jsonl")
    assert done.exit_code == 0, done.output
    assert all(words in done.stdout for words in ("Forgetting", "general text", "own"))
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if "runs" not in line)
    assert "Forgetting: loss elsewhere" in Path("c.html").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--require", "best"], "none of better"), (["--slice", "x"], "neither column=NAME"), ([], "share no test set")],
)
def test_what_cannot_be_compared(more: list[str], words: str, invoke: Invoke, completer: Path) -> None:
    done = invoke("compare", completer, completer, *more)
    assert done.exit_code == 2 and words in done.stderr


def test_a_page_is_written_where_one_asks(invoke: Invoke, classifier: Path, pupil: Path, tickets: Path) -> None:
    arguments = ["compare", classifier, pupil, "--data", tickets, "--to", "compare.html"]
    plain, as_json = invoke(*arguments), invoke(*arguments, "--json")
    assert "Page  compare.html" in plain.stdout and read(as_json)["page"] == "compare.html"
    assert "is better than" in Path("compare.html").read_text()
    assert invoke(*arguments[:-1], "missing/compare.html").exit_code == 2
