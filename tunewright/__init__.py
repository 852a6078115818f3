"""Tunewright: fine-tune pre-trained models, and know what it did to them.

    import tunewright as tw
    run = tw.train(base="path/or/hub-name", data="rows.jsonl", method=tw.LoRA(rank=16))
    run.model, run.report

Names are imported when they are first used, so that `import tunewright` is instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "train": "api", "resume": "api", "evaluate": "api", "predict": "api", "chat": "api", "export": "api", "dry_run": "api",
    "load": "artifacts.load",
    "Run": "run", "open_run": "run", "list_runs": "run",
    "Recipe": "recipe", "read_recipe": "recipe",
    "Full": "methods", "Freeze": "methods", "Head": "methods", "Adapter": "methods", "LoRA": "methods", "Peft": "methods",
    "Supervised": "objectives",
    "Data": "data.config:DataConfig", "Training": "engine.config:TrainingConfig", "Evaluation": "evaluation.config:EvaluationConfig",
    "TunewrightError": "errors",
}  # fmt: skip

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"tunewright has no {name}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"tunewright.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
