"""Files of clients: what is wrong is said in the API's words, and no file decides where it is read or written."""

from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse

from tests.tiny import captioned, chats, completions, labelled, pictures
from tunewright.data.config import DataConfig
from tunewright.data.records import load_records
from tunewright.errors import DataError
from tunewright.service.entities import JobSpec, Teaching
from tunewright.service.errors import Refused
from tunewright.service.graders import run_grader, validate_grader
from tunewright.service.unpacking import Limits, placed
from tunewright.service.validation import faults

EXACT = {
    "type": "string_check", "name": "exact", "operation": "eq",
    "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
}  # fmt: skip
PAIRS = [
    {
        "input": {"messages": [{"role": "user", "content": f"word {i}"}]},
        "preferred_output": [{"role": "assistant", "content": f"good {i}"}],
        "non_preferred_output": [{"role": "assistant", "content": f"bad {i}"}],
    }
    for i in range(12)
]
PROMPTS = [{"messages": [{"role": "user", "content": f"word {i}"}], "answer": str(i)} for i in range(12)]


def spec(kind: Any = "supervised", recipe: Any = None) -> JobSpec:
    teaching = Teaching(type=kind, grader=EXACT if kind == "reinforcement" else None)
    return JobSpec(model="m", training_file="file-a", method=teaching, recipe=recipe or {})


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file.getvalue()


def archive(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return file.getvalue()


def images(top: str = "", count: int = 12) -> dict[str, bytes]:
    return {f"{top}{row['label'][-1]}/{i}.png": row["image"] for i, row in enumerate(pictures(count))}


def in_text(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images as JSON can hold them."""
    return [{**row, "image": {"base64": base64.b64encode(row["image"]).decode()}} for row in rows]


TABLE = [{"file_name": f"i/{i}.png", "label": "ab"[i % 2]} for i in range(12)]
STARS = {"data": {"columns": {"label": "stars"}}}


def found(content: bytes, tmp_path: Path, job: JobSpec | None = None, **options: Any) -> Any:
    path = tmp_path / "upload"
    path.write_bytes(content)
    return faults(path, job or spec(), tmp_path / "rows", **options)


@pytest.mark.parametrize(
    "content, job",
    [
        (jsonl(chats(12)), spec()),
        (b"\xef\xbb\xbf" + jsonl(completions(12)), spec()),
        (table(labelled(12)), spec()),
        (table(labelled(12), "\t"), spec()),
        (parquet(labelled(12)), spec()),
        (parquet(pictures(12)), spec()),
        (jsonl([{"text": "a", "stars": str(i % 2)} for i in range(12)]), spec(recipe=STARS)),
        (jsonl(PAIRS), spec("dpo")),
        (jsonl(PROMPTS), spec("reinforcement")),
        (jsonl(in_text(pictures(12))), spec()),
        (archive(images()), spec()),
        (archive({**images("deep/er/"), "__MACOSX/._x": b"x", "deep/er/README.md": b"x"}), spec()),
        (archive({f"{i}{end}": value for i, row in enumerate(captioned(3))
                  for end, value in ((".png", row["image"]), (".txt", row["text"].encode()))}), spec()),
        (archive({**{f"i/{i}.png": row["image"] for i, row in enumerate(pictures(12))},
                  "metadata.jsonl": jsonl(TABLE)}), spec()),
    ],
)  # fmt: skip
def test_files_that_can_be_trained_on(content: bytes, job: JobSpec, tmp_path: Path) -> None:
    assert found(content, tmp_path, job) is None


LACKING = {"messages": PROMPTS[0]["messages"]}
BROKEN = [*chats(12)[:4], {"messages": []}, "x", *chats(12)[4:]]
TWO = "2 of 14 rows cannot be used.\nline 5: messages must be a list that is not empty\nline 6: a line must be"


@pytest.mark.parametrize(
    "content, job, said",
    [
        (b"", spec(), "is empty"),
        (b"\n \n", spec(), "is empty"),
        (b"hello world", spec(), "none that can be read"),
        (b"\xff\xfe{\x00}\x00", spec(), "none that can be read"),
        (jsonl(BROKEN), spec(), TWO),
        (jsonl(chats(12)) + b'{"messages": [\n', spec(), "\nline 13: not valid JSON"),
        (b"[" + jsonl(chats(1)) + b"]", spec(), "one JSON list"),
        (b'{"a": ' * 3000, spec(), "line 1: not valid JSON"),
        (jsonl([{"question": "?"}] * 12), spec(), "fit no format"),
        (jsonl(chats(12)), spec("dpo"), "these are chat rows, and preference or rated rows are needed"),
        (jsonl(PAIRS), spec(), "preference rows"),
        (jsonl(chats(12)), spec("reinforcement"), "ends with an answer"),
        (jsonl([*PROMPTS, LACKING]), spec("reinforcement"), "line 13: there is no item.answer"),
        (jsonl(chats(1500) + completions(1)), spec(), "line 1501: "),
        (table([*labelled(12), {"text": "", "label": ""}]), spec(), "line 14: no label"),
        (parquet(labelled(12))[:-20], spec(), "cannot be"),
        (parquet([*labelled(12), {"text": "a", "label": None}]), spec(), "row 13: no label"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(content: bytes, job: JobSpec, said: str, tmp_path: Path) -> None:
    error = found(content, tmp_path, job)
    assert error["code"] == "invalid_training_file" and error["param"] == "training_file"
    assert said in error["message"] and str(tmp_path) not in error["message"]
    assert len(error["message"].splitlines()) <= 12


def test_too_few_rows(tmp_path: Path) -> None:
    error = found(jsonl(chats(9)), tmp_path)
    assert error["code"] == "invalid_n_examples" and "9 examples" in error["message"]
    few = {"training": jsonl(in_text(captioned(2))), "validation": jsonl(chats(1))}
    for role, content in few.items():
        (tmp_path / role).mkdir()
        assert found(content, tmp_path / role, role=role) is None
    (tmp_path / "bad").mkdir()
    assert found(b"{}", tmp_path / "bad", role="validation")["code"] == "invalid_validation_file"


def test_a_task_says_which_rows_it_reads(tmp_path: Path) -> None:
    error = found(jsonl(labelled(12)), tmp_path, task="text-generation")
    assert "classification rows" in error["message"]


@pytest.mark.parametrize("value", ["/etc/passwd", "../x.png", {"path": "/dev/zero"}, "https://x/y.png", "/dev/stdin"])
@pytest.mark.parametrize("column", ["image", "file_name", "photo"])
def test_rows_name_no_place_on_the_machine(
    value: Any, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is never opened."""
    job = spec(recipe={"data": {"columns": {"image": "photo"}}} if column == "photo" else None)
    monkeypatch.setattr("tunewright.data.pictures.Picture.frames", lambda self: pytest.fail("opened"))
    for content in (jsonl, parquet):
        folder = tmp_path / content.__name__
        folder.mkdir()
        error = found(content([{column: value, "label": "a"}] * 12), folder, job)
        assert "the image is a" in error["message"]
    inside = {"metadata.jsonl": jsonl([{column: value, "label": "a"}] * 12), "a.png": pictures(1)[0]["image"]}
    (tmp_path / "zip").mkdir()
    assert "the image" in found(archive(inside), tmp_path / "zip", job)["message"]


def entry(name: str, mode: int = 0o100644) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        info = zipfile.ZipInfo("x" * len(name))
        info.external_attr = mode << 16
        made.writestr(info, b"/etc/passwd")
    return file.getvalue().replace(("x" * len(name)).encode(), name.encode())  # as no well-meaning writer would


@pytest.mark.parametrize(
    "content",
    [
        *(entry(name) for name in ("../a.png", "a/../../b.png", "/etc/a.png", "a//b.png", "C:/a.png")),
        *(entry(name) for name in ("..\\a.png", "a\n.png")),
        entry("a.png", 0o120777),
        entry("a.png", 0o010644),
        entry("dataset_info.json"),
        archive({"a.png": b"x", "a.png/b.png": b"x"}),
        archive(images())[:-30],
        archive(images())[:200] + b"\0" * 200 + archive(images())[400:],
    ],
)  # fmt: skip
def test_archives_that_mean_no_good(content: bytes, tmp_path: Path) -> None:
    error = found(content, tmp_path)
    assert error["code"] == "invalid_training_file"
    assert re.search("no name of a file|no plain file|save the rows|twice|damaged", error["message"])
    assert {path.name for path in tmp_path.iterdir()} == {"upload", "rows"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("a.png", b"1")
            made.writestr("a.png", b"2")
    assert "twice" in found(file.getvalue(), tmp_path)["message"]


def test_bombs_are_counted_as_they_burst(tmp_path: Path) -> None:
    """All files together, whatever the archive says of their sizes."""
    bomb = archive({f"{i}.png": bytes(10 << 20) for i in range(4)})
    assert len(bomb) < 100_000
    error = found(bomb, tmp_path)
    assert "too large" in error["message"]
    assert sum(path.stat().st_size for path in (tmp_path / "rows").rglob("*")) <= 16 << 20
    lying = bytearray(archive({"a.png": bytes(20 << 20)}))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = lying.index(mark) + at
        lying[place : place + 4] = struct.pack("<I", 10)
    (tmp_path / "lying").mkdir()
    assert found(bytes(lying), tmp_path / "lying") is not None
    assert sum(path.stat().st_size for path in (tmp_path / "lying" / "rows").rglob("*")) <= 16 << 20


@pytest.mark.parametrize(
    "content, limits, said",
    [
        (archive({f"{i}.png": b"x" for i in range(5)}), Limits(entries=4), "5 entries: 4 are allowed"),
        (archive({"a.png": bytes(100)}), Limits(unpacked=99), "more than 99 bytes"),
        (b'{"a": "' + b"x" * 100 + b'"}\n{}', Limits(line=100), "line 1 is longer than 100"),
        (b"{}\n{}\n" + b"{" * 101, Limits(line=100), "line 3 is longer"),
        (b"{}\n" * 12, Limits(rows=10), "more than 10 lines"),
    ],
)
def test_limits(content: bytes, limits: Limits, said: str, tmp_path: Path) -> None:
    assert said in found(content, tmp_path, limits=limits)["message"]


def test_a_long_line_over_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.service.unpacking.PIECE", 7)
    (tmp_path / "a").write_bytes(b'{"a": 1}\n' * 5 + b'{"a": "123456789"}\n' + b'{"a": 1}\n')
    placed(tmp_path / "a", tmp_path / "ok", limits=Limits(line=18))
    with pytest.raises(DataError, match="line 6 is longer than 17"):
        placed(tmp_path / "a", tmp_path / "bad", limits=Limits(line=17))


def test_an_archive_with_splits_gives_each_its_own(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(archive({**images("set/train/"), **images("set/val/", 6)}))
    for role, count in (("training", 12), ("validation", 6)):
        place = placed(path, tmp_path / role, role)  # type: ignore[arg-type]
        assert len(load_records(place, DataConfig(train="-")).records) == count


# Graders

JUDGE = {
    "type": "score_model", "name": "judge", "model": "m", "range": [0, 10],
    "input": [{"role": "user", "content": "Grade {{sample.output_text}}"}],
}  # fmt: skip
SIMILAR = {**EXACT, "type": "text_similarity", "name": "similar", "evaluation_metric": "fuzzy_match"}
del SIMILAR["operation"]
MULTI = {
    "type": "multi",
    "name": "both",
    "calculate_output": "exact + judge / 2",
    "graders": {"exact": EXACT, "judge": JUDGE},
}
asked: list[Any] = []


def says(text: str) -> Any:
    async def ask(model: str, messages: Any, sampling: Any) -> tuple[str, int]:
        asked.append((model, messages, sampling))
        return text, 3

    return ask


def graded(grader: dict[str, Any], sample: str = "yes", text: str = "a 7 of 10", **item: Any) -> Any:
    body = {"grader": grader, "model_sample": sample, "item": item or {"answer": "yes"}}
    told = asyncio.run(run_grader(body, says(text)))
    GraderRunResponse.model_validate(told, strict=True)
    return told


def test_graders_are_tried() -> None:
    assert graded(EXACT)["reward"] == 1 and graded(EXACT, "no")["reward"] == 0
    assert graded(SIMILAR, "yas")["reward"] == pytest.approx(2 / 3)
    judged = graded(JUDGE)
    assert judged["reward"] == 7 and judged["model_grader_token_usage_per_model"] == {"m": 3}
    assert judged["metadata"]["sampled_model_name"] == "m" and judged["metadata"]["token_usage"] == 3
    assert asked[-1][:2] == ("m", [{"role": "user", "content": "Grade yes"}])
    both = graded(MULTI)
    assert both["reward"] == 4.5 and both["sub_rewards"] == {"exact": 1.0, "judge": 7.0}
    assert not any(value for name, value in both["metadata"]["errors"].items())


@pytest.mark.parametrize(
    "grader, options, error",
    [
        (EXACT, {"question": "?"}, "invalid_variable_error"),
        (JUDGE, {"text": "no idea"}, "model_grader_parse_error"),
        (MULTI, {"text": "no idea"}, "model_grader_parse_error"),
        ({**MULTI, "calculate_output": "exact / (judge - 7)"}, {}, "other_error"),
    ],
)
def test_what_goes_wrong_is_told(grader: dict[str, Any], options: dict[str, Any], error: str) -> None:
    told = graded(grader, **options)
    assert told["reward"] == 0 and [n for n, v in told["metadata"]["errors"].items() if v] == [error]


def test_a_judge_that_fails() -> None:
    async def ask(*_: Any) -> Any:
        raise OSError("/secret")

    told = asyncio.run(run_grader({"grader": MULTI, "model_sample": "x", "item": {"answer": "a"}}, ask))
    errors = GraderRunResponse.model_validate(told).metadata.errors
    assert errors.api_model_grader_server_error and errors.api_model_grader_server_error_details == "OSError"


@pytest.mark.parametrize(
    "grader, param",
    [
        ({"type": "python", "name": "p", "source": "x"}, "grader"),
        ({"type": "pattern", "pattern": "(a+)+$"}, "grader"),
        ({**SIMILAR, "evaluation_metric": "cosine"}, "grader.evaluation_metric"),
        ({**EXACT, "input": "{{sample.output_text}}" * 5000}, "grader"),
        ({**EXACT, "input": "{{os.environ}}"}, "grader.input"),
        ({**MULTI, "calculate_output": "__import__('os')"}, "grader"),
        ({"type": "reward_model", "run": "/x"}, "grader.run"),
        ({}, "grader"),
    ],
)
def test_graders_that_are_refused(grader: dict[str, Any], param: str) -> None:
    with pytest.raises(Refused) as refused:
        graded(grader, "yes" * 3)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_graders_are_checked() -> None:
    single = {**MULTI, "graders": EXACT, "calculate_output": "exact * 2"}  # of a map, the client's types know nothing
    for grader in (EXACT, SIMILAR, JUDGE, single):
        GraderValidateResponse.model_validate(validate_grader({"grader": grader}))
    assert validate_grader({"grader": MULTI}) == {"grader": MULTI}
    for grader in ({"type": "python", "source": "x"}, {"type": "string_check"}, {**MULTI, "calculate_output": "exact"}):
        with pytest.raises(Refused):
            validate_grader({"grader": grader})
    with pytest.raises(Refused):
        asyncio.run(run_grader({"grader": EXACT, "model_sample": "x" * 10_001}, says("")))
