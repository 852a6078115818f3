"""Where the commands print: answers to stdout, everything about the work to stderr, tables that fit 80 columns."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
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
    titles: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    clip: Sequence[str] = (),
    clip_inside: Sequence[str] = (),
    fixed: Sequence[str] = (),
) -> Table:
    """A table as wide as the terminal at most: where there is no room, the widest columns give way.

    Args:
        clip: columns that stay on one line and then end in …; other columns are wrapped.
        clip_inside: columns that stay on one line with … in the middle, of texts that differ at their ends.
        fixed: columns that keep their width.
    """
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        made.add_column(title, no_wrap=title in fixed, overflow="fold")
    for row in rows:
        cells = zip(titles, row, strict=True)
        made.add_row(*(_Inside(text) if title in clip_inside else _cell(text, title in clip) for title, text in cells))
    return made


def width_of(made: Table) -> int:
    """How wide a table is where nothing of it gives way."""
    return Console(width=10_000).measure(made).maximum


def _cell(text: str, clipped: bool) -> Text:
    if clipped:
        return Text(one_line(text), no_wrap=True, overflow="ellipsis")
    return Text(printable(text))


class _Inside:
    """A cell that gives up its middle where there is no room; of its end it keeps more than of its beginning."""

    def __init__(self, text: str) -> None:
        self.text = one_line(text)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        room, text = options.max_width - 1, self.text
        if cell_len(text) > options.max_width:
            begin = room // 3
            text = f"{text[:begin]}…{text[len(text) - (room - begin) :]}"
        yield Text(text, no_wrap=True, overflow="ellipsis")


def one_line(text: str) -> str:
    """White space of any kind becomes one space, so that a text of several lines fits a cell."""
    return printable(" ".join(text.split()))


def printable(text: str) -> str:
    """Without control characters, which could steer the terminal: the texts of rows and models are not ours."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
