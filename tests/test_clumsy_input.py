"""Input that people really give: each was once a crash, a refusal or a silently wrong result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.tiny import chats, completions, labelled
from tunewright.errors import DataError, OutputError, RecipeError
from tunewright.tasks._classification import natural_order

TinyBase = Callable[..., str]
SHORT: dict[str, Any] = {
    "training": {"max_steps": 1},
    "evaluation": {"before": False, "generate": 2, "max_new_tokens": 2},
}


@pytest.mark.parametrize("name", ["train", "validation", "a/b", ""])
def test_a_test_set_cannot_take_the_place_of_the_training_rows(name: str, tiny_base: TinyBase) -> None:
    with pytest.raises(RecipeError, match="test set"):
        tw.train(base=tiny_base("bert"), data={"train": labelled(8), "test": {name: labelled(8)}})


def test_a_class_so_rare_that_it_is_held_out_is_still_a_class(tiny_base: TinyBase, tmp_path: Path) -> None:
    for seed in range(4):  # the split follows the seed: in one of them the rare row is held out
        rows = [*labelled(12), {"text": "something rare", "label": "rare"}]
        data = {"train": rows, "validation": 0.5}
        training = {"max_steps": 1, "seed": seed}
        run = tw.train(base=tiny_base("bert"), data=data, training=training, output=tmp_path / str(seed))
        assert "rare" in run.info["labels"]


@pytest.mark.parametrize("label", [["class 1"], {"class 1": 1.0}])
def test_labels_of_another_form_are_named(label: Any, tiny_base: TinyBase, tmp_path: Path) -> None:
    numbers = [{"text": row["text"], "label": i + 0.5} for i, row in enumerate(labelled(8))]
    with pytest.raises(DataError, match=r"rows\[0\]"):
        tw.train(
            base=tiny_base("bert"), data={"train": numbers, "test": [{"text": "x", "label": label}]},
            output=tmp_path / "run", **SHORT,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_names_that_read_as_no_number_have_one_order() -> None:
    assert sorted(["nan", "b", "1", "inf"], key=natural_order) == ["1", "b", "inf", "nan"]


def test_a_prompt_without_room_for_an_answer_does_not_end_the_run(tiny_base: TinyBase, tmp_path: Path) -> None:
    long = {"prompt": "How many apples " * 400, "completion": "are left?"}
    data = {"train": completions(8), "validation": 0, "test": [long, *completions(2)], "overlength": "truncate"}
    run = tw.train(base=tiny_base("llama"), data=data, output=tmp_path / "run", **SHORT)
    samples = run.info["evaluation"]["test"]["samples"]
    assert samples and all(len(sample["input"]) < 1000 for sample in samples)


def test_content_in_parts_can_be_sampled(tiny_base: TinyBase, tmp_path: Path) -> None:
    said = [{"type": "text", "text": "Hello"}]
    row = {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": said}]}
    run = tw.train(base=tiny_base("llama"), data={"train": [row] * 4, "validation": 0, "test": [row]},
                   output=tmp_path / "run", **SHORT)  # fmt: skip
    assert run.info["evaluation"]["test"]["samples"][0]["reference"] == "Hello"


def test_targets_may_be_written_with_commas() -> None:
    assert tw.LoRA(targets="q_proj,v_proj").targets == ["q_proj", "v_proj"]
    assert tw.LoRA(targets=r".*\.q_proj").targets == r".*\.q_proj"


def test_paths_may_be_paths(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in labelled(12)), encoding="utf-8")
    weights = tw.Supervised.model_validate({"class_weights": {0: 2.0}})
    assert weights.class_weights == {"0": 2.0}
    run = tw.train(base=Path(tiny_base("bert")), data=rows, output=tmp_path / "run", **SHORT)
    assert tw.predict(run.folder, "one text")[0]["text"] == "one text"
    assert tw.predict(run.folder, []) == []


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"seed": -1}],
    ids=lambda options: next(iter(options)),
)
def test_how_an_answer_is_drawn_is_checked_first(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(options))):
        tw.chat("nowhere", "Hello", **options)


def test_a_run_can_be_counted_before_it_is_a_base(tiny_base: TinyBase, tmp_path: Path) -> None:
    run = tw.train(base=tiny_base("bert"), data=labelled(12), output=tmp_path / "run", **SHORT)
    recipe = {"base": str(run.folder), "data": labelled(4)}
    assert tw.dry_run(recipe)["trained"] > 0


def test_options_of_an_evaluation_are_checked_like_a_recipe(tiny_base: TinyBase, tmp_path: Path) -> None:
    run = tw.train(base=tiny_base("bert"), data=labelled(12), output=tmp_path / "run", **SHORT)
    with pytest.raises(RecipeError, match="format"):
        tw.evaluate(run.folder, labelled(4), format="nonsense")


def test_weights_that_are_all_zero_teach_nothing(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = [{**row, "weight": 0.0} for row in labelled(12)]
    with pytest.raises(DataError, match="nothing to learn"):
        tw.train(base=tiny_base("bert"), data={"train": rows, "validation": 0}, output=tmp_path / "run")


def test_an_interruption_before_the_first_checkpoint_can_be_resumed(tiny_base: TinyBase, tmp_path: Path) -> None:
    def stop(line: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tw.train(base=tiny_base("bert"), data=labelled(12), output=tmp_path / "run", watchers=[stop], **SHORT)
    assert tw.open_run(tmp_path / "run").info["status"] == "stopped"
    assert tw.resume(tmp_path / "run").info["status"] == "finished"


def test_a_foreign_run_json_does_not_hide_the_others(tiny_base: TinyBase, tmp_path: Path) -> None:
    tw.train(base=tiny_base("bert"), data=labelled(12), output=tmp_path / "run", **SHORT)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("")
    assert [run.folder.name for run in tw.list_runs(tmp_path)] == ["run"]


def test_one_text_file_is_enough_to_learn_from(tiny_base: TinyBase, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Once upon a time there was a little fox.\n" * 20, encoding="utf-8")
    run = tw.train(base=tiny_base("llama"), data=tmp_path / "book.txt", output=tmp_path / "run", **SHORT)
    lengths = {name: found["tokens"] for name, found in run.info["data"].items()}
    assert 0 < lengths["validation"] < lengths["train"] / 4


def test_half_a_character_is_a_fault_with_its_line(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: holds half of a character") as caught:
        tw.train(base=tiny_base("llama"), data=rows, output=tmp_path / "run")
    assert sum("half of" in fault for fault in caught.value.faults) == 1


def test_roberta_takes_rows_up_to_its_limit(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = [{"text": "How many apples are left? " * 200, "label": label} for label in ("a", "b") * 4]
    data = {"train": rows, "validation": 0, "overlength": "truncate"}
    assert tw.train(base=tiny_base("roberta"), data=data, output=tmp_path / "run", **SHORT).info["status"] == "finished"


def test_faults_of_all_sets_come_together(tiny_base: TinyBase, tmp_path: Path) -> None:
    unknown = [{"text": "x", "label": "unknown"}]
    with pytest.raises(DataError) as caught:
        tw.train(base=tiny_base("bert"), data={"train": labelled(12), "validation": unknown, "test": unknown},
                 output=tmp_path / "run")  # fmt: skip
    assert sum("'unknown'" in fault for fault in caught.value.faults) == 2


def test_rows_with_labels_that_training_never_had_can_be_skipped(tiny_base: TinyBase, tmp_path: Path) -> None:
    test = [*labelled(3), {"text": "x", "label": "unknown"}, {"text": "y", "label": "else"}, {"text": "z"}]
    data = {"train": labelled(12), "validation": 0, "test": test}
    with pytest.raises(DataError, match=r"2 of 5 rows .* class 0, class 1, class 2: mend them, or set") as caught:
        _train_on(data | {"test": test[:5]}, tiny_base, tmp_path)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["rows[3]", "rows[4]"]
    run = _train_on(data | {"on_bad_rows": "skip"}, tiny_base, tmp_path)
    assert (run.info["data"]["test"]["rows"], run.info["data"]["test"]["bad_rows"]) == (3, 3)
    aside = [json.loads(line) for line in (run.folder / "bad_rows" / "test.jsonl").read_text().splitlines()]
    assert {(line["row"]["text"], line["fault"].split(" ")[0]) for line in aside} == {
        ("x", "rows[3]:"), ("y", "rows[4]:"), ("z", "rows[5]:"),
    }  # fmt: skip
    assert "label 'unknown' is unknown to the model" in {line["fault"].split(": ")[1] for line in aside}
    samples = {sample["source"] for sample in run.info["evaluation"]["test"]["samples"]}
    assert samples and samples <= {"rows[0]", "rows[1]", "rows[2]"}


def test_a_set_of_which_no_label_is_known_cannot_be_skipped(tiny_base: TinyBase, tmp_path: Path) -> None:
    data = {"train": labelled(12), "validation": [{"text": "x", "label": "unknown"}], "on_bad_rows": "skip"}
    with pytest.raises(DataError, match=r"1 of 1 row .*: mend it\.\n"):
        _train_on(data, tiny_base, tmp_path)


def _train_on(data: dict[str, Any], tiny_base: TinyBase, tmp_path: Path) -> tw.Run:
    return tw.train(base=tiny_base("bert"), data=data, output=tmp_path / "run", **SHORT)


def test_an_adapter_that_others_made_classifies(tiny_base: TinyBase, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    base = tiny_base("bert")
    module = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    adapted = get_peft_model(module, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))  # type: ignore[arg-type]
    adapted.save_pretrained(str(tmp_path / "adapter"))
    answers = tw.predict(tmp_path / "adapter", ["hello", "good night"])
    assert set(answers[0]["probabilities"]) == {"0", "1", "2"}
    assert tw.load(tmp_path / "adapter").module.config.num_labels == 3


def test_pairs_are_predicted_as_they_are_trained(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = [{"text": "Hello", "text_pair": f"apples {i}", "label": "ab"[i % 2]} for i in range(12)]
    run = tw.train(base=tiny_base("bert"), data={"train": rows, "validation": 0, "test": rows},
                   output=tmp_path / "run", **SHORT)  # fmt: skip
    model = tw.load(run.folder)
    pair, alone = (tw.predict(model, [text])[0]["probabilities"]["a"] for text in (("Hello", "apples 1"), "Hello"))
    encoded = model.task.encode(model, _records(rows[1:2]), tw.Data(train="-")).examples
    output = model.task.predict(model, encoded).output_NC
    assert output is not None and pair == pytest.approx(float(output[0, 0]), abs=1e-6) and pair != alone


def _records(rows: list[dict[str, Any]]) -> list[Any]:
    from tunewright.data.records import load_records

    return load_records(rows, tw.Data(train=rows)).records


def test_endless_epochs_are_refused(tiny_base: TinyBase) -> None:
    with pytest.raises(RecipeError, match="epochs"):
        tw.train(base=tiny_base("bert"), data=labelled(8), training={"epochs": float("inf")})


STARS = [{"text": f"I give {i % 5} stars", "label": 1 + i % 5} for i in range(20)]


@pytest.mark.parametrize(
    ("labels", "kind", "says"), [("auto", "single_label", True), ("classes", "single_label", False),
                                 ("numbers", "regression", False)],
)  # fmt: skip
def test_stars_are_classes_or_numbers(labels: str, kind: str, says: bool, tiny_base: TinyBase, tmp_path: Path) -> None:
    data = {"train": STARS, "labels": labels}
    run = tw.train(base=tiny_base("bert"), data=data, output=tmp_path / "run", **SHORT)
    assert run.info["kind"] == kind
    assert says == any("data.labels: numbers" in notice for notice in run.info["notices"])
    assert tw.evaluate(run.folder, STARS)["rows"] == 20


def test_two_classes_are_no_stars(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = [{"text": f"text {i}", "label": i % 2} for i in range(12)]
    run = tw.train(base=tiny_base("bert"), data=rows, output=tmp_path / "run", **SHORT)
    assert not any("data.labels" in notice for notice in run.info["notices"])


def test_classes_that_are_named_by_numbers_are_known_again(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = [{"text": f"version {i % 3}", "label": 1 + i % 3 / 2} for i in range(12)]
    data = {"train": rows, "validation": rows, "labels": "classes"}
    run = tw.train(base=tiny_base("bert"), data=data, output=tmp_path / "run", **SHORT)
    assert run.info["labels"] == ["1", "1.5", "2"]
    (tmp_path / "rows.csv").write_text("text,label\na,1.0\nb,1.5\n")
    assert tw.evaluate(run.folder, rows)["rows"] == 12
    assert tw.evaluate(run.folder, str(tmp_path / "rows.csv"))["rows"] == 2


def test_a_text_that_cannot_be_read_is_named(tiny_base: TinyBase, tmp_path: Path) -> None:
    run = tw.train(base=tiny_base("bert"), data=labelled(12), output=tmp_path / "run", **SHORT)
    with pytest.raises(DataError, match="2 of 3 texts") as caught:
        tw.predict(run.folder, ["fine", None, "\ud800"])  # type: ignore[list-item]
    assert [fault.split(" ")[0] for fault in caught.value.faults] == ["texts[1]", "texts[2]"]


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        (None, "the prompt is None: give a text, or a list of messages"),
        ("\ud800", "the prompt holds half of a character"),
        ([{"role": "user", "content": "\ud800"}], r"messages\[0\] holds half of a character"),
        ([{"content": "Hi"}], r"messages\[0\].role is None"),
    ],
)
def test_a_prompt_that_cannot_be_answered_says_why(prompt: Any, fault: str, tiny_base: TinyBase) -> None:
    for base in (tiny_base("llama"), tiny_base("gpt2")):
        with pytest.raises(DataError, match=fault):
            tw.chat(base, prompt, max_new_tokens=1)
    with pytest.raises(DataError, match="holds half of a character"):
        tw.chat(base, "Hi", tools=[{"name": "\ud800"}], max_new_tokens=1)


def test_half_a_character_in_rows_from_python_is_a_fault(tiny_base: TinyBase, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\[12\]: holds half of a character"):
        _train_on({"train": [*labelled(12), {"text": "\ud800", "label": "class 1"}]}, tiny_base, tmp_path)


def test_an_empty_text_is_a_fault_where_a_model_cannot_be_fed_it(tiny_base: TinyBase, tmp_path: Path) -> None:
    rows = {"train": [*labelled(12), {"text": "", "label": "class 1"}], "validation": 0}
    classify = {"task": "text-classification", **SHORT}
    with pytest.raises(DataError, match=r"rows\[12\]: text is empty"):
        tw.train(base=tiny_base("gpt2"), data=rows, output=tmp_path / "decoder", **classify)
    run = tw.train(base=tiny_base("bert"), data=rows, output=tmp_path / "encoder", **classify)
    assert len(tw.predict(run.folder, ["", "fox"])) == 2
    skipping = tw.train(base=tiny_base("gpt2"), data={**rows, "on_bad_rows": "skip"}, output=tmp_path / "s", **classify)
    with pytest.raises(DataError, match="text 1: text is empty"):
        tw.predict(skipping.folder, ["", "fox"])


def test_a_set_of_which_nothing_can_be_rendered_cannot_be_skipped(tiny_base: TinyBase, tmp_path: Path) -> None:
    test = [{"messages": [{"role": "assistant", "content": "an answer to nothing"}]}]
    data = {"train": chats(6), "validation": 0, "test": test, "on_bad_rows": "skip"}
    with pytest.raises(DataError, match="none of 1 row can be rendered: mend it"):
        tw.train(base=tiny_base("llama"), data=data, output=tmp_path / "run", **SHORT)


def test_a_data_frame_with_lists_is_rows(tiny_base: TinyBase, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(chats(6)).to_parquet(tmp_path / "chats.parquet")
    frame = pandas.read_parquet(tmp_path / "chats.parquet")  # its lists are arrays
    run = tw.train(base=tiny_base("llama"), data={"train": frame, "validation": 0}, output=tmp_path / "run", **SHORT)
    assert run.info["data"]["train"]["rows"] == 6
    with pytest.raises(DataError, match="no label"):
        frame = pandas.DataFrame([*labelled(12), {"text": "a", "label": None}])
        tw.train(base=tiny_base("bert"), data=frame, output=tmp_path / "other", **SHORT)


def test_tools_beside_a_plain_prompt_are_not_dropped(tiny_base: TinyBase, tmp_path: Path) -> None:
    row = {"prompt": "a", "completion": "b", "tools": [{"type": "function", "function": {"name": "f"}}]}
    with pytest.raises(DataError, match="tools are for conversations"):
        tw.train(base=tiny_base("llama"), data=[row] * 4, output=tmp_path / "run", **SHORT)


def test_bad_rows_can_be_skipped_in_an_evaluation(tiny_base: TinyBase, tmp_path: Path) -> None:
    run = tw.train(base=tiny_base("bert"), data=labelled(12), output=tmp_path / "run", **SHORT)
    rows = [*labelled(6), {"text": "a", "label": "unknown"}]
    with pytest.raises(DataError, match="unknown to the model"):
        tw.evaluate(run.folder, rows)
    found = tw.evaluate(run.folder, rows, on_bad_rows="skip")
    assert found["rows"] == 6 and "1 row cannot be used and is skipped: rows[6]: label" in found["notices"][-1]
    with pytest.raises(RecipeError, match=r"evaluation\.pattern"):
        tw.evaluate(run.folder, rows, evaluation={"pattern": "a"}, on_bad_rows="skip")


def test_a_refused_recipe_leaves_no_folder_above_either(tiny_base: TinyBase, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for place in ("mine/deep/er/run", "new/run"):
        with pytest.raises(DataError):
            tw.train(base=tiny_base("llama"), data="/nowhere.jsonl", output=tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())


def test_a_run_json_of_another_program_hides_no_runs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"a": 1}')
    assert tw.list_runs(tmp_path) == []
    with pytest.raises(OutputError, match="is no run"):
        tw.open_run(tmp_path / "other")
