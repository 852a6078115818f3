"""What a recipe says of a base that is any torch module."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, model_validator

from tunewright.errors import BaseModelError
from tunewright.options import Options

Channels = tuple[float, ...]
GREY = {"mean": (0.459,), "std": (0.226,)}
"""ImageNet's channels as one, weighted as they are seen (ITU-R BT.601)."""


class Preprocessing(Options):
    """How an image becomes numbers: (pixel · scale − mean) / std, for pixels from 0 to 255 and channels R, G, B.

    With one channel images are converted to grey, and mean and std are one number each.
    """

    resize: int = Field(256, ge=1, description="The shorter edge after resizing, in pixels.")
    crop: int = Field(224, ge=1, description="Edge of the square that is cut out of the middle.")
    channels: Literal[1, 3] = Field(3, description="3 for images in colour, 1 for grey, which they are converted to.")
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="How images are resized."
    )
    scale: float = Field(1 / 255, gt=0, description="Factor on pixel values from 0 to 255, before the mean is taken.")
    mean: Channels = Field((0.485, 0.456, 0.406), description="Mean of each channel, after scaling.")
    std: Channels = Field((0.229, 0.224, 0.225), description="Standard deviation of each channel, after scaling.")

    @model_validator(mode="before")
    @classmethod
    def _grey_by_default(cls, values: Any) -> Any:
        return {**GREY, **values} if isinstance(values, dict) and values.get("channels") == 1 else values

    @model_validator(mode="after")
    def _one_number_a_channel(self) -> Preprocessing:
        for name in ("mean", "std"):
            if len(getattr(self, name)) != self.channels:
                raise ValueError(f"{name} {getattr(self, name)} must have one number a channel: {self.channels}")
        return self

    @model_validator(mode="after")
    def _crop_lies_within(self) -> Preprocessing:
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than what resize leaves: {self.resize}")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0")
        return self

    def processor(self) -> Any:
        """As transformers' processor, whose configuration is saved beside the weights."""
        from PIL.Image import Resampling
        from transformers import CLIPImageProcessorPil

        return CLIPImageProcessorPil(
            size={"shortest_edge": self.resize},
            crop_size={"height": self.crop, "width": self.crop},
            resample=int(Resampling[self.interpolation.upper()]),
            rescale_factor=self.scale,
            image_mean=list(self.mean),
            image_std=list(self.std),
            do_convert_rgb=self.channels == 3,
        )


class ModuleConfig(Options):
    """What a torch module does not say of itself."""

    labels: list[str] | None = Field(
        None, description="The classes that its outputs stand for, in their order; none: its head is replaced."
    )
    head: str | None = Field(
        None, description="Name of the layer that gives the logits; none: the last linear or convolution that runs."
    )
    blocks: list[str] | None = Field(
        None, description="Names of the trunk's blocks, with * for any part: layer*.*; none: by rule."
    )
    image: Preprocessing = Field(Preprocessing(), description="How images are prepared for it.")


def timm_preprocessing(config: dict[str, Any]) -> Preprocessing:
    """What timm says of a model's images, so that they are prepared, varied and saved as for every other model.

    Raises BaseModelError where it does anything else but resize and cut out the middle.
    """
    size, crop = config["input_size"][-1], config.get("crop_mode", "center")
    if crop != "center" or size != config["input_size"][-2]:
        raise BaseModelError(
            f"This timm model wants images of {config['input_size']}, crop_mode {crop}: not supported."
        )
    return Preprocessing(
        resize=math.floor(size / config.get("crop_pct", 1.0)), crop=size, interpolation=config["interpolation"],
        mean=config["mean"], std=config["std"],
    )  # fmt: skip
