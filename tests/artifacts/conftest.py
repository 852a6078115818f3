"""What the tests of exports share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunewright.artifacts.targets import TARGETS

Damage = Callable[[Path], None]


@pytest.fixture
def damaged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Damage], None]:
    """`damaged("onnx", harm)`: what the target writes is damaged before it is verified."""

    def damage(target: str, harm: Damage) -> None:
        write = type(TARGETS[target]).write

        def harmed(self: Any, model: Any, precision: str, folder: Path, weights: Path) -> None:
            write(self, model, precision, folder, weights)
            harm(folder)

        monkeypatch.setattr(type(TARGETS[target]), "write", harmed)

    return damage
