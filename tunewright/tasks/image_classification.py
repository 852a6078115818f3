"""`image-classification`: a convolutional network or vision transformer with a task head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunewright.data.augmentation import BICUBIC, Augmentation, Draw
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig
from tunewright.data.kinds import LabelledImage
from tunewright.data.pictures import Picture, as_picture
from tunewright.data.rendered import Fitted
from tunewright.errors import BaseModelError, DataError, MethodError, counted
from tunewright.tasks import _modules
from tunewright.tasks._blocks import blocks_of_names, nested_blocks, trunk_blocks, unwrapped
from tunewright.tasks._classification import Classification
from tunewright.tasks._module_config import timm_preprocessing
from tunewright.tasks._module_head import logits as module_logits
from tunewright.tasks._module_head import replace_head
from tunewright.tasks._modules import layout_of
from tunewright.tasks._pretrained import load_image_processor
from tunewright.tasks._zero_shot import HEAD as PROMPT_HEAD
from tunewright.tasks._zero_shot import has_prompt_head, prompt_head_class, put_prompts, refuse_without_text
from tunewright.tasks.base import Batch, Encoded, Model, Predictions

if TYPE_CHECKING:
    from torch import Tensor, nn

PATCH = 8
"""An image costs as many positions as it has patches of 8 × 8 pixels."""


@dataclass(frozen=True)
class Pixels:
    """An image as the model is fed it, [C, H, W] in fp32: computed each time that it is asked for as an array."""

    picture: Picture
    processor: Any
    augment: Augmentation | None = None
    draw: Draw | None = None
    size: tuple[int, int] = (0, 0)  # (W, H) as the model is fed it

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        image, options = self.picture.pixels(), {}
        if self.draw:
            image = self.draw.apply(image, self.size, int(getattr(self.processor, "resample", None) or BICUBIC))
            options = {"do_resize": False, "do_center_crop": False} if self.draw.area is not None else {}
        if _is_grey(self.processor):
            image = image.convert("L")
        prepared: np.ndarray = self.processor(image, return_tensors="np", **options)["pixel_values"][0]
        return prepared.astype(dtype or np.float32)


@dataclass(frozen=True)
class Mixed:
    """Two images laid over each other, the first with this share."""

    one: Pixels
    other: Pixels
    share: float

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return (self.share * np.asarray(self.one) + (1 - self.share) * np.asarray(self.other)).astype(np.float32)


class ImageClassification(Classification):
    """A label for an image.

    Args:
        labels: the class names; None keeps those of the base.
        kind: `single_label` (softmax), `multi_label` (a sigmoid a class) or `regression`.
        templates: prompts with {label}, of which the text tower of a base makes the head that its tuning begins with.
    """

    name: ClassVar[str] = "image-classification"
    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    architecture: ClassVar[str] = "ForImageClassification"
    data_kinds: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(
        self, labels: Sequence[str] | None = None, kind: str = "single_label", templates: Sequence[str] = ()
    ) -> None:
        super().__init__(labels, kind)
        self.templates = list(templates)

    def load(self, base: str, *, seed: int = 0, dtype: str | None = None, weights: bool = True) -> Model:
        if _modules.is_module_folder(base):
            return self._load_module(base, seed, dtype)
        model = super().load(base, seed=seed, dtype=dtype, weights=weights)
        if self.templates and PROMPT_HEAD in model.new:
            refuse_without_text(base, model.module.config)
            put_prompts(model.module, base, self.labels, self.templates)
            model.new = ()
            prompts = counted(len(self.templates), "prompt")
            model.notices = [f"A zero-shot head for {len(self.labels)} classes, of {prompts} for each."]
        return model

    def model_class(self, base: str, config: Any) -> Any:
        if self.templates and not has_prompt_head(config):
            refuse_without_text(base, config)
        prompted = self.templates or has_prompt_head(config)
        return prompt_head_class(config) if prompted else super().model_class(base, config)

    def _load_module(self, base: str, seed: int, dtype: str | None) -> Model:
        import torch

        if self.templates:
            raise BaseModelError("training.zero_shot needs a base with a text tower, and a torch module has none.")
        module, layout = _modules.load(Path(base))
        processor = load_image_processor(base)
        _modules.refuse_other_code(module, processor, Path(base))
        self._settle_labels(base, layout.labels, layout.kind)
        new = (layout.head,) if layout.labels != self.labels else ()
        if new:
            replace_head(module, layout.head, len(self.labels), seed)
            _modules.refuse_fixed_outputs(module, processor, len(self.labels))
        module.to(getattr(torch, dtype or "float32"))
        return self.begun(Model(module, processor, self, base, along=(layout.head,), new=new), layout.labels)

    def _has_head(self, config: Any) -> bool:
        return super()._has_head(config) or config.model_type == "timm_wrapper"

    def processor(self, base: str, config: Any) -> Any:
        found = load_image_processor(base)
        if hasattr(found, "data_config"):
            return timm_preprocessing(found.data_config).processor()
        _fit_channels(found, config, base)
        return found

    def save(self, model: Model, folder: Path) -> None:
        if layout_of(model.module) is None:
            super().save(model, folder)
        else:
            _modules.save(model.module, self.labels, self.kind, model.processor, folder)

    def head(self, module: nn.Module) -> list[str]:
        if layout := layout_of(module):
            return [layout.head]
        return _timm_head(module) or super().head(module)

    def blocks(self, module: nn.Module) -> list[tuple[str, nn.Module]]:
        layout, bare = layout_of(module), unwrapped(module)
        timm = _timm_head(bare)
        names = layout.blocks if layout else nested_blocks(bare, timm[0]) if timm else []
        return blocks_of_names(module, names) if names else trunk_blocks(module)

    def unreadable(self, model: Model, record: Any) -> str | None:
        try:
            record.image.pixels()
        except DataError as error:
            return str(error)
        return None

    def encode(self, model: Model, records: Sequence[Any], data: Any) -> Encoded:
        """Images stay files until a step needs them; each is decoded here once, to be sure that it can be."""
        usable, faults = self.usable(model, records, skip=data.on_bad_rows == "skip")
        pixels = [Pixels(record.image, model.processor) for record in usable]
        length, size = _positions(pixels)
        pixels = [replace(p, size=size, augment=data.augment) for p in pixels]
        examples = [self.example({"pixel_values": p}, r, length) for p, r in zip(pixels, usable, strict=True)]
        return Encoded(examples, length, Fitted([]), faults)

    def vary(self, examples: Sequence[Example], random: np.random.Generator) -> list[Example]:
        """Images mirrored, cropped, in other colours and mixed, as `data.augment` says."""
        augment = examples[0].inputs["pixel_values"].augment
        if augment is None:
            return list(examples)
        varied = [_varied(example, augment.draw(random)) for example in examples]
        if not augment.mixup:
            return varied
        partners = [varied[i] for i in random.permutation(len(varied))]
        return [self._mixed(*pair, augment.draw_share(random)) for pair in zip(varied, partners, strict=True)]

    def _mixed(self, one: Example, other: Example, share: float) -> Example:
        """Two rows as one that has the labels of both, and the weight of the first."""
        a, b = self.softened(one), self.softened(other)
        pixels = Mixed(one.inputs["pixel_values"], other.inputs["pixel_values"], share)
        target = (share * a.target + (1 - share) * b.target).astype(np.float32)
        return replace(a, inputs={"pixel_values": pixels}, target=target)

    def inputs(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        import torch

        arrays = {name: np.stack([np.asarray(e.inputs[name]) for e in examples]) for name in examples[0].inputs}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def width(self, module: nn.Module) -> int:
        """The hidden size where there is one for all blocks, else what enters the head's last layer."""
        config = getattr(module, "config", None)
        config = getattr(config, "vision_config", config)
        hidden = getattr(config, "hidden_size", None)
        layer = self.final_layer(module)
        return int(hidden or getattr(layer, "in_features", 0) or layer.in_channels)

    def channels(self, model: Model, blocks: Sequence[nn.Module]) -> list[int]:
        """How many channels leave each of these blocks, by a forward pass of a black image.

        Raises MethodError for a block that does not give [B, C, H, W] or [B, T, C].
        """
        import torch

        of_module = layout_of(model.module) is not None
        shape = _modules.image_shape(model.processor) if of_module else (_channels(model.module.config) or 3, 224, 224)
        found: dict[int, int] = {}

        def note(block: nn.Module, _: object, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            shape = list(getattr(first, "shape", ()))
            if len(shape) not in (3, 4):
                raise MethodError("The blocks of this model give no [B, C, H, W], so there is no place for adapters.")
            found[id(block)] = shape[1] if len(shape) == 4 else shape[2]

        handles = [block.register_forward_hook(note) for block in blocks]
        like = next(model.module.parameters())
        with torch.no_grad():
            model.module.eval()(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
        for handle in handles:
            handle.remove()
        return [found[id(block)] for block in blocks]

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """[B, C], in fp32. Where the weights are in half precision, so are the images."""
        pixels_BCHW = batch.inputs["pixel_values"].to(next(module.parameters()).dtype)
        if layout_of(module):
            return module_logits(module, pixels_BCHW).float()
        return module(**{**batch.inputs, "pixel_values": pixels_BCHW}).logits.float()

    def shown(self, given: Any) -> dict[str, Any]:
        return {"image": str(as_picture(given))}

    def classify(self, model: Model, given: Sequence[Any]) -> tuple[Predictions, set[int]]:
        pictures = [self._picture(one, i) for i, one in enumerate(given)]
        records = [LabelledImage(picture, None, str(picture)) for picture in pictures]
        self.refuse_unreadable(model, records, "image")
        return self.predict(model, self.encode(model, records, DataConfig(train="-")).examples), set()

    def _picture(self, given: Any, number: int) -> Picture:
        picture = as_picture(given)
        if isinstance(picture, Picture):
            return picture
        kind = type(given).__name__
        raise DataError(f"images[{number}] must be a path, the bytes of an image or an image of Pillow's, not {kind}.")

    def asked(self, model: Model, example: Example) -> str:
        return example.source


def _is_grey(processor: Any) -> bool:
    """Whether its preprocessor_config.json says that images are grey: by one mean."""
    return len(processor.image_mean or ()) == 1


def _channels(config: Any) -> int | None:
    """How many channels the images of a model have, where its configuration says it."""
    return getattr(getattr(config, "vision_config", config), "num_channels", None)


def _fit_channels(processor: Any, config: Any, base: str) -> None:
    """Let images that are grey stay it. Raises BaseModelError where the base's processor makes others than it reads."""
    made, wanted = 1 if _is_grey(processor) else 3, _channels(config)
    if wanted not in (made, None):
        numbers = {1: "one number (in grey)", 3: "three numbers"}
        remedy = f"Give image_mean and image_std {numbers[wanted]} there" if wanted in numbers else "Take another base"
        raise BaseModelError(
            f"{base} reads images of {counted(wanted, 'channel')} (num_channels in its config.json), and its "
            f"preprocessor_config.json makes them of {made}. {remedy}."
        )
    if made == 1:
        processor.do_convert_rgb = False


def _timm_head(module: Any) -> list[str]:
    """The name of the layer that a timm model within transformers' wrapper calls its classifier."""
    inner = getattr(module, "timm_model", None)
    head = inner.get_classifier() if inner is not None else None
    return [name for name, layer in module.named_modules() if layer is head]


def _varied(example: Example, draw: Draw) -> Example:
    return replace(example, inputs={"pixel_values": replace(example.inputs["pixel_values"], draw=draw)})


def _positions(pixels: Sequence[Pixels]) -> tuple[int, tuple[int, int]]:
    """What one image costs, and its (width, height) as the model is fed it.

    Raises DataError where the processor makes images of several sizes.
    """
    shapes = {np.asarray(p).shape for p in pixels[:8]}
    if any(len(shape) != 3 for shape in shapes):
        raise BaseModelError("This model is fed patches in place of images (NaFlex), which is not supported.")
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{w} × {h}" for _, h, w in shapes))
        raise DataError(
            f"images are of several sizes as the model would be fed them ({sizes}): its preprocessor_config.json "
            "must resize or crop to one."
        )
    _, height, width = next(iter(shapes), (3, 0, 0))
    return max(1, -(-height // PATCH) * -(-width // PATCH)), (width, height)


TASK = ImageClassification
