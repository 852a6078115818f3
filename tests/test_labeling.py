"""From rules and rows to labelled rows: a poll, a label model, a file and an account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tunewright as tw
from tests.runs import recipe
from tests.tiny import pictures
from tunewright.cli import app
from tunewright.data.labeling.rules import read_rules
from tunewright.errors import BaseModelError, DataError, OutputError, RecipeError
from tunewright.labeling import poll
from tunewright.reading import read_rows

RULES = [
    {"name": "fox", "label": "animal", "keywords": ["fox"]},
    {"name": "cow", "label": "animal", "pattern": "cow"},
    {"name": "sweet", "label": "fruit", "pattern": "apple|pear"},
    {"name": "idle", "label": "fruit", "pattern": "quince"},
]
TEXTS = ["a fox and a cow", "a fox eats an apple", "an apple", "nothing", "a cow", "a fox, a cow, a pear"]
GOLD = ["animal", "animal", "fruit", "stone", "fruit", None]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "label": label, "id": i} for i, (text, label) in enumerate(zip(TEXTS, GOLD, strict=True))]
    Path("rules.jsonl").write_text("".join(json.dumps(rule) + "\n" for rule in RULES))
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def read(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_majority_labels_and_weights(files: Path) -> None:
    told = tw.label("rules.jsonl", "rows.jsonl", "out.jsonl", model="majority")
    rows = read("out.jsonl")
    assert [row["id"] for row in rows] == [0, 1, 2, 4, 5] and told["written"] == 5
    assert [row["label"] for row in rows[:3]] == [
        {"animal": 1.0, "fruit": 0.0}, {"animal": 0.5, "fruit": 0.5}, {"animal": 0.0, "fruit": 1.0}
    ]  # fmt: skip
    assert [row["weight"] for row in rows] == [1, 0, 1, 1, 1]


def test_ties_and_rows_without_votes(files: Path) -> None:
    tw.label("rules.jsonl", "rows.jsonl", "a.jsonl", model="majority", ties="abstain")
    assert [row["id"] for row in read("a.jsonl")] == [0, 2, 4, 5]
    tw.label("rules.jsonl", "rows.jsonl", "b.jsonl", model="majority", uncovered="uniform", confidence=False)
    assert read("b.jsonl")[3] == {"text": "nothing", "id": 3, "label": {"animal": 0.5, "fruit": 0.5}}


def test_a_rows_own_weight_counts_too(files: Path) -> None:
    """As a number or as text, as CSV has it; what is no weight is a fault of its row."""
    weights = [5, "0.5", None, 1, -2, "much"]
    rows = [{"text": text, "weight": weight} for text, weight in zip(TEXTS, weights, strict=True)]
    told = tw.label("rules.jsonl", rows, "out.jsonl")
    tw.label("rules.jsonl", [{"text": text} for text in TEXTS[:4]], "plain.jsonl")
    sure = [row["weight"] for row in read("plain.jsonl")]
    assert [row["weight"] for row in read("out.jsonl")] == pytest.approx(
        [sure[0] * 5, sure[1] * 0.5, sure[2]], abs=1e-5
    )
    assert told["unread"]["first"] == [
        "rows[4]: weight is -2: give 0, 1, or another number that is not negative",
        "rows[5]: weight is 'much': give 0, 1, or another number that is not negative",
    ]
    tw.label("rules.jsonl", rows[:2], "own.jsonl", confidence=False)
    assert [row["weight"] for row in read("own.jsonl")] == [5, "0.5"]


def test_the_account(files: Path) -> None:
    told = tw.label("rules.jsonl", "rows.jsonl", model="majority")
    assert told["rows"] == 6 and told["coverage"] == pytest.approx(5 / 6)
    assert told["overlap"] == pytest.approx(3 / 6) and told["conflict"] == pytest.approx(2 / 6)
    fox, cow, sweet, idle = told["rules"]
    assert (fox["coverage"], fox["overlap"], fox["conflict"]) == pytest.approx((3 / 6, 3 / 6, 2 / 6))
    assert (cow["overlap"], sweet["conflict"]) == pytest.approx((2 / 6, 2 / 6))
    assert idle["coverage"] == 0 and "accuracy" not in idle
    assert fox["accuracy"]["value"] == 1 and fox["accuracy"]["n"] == 2  # of the third the label is not known
    assert cow["accuracy"]["value"] == 0.5 and sweet["accuracy"]["value"] == 0.5
    assert 0 < cow["accuracy"]["low"] < 0.5 < cow["accuracy"]["high"] < 1
    assert told["accuracy"]["n"] == 4 and told["accuracy"]["value"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert [fight["votes"] for fight in told["fights"]] == [
        {"fox": "animal", "sweet": "fruit"}, {"fox": "animal", "cow": "animal", "sweet": "fruit"}
    ]  # fmt: skip
    assert told["fights"][0]["first"] == "rows.jsonl:2"


def test_true_labels_change_no_label(files: Path) -> None:
    tw.label("rules.jsonl", "rows.jsonl", "with.jsonl")
    bare = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    Path("bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    tw.label("rules.jsonl", "bare.jsonl", "without.jsonl")
    assert read("with.jsonl") == read("without.jsonl")


def test_rows_that_cannot_be_used_are_passed_over_and_named(files: Path) -> None:
    with Path("rows.jsonl").open("a") as file:
        file.write("{\n" + json.dumps({"text": "an apple", "id": 8}) + "\n")
    told = tw.label("rules.jsonl", "rows.jsonl", "out.jsonl")
    assert told["unread"]["count"] == 1 and told["unread"]["first"][0].startswith("rows.jsonl:7: not valid JSON")
    assert read("out.jsonl")[-1]["id"] == 8


def test_of_a_row_only_the_number_of_its_ballot_is_kept(files: Path) -> None:
    """Four bytes; what a million rows take is measured by benchmarks.labeling_speed."""
    found = poll([{"text": text} for text in TEXTS * 700], read_rules("rules.jsonl", lambda where: None))  # type: ignore[arg-type, return-value]
    assert len(found.ballot_N) == 4200 and found.ballot_N.itemsize == 4
    assert len(found.ballots) == len(found.firsts) == 6 and found.rows == [700] * 6


def test_balance_names_the_classes(files: Path) -> None:
    told = tw.label("rules.jsonl", "rows.jsonl", balance={"animal": 3, "fruit": 1})
    assert told["labels"]["animal"] > tw.label("rules.jsonl", "rows.jsonl")["labels"]["animal"]
    with pytest.raises(DataError, match="balance names animal; the rules vote for animal, fruit"):
        tw.label("rules.jsonl", "rows.jsonl", balance={"animal": 1})


@pytest.mark.parametrize(
    "options, said",
    [
        ({"modle": "em"}, "unknown key modle. Did you mean model?"),
        ({"model": "majority", "accuracy": 0.9}, "accuracy: for model: em, and this is majority"),
        ({"ties": "abstain"}, "ties: for model: majority, and this is em"),
        ({"uncovered": "uniform"}, "set confidence: false too"),
        ({"then_clean": "clean.jsonl"}, "then_clean is for training: data.labeling.then_clean of a recipe"),
    ],
)
def test_options_without_effect(options: Any, said: str, files: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        tw.label("rules.jsonl", "rows.jsonl", **options)
    assert said in str(caught.value)


def test_nothing_is_overwritten_and_nothing_half_is_left(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out.jsonl").write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        tw.label("rules.jsonl", "rows.jsonl", "out.jsonl")
    before = sorted(path.name for path in files.iterdir())
    monkeypatch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError, match="No space left"):
        tw.label("rules.jsonl", "rows.jsonl", "other.jsonl")
    assert sorted(path.name for path in files.iterdir()) == before


def test_rules_without_any_vote(files: Path) -> None:
    Path("rules.jsonl").write_text(json.dumps({"label": "a", "pattern": "zebra"}))
    with pytest.raises(DataError, match="No rule votes on any row"):
        tw.label("rules.jsonl", "rows.jsonl")


def test_a_tuned_model_is_a_rule(files: Path, tiny_base: Any) -> None:
    """Weak to strong: what one run learned is a vote for the next."""
    run = tw.train(recipe(tiny_base("bert"), files / "run", task="text-classification"))
    rule = {"name": "m", "model": str(run.folder), "threshold": 0.0}
    Path("rules.jsonl").write_text(json.dumps(rule))
    told = tw.label("rules.jsonl", "rows.jsonl", "out.jsonl", device="cpu")
    said = tw.predict(run.folder, TEXTS, device="cpu")
    assert [max(row["label"], key=row["label"].get) for row in read("out.jsonl")] == [one["label"] for one in said]
    assert told["coverage"] == 1


def test_a_model_that_is_no_classifier_is_no_rule(files: Path, tiny_base: Any) -> None:
    Path("rules.jsonl").write_text(json.dumps({"model": tiny_base("llama")}))
    with pytest.raises(BaseModelError, match="is no classifier"):
        tw.label("rules.jsonl", "rows.jsonl")


def test_the_command(files: Path) -> None:
    result = CliRunner().invoke(
        app, ["label", "rules.jsonl", "--data", "rows.jsonl", "--to", "out.jsonl"], env={"COLUMNS": "80"}
    )
    assert result.exit_code == 0, result.output
    assert "some rule votes on 83.3" in result.output and "5 rows are in out.jsonl" in result.output
    assert "1 rule votes on no row: idle." in result.output and result.output.count("idle") == 1
    assert max(map(len, result.output.splitlines())) <= 160
    document = CliRunner().invoke(app, ["label", "rules.jsonl", "--data", "rows.jsonl", "model=majority", "--json"])
    assert json.loads(document.stdout)["model"] == "majority"


SLIP = {"name": "slip", "label": "anmal", "pattern": "fox"}


def test_a_class_that_no_true_label_has_is_named(files: Path, tiny_base: Any) -> None:
    """A slip of the pen in a rule makes a class of its own: said by the command, and by a run that has true labels."""
    with Path("rules.jsonl").open("a") as file:
        file.write(json.dumps(SLIP) + "\n")
    said = "Rules vote for anmal, which is no row's true label and becomes a class of its own. Did you mean animal?"
    command = ["label", "rules.jsonl", "--data"]
    assert said in CliRunner().invoke(app, [*command, "rows.jsonl"]).stderr
    bare = [{"text": text} for text in TEXTS]
    Path("bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    assert "Rules vote for" not in CliRunner().invoke(app, [*command, "bare.jsonl"]).stderr
    for data in ({"train": "rows.jsonl", "validation": 0}, {"train": "bare.jsonl"},
                 {"train": "bare.jsonl", "validation": 0, "test": VALIDATION}):  # fmt: skip
        assert [n for n in read_rows(weak(files, tiny_base, data=data)).notices if "Rules vote for" in n] == [said]
    mended = read_rows(weak(files, tiny_base, data={"train": "bare.jsonl", "validation": 0.3}))
    assert not any("Rules vote for" in notice for notice in mended.notices), "no true label is known"


def test_the_command_says_how_far_slow_rules_are(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions are asked for few rows at a time."""
    monkeypatch.setattr("tunewright.cli._progress.SECONDS_BETWEEN_LINES", 0.0)
    Path("rules.py").write_text("def all(row):\n    return 'a'\n")
    Path("many.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 4))
    result = CliRunner().invoke(app, ["label", "rules.py", "--data", "many.jsonl"])
    said = [line for line in result.stderr.splitlines() if line.startswith("The rules have voted on")]
    assert said == ["The rules have voted on 16 rows.", "The rules have voted on 24 rows."]


def test_the_command_with_a_rule_that_throws(files: Path) -> None:
    Path("rules.py").write_text("def bad(row):\n    return row['x']\ndef good(row):\n    return 'a'\n")
    result = CliRunner().invoke(app, ["label", "rules.py", "--data", "rows.jsonl"])
    assert result.exit_code == 0
    assert "bad failed on 6 rows and abstains there: bad: rows.jsonl:1: KeyError: 'x'" in result.stderr


# In a recipe


def weak(files: Path, tiny_base: Any, name: str = "run", **changes: Any) -> Any:
    data = {"train": "rows.jsonl", "labeling": {"rules": "rules.jsonl"}, "validation": VALIDATION}
    data |= changes.pop("data", {})
    return recipe(tiny_base("bert"), files / name, task="text-classification", data=data, method="full", **changes)


VALIDATION = [{"text": "fox", "label": "animal"}, {"text": "pear", "label": "fruit"}]


def test_a_recipe_trains_on_what_rules_say(files: Path, tiny_base: Any) -> None:
    rows = [{"review": text, "stars": label} for text, label in zip(TEXTS, GOLD, strict=True)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe_ = weak(files, tiny_base, data={"columns": {"text": "review", "label": "stars"}, "validation": [
        {"review": row["text"], "stars": row["label"]} for row in VALIDATION
    ]})  # fmt: skip
    run = tw.train(recipe_)
    tw.label("rules.jsonl", [{"text": text} for text in TEXTS], "out.jsonl")
    same = tw.train(weak(files, tiny_base, "other", data={"train": "out.jsonl", "labeling": None}))
    one, other = (torch.cat([p.flatten() for p in r.model.module.state_dict().values()]) for r in (run, same))
    assert torch.equal(one, other) and run.info["labels"] == ["animal", "fruit"]
    told = json.loads((run.folder / "labeling.json").read_text())
    assert told["rows"] == 6 and told["written"] == 5 and told["rules"][0]["accuracy"]["n"] == 2
    assert "1 training row without a label of any rule: left out." in run.info["notices"]
    page = run.report.read_text()
    assert "Labelling rules" in page and "sweet" in page


def test_validation_rows_of_the_rules_are_told_from_true_ones(files: Path, tiny_base: Any) -> None:
    run = tw.train(weak(files, tiny_base, data={"train": "rows.jsonl", "validation": 0.3}))
    assert any("the rules' labels" in notice for notice in run.info["notices"])


def test_a_run_with_rules_resumes_with_the_same_labels(files: Path, tiny_base: Any) -> None:
    whole = tw.train(weak(files, tiny_base, "whole"))
    from tests.runs import left_behind, stop_at

    def stop() -> None:
        raise KeyboardInterrupt

    recipe_ = weak(files, tiny_base, training={"checkpoint_every": 1})
    with pytest.raises(KeyboardInterrupt):
        tw.train(recipe_, watchers=[stop_at(2, stop)])
    run = tw.resume(files / "run")
    assert left_behind(run.folder)["model.safetensors"] == left_behind(whole.folder)["model.safetensors"]


COLOURS = """
import io
import numpy
from PIL import Image

def colour(row):
    image = row["image"]
    pixels = numpy.asarray(Image.open(image if isinstance(image, str) else io.BytesIO(image)))
    return f"class {pixels.reshape(-1, 3).mean(0).argmax()}"
"""


def test_images_without_classes_are_labelled(tiny_base: Any, tmp_path: Path) -> None:
    """As bytes, and as the loose files of a folder; what is written can be read again and trained on."""
    (tmp_path / "rules.py").write_text(COLOURS)
    (tmp_path / "images").mkdir()
    rows = pictures(12)
    for i, row in enumerate(rows):
        (tmp_path / "images" / f"{i:02}.png").write_bytes(row["image"])
    for name, given in (("bytes", [{"image": row["image"]} for row in rows]), ("files", str(tmp_path / "images"))):
        tw.label(tmp_path / "rules.py", given, tmp_path / f"{name}.jsonl")
        written = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        said = [max(row["label"], key=row["label"].get) for row in written]
        assert said == [row["label"] for row in rows]
        run = tw.train(
            base=tiny_base("vit"), data={"train": str(tmp_path / f"{name}.jsonl"), "validation": 0}, method="head",
            task="image-classification", training={"max_steps": 1}, output=str(tmp_path / f"run-{name}"),
        )  # fmt: skip
        assert run.info["data"]["train"]["label_counts"] == {f"class {i}": 4 for i in range(3)}
    direct = {"train": str(tmp_path / "images"), "labeling": {"rules": str(tmp_path / "rules.py")}, "validation": 0}
    run = tw.train(
        base=tiny_base("vit"), data=direct, method="head", training={"max_steps": 1}, output=str(tmp_path / "direct")
    )
    assert run.info["data"]["train"]["rows"] == 12
