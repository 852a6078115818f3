"""`gguf`: one file for llama.cpp and what is built on it, with weights, tokenizer and chat template."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunewright.artifacts.apart.foreign import GGUF
from tunewright.artifacts.targets._gguf_tokenizer import write_tokenizer
from tunewright.artifacts.targets.base import Target, merge
from tunewright.errors import BaseModelError
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The names that llama.cpp has for the architectures of transformers that are written here."""


class Gguf(Target):
    """Matrices in F16 or in Q8_0 (blocks of 32 in 8 bits with a scale each), vectors in F32.

    In q8_0, a matrix whose rows are no multiple of 32 long stays F16.
    """

    name: ClassVar[str] = "gguf"
    precisions: ClassVar[tuple[str, ...]] = ("f16", "q8_0")
    needs: ClassVar[tuple[str, ...]] = ("gguf",)
    extra: ClassVar[str] = "gguf"

    def write(self, model: Model, precision: str, folder: Path, weights: Path) -> None:
        import gguf

        merge(model)
        config = model.module.config
        if not hasattr(model.task, "generate") or config.model_type not in ARCHITECTURES:
            raise BaseModelError(
                f"gguf holds language models of the types {', '.join(ARCHITECTURES)} here; this is "
                f"{config.model_type}, for {model.task.name}. Export it as merged."
            )
        _refuse_inexpressible(config)
        writer = gguf.GGUFWriter(folder / GGUF, ARCHITECTURES[config.model_type])
        _write_shape(writer, config, f"{Path(model.base).name}, tuned")
        kind = gguf.LlamaFileType.MOSTLY_F16 if precision == "f16" else gguf.LlamaFileType.MOSTLY_Q8_0
        writer.add_file_type(kind)
        write_tokenizer(writer, model.processor, config.vocab_size)
        for name, tensor in _tensors(model.module):
            chosen = _stored_as(tensor, precision)
            writer.add_tensor(name, gguf.quants.quantize(tensor, chosen), raw_dtype=chosen)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _refuse_inexpressible(config: Any) -> None:
    """What the format's architectures leave out, so that the model would run as another one."""
    window = getattr(config, "sliding_window", None)
    if window and "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        raise BaseModelError(
            f"This model attends to a window of {window} tokens, which llama.cpp's {ARCHITECTURES[config.model_type]} "
            "does not. Export it as merged."
        )
    kind = config.rope_parameters["rope_type"]
    if kind not in ("default", "llama3"):
        raise BaseModelError(f"Rotary embeddings of the type {kind} are not written to gguf. Export it as merged.")


def _write_shape(writer: Any, config: Any, name: str) -> None:
    writer.add_name(name)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _tensors(module: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by llama.cpp's names, fp32. Raises BaseModelError for one that it has no name for."""
    import gguf

    config = module.config
    architecture = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", rope_factors(config.rope_parameters, _head_size(config))
    for name, parameter in module.named_parameters():  # tied ones once: a file without a head uses the embeddings
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise BaseModelError(f"gguf has no place for {name} in {architecture}. Export the model as merged.")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        value = parameter.detach().float()
        if heads and architecture == "llama":
            value = interleaved(value, heads)
        yield found, value.numpy()


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of q or k in the order of llama.cpp's llama, which rotates neighbours (2i, 2i + 1) of a head.

    transformers rotates the pair (i, i + half).
    """
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape).contiguous()


def rope_factors(parameters: dict[str, Any], size: int) -> np.ndarray:
    """What Llama 3.1 divides each rotary frequency by, [size / 2]: 1 for short waves, `factor` for long ones."""
    factor, low, high = (parameters[name] for name in ("factor", "low_freq_factor", "high_freq_factor"))
    context = parameters["original_max_position_embeddings"]
    waves = 2 * math.pi * parameters["rope_theta"] ** (np.arange(0, size, 2) / size)
    smooth = ((context / waves - low) / (high - low)).clip(0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _stored_as(tensor: np.ndarray, precision: str) -> Any:
    from gguf import GGMLQuantizationType

    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    fits = precision == "q8_0" and tensor.shape[-1] % 32 == 0
    return GGMLQuantizationType.Q8_0 if fits else GGMLQuantizationType.F16


TARGET = Gguf()
