"""`onnx`: a graph for onnxruntime, without a cache; the tokenizer or image processor lies beside it."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from tunewright.artifacts.apart.foreign import ONNX
from tunewright.artifacts.questions import built_in
from tunewright.artifacts.targets.base import Target
from tunewright.data.config import DataConfig
from tunewright.errors import BaseModelError
from tunewright.methods._peft import merge_adapter
from tunewright.tasks._module_head import logits as module_logits
from tunewright.tasks._modules import layout_of
from tunewright.tasks.base import Model

ONE_FILE = 2**30  # bytes of weights; a graph of 2 GiB and more must keep them in a file beside it


class Onnx(Target):
    """Inputs are those of the tokenizer, [B, T] int64, or `pixel_values`, [B, C, H, W] fp32, with any B and T.

    Output `logits`, [B, T, V] or [B, C], fp32.

    Bottleneck adapters are part of the graph; PEFT's are merged. The classes of a torch module, which has no
    config.json, are in the graph's metadata, as JSON: `labels`.
    """

    name: ClassVar[str] = "onnx"
    of_modules: ClassVar[bool] = True
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    needs: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str] = "onnx"

    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        import torch
        from torch.export import Dim

        if hasattr(model.module, "peft_config"):
            merge_adapter(model)
        if hasattr(model.module, "set_experts_implementation"):
            model.module.set_experts_implementation("batched_mm")  # the others' shapes depend on the router's choice
        sample, moving = _sample(model)
        names = list(sample)
        axes = dict.fromkeys(moving, Dim.DYNAMIC)
        small = sum(p.nbytes for p in model.module.parameters()) < ONE_FILE
        try:
            with _silent():
                program: Any = torch.onnx.export(
                    _logits(model, names),
                    tuple(sample[name] for name in names),
                    input_names=names,
                    output_names=["logits"],
                    dynamic_shapes=(tuple(axes for _ in names),),
                    verbose=False,
                    dynamo=True,
                )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise BaseModelError(f"torch.onnx cannot export this architecture: {reason}") from error
        if layout_of(model.module) is None:
            model.module.config.save_pretrained(folder)
        else:
            program.model.metadata_props["labels"] = json.dumps(getattr(model.task, "labels", []))
        program.save(folder / ONNX, external_data=not small)
        model.processor.save_pretrained(folder)


def _sample(model: Model) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Two rows as the model is fed them, and the axes whose lengths may be others."""
    if "image" in model.task.data_kinds:
        examples = model.task.encode(model, built_in(model).records[:2], DataConfig(train="-")).examples
        return model.task.collate(examples).inputs, (0,)
    return dict(model.processor(["a b c d", "a b"], padding=True, return_tensors="pt")), (0, 1)


def _logits(model: Model, names: list[str]) -> Any:
    """The logits as a function of the inputs, in order."""
    from torch import nn

    module, bare = model.module, layout_of(model.module) is not None

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            if bare:
                return module_logits(self.module, *inputs)
            return self.module(**dict(zip(names, inputs, strict=True)), **cache).logits

    cache = {"use_cache": False} if not bare and getattr(module.config, "use_cache", False) else {}
    return Logits().eval()


@contextmanager
def _silent() -> Iterator[None]:
    """Without torch.onnx's warnings, which are about torchvision and about torch's own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


TARGET = Onnx()
