"""A recipe becomes a folder: what is in it, what is refused before anything is written, and what a failure leaves."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - it looks for bitsandbytes when it is first imported, which a test hides
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

import tunewright as tw
from tests.contracts.journeys import close, logits
from tests.runs import recipe, stop_at
from tests.tiny import chats, completions, labelled, make_base
from tunewright.errors import (
    BaseModelError,
    CheckpointError,
    DataError,
    MethodError,
    MissingExtra,
    OutputError,
    RecipeError,
    TunewrightError,
)
from tunewright.recipe import located, read_recipe

CLASSIFICATION = "text-classification"
ANSWER_TO_NOTHING = {"messages": [{"role": "assistant", "content": "Yes."}]}


@pytest.mark.parametrize("method", ["lora", "full", "adapter"])
@pytest.mark.parametrize("task, kind", [("text-generation", "llama"), (CLASSIFICATION, "bert")])
def test_a_run_leaves_what_it_promises(method: str, task: str, kind: str, tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base(kind), tmp_path / "run", task=task, method=method, evaluation={"samples": 2}))
    info = run.info
    assert info["status"] == "finished"
    assert {p.name for p in run.folder.iterdir()} >= {
        "recipe.yaml", "run.json", "metrics.jsonl", "timings.jsonl", "checkpoints", "model", "report.html"
    }  # fmt: skip
    assert len(run.metrics) == 8 + 2
    assert info["parameters"]["trained"] > 0
    assert set(info["evaluation"]["validation"]) >= {"before", "after", "samples"}
    assert info["versions"]["torch"] == version("torch")
    assert run.model.module.training is False
    assert run.recipe.training.learning_rate == 0.01
    assert not list(run.folder.rglob("*.bin")), "nothing is pickled"
    assert not list(run.folder.rglob("*.pt"))


def test_the_model_that_is_measured_is_the_one_that_is_saved(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=CLASSIFICATION, evaluation={"generate": 0}))
    again = tw.evaluate(run.folder, run.recipe.data.validation)
    before = run.info["evaluation"]["validation"]["after"]["metrics"]
    assert again["scores"]["metrics"] == before


def test_the_report_of_training_is_that_of_the_lines(tiny_base: Any, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run"), watchers=[lambda line: seen.append(dict(line))])
    watched = [line for line in seen if "step" in line]
    assert [line["step"] for line in watched] == [line["step"] for line in run.metrics]
    assert all(line["total"] == 8 for line in watched)
    assert all(a["loss"] == b["loss"] for a, b in zip(watched, run.metrics, strict=True) if "loss" in b)


def test_predict_chat_and_export(tiny_base: Any, tmp_path: Path) -> None:
    classifier = tw.train(recipe(tiny_base("bert"), tmp_path / "c", task=CLASSIFICATION))
    rows = tw.predict(classifier.folder, ["fox", "apples " * 400])
    assert [row.get("truncated", False) for row in rows] == [False, True]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in rows)
    speaker = tw.train(recipe(tiny_base("llama"), tmp_path / "g"))
    assert isinstance(tw.chat(speaker.folder, "the little", max_new_tokens=4), str)
    with pytest.raises(BaseModelError, match="predict"):
        tw.chat(classifier.folder, "fox")
    with pytest.raises(BaseModelError, match="chat"):
        tw.predict(speaker.folder, ["fox"])
    merged = tw.export(speaker.folder, "merged", tmp_path / "merged")
    assert close(logits(tw.load(merged)), logits(speaker.model))
    with pytest.raises(OutputError, match="not empty"):
        tw.export(speaker.folder, "merged", tmp_path / "merged")
    with pytest.raises(RecipeError, match="no export target"):
        tw.export(speaker.folder, "goldfish", tmp_path / "g2")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_tuned_classifier_reads_as_much_as_in_training(method: str, tiny_base: Any, tmp_path: Path) -> None:
    short = {"max_length": 8, "overlength": "truncate"}
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=CLASSIFICATION, method=method, data=short))
    long, cut = tw.predict(run.folder, ["fox " * 100, "fox " * 3])
    assert long["truncated"] and "truncated" not in cut
    assert long["probabilities"] == pytest.approx(tw.predict(run.folder, ["fox " * 6])[0]["probabilities"], abs=1e-6)
    rows = [{"text": "fox " * 100, "label": run.info["labels"][0]}] * 2
    with pytest.raises(DataError, match="longer than 8"):
        tw.evaluate(run.folder, rows, overlength="fail")
    assert tw.evaluate(run.folder, rows, overlength="fail", max_length=200)["rows"] == 2
    onward = tw.train(recipe(str(run.folder), tmp_path / "onward", task=CLASSIFICATION))
    assert "truncated" not in tw.predict(onward.folder, ["fox " * 100])[0], "a later run has its own limit"


def test_few_samples_of_many_generated_answers(tiny_base: Any, tmp_path: Path) -> None:
    asked = {"samples": 1, "generate": 4, "max_new_tokens": 2}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", evaluation=asked))
    found = run.info["evaluation"]["validation"]
    assert len(found["samples"]) == 1 and set(found["samples"][0]) >= {"before", "after", "reference"}
    assert found["after"]["metrics"]["exact_match"]["n"] == 4
    assert "Generated answers are measured on 4 of 5 rows." in found["after"]["notes"]


def test_a_padded_row_is_predicted_as_alone(tiny_base: Any, tmp_path: Path) -> None:
    """A decoder reads its answer off the last token, which must not be padding."""
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", task=CLASSIFICATION))
    texts = ["fox", "the little fox lived in a forest", "apples and apples"]
    together = tw.predict(run.model, texts)
    alone = [tw.predict(run.model, [text])[0] for text in texts]
    for one, other in zip(together, alone, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-6)


# Refused before anything is written


@pytest.mark.parametrize(
    "error, changes, match",
    [
        (BaseModelError, {"base": "/nowhere"}, "no folder"),
        (DataError, {"data": {"train": "/nowhere.jsonl"}}, "nowhere"),
        (DataError, {"data": {"train": [{"nothing": 1}]}}, "columns found are nothing"),
        (DataError, {"data": {"max_length": 4}}, "longer than 4"),
        (DataError, {"data": {"validation": labelled()}}, "alike"),
        (RecipeError, {"task": CLASSIFICATION}, "rows"),
        (MethodError, {"method": {"type": "lora", "targets": ["nothing"]}}, "matches no layer"),
        (MethodError, {"method": {"type": "freeze", "last": 9}}, "3 blocks"),
        (MethodError, {"method": {"type": "peft", "config": {"peft_type": "LORRA"}}}, "LORA"),
        (RecipeError, {"evaluation": {"pattern": "#### (.+)"}, "data": {"test": completions(2)}}, "finds nothing"),
        (RecipeError, {"evaluation": {"pattern": "a", "generate": 0}}, "evaluation.generate"),
        (
            DataError,
            {"data": {"train": chats(8), "test": [ANSWER_TO_NOTHING], "on_bad_rows": "skip"}},
            "can be rendered",
        ),
        (RecipeError, {"base": "bloom", "method": "full", "training": {"packing": True}}, "keep packed rows apart"),
        (BaseModelError, {"training": {"activation_checkpointing": True}}, "recompute"),
        (MissingExtra, {"training": {"optimizer": "adamw8bit"}}, r"tunewright\[bnb\]"),
        (MissingExtra, {"training": {"track": ["tensorboard"]}}, r"tunewright\[track\]"),
    ],
)
def test_a_bad_recipe_leaves_nothing_behind(
    error: Any, changes: Any, match: str, tiny_base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    for module in ("bitsandbytes.optim", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, module, None)
    changes = dict(changes)
    if changes.get("base") == "bloom":
        changes["base"] = tiny_base("bloom")
    base, task = changes.pop("base", tiny_base("llama")), changes.pop("task", "text-generation")
    data = {"train": completions(8), "validation": 0, **changes.pop("data", {})}
    with pytest.raises(error, match=match):
        tw.train(recipe(base, tmp_path / "run", **changes, data=data).model_copy(update={"task": task}))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_users_stays_where_a_recipe_is_refused(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RecipeError):
        tw.train(recipe(tiny_base("bloom"), tmp_path / "run", method="full", training={"packing": True}))
    assert not list((tmp_path / "run").iterdir())


def test_a_start_that_was_merged_in_vain_is_removed(tiny_base: Any, tmp_path: Path) -> None:
    before = tw.train(recipe(tiny_base("llama"), tmp_path / "before", method={"type": "lora", "dora": True}))
    bad = {"method": {"type": "lora", "targets": ["nothing"]}}
    with pytest.raises(MethodError):
        tw.train(recipe(str(before.folder), tmp_path / "run", **bad))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "rows, match",
    [
        ([{"text": "a", "label": "x"}] * 4, "one class only"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": ""}], "no label"),
    ],
)
def test_labels_that_teach_nothing(rows: Any, match: str, tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=match):
        tw.train(
            recipe(tiny_base("bert"), tmp_path / "run", task=CLASSIFICATION, data={"train": rows, "validation": 0})
        )


@pytest.mark.parametrize("which", ["validation", "test"])
def test_a_label_that_was_not_in_training(which: str, tiny_base: Any, tmp_path: Path) -> None:
    data = {which: [{"text": "a", "label": "class 0"}, {"text": "b", "label": "unheard of"}]}
    with pytest.raises(DataError, match="unheard of"):
        tw.train(recipe(tiny_base("bert"), tmp_path / "run", task=CLASSIFICATION, data=data))


# The folder


def test_a_folder_in_use_is_not_written_into(tiny_base: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("the only copy")
    with pytest.raises(OutputError, match=r"holds (files|a run) already"):
        tw.train(recipe(tiny_base("llama"), folder))
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]
    with pytest.raises(OutputError, match=r"holds (files|a run) already"):
        tw.train(recipe(tiny_base("llama"), folder / "thesis.txt"))


def test_an_earlier_run_is_not_written_over(tiny_base: Any, tmp_path: Path) -> None:
    tw.train(recipe(tiny_base("llama"), tmp_path / "run", training={"max_steps": 1}))
    with pytest.raises(OutputError, match="holds a run already"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run"))


def test_two_processes_do_not_share_a_folder(tiny_base: Any, tmp_path: Path) -> None:
    """A second one that resumes while the first one trains."""
    said: list[str] = []

    def meddle() -> None:
        with pytest.raises(OutputError) as raised:
            tw.resume(tmp_path / "run")
        said.append(str(raised.value))

    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run"), watchers=[stop_at(5, meddle)])
    assert "in use by another process" in said[0]
    assert run.info["status"] == "finished"


def test_a_place_that_cannot_be_written(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        tw.train(recipe(tiny_base("llama"), tmp_path / "file" / "run"))


def test_a_full_disk_at_the_end_keeps_the_checkpoint(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    import tunewright.methods._peft as module

    whole = tw.train(recipe(tiny_base("llama"), tmp_path / "whole"))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.PeftMethod, "save", full)
        with pytest.raises(OutputError, match="No space left"):
            tw.train(recipe(tiny_base("llama"), tmp_path / "run"))
    assert tw.open_run(tmp_path / "run").info["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()
    assert not list((tmp_path / "run").glob(".*draft"))
    with pytest.raises(BaseModelError, match="no model yet"):
        tw.load(tmp_path / "run")
    run = tw.resume(tmp_path / "run")
    one, other = (load_file(r.folder / "model" / "adapter_model.safetensors") for r in (run, whole))
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


def test_what_fails_while_training_is_noted(tiny_base: Any, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the roof fell in")

    with pytest.raises(RuntimeError):
        tw.train(recipe(tiny_base("llama"), tmp_path / "run"), watchers=[stop_at(2, fail)])
    info = tw.open_run(tmp_path / "run").info
    assert (info["status"], info["error"]) == ("failed", "the roof fell in")


def test_what_is_no_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no run"):
        tw.open_run(tmp_path)
    with pytest.raises(OutputError, match="no run"):
        tw.resume(tmp_path / "nowhere")


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name, started in (("old", "2026-01-01"), ("new", "2026-02-01")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps({"started": started}))
    assert [run.folder.name for run in tw.list_runs(tmp_path)] == ["new", "old"]


def test_checkpoints_of_another_run_are_refused(tiny_base: Any, tmp_path: Path) -> None:
    """Someone copied them: names or shapes differ."""
    one = tw.train(recipe(tiny_base("llama"), tmp_path / "one"))
    other = tw.train(recipe(tiny_base("llama"), tmp_path / "other", method={"type": "lora", "rank": 2}))
    shutil.rmtree(other.folder / "checkpoints")
    shutil.copytree(one.folder / "checkpoints", other.folder / "checkpoints")
    (other.folder / "run.json").write_text(json.dumps({**other.info, "status": "stopped"}))
    with pytest.raises(CheckpointError):
        tw.resume(other.folder)


# Dry run

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-05, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 128000, "eos_token_id": 128001, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def llama_8b(tmp_path: Path) -> str:
    """Its shapes alone: there are no weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return str(tmp_path)


@pytest.mark.parametrize(
    "method, trained",
    [
        ({"type": "lora", "rank": 16}, 41_943_040),
        ({"type": "full"}, 8_030_261_248),
        ({"type": "freeze", "last": 2}, 2 * 218_112_000 + 4096 + 128256 * 4096),
        ({"type": "head"}, 128256 * 4096),
    ],
)
def test_a_dry_run_counts_without_weights(method: Any, trained: int, llama_8b: str) -> None:
    began = time.perf_counter()
    found = tw.dry_run({"base": llama_8b, "data": "owner/name", "method": method})
    assert found["total"] == 8_030_261_248 + (trained if method["type"] == "lora" else 0)
    assert found["trained"] == trained
    assert found["task"] == "text-generation"
    assert time.perf_counter() - began < 20


def test_a_dry_run_of_every_method_counts_as_the_run_does(tiny_base: Any, tmp_path: Path) -> None:
    for name, task, kind in (("adapter", "text-generation", "llama"), ("lora", CLASSIFICATION, "distilbert")):
        chosen = recipe(
            tiny_base(kind), tmp_path / name, task=task, method=name, training={"max_steps": 1},
            **({"data": {"train": labelled(classes=2), "validation": 0}} if task == CLASSIFICATION else {}),
        )  # fmt: skip
        run = tw.train(chosen)
        dry = tw.dry_run(chosen)
        assert (dry["trained"], dry["total"]) == (run.info["parameters"]["trained"], run.info["parameters"]["total"])


def test_a_dry_run_refuses_like_a_run(llama_8b: str) -> None:
    with pytest.raises(TunewrightError, match="matches no layer"):
        tw.dry_run({"base": llama_8b, "data": "owner/name", "method": {"type": "lora", "targets": ["nothing"]}})
    with pytest.raises(TunewrightError, match="32 blocks"):
        tw.dry_run({"base": llama_8b, "data": "owner/name", "method": {"type": "freeze", "last": 33}})


def test_a_run_that_moved_house_still_loads(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    run = tw.train(recipe(str(base), tmp_path / "run", training={"max_steps": 1}))
    before = logits(run.model)
    moved = Path(shutil.move(run.folder, tmp_path / "elsewhere"))
    assert torch.equal(logits(tw.load(moved)), before)


def test_a_recipe_may_be_the_file_of_one(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        recipe(tiny_base("llama"), tmp_path / "run", training={"max_steps": 1}).to_yaml()
    )
    assert tw.train(tmp_path / "recipe.yaml").info["steps"] == 1
    assert tw.train(str(tmp_path / "recipe.yaml"), output=str(tmp_path / "other")).folder == tmp_path / "other"


def test_a_length_beyond_the_context_is_said(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", data={"max_length": 1000}, training={"max_steps": 1}))
    assert "data.max_length: 1,000 is beyond the model's context of 256 tokens." in run.info["notices"]


# A run is used from anywhere


@pytest.fixture
def at_home(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> Path:
    """A folder with rows, a base and a run that knows them by relative paths, where its recipe was run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").symlink_to(tiny_base("llama"))
    (tmp_path / "sets").mkdir()
    for name in ("rows.jsonl", "sets/train.jsonl", "sets/test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in completions(12)))
    data = {"train": "rows.jsonl", "validation": "sets:train", "test": {"far": "sets/test.jsonl"}}
    tw.train(recipe("base", Path("run"), data=data))
    return tmp_path


def test_a_run_is_used_from_another_folder(at_home: Path, monkeypatch: Any) -> None:
    (at_home / "elsewhere").mkdir()
    monkeypatch.chdir(at_home / "elsewhere")
    data = tw.open_run("../run").recipe.data
    assert (data.train, data.validation) == (str(at_home / "rows.jsonl"), f"{at_home / 'sets'}:train")
    assert data.test == {"far": str(at_home / "sets" / "test.jsonl")}
    assert tw.open_run("../run").recipe.base == str(at_home / "base")
    tw.interpolate("../run", alphas="0:1:0.5", to="point")
    assert tw.compare("../run", "point")["sets"]["far"]["rows"] == 12


def test_a_relative_path_is_the_same_as_its_absolute_one(at_home: Path) -> None:
    """Of the recipe that a run began with, or of an older run that recorded it as it was given."""
    written, info = (at_home / "run" / "recipe.yaml"), (at_home / "run" / "run.json")
    begun = json.loads(info.read_text())
    for base, recorded in (("base", str(at_home / "base")), (str(at_home / "base"), "base")):
        written.write_text(re.sub(r"(?m)^base: .*$", f"base: {base}", written.read_text()))
        info.write_text(json.dumps({**begun, "status": "stopped", "recipe": {**begun["recipe"], "base": recorded}}))
        assert tw.resume("run").info["status"] == "finished"
    info.write_text(json.dumps({**begun, "recipe": {**begun["recipe"], "base": "other"}, "status": "stopped"}))
    with pytest.raises(RecipeError, match="the run began with other"):
        tw.resume("run")


def test_names_on_the_hub_and_rows_stay_as_they_are(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    document = {"base": "owner/name", "data": {"train": "owner/rows:train", "validation": [{"text": "a"}]}}
    document["data"]["chat_template"] = "plain"
    Path("plain").touch()
    assert located(tw.Recipe.model_validate(document)) == tw.Recipe.model_validate(document)


def test_the_automatic_rate_can_be_multiplied(tiny_base: Any, tmp_path: Path) -> None:
    """What is written down is the rate that was used, and can be read again."""
    rates = []
    for factor in (1.0, 0.25):
        training = {"max_steps": 1, "batch": 4, "schedule": "constant", "warmup": 0, "rate_multiplier": factor}
        training["learning_rate"] = "auto"
        run = tw.train(recipe(tiny_base("llama"), tmp_path / str(factor), training=training))
        rates.append(run.metrics[0]["learning_rate"])
        written = read_recipe(tmp_path / str(factor) / "recipe.yaml").training
        assert (written.learning_rate, written.rate_multiplier) == (rates[-1], 1.0)
    assert rates[1] == pytest.approx(rates[0] / 4)
    with pytest.raises(RecipeError, match="rate_multiplier is for `learning_rate: auto`"):
        recipe("x", tmp_path, training={"rate_multiplier": 2})
