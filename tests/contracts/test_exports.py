"""Tasks × methods × targets: what is exported behaves like the model that was trained, or is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.journeys import Journey, journey
from tests.contracts.test_methods import CASES, PLAIN, REFUSED, VARIANTS
from tunewright.artifacts.export import export, read_verification
from tunewright.artifacts.targets import TARGETS
from tunewright.artifacts.verify import LIMITS
from tunewright.errors import TunewrightError

ONE_LAYER = {"num_hidden_layers": 1}
BASES: dict[str, dict[str, dict[str, int]]] = {
    "text-generation": {"llama": ONE_LAYER},
    "text-classification": {"bert": ONE_LAYER},
    "image-classification": {"vit": ONE_LAYER, "resnet": {}},
}
PROMPTS = ("prefix", "prompt", "p-tuning")
EXPORTS = [
    *[(task, kind, method, target) for task in BASES for kind in BASES[task] for method in PLAIN for target in TARGETS
      if (task, kind, method) not in REFUSED],
    *[("text-generation", "llama", method, target)
      for method in VARIANTS if method != "freeze 2"  # there is one layer here
      for target in ("peft", "merged", "gguf")],
]  # fmt: skip


def refusal(task: str, kind: str, method: str, target: str) -> str:
    """What the refusal must say; nothing where the export is possible."""
    if target == "peft":
        kinds = {"adapter": "PEFT has no bottleneck adapters", "lora": "", "peft": ""}
        return kinds.get(CASES[method]["type"], "its own weights were trained")
    if method in PROMPTS or (CASES[method]["type"] == "adapter" and target != "onnx"):
        return "cannot be merged"
    if kind == "resnet" and target == "quantized":
        return "no linear layers of torch's own"
    return "gguf holds language models" if target == "gguf" and task != "text-generation" else ""


@pytest.fixture(scope="module")
def made(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Journey]:
    """One layer is enough here, and an ONNX graph of it is made in three seconds."""

    @cache
    def make(task: str, kind: str, method: str) -> Journey:
        base = tiny_base(kind, **BASES[task][kind])
        return journey(base, task, CASES[method], tmp_path_factory.mktemp("journey"))

    return make


@pytest.mark.parametrize(("task", "kind", "method", "target"), EXPORTS)
def test_an_export_is_verified_or_refused(
    task: str, kind: str, method: str, target: str, made: Any, tmp_path: Path
) -> None:
    seen = made(task, kind, method)
    assert seen.refusal is None
    if expected := refusal(task, kind, method, target):
        with pytest.raises(TunewrightError, match=expected):
            export(seen.folder, target, tmp_path / "out")
        assert not list(tmp_path.iterdir())
    else:
        found = read_verification(export(seen.folder, target, tmp_path / "out"))
        assert found["verified"] and not found["failures"] and found["limits"].keys() <= found["figures"].keys()


def test_every_precision_has_its_limits() -> None:
    assert {(name, precision) for name, target in TARGETS.items() for precision in target.precisions} == LIMITS.keys()
