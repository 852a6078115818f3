"""A run, a point of its path, or a damaged model: what one can do with each by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tunewright as tw
from tests.contracts.journeys import logits
from tests.runs import recipe
from tests.tiny import completions, labelled
from tunewright.api import loaded
from tunewright.artifacts.export import read_verification
from tunewright.errors import BaseModelError, MethodError, RecipeError

CLASSIFICATION = "text-classification"


@pytest.fixture(scope="module")
def talker(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> tw.Run:
    return tw.train(recipe(tiny_base("llama"), tmp_path_factory.mktemp("run") / "talker"))


@pytest.fixture(scope="module")
def classifier(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> tw.Run:
    folder = tmp_path_factory.mktemp("run") / "classifier"
    return tw.train(recipe(tiny_base("bert"), folder, task=CLASSIFICATION, training={"head_first": 1}))


# A run in hand


def test_a_run_stands_for_its_folder(classifier: tw.Run, talker: tw.Run, tmp_path: Path) -> None:
    rows = labelled(6)
    assert tw.predict(classifier, "fox") == tw.predict(classifier.folder, "fox")
    assert tw.evaluate(classifier, rows)["scores"] == tw.evaluate(classifier.folder, rows)["scores"]
    assert tw.chat(talker, "the little", max_new_tokens=4) == tw.chat(talker.folder, "the little", max_new_tokens=4)
    assert torch.equal(logits(tw.load(classifier, alpha=0.5)), logits(tw.load(classifier.folder, alpha=0.5)))
    assert tw.resume(classifier) == classifier and str(classifier) == str(classifier.folder)
    assert tw.interpolate(classifier, alphas="0:1:0.5")["alphas"] and tw.compare(classifier, classifier, data=rows)
    assert (tw.export(talker, "merged", tmp_path / "merged") / "model.safetensors").is_file()
    assert tw.train(base=talker, data=completions(3), training={"max_steps": 1}, output=tmp_path / "on").done
    assert tw.dry_run({"base": talker, "data": completions(3)})["task"] == "text-generation"


# Points


def test_a_point_is_used_by_its_name(talker: tw.Run, classifier: tw.Run) -> None:
    half, rows = tw.load(talker.folder, alpha=0.5), completions(6)
    assert torch.equal(logits(loaded(f"{talker.folder}@0.5", "cpu")), logits(half))
    name = f"{talker.folder}@0.5"
    assert tw.chat(name, "the little", max_new_tokens=4) == tw.chat(half, "the little", max_new_tokens=4)
    assert tw.evaluate(name, rows)["scores"] == tw.evaluate(half, rows)["scores"] != tw.evaluate(talker.folder, rows)
    half = tw.load(classifier.folder, alpha=0.5)
    assert tw.predict(f"{classifier.folder}@0.5", "fox") == tw.predict(half, "fox")
    assert tw.predict(f"{classifier.folder}@0.5", "fox") != tw.predict(classifier.folder, "fox")


@pytest.mark.parametrize(("target", "alpha"), [("peft", 0.5), ("merged", 0.5), ("merged", 0.0)])
def test_a_point_is_exported_by_its_name(target: str, alpha: float, talker: tw.Run, tmp_path: Path) -> None:
    folder = tw.export(f"{talker.folder}@{alpha}", target, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    torch.testing.assert_close(logits(tw.load(folder)), logits(tw.load(talker.folder, alpha=alpha)), atol=1e-4, rtol=0)
    assert read_verification(folder)["rows_from"] == "the run's validation rows"


def test_a_point_that_is_none_is_refused(talker: tw.Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not between 0"):
        tw.chat(f"{talker.folder}@1.5", "the")
    with pytest.raises(BaseModelError, match="no run and no adapter's folder"):
        tw.export(f"{tmp_path / 'nowhere'}@0.5", "merged", tmp_path / "out")
    with pytest.raises(MethodError, match="Export it as merged"):
        tw.export(f"{talker.folder}@0", "peft", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# Weights that are no numbers


def damaged(run: tw.Run, folder: Path) -> Path:
    """The run's model, whose adapter has become NaN."""
    import shutil

    shutil.copytree(run.folder / "model", folder)
    file = folder / "adapter_model.safetensors"
    save_file({name: torch.full_like(t, float("nan")) for name, t in load_file(file).items()}, file, {"format": "pt"})
    return folder


def test_a_model_that_answers_nan_is_refused(talker: tw.Run, classifier: tw.Run, tmp_path: Path) -> None:
    speaker = damaged(talker, tmp_path / "speaker")
    with pytest.raises(BaseModelError, match=r"not finite.*damaged"):
        tw.predict(damaged(classifier, tmp_path / "classifier"), "fox")
    with pytest.raises(BaseModelError, match=r"not finite.*damaged"):
        tw.chat(speaker, "the little", max_new_tokens=4)
    with pytest.raises(BaseModelError, match=r"not finite.*damaged"):
        tw.export(speaker, "merged", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))
