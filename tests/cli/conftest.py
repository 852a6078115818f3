"""Small rows and finished runs of tiny models, made once, and a way to run the command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tunewright.cli import app

TICKETS = [
    {"text": "the bill is wrong", "label": "billing"},
    {"text": "refund my card please", "label": "billing"},
    {"text": "add a dark mode", "label": "feature"},
    {"text": "it would be nice to have a mode", "label": "feature"},
] * 4
TALK = [
    {"messages": [{"role": "user", "content": f"Which of {i}?"}, {"role": "assistant", "content": "This one."}]}
    for i in range(8)
]
FACTS = [{"prompt": f"After {i} comes", "completion": f" {i + 1}."} for i in range(8)]

Invoke = Callable[..., Result]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder and at a width of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def invoke() -> Invoke:
    """Runs one command; the result has `exit_code`, `stdout` and `stderr`."""
    return run_command


def run_command(*arguments: Any, input: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small files of rows."""
    folder = tmp_path_factory.mktemp("rows")
    write_jsonl(folder / "tickets.jsonl", TICKETS)
    write_jsonl(folder / "talk.jsonl", TALK)
    write_jsonl(folder / "facts.jsonl", FACTS)
    return folder


@pytest.fixture(scope="session")
def encoder(tiny_base: Callable[..., str]) -> str:
    return tiny_base("bert")


@pytest.fixture(scope="session")
def decoder(tiny_base: Callable[..., str]) -> str:
    return tiny_base("gpt2")


@pytest.fixture(scope="session")
def classifier(encoder: str, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a classifier. Commands must not change it."""
    return trained(tmp_path_factory.mktemp("runs") / "classifier", encoder, rows / "tickets.jsonl")


@pytest.fixture(scope="session")
def talker(decoder: str, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was trained on conversations."""
    return trained(tmp_path_factory.mktemp("runs") / "talker", decoder, rows / "talk.jsonl")


@pytest.fixture(scope="session")
def completer(decoder: str, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was trained on prompts and completions."""
    return trained(tmp_path_factory.mktemp("runs") / "completer", decoder, rows / "facts.jsonl")


def trained(folder: Path, base: str, data: Path, *more: str) -> Path:
    """A run of two steps."""
    keys = ["training.max_steps=2", "data.validation=0.25", "evaluation.generate=1", "evaluation.max_new_tokens=4"]
    done = run_command("train", "--base", base, "--data", data, "--output", folder, *keys, *more)
    assert done.exit_code == 0, done.output
    return folder


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
