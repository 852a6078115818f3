"""A run as it goes: what it trains, then a bar where stderr is a terminal, else a line every so often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn

from tunewright.cli._console import err, say, table

SECONDS_BETWEEN_LINES = 10.0
NAMES_SHOWN = 12
OF_ANSWERS = ("reward", "kl", "length", "ended")
"""What is said of a policy; its loss is 0 at every step, or nearly."""
SAID = {"kl": "KL", "ended": "answers ended"}

Line = Mapping[str, Any]


@contextmanager
def progress() -> Iterator[Callable[[Line], None]]:
    """Gives a watcher for `api.train` that prints to stderr."""
    if err().is_terminal:
        with _Bar() as bar:
            yield bar
    else:
        yield _Lines()


def now_and_then(told: Callable[..., str]) -> Callable[..., None]:
    """What says a line about how far the work is, if some seconds have passed since the last one."""
    last = time.monotonic()

    def watch(*state: Any) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            say(told(*state))
            last = time.monotonic()

    return watch


class _Lines:
    """The first and last step, and one whenever some seconds have passed."""

    def __init__(self) -> None:
        self.epoch, self.last, self.unit = 0.0, -SECONDS_BETWEEN_LINES, "tokens"

    def __call__(self, line: Line) -> None:
        if "started" in line:
            self.unit = unit(line["started"])
            say_started(line["started"])
        elif "notice" in line:
            say(f"Note: {line['notice']}")
        elif "drawn" in line:
            self._drawn(line)
        elif "validation" in line:
            say(validation(line, self.epoch))
        else:
            self._step(line)

    def _drawn(self, line: Line) -> None:
        now = time.monotonic()
        if line["drawn"] == line["of"] or now - self.last >= SECONDS_BETWEEN_LINES:
            say(drawn(line))
            self.last = now

    def _step(self, line: Line) -> None:
        self.epoch, now = line["epoch"], time.monotonic()
        if line["step"] in (1, line["total"]) or now - self.last >= SECONDS_BETWEEN_LINES:
            say(f"{named(line)} {line['step']}/{line['total']}  epoch {self.epoch:.2f}  {pace(line, self.unit)}")
            self.last = now


class _Bar:
    """One live line at the bottom; what stays is printed above it."""

    def __init__(self) -> None:
        columns = TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[pace]}")
        self.progress = Progress(*columns, console=err(), transient=True)
        self.task = TaskID(0)
        self.epoch, self.unit = 0.0, "tokens"

    def __enter__(self) -> _Bar:
        self.progress.start()
        self.task = self.progress.add_task("Preparing", total=None, pace="")
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, line: Line) -> None:
        if "started" in line:
            self.unit = unit(line["started"])
            say_started(line["started"], self.progress.console)
            self.progress.update(self.task, description="Measuring the base", completed=0, total=None)
        elif "notice" in line:
            self.progress.console.print(f"Note: {line['notice']}", soft_wrap=True)
        elif "drawn" in line:
            self.progress.update(self.task, description=drawn(line), completed=line["drawn"], total=line["of"])
        elif "validation" in line:
            self.progress.console.print(validation(line, self.epoch), soft_wrap=True)
        else:
            self._step(line)

    def _step(self, line: Line) -> None:
        self.epoch = line["epoch"]
        last = line["step"] == line["total"]
        description = "Measuring" if last else f"{named(line)} {line['step']}/{line['total']}"
        self.progress.update(
            self.task, description=description, completed=line["step"], total=line["total"], pace=pace(line, self.unit)
        )


def named(line: Line) -> str:
    """What a line's step is one of: of the run, or of the head that trains alone first."""
    return "Head" if line.get("phase") == "head" else "Step"


def drawn(line: Line) -> str:
    return f"Images of the class {line['drawn']}/{line['of']}"


def unit(info: Line) -> str:
    """What speed is counted in: tokens, or images where these are the data."""
    return "tokens" if all("tokens" in found for found in info["data"].values()) else "images"


def pace(line: Line, unit: str) -> str:
    from tunewright.evaluation.formats import duration, number

    if "reward" in line:
        alike = " (all alike)" if line.get("reward_std") == 0 else ""
        kl = [f"KL {number(line['kl'])}"] if "kl" in line else []
        told = [f"reward {number(float(line['reward']))}{alike}", *kl]
        return "  ".join([*told, f"length {number(line['length'])}", f"ETA {duration(line['eta'])}"])
    speed = line["tokens_per_second" if unit == "tokens" else "rows_per_second"]
    said = f"{speed:,.0f}" if speed >= 10 else f"{speed:.2g}"
    return f"loss {number(float(line['loss']))}  {said} {unit}/s  ETA {duration(line['eta'])}"


def validation(line: Line, epoch: float) -> str:
    from tunewright.evaluation.formats import value_of

    found = line["validation"]
    names = [name for name in OF_ANSWERS if name in found] if "reward" in found else found
    terms = ", ".join(f"{SAID.get(name, name.replace('_', ' '))} {value_of(name, found[name])}" for name in names)
    return f"Validation after {named(line).lower()} {line['step']} (epoch {epoch:.2f}): {terms}"


def say_started(info: Mapping[str, Any], console: Any = None) -> None:
    """What a run is about to do, in a few lines."""
    method, rows = info["method"]["type"], info["data"]
    sizes = ", ".join(f"{name} {rows_used(found):,}" for name, found in rows.items())
    base = (info.get("factory") or {}).get("name") or info["base"]
    say_trained(info["parameters"], f"{info['task']} with {method} on {base}", console)
    for line in (f"Rows: {sizes}", *(f"Note: {notice}" for notice in info["notices"])):
        (console or err()).print(line, soft_wrap=True)


def rows_used(found: Mapping[str, Any]) -> int:
    """How many rows of a set are learned from or measured: without those that were too long and dropped."""
    return int(found["rows"]) - int((found.get("overlength") or {}).get("dropped", 0))


def say_trained(parameters: Mapping[str, Any], title: str, console: Any = None) -> None:
    """How many parameters train, which share that is, and what they are called."""
    console = console or err()
    console.print(title, soft_wrap=True)
    console.print(f"Trains {counted(parameters)}:")
    rows = _kinds(parameters["names"])
    console.print(table(("Shape", "Name"), rows[:NAMES_SHOWN], clip_inside=("Name",), fixed=("Shape",)))
    if len(rows) > NAMES_SHOWN:
        console.print(f"… and {len(rows) - NAMES_SHOWN} more kinds: --json names them all.")


def _kinds(names: Sequence[str]) -> list[tuple[str, str]]:
    """Of each kind of parameter its shape and name, the two matrices of a LoRA as one."""
    rows: list[tuple[str, str]] = []
    for said in names:
        name, _, shape = said.rpartition(": ")
        count, _, edges = shape.partition(" × ")
        layer = name.removesuffix("lora_B.weight")
        if layer != name and rows and rows[-1][1] == f"{layer}lora_A.weight" and rows[-1][0].startswith(f"{count} × "):
            rows[-1] = (f"{rows[-1][0]}, {edges}", f"{layer}lora_A, lora_B")
        else:
            rows.append((shape, name))
    return rows


def counted(parameters: Mapping[str, Any]) -> str:
    return f"{parameters['trained']:,} of {parameters['total']:,} parameters ({100 * parameters['share']:.3g} %)"
