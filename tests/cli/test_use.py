"""`predict`, `chat`, `evaluate` and `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.cli.conftest import Invoke, write_jsonl
from tunewright import api
from tunewright.artifacts.targets import base
from tunewright.cli import _chat
from tunewright.errors import BaseModelError

TEXTS = ["the bill is wrong", "add a dark mode"]


@pytest.fixture
def predicted(invoke: Invoke, classifier: Path) -> Any:
    """The texts that `predict --json` answered."""

    def texts(*arguments: Any, input: str | None = None) -> list[str]:
        done = invoke("predict", classifier, *arguments, "--json", input=input)
        assert done.exit_code == 0, done.output
        return [answer["text"] for answer in json.loads(done.stdout)["predictions"]]

    return texts


def test_predict_shows_label_and_probability(invoke: Invoke, classifier: Path) -> None:
    long = "it would be nice to have a mode, please, " * 5
    plain = invoke("predict", classifier, TEXTS[0], long)
    answers = json.loads(invoke("predict", classifier, TEXTS[0], long, "--json").stdout)["predictions"]
    lines = plain.stdout.splitlines()
    assert plain.exit_code == 0 and all(len(line) <= 80 for line in lines)
    for line, answer in zip(lines[2:], answers, strict=True):
        assert answer["label"] in line and f"{100 * max(answer['probabilities'].values()):.1f} %" in line
    assert TEXTS[0] in lines[2] and "…" in lines[3]


def test_predict_from_files_and_stdin(predicted: Any) -> None:
    Path("a.txt").write_text("\ufeffthe bill is wrong\r\n\n  \nadd a dark mode\n", encoding="utf-8")
    Path("a.csv").write_text('text,other\n"the bill is wrong",1\nadd a dark mode,2\n', encoding="utf-8")
    write_jsonl(Path("a.jsonl"), [{"review": text} for text in TEXTS])
    assert predicted("--file", "a.txt") == TEXTS
    assert predicted("--file", "a.csv") == TEXTS
    assert predicted("--file", "a.jsonl", "--column", "review") == TEXTS
    assert predicted("--file", "-", input="\n".join(TEXTS)) == TEXTS


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "There is nothing to predict"),
        (["text", "--file", "a.txt"], "not both"),
        (["--file", "missing.txt"], "There is no file missing.txt"),
        (["--file", "empty.txt"], "holds no texts"),
        (["--file", "latin.txt"], "cannot be read as UTF-8"),
        (["--file", "a.jsonl"], "a.jsonl:1: no text in column 'text'; columns are review"),
        (["--file", "blank.csv"], "blank.csv:3: no text in column 'text'"),
        (["--file", "a.xyz"], "unknown kind"),
        (["text", "--device", "nonsense"], "nonsense is no device"),
    ],
)
def test_what_cannot_be_predicted(invoke: Invoke, classifier: Path, arguments: list[str], words: str) -> None:
    Path("empty.txt").write_text("\n\n")
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("a.xyz").write_text("x")
    Path("blank.csv").write_text("text,other\ngood,1\n ,2\n")
    write_jsonl(Path("a.jsonl"), [{"review": "good"}])
    done = invoke("predict", classifier, *arguments)
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_reward_model_reads_prompts_and_answers(kind: str, invoke: Invoke, tiny_base: Any, tmp_path: Path) -> None:
    """As from Python; a prompt may be messages, and a text without a prompt gets a notice."""
    pairs = [{"prompt": f"Which of {i}? ", "chosen": "This one.", "rejected": "None of them."} for i in range(6)]
    run = tw.train(
        base=tiny_base(kind), data={"train": pairs, "validation": 0}, objective="reward", method="full",
        training={"max_steps": 2}, output=str(tmp_path / "run"),
    )  # fmt: skip
    rows = [{"asked": pair["prompt"], "said": pair["chosen"]} for pair in pairs[:2]]
    write_jsonl(Path("answers.jsonl"), rows)
    columns = ["--file", "answers.jsonl", "--column", "asked", "--pair", "said"]
    told = json.loads(invoke("predict", run, *columns, "--json").stdout)["predictions"]
    expected = tw.predict(run, [(row["asked"], row["said"]) for row in rows])
    assert [one["value"] for one in told] == pytest.approx([one["value"] for one in expected])
    shown = invoke("predict", run, *columns)
    assert shown.exit_code == 0 and "Which of 0? → This one." in shown.stdout and "Note" not in shown.stderr
    alone = invoke("predict", run, "This one.")
    assert alone.exit_code == 0 and "--pair ANSWER" in alone.stderr
    write_jsonl(Path("talk.jsonl"), [{"text": [{"role": "user", "content": "Which?"}], "said": "This one."}])
    assert "Which? → This one." in invoke("predict", run, "--file", "talk.jsonl", "--pair", "said").stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["text", "--pair", "b"], "--pair names a column"), (["--file", "a.txt", "--pair", "b"], "--pair names a column"),
     (["--file", "a.jsonl", "--pair", "other"], "a.jsonl:1: no text in column 'other'")],
)  # fmt: skip
def test_pairs_need_two_columns(invoke: Invoke, classifier: Path, arguments: list[str], words: str) -> None:
    Path("a.txt").write_text("a")
    write_jsonl(Path("a.jsonl"), [{"text": "a"}])
    done = invoke("predict", classifier, *arguments)
    assert done.exit_code == 2 and words in done.stderr


def test_predict_needs_a_classifier(invoke: Invoke, talker: Path) -> None:
    done = invoke("predict", talker, "text")
    assert done.exit_code == 2 and "tunewright chat" in done.stderr
    assert invoke("predict", "./nowhere", "text").exit_code == 2


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ({"labels": ["a", "b"], "probabilities": {"a": 0.9, "b": 0.6, "c": 0.1}}, ["a, b", "90.0 %, 60.0 %"]),
        ({"labels": [], "probabilities": {"a": 0.1}}, ["(none)"]),
        ({"value": 3.14159}, ["Value", "3.142"]),
        ({"label": "a", "probabilities": {"a": 1.0}, "truncated": True}, ["100.0 %", "1 of 1 text is longer"]),
    ],
)
def test_every_kind_of_answer(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], shown: list[str]
) -> None:
    monkeypatch.setattr(api, "predict", lambda where, texts, device: [{"text": "t", **answer}])
    found = invoke("predict", "run", "t").output
    assert all(words in found for words in shown)


def test_evaluate(invoke: Invoke, classifier: Path, rows: Path) -> None:
    arguments = ["evaluate", classifier, "--data", rows / "tickets.jsonl", "--samples", 2]
    plain, document = invoke(*arguments), json.loads(invoke(*arguments, "--json").stdout)
    assert plain.exit_code == 0 and "Accuracy" in plain.stdout and "95 % intervals" in plain.stdout
    assert document["rows"] == 16 and len(document["samples"]) == 2 and document["notices"] == []
    accuracy = document["scores"]["metrics"]["accuracy"]
    assert f"{100 * accuracy['value']:.1f}\u00a0% [{100 * accuracy['low']:.1f}–" in plain.stdout


def test_evaluate_with_other_columns_and_a_pattern(
    invoke: Invoke, classifier: Path, completer: Path, rows: Path
) -> None:
    renamed = write_jsonl(Path("r.jsonl"), [{"review": "the bill is wrong", "stars": "billing"}])
    together = invoke("evaluate", classifier, "--data", renamed, "--columns", "text=review,label=stars")
    apart = invoke("evaluate", classifier, "--data", renamed, "--columns", "text=review", "--columns", "label=stars")
    assert together.exit_code == apart.exit_code == 0 and together.stdout == apart.stdout
    keys = ["--pattern", r"(\d+)", "--max-new-tokens", 2, "--json"]
    scores = json.loads(invoke("evaluate", completer, "--data", rows / "facts.jsonl", *keys).stdout)["scores"]
    assert "pattern_match" in scores["metrics"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--data", "{rows}/talk.jsonl"], "this model needs classification or preference rows"),
        (["--data", "{rows}/tickets.jsonl", "--columns", "text"], "'text' is no NAME=VALUE"),
        ([], "Missing option '--data'"),
    ],
)
def test_what_cannot_be_evaluated(
    invoke: Invoke, classifier: Path, rows: Path, arguments: list[str], words: str
) -> None:
    done = invoke("evaluate", classifier, *(argument.format(rows=rows) for argument in arguments))
    assert done.exit_code == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_rows_that_are_too_long(invoke: Invoke, completer: Path) -> None:
    """What is said names the options of the command, and what its model cannot hold cannot be raised."""
    long = write_jsonl(
        Path("long.jsonl"), [{"prompt": "a", "completion": " b c" * 40}, {"prompt": "a", "completion": "b"}]
    )
    longest = api.load(completer).module.config.max_position_embeddings
    for command in (["evaluate", completer], ["compare", completer, completer]):
        short = invoke(*command, "--data", long, "--max-length", 16)
        assert (
            short.exit_code == 2
            and "raise --max-length, or set --overlength to truncate, drop or split" in short.stderr
        )
        assert "data." not in short.stderr.replace("long.jsonl", "")
        assert invoke(*command, "--data", long, "--max-length", 16, "--overlength", "drop").exit_code == 0
    write_jsonl(long, [{"prompt": "a", "completion": " b c" * 10 * longest}])
    for command in (["evaluate", completer], ["compare", completer, completer]):
        whole = invoke(*command, "--data", long, "--max-length", 10 * longest)
        assert f"{longest} tokens, all that the model can hold" in whole.stderr and "max-length" not in whole.stderr


def test_export_merged_answers_alike(invoke: Invoke, classifier: Path) -> None:
    shown = invoke("export", classifier, "--to", "merged", "whole").stdout
    assert "Same likeliest answer" in shown and "100.0%" in shown and shown.endswith("Written to whole\n")
    document = json.loads(
        invoke("export", classifier, "again", "--to", "merged", "--precision", "bf16", "--json").stdout
    )
    assert document == {"folder": "again", **json.loads(Path("again/verification.json").read_text())}
    assert (document["target"], document["precision"], document["verified"]) == ("merged", "bf16", True)
    answers = [json.loads(invoke("predict", where, *TEXTS, "--json").stdout) for where in (classifier, "whole")]
    for one, other in zip(answers[0]["predictions"], answers[1]["predictions"], strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_an_export_that_is_another_model_fails(invoke: Invoke, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "merge_adapter", lambda model: setattr(model, "module", model.module.unload()))
    done = invoke("export", talker, "out", "--to", "merged")
    assert done.exit_code == 1 and "An output differs by" in done.stderr and "out.unverified" in done.stderr
    error = json.loads(invoke("export", talker, "out", "--to", "merged", "--json").stdout)["error"]
    assert error["type"] == "VerificationError" and error["verification"]["verified"] is False


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["out", "--to", "gguff"], "gguff is no export target"),
        (["used", "--to", "merged"], "used is not empty"),
        (["used/file", "--to", "merged"], "used/file is no folder that can be written to"),
        (["used/file/out", "--to", "merged"], "used/file is no folder that can be written to"),
        (["/proc/out", "--to", "merged"], "/proc/out"),
        (["out"], "Missing option '--to'"),
    ],
)
def test_what_cannot_be_exported(invoke: Invoke, classifier: Path, arguments: list[str], words: str) -> None:
    Path("used").mkdir()
    Path("used/file").touch()
    done = invoke("export", classifier, *arguments)
    assert done.exit_code == 2 and words in done.stderr and not Path("out").exists()


def test_chat_answers_once(invoke: Invoke, talker: Path) -> None:
    arguments = ["chat", talker, "Which of 3?", "--max-new-tokens", 5]
    plain, document = invoke(*arguments), json.loads(invoke(*arguments, "--json").stdout)
    assert plain.exit_code == 0 and plain.stdout.strip() == document["answer"].strip()
    assert document["prompt"] == "Which of 3?"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the model was asked, in order; it answers "Yes." to all but "too long"."""
    questions: list[Any] = []

    def answer(model: Any, prompt: Any, **_: Any) -> str:
        questions.append(prompt)
        if "too long" in str(prompt):
            raise BaseModelError("There is no room.")
        return "Yes."

    monkeypatch.setattr(_chat.tw, "chat", answer, raising=False)
    return questions


def test_a_conversation_is_kept_until_reset(invoke: Invoke, talker: Path, asked: list[Any]) -> None:
    done = invoke("chat", talker, input="One?\n\ntoo long\nTwo?\n/reset\nThree?\n")
    said = [[message["content"] for message in question] for question in asked]
    assert said == [["One?"], ["One?", "Yes.", "too long"], ["One?", "Yes.", "Two?"], ["Three?"]]
    assert done.exit_code == 0 and "There is no room. /reset begins a new conversation." in done.stderr


def test_a_completer_is_given_the_raw_text(invoke: Invoke, completer: Path, asked: list[Any]) -> None:
    done = invoke("chat", completer, input="After 1 comes\nAfter 2 comes\n")
    assert asked == ["After 1 comes", "After 2 comes"] and "continued as it stands" in done.stderr


@pytest.mark.parametrize("option", [("--max-new-tokens", 0), ("--temperature", -1), ("--temperature", "nan")])
def test_chat_refuses_options_out_of_range(invoke: Invoke, talker: Path, option: tuple[str, Any]) -> None:
    done = invoke("chat", talker, "Which of 3?", *option)
    assert done.exit_code == 2 and option[0].strip("-").split("-")[0] in done.stderr


def test_chat_needs_a_language_model_and_a_question(invoke: Invoke, classifier: Path, talker: Path) -> None:
    assert "tunewright predict" in invoke("chat", classifier, "Hello").stderr
    done = invoke("chat", talker, "--json")
    assert done.exit_code == 2 and "give it as PROMPT" in json.loads(done.stdout)["error"]["message"]
