"""What all tests share: no network, one thread, and tiny bases that are made once."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`tiny_base("llama")`: the folder of a tiny base; further arguments go to its configuration."""
    from tests.tiny import make_base

    root = tmp_path_factory.mktemp("bases")
    made: dict[str, str] = {}

    def base(kind: str, **options: Any) -> str:
        name = "-".join([kind, *(f"{key}={value}" for key, value in options.items())]).replace("/", "_")
        if name not in made:
            made[name] = str(make_base(root / name, kind, **options))
        return made[name]

    return base


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def exports_are_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export is run by the same code in this process: a fresh one costs six seconds. Some tests undo this."""
    from tunewright.artifacts import export
    from tunewright.artifacts.apart import foreign

    monkeypatch.setattr(export, "in_a_fresh_process", foreign.ask)


SHARED = Path(os.environ.get("TUNEWRIGHT_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and small real models; tests that need them are skipped where the folder is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: set TUNEWRIGHT_SHARED to its place")
    return SHARED
