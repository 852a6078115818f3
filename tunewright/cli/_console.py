"""Where the commands print: answers to stdout, everything about the work to stderr, tables that fit 80 columns."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def out() -> Console:
    """The terminal for answers. Made anew each time: stdout may have been replaced."""
    return Console(highlight=False, markup=False, emoji=False)


def err() -> Console:
    """The terminal for progress, notices and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def show(text: str = "", style: str | None = None) -> None:
    """A line of an answer. It is never wrapped, so that paths can be copied."""
    out().print(printable(text), style=style, soft_wrap=True)


def say(text: str, style: str | None = None) -> None:
    """A line about the work."""
    err().print(printable(text), style=style, soft_wrap=True)


def complain(message: str) -> None:
    say(f"Error: {message}", style="red")


def write_json(document: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, clip: Sequence[str] = (), fixed: Sequence[str] = ()
) -> Table:
    """A table as wide as the terminal at most: where there is no room, the widest columns give way.

    Args:
        clip: columns that stay on one line and then end in …; other columns are wrapped.
        fixed: columns that keep their width.
    """
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        made.add_column(title, no_wrap=title in fixed, overflow="fold")
    for row in rows:
        made.add_row(*(_cell(text, title in clip) for title, text in zip(titles, row, strict=True)))
    return made


def _cell(text: str, clipped: bool) -> Text:
    if clipped:
        return Text(one_line(text), no_wrap=True, overflow="ellipsis")
    return Text(printable(text))


def one_line(text: str) -> str:
    """White space of any kind becomes one space, so that a text of several lines fits a cell."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Without control characters, which could steer the terminal: the texts of rows and models are not ours."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
