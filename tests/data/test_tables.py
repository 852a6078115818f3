"""CSV that people have: cells of several lines, and quotes that nobody closed."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunewright.data.tables import Entry, read_table

ROWS = "".join(f"text {i},yes\n" for i in range(5))
QUOTED = "".join(f'"text, {i}",yes\n' for i in range(5))


def read(*parts: str, head: str = "text,label\n", delimiter: str = ",") -> list[Entry]:
    """What comes after the names of the columns, which are on line 1."""
    return list(read_table(head + "".join(parts), delimiter))[1:]


def faults(entries: list[Entry]) -> list[tuple[int, str]]:
    return [(entry.line, entry.text) for entry in entries if entry.fault]


def rows(entries: list[Entry]) -> list[int]:
    """The lines of the rows that were read."""
    return [entry.line for entry in entries if entry.cells]


@given(
    st.lists(st.lists(st.text("a,\"\n\r;' ", max_size=9), min_size=2, max_size=2), max_size=9), st.sampled_from(",\t")
)
def test_what_a_writer_wrote_is_read_as_it_was(table, delimiter):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(table)
    assert [entry.cells for entry in read(file.getvalue(), delimiter=delimiter, head=f"a{delimiter}b\n")] == table


@pytest.mark.parametrize(
    "bad",
    [
        '"He said "hi" to me",yes\n',
        '"a 5" pipe",yes\n',
        '"never closed,yes\n',
        '"never closed,"yes"\n',
        '"closed ""in vain"",yes\n',
        'never,"closed\n',
        '"closed" too early,yes\n',
        '"Dear sir,\nI said "no", and\nleft",yes\n',
    ],
)
@pytest.mark.parametrize("after", [ROWS, QUOTED, ROWS + QUOTED, ROWS[:11], ROWS[:-1], ""])
def test_a_quote_that_is_missing_costs_its_own_row(bad, after):
    found = read(ROWS, bad, after)
    assert faults(found) == [(7, bad)] and found[5].fault.startswith("a cell begins with a quote here")
    first = 7 + bad.count("\n")
    assert rows(found) == [2, 3, 4, 5, 6, *range(first, first + len(after.splitlines()))]


def test_each_row_with_a_quote_too_many_is_named():
    bad = '"a 5" pipe",yes\n'
    assert faults(read(bad, ROWS, bad, QUOTED, bad)) == [(2, bad), (8, bad), (14, bad)]
    (first, last) = (entry for entry in read(bad, bad, QUOTED) if entry.line < 5)
    assert first.text == bad + bad and first.fault.endswith("up to line 3 nothing else can be told") and last.cells


def test_a_fault_is_where_its_cell_begins():
    assert faults(read('"two\nlines","never\n', ROWS)) == [(3, '"two\nlines","never\n')]


def test_a_file_that_ends_within_a_cell_gives_no_row_of_what_is_left_of_it():
    found = read(QUOTED, '"Dear sir,\nI am\nwell, and')
    assert faults(found) == [(7, '"Dear sir,\nI am\nwell, and')] and rows(found) == [2, 3, 4, 5, 6]


def test_rows_that_may_have_vanished_within_a_cell_are_a_doubt():
    found = read('"never closed,yes\n', ROWS * 3, 'great",yes\n', QUOTED)
    assert not faults(found) and [entry.line for entry in found if entry.doubt] == [2]
    assert "over 17 lines, each of which reads as a row" in found[0].doubt


@given(st.lists(st.lists(st.text(alphabet='a,"\n ', max_size=30), min_size=2, max_size=2), min_size=1, max_size=8))
def test_whatever_csv_writes_is_read_as_it_was(table):
    rows_of = [["text", "label"], *([*row[:1], row[1] + "x"] for row in table)]
    written = io.StringIO()
    csv.writer(written).writerows(rows_of)
    found = [entry.cells for entry in read_table(written.getvalue(), ",")]
    assert found == rows_of and not any(entry.fault for entry in read_table(written.getvalue(), ","))


@pytest.mark.parametrize("line", ["no comma\n", "one, comma, or two\n", "\n"])
def test_a_long_cell_is_a_cell(line):
    (entry,) = read(f'"{line * 30}",yes\n')
    assert entry.cells == [line * 30, "yes"]


def test_in_one_column_nothing_is_told_from_what_follows():
    assert rows(read('"' + "a line\n" * 30 + '"\n', head="text\n")) == [2]
    found = read('"never closed\n', "a line\n" * 3, '"two\nlines"\n', head="text\n")
    assert [entry.line for entry in found] == [2] and found[0].fault.endswith("up to line 7 nothing else can be told")
