"""The application itself: what it imports, its exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tunewright import __version__, api
from tunewright.cli._console import one_line, printable, table
from tunewright.errors import DataError

COMMANDS = [
    "train", "resume", "quickstart", "predict", "evaluate", "export", "chat", "compare", "runs", "show", "relocate",
    "tasks", "methods", "objectives", "schema",
]  # fmt: skip
HEAVY = ("torch", "transformers", "pydantic", "numpy", "datasets", "peft", "yaml")


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, tunewright.cli; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command_in_the_order_of_use(invoke: Invoke) -> None:
    done = invoke("--help")
    places = [done.stdout.index(f"│ {name} ") for name in COMMANDS]
    assert done.exit_code == 0 and places == sorted(places)
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(invoke: Invoke, command: str) -> None:
    done = invoke(command, "--help")
    assert done.exit_code == 0 and "--json" in done.stdout


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"tunewright {__version__}\n"


def test_python_runs_it_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "tunewright", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tunewright {__version__}\n"


@pytest.mark.parametrize("arguments", [["predict"], ["predict", "x", "--bogus"], ["runs", "a", "b"], ["nothing"]])
def test_wrong_options_exit_with_2_in_both_forms(invoke: Invoke, arguments: list[str]) -> None:
    plain, as_json = invoke(*arguments), invoke(*arguments, "--json")
    assert (plain.exit_code, plain.stdout) == (2, "") and "Usage" in plain.stderr
    assert as_json.exit_code == 2 and json.loads(as_json.stdout)["error"]["type"] == "UsageError"


def test_what_the_user_can_mend_is_one_message(invoke: Invoke, broken: Callable[[BaseException], None]) -> None:
    broken(DataError("Two rows are bad:", ["a.jsonl:1: empty", "a.jsonl:2: [bold]odd[/bold]"]))
    plain, as_json = invoke("predict", "run", "text"), invoke("predict", "run", "text", "--json")
    message = "Two rows are bad:\n  a.jsonl:1: empty\n  a.jsonl:2: [bold]odd[/bold]"
    assert (plain.exit_code, plain.stdout, plain.stderr) == (2, "", f"Error: {message}\n")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout) == {"error": {"type": "DataError", "message": message}}


def test_what_nobody_expected_exits_with_1_and_shows_where(
    invoke: Invoke, broken: Callable[[BaseException], None]
) -> None:
    broken(RuntimeError("boom"))
    plain, as_json = invoke("predict", "run", "text"), invoke("predict", "run", "text", "--json")
    assert plain.exit_code == 1 and "Traceback" in plain.stderr and "Unexpected RuntimeError: boom" in plain.stderr
    assert as_json.exit_code == 1 and json.loads(as_json.stdout)["error"]["type"] == "RuntimeError"


def test_an_interrupted_command_exits_with_130(invoke: Invoke, broken: Callable[[BaseException], None]) -> None:
    broken(KeyboardInterrupt())
    done = invoke("predict", "run", "text")
    assert done.exit_code == 130 and done.stderr == "Interrupted.\n"


def test_what_libraries_print_stays_out_of_the_json(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*_: Any, **__: Any) -> list[dict[str, Any]]:
        print("noise")
        return [{"text": "a", "value": 1.0}]

    monkeypatch.setattr(api, "predict", noisy)
    done = invoke("predict", "run", "a", "--json")
    assert json.loads(done.stdout) == {"predictions": [{"text": "a", "value": 1.0}]} and "noise" in done.stderr


def test_json_as_a_text_is_no_option(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "predict", lambda where, texts, device: [{"text": t, "value": 1.0} for t in texts])
    assert "--json" in invoke("predict", "run", "--", "--json").stdout


def test_texts_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\r\nc 5\u00a0%") == "a[2Jb\nc 5\u00a0%"
    assert one_line(" a\n\tb\x00  c ") == "a b c"


def test_a_table_clips_its_widest_column() -> None:
    from rich.console import Console

    console = Console(width=40, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(("Text", "Label"), [("word " * 30, "feature")], clip=("Text", "Label")))
    last = console.export_text().splitlines()[-1]
    assert len(last) <= 40 and "…" in last and last.rstrip().endswith("feature")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `api.predict` raise."""

    def set_error(error: BaseException) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(api, "predict", fail)

    return set_error
