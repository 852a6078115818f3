"""Small torch modules, as somebody would write them who never heard of this package; and some that are no use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHIFT = 0.0  # what a change of the code would change


class Fork(nn.Module):
    """Two convolutions side by side, whose channels come out together."""

    def __init__(self, channels: int, each: int) -> None:
        super().__init__()
        self.near, self.wide = nn.Conv2d(channels, each, 1), nn.Conv2d(channels, each, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.near(x), self.wide(x)], 1).relu()


class Net(nn.Module):
    """A stem, three stages with batch norms, a linear head; `forward` has its own name for the images."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Fork(8, 6), nn.BatchNorm2d(12))
        self.layer2 = nn.Sequential(Fork(12, 8), nn.BatchNorm2d(16), nn.ReLU())
        self.layer3 = nn.Sequential(nn.Conv2d(16, 16, 3, stride=2), nn.BatchNorm2d(16), Fork(16, 10))
        self.fc = nn.Linear(20, classes)

    def forward(self, picture: Tensor) -> Tensor:
        x = self.norm(self.stem(picture)).relu() + SHIFT
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class LooseNorms(Net):
    """A batch norm that keeps no statistics: each answer depends on the whole batch."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.layer2[1] = nn.BatchNorm2d(16, track_running_stats=False)


class InstanceNorms(Net):
    """Instance norms in place of its batch norms, with statistics of what they have seen."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__(classes)
        self.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        for layer, size in ((self.layer1, 12), (self.layer2, 16), (self.layer3, 16)):
            layer[1] = nn.InstanceNorm2d(size, affine=True, track_running_stats=True)


class Convolving(nn.Module):
    """No norm and no linear layer: the head is a convolution, and its answer has two edges of 1 left."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), Fork(8, 6), nn.MaxPool2d(2), Fork(12, 8))
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(16, classes, 1), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class Wide(nn.Module):
    """Most of its weights are in one linear layer, as in a VGG."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(6)
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(144, 300), nn.ReLU(), nn.Linear(300, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class FixedView(Convolving):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(len(x), 5)


class Maps(Convolving):
    def forward(self, x: Tensor) -> Tensor:
        return self.classifier[1](self.features(x))


class Boxes(Net):
    def forward(self, picture: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"boxes": super().forward(picture)}


class Gray(nn.Module):
    """As one learns it on MNIST."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3), nn.ReLU())
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Softmax(Net):
    def forward(self, picture: Tensor) -> Tensor:
        return super().forward(picture).softmax(-1)


class LogSoftmax(Net):
    def forward(self, picture: Tensor) -> Tensor:
        return super().forward(picture).log_softmax(-1)


class Sigmoid(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Sequential(nn.Sigmoid(), nn.Flatten())

    def forward(self, picture: Tensor) -> Tensor:
        return self.last(super().forward(picture))


class Gated(Net):
    """A gate is the last to run, and all answers are small and positive; yet they are logits."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sigmoid()

    def forward(self, picture: Tensor) -> Tensor:
        return 0.5 * self.gate(super().forward(picture)) + 0.1


class Auxiliary(Net):
    """A second head that answers in training only, as GoogLeNet's."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(5, 5)

    def forward(self, picture: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        x = super().forward(picture)
        return (x, self.aux(x)) if self.training else x


class Strict(Net):
    """Fails in training mode, on purpose."""

    def forward(self, picture: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("not trained in this way")
        return super().forward(picture)


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.LazyConv2d(4, 3), nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).flatten(1))


def lazy_once_run() -> nn.Module:
    module = Lazy()
    module(torch.zeros(1, 3, 16, 16))
    return module


def net() -> nn.Module:
    return Net()


def lived(module: nn.Module) -> nn.Module:
    """As if it had been trained: no zeros, no ones."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.add_(0.2 * torch.rand_like(tensor))
            elif "num_batches" in name:
                tensor.fill_(7)
    return module


def lived_net() -> nn.Module:
    return lived(Net())


def with_arguments(classes: int) -> nn.Module:
    return Net(classes)


def a_number() -> int:
    return 3


def broken() -> nn.Module:
    raise KeyError("nothing")
