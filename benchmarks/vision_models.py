"""The two small real networks of ../shared/models, as factories without arguments: bases that are any torch module.

tunewright train DATA --base benchmarks.vision_models:squeezenet --weights …/squeezenet1_1_imagenet/model.safetensors
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SQUEEZENET_IMAGE: dict[str, Any] = {
    "resize": 227, "crop": 227, "scale": 1.0, "mean": (123.0, 117.0, 104.0), "std": (1.0, 1.0, 1.0),
}  # fmt: skip
RESNET20_IMAGE: dict[str, Any] = {"resize": 32, "crop": 32}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Fire(nn.Module):
    """Few channels squeezed out of many, and expanded by two kinds of convolution side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        few_BCHW = self.squeeze(x_BCHW).relu()
        return torch.cat([self.expand1x1(few_BCHW), self.expand3x3(few_BCHW)], 1).relu()


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360), with torchvision's names and no padding at either end."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), self.pool(), Fire(64, 16, 64), Fire(128, 16, 64),
            self.pool(), Fire(128, 32, 128), Fire(256, 32, 128),
            self.pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, classes, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    @staticmethod
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.classifier(self.features(x_BCHW)).flatten(1)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut without parameters: every second place, new channels of zeros."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.stride, self.wider = stride, (out - channels) // 2

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.bn2(self.conv2(self.bn1(self.conv1(x_BCHW)).relu()))
        short_BCHW = F.pad(x_BCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.wider, self.wider))
        return (y_BCHW + short_BCHW).relu()


class ResNet20(nn.Module):
    """The ResNet-20 for CIFAR (He et al., arXiv 1512.03385, section 4.2)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16, 1), _stage(16, 32, 2), _stage(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x_BCHW)).relu())))
        return self.linear(x_BCHW.mean((2, 3)))


def _stage(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(channels, out, stride), BasicBlock(out, out, 1), BasicBlock(out, out, 1))


def squeezenet() -> nn.Module:
    return SqueezeNet()


def resnet20() -> nn.Module:
    return ResNet20()
