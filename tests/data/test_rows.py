"""Rows from every kind of place, and what is said about places that hold none."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest

from tunewright.data.config import DataConfig
from tunewright.data.records import load_records
from tunewright.data.row import Row
from tunewright.data.rows import content_hash, read_rows
from tunewright.data.stream import stream_rows
from tunewright.errors import DataError

ROWS = [{"text": "good", "label": "yes"}, {"text": "bad, 你", "label": "no"}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, content: str | bytes) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def lines(rows: list) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def write_parquet(name: str) -> str:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), name)
    return name


def save_dataset(name: str) -> str:
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(name)
    return name


# Places


@pytest.mark.parametrize(
    ("make", "second"),
    [
        (lambda: write("a.jsonl", lines(ROWS)), "a.jsonl:2"),
        (lambda: write("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\r\n\r\n").encode()), "a.jsonl:3"),
        (lambda: write("a.JSON", json.dumps(ROWS)), "a.JSON:row 2"),
        (lambda: write("a.json", json.dumps({"data": ROWS, "version": 1})), "a.json:row 2"),
        (lambda: write("a.csv", 'text,label\ngood,yes\n"bad, 你",no\n'), "a.csv:3"),
        (lambda: write("a.tsv", "text\tlabel\ngood\tyes\nbad, 你\tno\n"), "a.tsv:3"),
        (lambda: write_parquet("a.parquet"), "a.parquet:row 2"),
        (lambda: save_dataset("saved"), "saved:row 2"),
        (lambda: ROWS, "rows[1]"),
    ],
)
def test_the_same_rows_come_from_every_kind_of_place(folder, make, second):
    read = read_rows(make())
    assert [row.values for row in read.rows] == ROWS and read.faults == []
    assert read.rows[1].source == second
    assert content_hash(read.rows) == content_hash(Row(values, "") for values in ROWS)


def test_a_text_file_is_one_document(folder):
    assert read_rows(write("a.txt", "one\n\ntwo\n")).rows == [Row({"text": "one\n\ntwo\n"}, "a.txt")]


def test_a_line_separator_inside_a_string_ends_no_line(folder):
    assert len(read_rows(write("a.jsonl", lines([{"text": "one\u2028two\x85"}]))).rows) == 1


def test_a_folder_gives_the_files_of_its_one_split(folder):
    write("d/train-00000-of-00002.jsonl", lines(ROWS[:1]))
    write("d/train-00001-of-00002.jsonl", lines(ROWS[1:]))
    write("d/README.md", "about")
    assert [row.values for row in read_rows("d").rows] == ROWS


def test_a_folder_with_several_splits_is_never_read_whole(folder):
    write("d/train.jsonl", lines(ROWS))
    write("d/validation.jsonl", lines(ROWS))
    with pytest.raises(DataError, match="name one, or a split as d:train") as caught:
        read_rows("d")
    assert caught.value.faults == ["d/train.jsonl", "d/validation.jsonl"]
    assert [row.source for row in read_rows("d:validation").rows] == ["d/validation.jsonl:1", "d/validation.jsonl:2"]
    with pytest.raises(DataError, match="d holds no file of the split test"):
        read_rows("d:test")


def test_a_split_of_a_saved_dataset_is_named_behind_a_colon(folder):
    from datasets import Dataset, DatasetDict

    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk("saved")
    assert [row.source for row in read_rows("saved:test").rows] == ["saved:test:row 1"]
    with pytest.raises(DataError, match=r"has the splits train, test: name one, e.g. saved:train"):
        read_rows("saved")


def save_classes(name: str) -> str:
    from datasets import ClassLabel, Dataset, Features, List, Value

    classes = ClassLabel(names=["poor", "fine"])
    features = Features(text=Value("string"), label=classes, tags=List(classes), number=Value("int64"))
    columns = {"text": ["a", "b", "c"], "label": [1, 0, -1], "tags": [[], [0, 1], None], "number": [0, 1, -1]}
    dataset = Dataset.from_dict(columns, features=features)
    (dataset.to_parquet if name.endswith(".parquet") else dataset.save_to_disk)(name)
    return name


@pytest.mark.parametrize("name", ["saved", "a.parquet"])
def test_classes_that_a_dataset_names_are_read_by_their_names(folder, name):
    values = [row.values for row in read_rows(save_classes(name)).rows]
    assert [row["label"] for row in values] == ["fine", "poor", None]
    assert [row["tags"] for row in values] == [[], ["poor", "fine"], None]
    assert [row["number"] for row in values] == [0, 1, -1]


def test_a_row_of_no_class_has_no_label(folder):
    place = save_classes("saved")
    with pytest.raises(DataError) as caught:
        load_records(place, DataConfig(train=place))
    assert caught.value.faults == ["saved:row 3: no label"]


def test_columns_of_an_older_dataset_are_read(folder):
    import pyarrow
    import pyarrow.parquet

    value, label = {"dtype": "string", "_type": "Value"}, {"names": ["poor", "fine"], "_type": "ClassLabel"}
    features = {"messages": [{"role": value}], "about": {"feature": value}, "tags": [label]}
    rows = [{"messages": [{"role": "user"}], "about": {"feature": "x"}, "tags": [1]}]
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows).replace_schema_metadata(told), "a.parquet")
    assert [row.values for row in read_rows("a.parquet").rows] == [{**rows[0], "tags": ["fine"]}]


# Bad rows


def test_every_malformed_line_is_a_fault_with_its_number_and_content(folder):
    content = lines(ROWS).encode() + b'\n{"text": \n\n[1]\n"x"\n{"text": "\xff"}\n' + lines(ROWS[:1]).encode()
    read = read_rows(write("a.jsonl", content))
    assert [row.source for row in read.rows] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:8"]
    assert [fault.source for fault in read.faults] == ["a.jsonl:3", "a.jsonl:5", "a.jsonl:6", "a.jsonl:7"]
    assert read.faults[0].raw == '{"text": ' and "not valid JSON" in str(read.faults[0])
    assert "not a list" in str(read.faults[1]) and "not a str" in str(read.faults[2])


def test_rows_given_in_python_must_be_objects():
    read = read_rows([{"text": "a"}, None])  # type: ignore[list-item]
    assert [str(fault) for fault in read.faults] == ["rows[1]: not an object with columns, but null"]


def test_a_row_of_a_table_is_where_its_first_line_is(folder):
    read = read_rows(write("a.csv", '\ntext,label\r\n"one\n\ntwo",yes\n\nbad\n"a\rb",no\na,b,c\n'))
    assert [(row.source, row.values["text"]) for row in read.rows] == [("a.csv:3", "one\n\ntwo"), ("a.csv:8", "a\rb")]
    assert [fault.source for fault in read.faults] == ["a.csv:7", "a.csv:10"]
    assert "the 2 cells" in read.faults[0].reason and read.faults[1].raw == ["a", "b", "c"]


def test_a_quote_that_is_missing_is_a_fault_of_its_line(folder):
    read = read_rows(write("a.tsv", 'text\tlabel\ngood\tyes\n"bad\tno\ngood\tyes\n'))
    assert [row.source for row in read.rows] == ["a.tsv:2", "a.tsv:4"]
    assert [(fault.source, fault.raw) for fault in read.faults] == [("a.tsv:3", '"bad\tno\n')]


# Places that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n \n", "holds no rows"),
        ("a.txt", " \n", "holds no rows"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", '[{"text": "a"}]', "rename it to a.json"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', "rename it to .jsonl"),
        ("a.json", '{"text": "a"}', "must hold a list of rows"),
        ("a.xlsx", "x", "unknown kind: give one of .jsonl"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("a.csv", b"text\n\xff\n", r"not UTF-8 \(byte 5\)"),
        ("a.csv", '"text\na,b\n', "a.csv:1: a cell begins with a quote here"),
        ("a.parquet", "x", "not a Parquet file"),
        ("d/notes.md", "x", "holds no file that can be read"),
    ],
)
def test_a_place_without_rows_says_what_to_do(folder, name, content, message):
    write(name, content)
    with pytest.raises(DataError, match=message):
        read_rows(name.split("/")[0])


def test_an_empty_list_holds_no_rows():
    with pytest.raises(DataError, match="the list of rows holds no rows"):
        read_rows([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(folder):
    Path(write("a.jsonl", lines(ROWS))).chmod(0)
    with pytest.raises(DataError, match=r"cannot be read .*permissions"):
        read_rows("a.jsonl")


def test_an_error_of_the_file_system_is_named(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    write("a.jsonl", lines(ROWS))
    monkeypatch.setattr(Path, "open", refuse)
    for read in (read_rows, lambda name: list(stream_rows(name))):
        with pytest.raises(DataError, match=r"a.jsonl cannot be read \(Permission denied\)"):
            read("a.jsonl")


@pytest.mark.parametrize(
    "name", ["trian.jsonl", "data/train", "org/train.jsonl", "./org/name", "/org/name", "imdb", "a/b/c"]
)
def test_a_missing_path_does_not_touch_the_network(folder, monkeypatch, name):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("asked the hub"))
    Path("data").mkdir()
    with pytest.raises(DataError, match="does not exist: give a file, a folder, or a hub name"):
        read_rows(name)


def test_a_hub_name_that_cannot_be_had_says_so(folder, monkeypatch):
    import datasets

    def offline(name):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub (OfflineModeIsEnabled)")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"owner/name is no file here and cannot be had from the hub .*Couldn't reach"):
        read_rows("owner/name:train")


def test_a_hub_name_gives_the_rows_of_the_split(folder, monkeypatch):
    import datasets

    hub = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:1]))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub)
    assert [row.source for row in read_rows("owner/name:test").rows] == ["owner/name:test:row 1"]
    with pytest.raises(DataError, match="has the splits train, test"):
        read_rows("owner/name")


def test_the_hash_is_of_the_content_not_of_the_order_of_its_keys():
    one, other = Row({"a": 1, "b": b"x"}, "1"), Row({"b": b"x", "a": 1}, "2")
    assert content_hash([one]) == content_hash([other])
    assert content_hash([one]) != content_hash([Row({"a": 1, "b": b"y"}, "1")])
    assert content_hash([one, one]) != content_hash([one])


def test_a_column_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("text,text,label\na,b,c\n")
    with pytest.raises(DataError, match=r"rows\.csv:1: the columns 'text' are there twice"):
        read_rows(str(tmp_path / "rows.csv"))


def test_a_well_made_cell_of_many_rows_is_read_with_a_doubt(tmp_path):
    code = "".join(f"print(a{i}, b{i})\n" for i in range(14))
    with (tmp_path / "code.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([code, "yes"] for _ in range(3))])
    read = read_rows(str(tmp_path / "code.csv"))
    assert [row.values for row in read.rows] == [{"text": code, "label": "yes"}] * 3 and not read.faults
    assert [doubt.split(": ")[0].rsplit(":")[-1] for doubt in read.doubts] == ["2", "17", "32"]
