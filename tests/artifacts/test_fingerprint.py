"""A base that has other weights than when it was trained on is not taken for the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import tunewright as tw
from tests.runs import recipe, stop_at
from tunewright.artifacts.fingerprint import fingerprint
from tunewright.errors import BaseModelError


@pytest.fixture
def own_base(tiny_base: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base("llama"), tmp_path / "base"))


def rescale(base: Path) -> None:
    weights = base / "model.safetensors"
    scaled = {name: 1.05 * tensor for name, tensor in load_file(weights).items()}
    save_file(scaled, weights, metadata={"format": "pt"})


def test_it_is_of_the_weights_and_not_of_their_place(own_base: Path, tmp_path: Path) -> None:
    before = fingerprint(str(own_base))
    moved = shutil.copytree(own_base, tmp_path / "elsewhere")
    rescale(own_base)
    assert before and fingerprint(str(moved)) == before != fingerprint(str(own_base))
    assert fingerprint(str(tmp_path / "nowhere")) is None


USES: dict[str, Callable[[Path], Any]] = {
    "interpolate": lambda folder: tw.interpolate(folder, alphas=[0.5]),
    "alpha 0": lambda folder: tw.load(folder, alpha=0.0),
    "load": tw.load,
}


@pytest.mark.parametrize(
    ("use", "method"), [("interpolate", "lora"), ("load", "lora"), ("interpolate", "full"), ("alpha 0", "full")]
)
def test_a_run_on_another_base_is_refused(use: str, method: str, own_base: Path, tmp_path: Path) -> None:
    run = tw.train(recipe(str(own_base), tmp_path / "run", method=method))
    USES[use](run.folder)
    rescale(own_base)
    with pytest.raises(BaseModelError, match=r"not those that the training began with.*remove base_sha256 from .*json"):
        USES[use](run.folder)


def test_a_whole_model_needs_no_base(own_base: Path, tmp_path: Path) -> None:
    run = tw.train(recipe(str(own_base), tmp_path / "run", method="full"))
    shutil.rmtree(own_base)
    assert tw.load(run.folder)


def test_it_does_not_go_on_from_another_base(own_base: Path, tmp_path: Path) -> None:
    def cut() -> None:
        raise KeyError("cut")

    with pytest.raises(KeyError):
        tw.train(recipe(str(own_base), tmp_path / "run"), watchers=[stop_at(4, cut)])
    rescale(own_base)
    with pytest.raises(BaseModelError, match="not those that the training began with"):
        tw.resume(tmp_path / "run")
