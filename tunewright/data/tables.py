"""CSV and TSV: every row with the line on which it begins. A quote that is missing costs its row, not the file.

Python's csv reads each row, strictly. Yet it notices a missing quote only at the next one, which may be hundreds of
rows later. Such a row is a fault of the line where its cell begins, and reading goes on at the first line from which
the next rows read well. That is looked for

    "never closed,no       from the next line on, if the next quote stands where a cell begins, or there is none;
    "a 5" pipe",no         else behind the line where it was noticed, or up to which the quotes come in pairs.

Rows read well that have as many cells as the first one, and quotes in pairs. In a file of one column all lines would
do, so nothing is told from them there, and what follows a missing quote is given up with it. Where the next quote
happens to end a cell, the row is as well made as any poem or program in a cell: it is read, with a word of doubt.
"""

from __future__ import annotations

import csv
import io
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

LOOK = 3  # rows that must read well before reading goes on
LONG = 10  # lines that a cell may have without a doubt whether they are rows of their own
INSIDE = '[^"]*+(?:""[^"]*+)*+'  # of a quoted cell
UNPAIRED = 'a cell begins with a quote here and does not end with one: close it, and write a quote inside a cell as ""'
DOUBT = "a quoted cell goes on over {} lines, each of which reads as a row of its own: is its quote missing?"


class Entry(NamedTuple):
    """What begins on a line, counted from 1: the cells of a row; or text that cannot be told apart, and why.

    `doubt` is said of a row that is well made, and yet may have swallowed others.
    """

    line: int
    cells: list[str]
    text: str = ""
    fault: str = ""
    doubt: str = ""


def read_table(text: str, delimiter: str) -> Iterator[Entry]:
    """What is in a table, in its order, less blank rows; the names of the columns come first."""
    csv.field_size_limit(2**31 - 1)  # a document in a cell may be longer than the default of 128 KiB
    return iter(_Table(io.StringIO(text, newline="").readlines(), delimiter))


@dataclass
class _Table:
    """Here lines are counted from 0, and a row is the lines from `start` on, up to but without `stop`."""

    lines: list[str]
    delimiter: str
    width: int = 0  # cells of the first row

    def __iter__(self) -> Iterator[Entry]:
        start = 0
        while start < len(self.lines):
            cells, stop = self._cells(start)
            if cells is None:
                opened, stop = self._unpaired(start, stop)
                yield self._fault(start, stop, opened, UNPAIRED)
            elif cells:
                doubtful = stop - start > LONG and self._rows_follow(start + 1, stop - start - 2)
                self.width = self.width or len(cells)
                yield Entry(start + 1, cells, doubt=DOUBT.format(stop - start) if doubtful else "")
            start = stop

    def _fault(self, start: int, stop: int, opened: int, reason: str) -> Entry:
        lost = f"; up to line {stop} nothing else can be told" if stop > opened + 1 else ""
        return Entry(opened + 1, [], "".join(self.lines[start:stop]), reason + lost)

    def _cells(self, start: int) -> tuple[list[str] | None, int]:
        """The cells of a row, None where its quotes do not pair up; and the line behind what was read."""
        lines = (self.lines[i] for i in range(start, len(self.lines)))
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        try:
            return next(reader), start + reader.line_num
        except csv.Error:
            return None, start + reader.line_num

    def _unpaired(self, start: int, noticed: int) -> tuple[int, int]:
        """The line where the cell begins that does not end, and the line where reading goes on."""
        text = "".join(self.lines[start:noticed])
        begin = _end(rf'(?:(?:"{INSIDE}"|[^"{self.delimiter}][^{self.delimiter}]*+)?+{self.delimiter})*+', text)
        end = _end(f'"{INSIDE}', text, begin)
        opened = start + bisect_right(list(accumulate(map(len, self.lines[start:noticed]))), begin)
        if end == len(text) or text[end - 1] in f"{self.delimiter}\r\n":
            return opened, self._going_on(start, opened + 1, in_pairs=False)
        return opened, self._going_on(start, noticed, in_pairs=True)

    def _going_on(self, start: int, earliest: int, in_pairs: bool) -> int:
        """The first line from `earliest` on from which rows read well, or up to which quotes come in pairs."""
        odd = False
        for stop in range(start + 1, len(self.lines)):
            odd ^= _is_odd(self.lines[stop - 1])
            enough = stop == earliest or stop + LOOK <= len(self.lines)  # the end of a cut-off cell is no row
            if stop >= earliest and ((in_pairs and not odd) or (enough and self._rows_follow(stop, LOOK))):
                return stop
        return len(self.lines)

    def _rows_follow(self, start: int, count: int) -> bool:
        """Whether the next rows read well: so many of them, or all up to the end of the file."""
        for _ in range(count):
            if start == len(self.lines):
                break
            cells, stop = self._cells(start)
            odd = sum(map(_is_odd, self.lines[start:stop])) % 2
            if self.width < 2 or cells is None or odd or len(cells) != self.width:
                return False
            start = stop
        return True


def _is_odd(line: str) -> bool:
    return line.count('"') % 2 == 1


def _end(pattern: str, text: str, begin: int = 0) -> int:
    """Where what the pattern describes ends, if it begins there."""
    found = re.compile(pattern).match(text, begin)
    return found.end() if found else begin
