"""Heads of prompts: they begin as the zero-shot classifier, and are tuned, interpolated and saved with their tower."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tunewright as tw
from tests.runs import recipe
from tests.tiny import make_two_towers, pictures
from tunewright.artifacts.export import read_verification
from tunewright.errors import BaseModelError, MethodError, RecipeError
from tunewright.tasks.image_classification import ImageClassification

TASK = "image-classification"
LABELS = ["class 0", "class 1", "class 2"]
TEMPLATE = "a photo of a {label}."
TOWERS = ("clip", "siglip")
KINDS = pytest.mark.parametrize("kind", TOWERS)


def images() -> list[Any]:
    return [Image.open(BytesIO(row["image"])) for row in pictures(5)]


def own_logits(base: str, prompts: list[str]) -> torch.Tensor:
    """What the base itself says of the images and prompts, [B, C]."""
    both = transformers.AutoModel.from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    length = both.config.text_config.max_position_embeddings
    tokens = tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt")
    pixels = transformers.AutoImageProcessor.from_pretrained(base, backend="pil")(images(), return_tensors="pt")
    known = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return both(**known, **pixels).logits_per_image


def logits_of(model: Any) -> torch.Tensor:
    model.module.eval()
    with torch.no_grad():
        return model.module(**model.processor(images(), return_tensors="pt")).logits


def begun(base: str, templates: list[str], labels: list[str] = LABELS) -> Any:
    return ImageClassification(labels, "single_label", templates).load(base)


@KINDS
def test_it_begins_as_the_zero_shot_classifier(kind: str, tiny_base: Any) -> None:
    base = tiny_base(kind)
    found, own = logits_of(begun(base, [TEMPLATE])), own_logits(base, [f"a photo of a {label}." for label in LABELS])
    assert own.std() > 0.1 and (own.std(dim=1) > 0.01).all()
    torch.testing.assert_close(found, own, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.softmax(-1), own.softmax(-1), atol=1e-5, rtol=0)


def test_so_it_does_with_the_tokenizer_of_clip(shared: Path, tmp_path: Path) -> None:
    packed = (shared / "models/clip_bpe/bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().splitlines()
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
    base = str(make_two_towers(tmp_path / "base", "clip", tokenizer))
    labels = ["red_ant", "bee"]
    found = logits_of(begun(base, [TEMPLATE], labels))
    torch.testing.assert_close(
        found, own_logits(base, ["a photo of a red ant.", "a photo of a bee."]), atol=1e-5, rtol=0
    )
    assert [tokenizer("a photo")["input_ids"][i] for i in (0, 1, -1)] == [49406, 320, 49407]


@KINDS
def test_several_prompts_are_averaged_on_the_sphere(kind: str, tiny_base: Any) -> None:
    one, other, both = (
        begun(tiny_base(kind), templates).module.prompt_head.weight
        for templates in ([TEMPLATE], ["the fox had {label}"], [TEMPLATE, "the fox had {label}"])
    )
    assert not torch.allclose(one, other)
    expected = F.normalize(F.normalize(one, dim=-1) + F.normalize(other, dim=-1), dim=-1) * np.exp(2.0)
    torch.testing.assert_close(both, expected)


@KINDS
@pytest.mark.parametrize("method", ["full", "lora", "adapter", "freeze", "head"])
def test_between_zero_shot_and_tuned(kind: str, method: str, tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base(kind)
    run = tw.train(recipe(base, tmp_path / "run", task=TASK, method=method, training={"zero_shot": True}))
    assert run.recipe.training.zero_shot == [TEMPLATE] and run.info["new"] == []
    start, half, end = (logits_of(tw.load(run.folder, alpha=alpha)) for alpha in (0.0, 0.5, 1.0))
    own = own_logits(base, [f"a photo of a {label}." for label in LABELS])
    torch.testing.assert_close(start, own, atol=1e-5, rtol=0)
    torch.testing.assert_close(end, logits_of(run.model))
    assert not torch.allclose(start, end, atol=1e-3)
    assert not torch.allclose(half, start, atol=1e-4) and not torch.allclose(half, end, atol=1e-4)


def test_the_head_is_half_way_at_half_way(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("clip"), tmp_path / "run", task=TASK, method="full", training={"zero_shot": True}))
    start, half, end = (tw.load(run.folder, alpha=alpha).module.prompt_head.weight for alpha in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (start + end) / 2)


@KINDS
def test_what_is_saved_is_the_tower_with_its_head_beside(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    """As the module's docstring says, with transformers alone."""
    run = tw.train(recipe(tiny_base(kind), tmp_path / "run", task=TASK, method="full", training={"zero_shot": True}))
    folder = run.folder / "model"
    name = {"clip": "CLIPVisionModelWithProjection", "siglip": "SiglipVisionModel"}[kind]
    tower, state = getattr(transformers, name).from_pretrained(folder).eval(), load_file(folder / "model.safetensors")
    assert not [key for key in state if key.startswith(("text_", "logit_"))]
    with torch.no_grad():
        found = tower(**run.model.processor(images(), return_tensors="pt"))
    features = found.image_embeds if kind == "clip" else found.pooler_output
    logits = F.linear(F.normalize(features, dim=-1), state["prompt_head.weight"], state["prompt_head.bias"])
    torch.testing.assert_close(logits, logits_of(run.model), atol=1e-5, rtol=0)


@KINDS
@pytest.mark.parametrize("method", ["lora", "full"])
def test_exports_are_verified(kind: str, method: str, tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base(kind), tmp_path / "run", task=TASK, method=method, training={"zero_shot": True}))
    for target, precision in (("merged", "fp32"), ("merged", "bf16"), ("onnx", "fp32")):
        folder = tw.export(run.folder, target, tmp_path / f"{target}-{precision}", precision=precision)
        assert read_verification(folder)["verified"]
    assert (
        tw.predict(tmp_path / "merged-fp32", images()[0])[0]["label"] == tw.predict(run.folder, images()[0])[0]["label"]
    )
    with pytest.raises(MethodError, match="no quantized image tower"):
        tw.export(run.folder, "quantized", tmp_path / "quantized")
    if method == "lora":
        with pytest.raises(MethodError, match="PEFT cannot make a head of prompts"):
            tw.export(run.folder, "peft", tmp_path / "peft")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_goes_on_from_a_tuned_one(method: str, tiny_base: Any, tmp_path: Path) -> None:
    first = tw.train(
        recipe(tiny_base("clip"), tmp_path / "first", task=TASK, method=method, training={"zero_shot": True})
    )
    second = tw.train(recipe(str(first.folder), tmp_path / "second", task=TASK, method=method))
    again, earlier = tw.load(second.folder, alpha=0), tw.load(first.folder)
    torch.testing.assert_close(logits_of(again), logits_of(earlier), atol=1e-5, rtol=0)
    assert hasattr(tw.load(second.folder).module, "prompt_head")


@KINDS
def test_without_it_such_a_base_has_a_new_head(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base(kind), tmp_path / "run", task=TASK, method="head"))
    assert type(run.model.module).__name__ in ("CLIPForImageClassification", "SiglipForImageClassification")
    assert run.info["new"] == ["classifier"]
    assert [line.split(":")[0] for line in run.info["parameters"]["names"]] == ["classifier.weight", "classifier.bias"]
    before, after = (
        load_file(Path(tiny_base(kind)) / "model.safetensors"),
        load_file(run.folder / "model/model.safetensors"),
    )
    tower = [name for name in after if name.startswith("vision_model.")]
    assert tower and all(torch.equal(before[name], after[name]) for name in tower)


def test_it_is_refused_where_it_cannot_be(tiny_base: Any, tmp_path: Path) -> None:
    def train(base: str, **changes: Any) -> None:
        training = {"zero_shot": True, **changes.pop("training", {})}
        tw.train(recipe(base, tmp_path / "run", training=training, **{"task": TASK, **changes}))

    with pytest.raises(BaseModelError, match=r"has no text tower to read prompts with.*vit"):
        train(tiny_base("vit"))
    with pytest.raises(RecipeError, match=r"'a photo' has no \{label\}"):
        train(tiny_base("clip"), training={"zero_shot": [TEMPLATE, "a photo"]})
    with pytest.raises(RecipeError, match=r"has .* tokens, of 24 at most: shorten it"):
        train(tiny_base("clip"), training={"zero_shot": TEMPLATE * 3})
    with pytest.raises(RecipeError, match="name the classes of images"):
        train(tiny_base("bert"), task="text-classification")
    with pytest.raises(RecipeError, match="head_first: the base has its head already"):
        train(tiny_base("clip"), training={"head_first": 1})
    assert not (tmp_path / "run").exists()
    run = tw.train(
        recipe(tiny_base("clip"), tmp_path / "first", task=TASK, method="lora", training={"zero_shot": True})
    )
    with pytest.raises(RecipeError, match="was tuned before, and has its head already"):
        train(str(run.folder))
