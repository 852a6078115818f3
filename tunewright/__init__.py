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
    **dict.fromkeys(("train", "resume", "evaluate", "predict", "chat", "generate", "export"), "api"),
    **dict.fromkeys(("Run", "open_run", "list_runs"), "folder"),
    **dict.fromkeys(("Recipe", "read_recipe"), "recipe"),
    **dict.fromkeys(("LoRA", "Full", "Freeze", "Head", "Adapter", "Peft", "TextualInversion"), "methods"),
    "load": "artifacts.interpolate",
    "quickstart": "example",
    "catalogue": "choices",
    **dict.fromkeys(("interpolate", "soup"), "robust"),
    "compare": "comparison",
    "relocate": "relocation",
    "label": "labeling",
    **dict.fromkeys(("check", "dry_run"), "rehearsal"),
    **dict.fromkeys(("Supervised", "Preference", "Reward", "RL"), "objectives"),
    "Data": "data.config:DataConfig",
    "Training": "engine.config:TrainingConfig",
    "Evaluation": "evaluation.config:EvaluationConfig",
    "TunewrightError": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"tunewright has no {name}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"tunewright.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
