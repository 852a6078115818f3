"""`quantized`: a merged model with the weights of its linear layers in 8 or 4 bits, by torchao."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from tunewright.artifacts.targets.base import Target, dtype_of, merge, save_whole
from tunewright.errors import BaseModelError, MethodError
from tunewright.tasks._quiet import quiet
from tunewright.tasks._zero_shot import HEAD as PROMPT_HEAD
from tunewright.tasks.base import Model


class Quantized(Target):
    """Weight-only: activations stay in bf16, as do the embeddings, the norms and the task head.

    int8 has a scale for each output, int4 one for each group of 128 inputs. int4 runs on CUDA only and has not been
    measured yet.
    """

    name: ClassVar[str] = "quantized"
    precisions: ClassVar[tuple[str, ...]] = ("int8", "int4")
    needs: ClassVar[tuple[str, ...]] = ("torchao",)
    extra: ClassVar[str] = "quantize"

    def check(self, weights: Path, precision: str) -> None:
        super().check(weights, precision)
        import torch

        if precision == "int4" and not torch.cuda.is_available():
            raise BaseModelError("int4 runs on a CUDA GPU only, and there is none here. Choose --precision int8.")

    def device(self, precision: str) -> str:
        return "cuda" if precision == "int4" else "cpu"

    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        import transformers

        merge(model)
        if any(p.ndim == 3 and "experts" in name for name, p in model.module.named_parameters()):
            raise MethodError("torchao leaves the fused weights of experts as they are. Export it as merged, in bf16.")
        if hasattr(model.module, PROMPT_HEAD):
            raise MethodError("transformers reads no quantized image tower out of such a model. Export it as merged.")
        head = model.task.head(model.module)
        with TemporaryDirectory(dir=folder.parent) as place:
            whole = Path(place) / "whole"
            save_whole(model, whole)
            with quiet():
                quantized = type(model.module).from_pretrained(
                    whole,
                    dtype=dtype_of("bf16"),
                    device_map=self.device(precision),
                    quantization_config=transformers.TorchAoConfig(_scheme(precision), modules_to_not_convert=head),
                )
        if not any(type(p).__module__.startswith("torchao") for p in quantized.parameters()):
            raise MethodError("This model has no linear layers of torch's own to quantize. Export it as merged.")
        model.module = quantized
        save_whole(model, folder)


def _scheme(precision: str) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    return Int8WeightOnlyConfig() if precision == "int8" else Int4WeightOnlyConfig(group_size=128)


TARGET = Quantized()
