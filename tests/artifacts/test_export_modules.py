"""Exports of any torch module: a graph, or weights for the code that makes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import tunewright as tw
from tests import networks
from tests.runs import recipe
from tests.tiny import pictures
from tunewright.artifacts import export as exporting
from tunewright.artifacts.apart.foreign import ONNX
from tunewright.artifacts.export import read_verification
from tunewright.errors import BaseModelError, VerificationError

FRESH = exporting.in_a_fresh_process  # as it is before conftest replaces it
MODULE = {"image": {"resize": 16, "crop": 16}}


def trained(output: Path, factory: Any = "tests.networks:lived_net", **changes: Any) -> tw.Run:
    document = recipe(factory, output, task="image-classification", **{"module": MODULE, "method": "full", **changes})
    return tw.train(document)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tw.Run]:
    folder = tmp_path_factory.mktemp("run")
    methods: dict[str, Any] = {
        "full": "full",
        "lora": {"type": "lora", "rank": 4, "targets": r"layer[23].*(near|wide)"},
    }
    training = {"epochs": 1, "head_first": 1}  # so that there is a path from the start to the end
    return {name: trained(folder / name, method=method, training=training) for name, method in methods.items()}


@pytest.mark.parametrize(
    "name, target, precision",
    [
        ("full", "onnx", "fp32"),
        ("full", "merged", "fp32"),
        ("full", "merged", "bf16"),
        ("lora", "onnx", "fp32"),
        ("lora", "merged", "fp16"),
        ("lora", "peft", "fp32"),
    ],
)
def test_it_answers_as_the_trained_module(name: str, target: str, precision: str, runs: Any, tmp_path: Path) -> None:
    found = read_verification(tw.export(runs[name].folder, target, tmp_path / "out", precision=precision))
    assert found["verified"] and found["rows"] == 5
    assert found["figures"]["same_pixels"] == found["figures"]["same_labels"] == 1


@pytest.mark.parametrize("target", ["onnx", "merged"])
def test_a_module_for_grey_images(target: str, tmp_path: Path) -> None:
    grey = {"image": {**MODULE["image"], "channels": 1}}
    run = trained(tmp_path / "run", "tests.networks:Gray", module=grey, training={"epochs": 1})
    assert read_verification(tw.export(run.folder, target, tmp_path / "out"))["figures"]["same_pixels"] == 1


@pytest.mark.parametrize("target", ["merged", "peft"])
def test_a_fresh_process_makes_the_module_by_its_code(
    target: str, runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "in_a_fresh_process", FRESH)
    found = read_verification(tw.export(runs["lora"].folder, target, tmp_path / "out"))
    assert found["verified"] and found["figures"]["max_logit_difference"] < 1e-5
    assert found["run_by"][1].startswith("torch ")


def test_a_point_between_base_and_tuned_too(runs: Any, tmp_path: Path) -> None:
    found = read_verification(tw.export(f"{runs['full'].folder}@0.5", "onnx", tmp_path / "out"))
    assert found["verified"]


def test_the_graph_is_all_that_its_users_need(runs: Any, tmp_path: Path) -> None:
    """The pixels go in, the logits come out, and the classes are named in it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(tw.export(runs["full"].folder, "onnx", tmp_path / "out") / ONNX)
    pixels = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    (logits,) = session.run(["logits"], {"pixel_values": pixels})
    module = tw.load(runs["full"].folder).module
    with torch.no_grad():
        np.testing.assert_allclose(logits, module(torch.from_numpy(pixels)), atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["labels"]) == [f"class {i}" for i in range(3)]


@pytest.mark.parametrize("target", ["merged", "onnx"])
def test_damage_is_noticed(target: str, runs: Any, damaged: Any, tmp_path: Path) -> None:
    def harm(folder: Path) -> None:
        if target == "merged":
            path = folder / "model.safetensors"
            state = load_file(path)
            save_file({**state, "norm.running_mean": torch.zeros(8)}, path)
        else:
            path = folder / "preprocessor_config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5, 0.5, 0.5]}))

    damaged(target, harm)
    with pytest.raises(VerificationError, match={"merged": "An output differs", "onnx": "image processor"}[target]):
        tw.export(runs["full"].folder, target, tmp_path / "out")


def test_forms_that_a_module_has_not(runs: Any, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no form quantized\. Possible: peft, merged, onnx"):
        tw.export(runs["full"].folder, "quantized", tmp_path / "out")


def test_an_object_of_this_process_has_a_graph_alone(tmp_path: Path) -> None:
    """Nobody else could make it."""
    module, data = networks.lived(networks.Net(3)), {"train": pictures(12)}
    run = tw.train(base=module, task="image-classification", module=MODULE, data=data, output=str(tmp_path / "run"))
    assert read_verification(tw.export(run.folder, "onnx", tmp_path / "graph"))["verified"]
    with pytest.raises(BaseModelError, match="--to onnx"):
        tw.export(run.folder, "merged", tmp_path / "out")
