"""Exports of image classifiers: weights, preprocessing and the names of classes are seen to be the trained ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import tunewright as tw
from tests.runs import recipe
from tests.tiny import pictures
from tunewright.artifacts import export as exporting
from tunewright.artifacts.apart.foreign import ONNX
from tunewright.artifacts.export import read_verification
from tunewright.artifacts.questions import PATTERNS
from tunewright.artifacts.targets import TARGETS
from tunewright.artifacts.verify import Comparison
from tunewright.errors import VerificationError

FRESH = exporting.in_a_fresh_process  # as it is before conftest replaces it
TASK = "image-classification"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def runs(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tw.Run]:
    """A LoRA on a transformer, and a network with batch norms that was trained as a whole."""
    folder = tmp_path_factory.mktemp("run")
    methods = {"vit": {"type": "lora", "rank": 4}, "resnet": "full"}
    return {kind: tw.train(recipe(tiny_base(kind), folder / kind, task=TASK, method=methods[kind])) for kind in methods}


def of_json(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def in_another_order(folder: Path) -> None:
    """The names of two classes change places; an adapter's lie in its card."""
    if (folder / "adapter_config.json").is_file():
        of_json(folder / "tunewright.json", lambda card: {**card, "labels": card["labels"][::-1]})
    else:
        names = {"0": "class 1", "1": "class 0", "2": "class 2"}
        of_json(folder / "config.json", lambda config: {**config, "id2label": names})


def other_means(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    of_json(path, lambda config: {**config, "image_mean": [0.5, 0.5, 0.5]})


def another_filter(folder: Path) -> None:
    """Bilinear in place of bicubic: hardly to be seen in the logits."""
    of_json(folder / "preprocessor_config.json", lambda config: {**config, "resample": 2})


def other_statistics(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("running_mean"))
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, path, metadata={"format": "pt"})


PLACES = ("peft", "merged", "quantized", "onnx")
CASES = [
    *[(target, "vit", in_another_order, "of its classes have") for target in PLACES],
    *[(target, "vit", other_means, "Its image processor") for target in PLACES],
    *[(target, "vit", another_filter, "Its image processor") for target in PLACES],
    ("merged", "resnet", other_statistics, "An output differs"),
    ("onnx", "resnet", other_means, "Its image processor"),
]
NAMED = pytest.mark.parametrize(
    ("target", "kind", "harm", "said"), CASES, ids=[f"{c[0]} {c[1]} {c[2].__name__}" for c in CASES]
)


@NAMED
def test_damage_is_noticed(
    target: str, kind: str, harm: Damage, said: str, runs: Any, damaged: Any, tmp_path: Path
) -> None:
    damaged(target, harm)
    with pytest.raises(VerificationError, match=said):
        tw.export(runs[kind].folder, target, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out.unverified"]


@NAMED
def test_damage_would_not_be_noticed_without_the_comparison(
    target: str, kind: str, harm: Damage, said: str, runs: Any, damaged: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(exporting, "compare", lambda *_, **__: Comparison({}, {}, []))
    damaged(target, harm)
    assert tw.export(runs[kind].folder, target, tmp_path / "out").is_dir()


@pytest.mark.parametrize("target", ["peft", "merged", "onnx"])
@pytest.mark.parametrize("share", [1.0, 0.9])
def test_a_tenth_less_of_the_adapter_is_noticed(
    share: float, target: str, runs: Any, damaged: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    write = type(TARGETS[target]).write

    def scaled(self: Any, model: Any, precision: str, folder: Path, weights: Path) -> None:
        for module in model.module.modules():
            if isinstance(module, LoraLayer):
                module.scaling = {name: share * scale for name, scale in module.scaling.items()}
        write(self, model, precision, folder, weights)
        if target == "peft":
            path = folder / "adapter_config.json"
            of_json(path, lambda config: {**config, "lora_alpha": share * config["lora_alpha"]})

    monkeypatch.setattr(type(TARGETS[target]), "write", scaled)
    if share == 1:
        assert read_verification(tw.export(runs["vit"].folder, target, tmp_path / "out"))["verified"]
        return
    with pytest.raises(VerificationError, match="An output differs") as caught:
        tw.export(runs["vit"].folder, target, tmp_path / "out")
    assert caught.value.verification["figures"]["effect"] < 0.99


def test_a_fresh_process_answers_as_this_one(runs: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(exporting, "in_a_fresh_process", FRESH)
    apart = read_verification(tw.export(runs["resnet"].folder, "merged", tmp_path / "apart"))
    assert apart["verified"] and apart["rows"] == 5 and apart["rows_from"] == "the run's validation rows"
    assert apart["figures"]["same_pixels"] == apart["figures"]["same_labels"] == 1
    assert apart["figures"]["max_logit_difference"] < 1e-6


def test_images_are_built_in_where_no_rows_are(runs: Any, tmp_path: Path) -> None:
    found = read_verification(tw.export(runs["vit"].folder / "model", "peft", tmp_path / "out"))
    assert found["rows_from"] == PATTERNS and found["rows"] == 8 and found["verified"]


def test_a_graph_reads_batches_of_any_size(runs: Any, tmp_path: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(tw.export(runs["resnet"].folder, "onnx", tmp_path / "out") / ONNX)
    pixels = np.random.default_rng(0).normal(size=(5, 3, 16, 16)).astype(np.float32)
    (together,) = session.run(["logits"], {"pixel_values": pixels})
    alone = [session.run(["logits"], {"pixel_values": one[None]})[0][0] for one in pixels]
    assert together.shape == (5, 3)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_an_export_answers_as_predict(runs: Any, tmp_path: Path) -> None:
    """With nothing but the library that its users have, and a picture as they have it."""
    import transformers
    from PIL import Image

    path = tmp_path / "one.png"
    path.write_bytes(pictures(1)[0]["image"])
    folder = tw.export(runs["vit"].folder, "merged", tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    module = transformers.AutoModelForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = module(**processor(Image.open(path), return_tensors="pt")).logits[0]
    told = tw.predict(runs["vit"].folder, path)[0]["probabilities"]
    assert list(told) == [module.config.id2label[i] for i in range(3)]
    np.testing.assert_allclose(logits.softmax(-1), list(told.values()), atol=1e-5)


@pytest.mark.parametrize("kind", ["several", "number"])
def test_other_kinds_of_labels(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    rows = pictures(12)
    for i, row in enumerate(rows):
        row["label"] = [["a"], ["a", "b"], []][i % 3] if kind == "several" else i / 4
    data = {"train": rows, "validation": rows[:6]}
    run = tw.train(recipe(tiny_base("vit"), tmp_path / "run", task=TASK, data=data))
    for target in ("peft", "merged"):
        assert read_verification(tw.export(run.folder, target, tmp_path / target))["verified"]


def test_an_adapter_over_a_base_with_other_classes(runs: Any, tiny_base: Any, tmp_path: Path) -> None:
    base = str(runs["resnet"].folder / "model")
    data = {"train": pictures(12, classes=2), "validation": pictures(4, classes=2)}
    run = tw.train(recipe(base, tmp_path / "run", task=TASK, data=data))
    assert read_verification(tw.export(run.folder, "peft", tmp_path / "out"))["verified"]
