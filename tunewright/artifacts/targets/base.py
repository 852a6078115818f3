"""A target: a form that a tuned model is exported in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from tunewright.artifacts.save import save
from tunewright.data.render import Renderer
from tunewright.errors import MissingExtra, RecipeError
from tunewright.methods import Adapter, Full
from tunewright.methods._peft import merge_adapter
from tunewright.methods.textual_inversion import join_rows
from tunewright.tasks.base import Model


class Target(ABC):
    """A form that a tuned model is exported in.

    Class attributes:
        tasks: the tasks whose models have this form.
        of_modules: whether any torch module has this form;
        by_code: and whether its users make the module by its factory first.
        precisions: those that the target has; the first is the default.
        needs: the packages that write and run it.
        extra: the extra of Tunewright that brings them.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("text-generation", "text-classification", "image-classification")
    of_modules: ClassVar[bool] = False
    by_code: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]]
    needs: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def check(self, weights: Path, precision: str) -> None:
        """Refuse, before anything is loaded, what cannot be exported so. `weights` is what the run saved."""
        if precision not in self.precisions:
            raise RecipeError(f"{self.name} has no precision {precision}. Possible: {', '.join(self.precisions)}.")
        if not all(find_spec(package) for package in self.needs):
            raise MissingExtra(f"export --to {self.name}", self.extra)

    @abstractmethod
    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        """Write the model, which may be changed in doing so, into the empty `folder`.

        Raises MethodError or BaseModelError for a model that this form cannot hold.
        """

    def device(self, precision: str) -> str:
        """Where the export runs."""
        return "cpu"


def merge(model: Model) -> None:
    """Fold what was added into the weights, in place. Raises MethodError, saying why, where that cannot be."""
    if hasattr(model.module, "peft_config"):
        merge_adapter(model)
    elif any(hasattr(m, "bottleneck") for m in model.module.modules()):
        Adapter().merge(model)
    elif model.task.diffuses:
        join_rows(model)


def save_whole(model: Model, folder: Path) -> None:
    """Write a merged model as a transformers folder, which says itself what ends an answer."""
    if hasattr(model.task, "generate"):
        model.module.generation_config.eos_token_id = Renderer(model.processor).stop_ids()
    save(model, Full(), folder)


def dtype_of(precision: str) -> Any:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
