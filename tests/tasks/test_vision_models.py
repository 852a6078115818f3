"""Kinds of image models that transformers has: where blocks and head are, and that they train and come back."""

from __future__ import annotations

import json
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

import tunewright as tw
from tests.contracts.journeys import journey
from tests.contracts.steps import prepared
from tests.runs import recipe
from tests.tiny import pictures, random_weights
from tunewright.data.pictures import as_picture
from tunewright.errors import BaseModelError, MissingExtra
from tunewright.tasks.image_classification import ImageClassification, Pixels

TASK = "image-classification"
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, tuple[int, Any, str, list[str]]] = {  # edge of its images, configuration, head, blocks
    "convnext": (
        32, hf.ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1]),
        "classifier", [f"convnext.encoder.stages.{i}" for i in range(4)],
    ),
    "efficientnet": (
        32, hf.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.2, hidden_dim=320),
        "classifier", [f"efficientnet.encoder.blocks.{i}" for i in range(7)],
    ),
    "mobilenet": (
        32, hf.MobileNetV1Config(depth_multiplier=0.25), "classifier", [f"mobilenet_v1.layer.{i}" for i in range(26)],
    ),
    "swin": (
        64, hf.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        "classifier", ["swin.encoder.layers.0", "swin.encoder.layers.1"],
    ),
    "dinov2": (
        16, hf.Dinov2Config(**TOWER, image_size=16, patch_size=8),
        "classifier", ["dinov2.encoder.layer.0", "dinov2.encoder.layer.1"],
    ),
    "siglip": (
        16, hf.SiglipConfig(text_config={**TOWER, "vocab_size": 9},
                            vision_config={**TOWER, "image_size": 16, "patch_size": 8}),
        "classifier", ["vision_model.encoder.layers.0", "vision_model.encoder.layers.1"],
    ),
    "hgnet": (
        32, hf.HGNetV2Config(stem_channels=[3, 4, 8], stage_in_channels=[8, 16], stage_mid_channels=[4, 4],
                             stage_out_channels=[16, 24], stage_num_blocks=[1, 1], stage_downsample=[False, True],
                             stage_light_block=[False, False], stage_kernel_size=[3, 3], stage_numb_of_layers=[2, 2],
                             hidden_sizes=[16, 24], depths=[1, 1]),
        "fc", ["encoder.stages.0", "encoder.stages.1"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def base(kind: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp(kind)
    edge, config, _, _ = KINDS[kind]
    random_weights(hf.AutoModelForImageClassification, config).save_pretrained(folder)
    size = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
    hf.CLIPImageProcessorPil(**size).save_pretrained(folder)
    return str(folder)


def of_channels(folder: Path, model: Any, processor: Any) -> str:
    random_weights(hf.AutoModelForImageClassification, model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def resnet_of(channels: int) -> Any:
    return hf.ResNetConfig(
        num_channels=channels, embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"
    )


def towers_of(channels: int) -> Any:
    tower = {**TOWER, "image_size": 16, "patch_size": 8, "num_channels": channels}
    return hf.SiglipConfig(text_config={**TOWER, "vocab_size": 9}, vision_config=tower)


GREY = {"image_mean": [0.459], "image_std": [0.226]}


@pytest.mark.parametrize(
    "config, normalization, reads, remedy",
    [
        (resnet_of(1), {}, "1 channel ", r"of 3\. Give image_mean and image_std one number \(in grey\)"),
        (towers_of(1), {}, "1 channel ", r"of 3\. Give"),
        (resnet_of(3), GREY, "3 channels ", r"of 1\. Give image_mean and image_std three numbers"),
        (resnet_of(4), {}, "4 channels ", r"of 3\. Take another base"),
    ],
)
def test_channels_that_no_image_has(config: Any, normalization: Any, reads: str, remedy: str, tmp_path: Path) -> None:
    processor = hf.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16, **normalization)
    base = of_channels(tmp_path / "base", config, processor)
    with pytest.raises(BaseModelError, match=f"images of {reads}.*preprocessor_config.json makes them {remedy}"):
        tw.train(recipe(base, tmp_path / "run", task=TASK, method="full"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["full", "adapter"])
@pytest.mark.parametrize("processor", [hf.CLIPImageProcessorPil, hf.ViTImageProcessorPil, hf.ConvNextImageProcessorPil])
def test_grey_images_by_one_mean(processor: Any, method: str, tmp_path: Path) -> None:
    """An image in colour is answered as the same in grey, by what lies with the tuned model too."""
    edge = {"size": {"shortest_edge": 16}, "crop_size": 16} if "CLIP" in processor.__name__ else {"size": 16}
    base = of_channels(tmp_path / "base", resnet_of(1), processor(**edge, **GREY))
    run = tw.train(recipe(base, tmp_path / "run", task=TASK, method=method, data={"augment": {}}))
    image = Image.open(BytesIO(pictures(1)[0]["image"]))
    colour, grey = (tw.predict(run.folder, [one])[0]["probabilities"] for one in (image, image.convert("L")))
    assert colour == grey
    assert np.asarray(Pixels(as_picture(image), run.model.processor)).shape == (1, 16, 16)


def test_head_and_blocks(kind: str, base: str) -> None:
    _, _, head, blocks = KINDS[kind]
    model = prepared(base, pictures(6), task=TASK, method="full").model
    task, module = model.task, model.module
    assert isinstance(task, ImageClassification)
    assert (task.head(module), [name for name, _ in task.blocks(module)]) == ([head], blocks)
    assert set(model.along) == {head} and task.final_layer(module).out_features == 3


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_it_trains_and_comes_back(kind: str, base: str, method: str, tmp_path: Path) -> None:
    seen = journey(base, TASK, {"type": method}, tmp_path)
    assert seen.refusal is None and seen.moved
    blocks = KINDS[kind][3]
    if method == "freeze":
        assert not any(name.startswith(tuple(f"{block}." for block in blocks[:-1])) for name in seen.moved)
    if method == "lora":
        assert torch.equal(seen.end, seen.loaded)
    else:  # the same weights; a library may sum in another order where they lie elsewhere in memory
        state = seen.again().module.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in seen.model.module.state_dict().items())
        assert torch.allclose(seen.end, seen.loaded, atol=1e-4)


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_a_timm_model_needs_timm(tmp_path: Path) -> None:
    config = {"architecture": "resnet18", "num_classes": 5, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MissingExtra, match=r"pip install 'tunewright\[timm\]'"):
        prepared(str(tmp_path), pictures(6), task=TASK)


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
@pytest.mark.parametrize("method", ["full", "freeze", "head", "lora", "adapter"])
@pytest.mark.parametrize("name, head, block", [("resnet10t", "fc", "layer4"), ("test_vit", "head", "blocks.5")])
def test_a_timm_model_trains_and_comes_back(name: str, head: str, block: str, method: str, tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    module = timm.create_model(name, num_classes=5)
    told = {k: v for k, v in module.pretrained_cfg.items() if isinstance(v, str | int | float | list | tuple)}
    config = {"architecture": name, "num_classes": 5, "label_names": list("abcde"), "pretrained_cfg": told}
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_features": module.num_features}))
    save_file({n: t.contiguous() for n, t in module.state_dict().items()}, tmp_path / "model.safetensors")
    seen = journey(str(tmp_path), TASK, {"type": method}, tmp_path / method)
    assert seen.refusal is None and torch.allclose(seen.end, seen.loaded, atol=1e-4)
    task = seen.model.task
    again = seen.again().module
    if method == "full":
        assert task.head(again) == [f"timm_model.{head}"] and task.blocks(again)[-1][0] == f"timm_model.{block}"


def test_what_is_fed_patches_is_refused(tmp_path: Path) -> None:
    vision = {**TOWER, "patch_size": 8, "num_patches": 16}
    config = hf.Siglip2Config(text_config={**TOWER, "vocab_size": 9}, vision_config=vision)
    random_weights(hf.AutoModelForImageClassification, config).save_pretrained(tmp_path)
    hf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match="NaFlex"):
        prepared(str(tmp_path), pictures(6), task=TASK)


def test_the_rate_is_larger_where_batch_norms_train(tiny_base: Any) -> None:
    """They take the scale out of the weights in front of them."""

    def rate(kind: str, method: Any) -> Any:
        return prepared(tiny_base(kind), pictures(6), task=TASK, method=method).recipe.training.learning_rate

    width = (4096 / 16) ** 0.5
    assert rate("resnet", "full") == pytest.approx(2e-5 * 10 * width)
    assert rate("resnet", {"type": "full", "batch_norm": "freeze_stats"}) == pytest.approx(2e-5 * width)
    assert rate("resnet", "lora") == pytest.approx(2e-4 * width)
    assert rate("vit", "full") == pytest.approx(2e-5 * (4096 / 32) ** 0.5, rel=0.05)
