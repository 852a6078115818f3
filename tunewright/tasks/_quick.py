"""One token of a Llama, Mistral, Qwen or Mixtral model with a third of the calls that transformers makes for it.

The same sums as transformers' own layers, without what stands around them, and with attention over keys that heads
share as they lie in the cache: transformers multiplies them for each token. Layers of other kinds, with hooks, windows
or changed methods are left to transformers; so is a module whose answer to a probe is another. Imported where it is
used, because it imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.models.llama import modeling_llama as llama
from transformers.models.mistral import modeling_mistral as mistral
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3

log = logging.getLogger(__name__)

MODELS = (
    llama.LlamaForCausalLM, mistral.MistralForCausalLM, mixtral.MixtralForCausalLM, qwen2.Qwen2ForCausalLM,
    qwen3.Qwen3ForCausalLM,
)  # fmt: skip
PARTS = frozenset({
    llama.LlamaModel, llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm,
    mistral.MistralModel, mistral.MistralDecoderLayer, mistral.MistralAttention, mistral.MistralMLP,
    mistral.MistralRMSNorm, mixtral.MixtralModel, mixtral.MixtralDecoderLayer, mixtral.MixtralAttention,
    mixtral.MixtralSparseMoeBlock, mixtral.MixtralRMSNorm, qwen2.Qwen2Model, qwen2.Qwen2DecoderLayer,
    qwen2.Qwen2Attention, qwen2.Qwen2MLP, qwen2.Qwen2RMSNorm, qwen3.Qwen3Model, qwen3.Qwen3DecoderLayer,
    qwen3.Qwen3Attention, qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm, *MODELS,
})  # fmt: skip
"""What is computed here in place of its own method."""
TURNS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions that do not depend on how long a text has become."""
NEAR = {torch.float32: 1e-4, torch.float64: 1e-6}
"""How far logits may be from transformers' own, as a share of the largest; where numbers are shorter, a tenth."""
AHEAD = 1024
"""Positions for which turns are computed at a time."""
PROBE = ((3, 1, 2, 1), (1, 2, 3, 3))


Norm = Callable[[Tensor], Tensor]
Adapt = Callable[[str, Tensor, Tensor], None]
"""Adds to the outputs of layers that read the same what is adapted: given the first one's name, what they read, y."""


class _Layer(NamedTuple):
    before: Norm
    queries: Callable[[Tensor], tuple[Tensor, ...]]
    """Queries and keys, [B, (H + K) · D], and values, [B, K · D]."""
    norms: tuple[Norm, Norm] | None
    out: nn.Module
    between: Norm
    feed: Callable[[Tensor], Tensor]


class Quick:
    """What goes on from a cache of keys and values, a token a row."""

    def __init__(self, model: Any) -> None:
        attention = model.model.layers[0].self_attn
        self._model, self._trunk, self._head = model, model.model, model.lm_head
        self._size, self._scale = attention.head_dim, attention.scaling
        self._heads, self._keys = model.config.num_attention_heads, model.config.num_key_value_heads
        self._layers = [_layer_of(layer) for layer in model.model.layers]
        self._last = _norm_of(model.model.norm)
        self._cos_TD = self._sin_TD = torch.empty(0)

    @property
    def joints(self) -> list[tuple[str, ...]]:
        """The names of layers that read the same and can compute as one."""
        return [names for number in range(len(self._layers)) for names in _joints(self._model, number)]

    def join(self, adapt: Adapt | None = None) -> None:
        """Let layers that read the same compute as one, where weights change no more: they become parts of one."""
        for names in self.joints:
            layers: list[Any] = [self._model.get_submodule(name) for name in names]
            if any(type(layer) is not nn.Linear for layer in layers) or len({one.bias is None for one in layers}) > 1:
                return
        for number, layer in enumerate(self._layers):
            attention, *gated = (_Joined(self._model, names, adapt) for names in _joints(self._model, number))
            joined = layer._replace(queries=attention.split_last)
            if gated:
                joined = joined._replace(feed=_feed(self._trunk.layers[number].mlp, gated[0].split))
            self._layers[number] = joined

    def step(self, token_B: Tensor, cache: Any, start_B1: Tensor | None, limit: int) -> Tensor:
        """Logits [B, V] for the tokens after these. The cache takes their keys and values in.

        Args:
            start_B1: the column of the cache at which each row begins; None where all begin at the first.
            limit: positions of the context, beyond which only rows are that ended.
        """
        place = cache.layers[0].keys.shape[-2]
        x_BE = self._trunk.embed_tokens(token_B)
        turn, bias = self._turn(x_BE, place, start_B1, limit), _bias(x_BE, place + 1, start_B1)
        for layer, kept in zip(self._layers, cache.layers, strict=True):
            x_BE = x_BE + self._attend(layer, layer.before(x_BE), kept, turn, bias)
            x_BE = x_BE + layer.feed(layer.between(x_BE))
        logits_BV: Tensor = self._head(self._last(x_BE))
        return logits_BV

    def _attend(
        self, layer: _Layer, x_BE: Tensor, kept: Any, turn: tuple[Tensor, Tensor], bias_B11T: Tensor | None
    ) -> Tensor:
        rows, heads = len(x_BE), self._heads
        both, values = layer.queries(x_BE)
        both_BHD = both.view(rows, -1, self._size)
        if layer.norms:
            parts = both_BHD[:, :heads], both_BHD[:, heads:]
            both_BHD = torch.cat([norm(part) for norm, part in zip(layer.norms, parts, strict=True)], 1)
        both_BHD = _turned(both_BHD, *turn)
        k_BKTD, v_BKTD = kept.update(both_BHD[:, heads:, None], values.view(rows, -1, 1, self._size))
        # heads that share keys and values stand where the places of a text would
        q_BKGD = both_BHD[:, :heads].reshape(rows, self._keys, -1, self._size)
        y_BKGD = F.scaled_dot_product_attention(q_BKGD, k_BKTD, v_BKTD, attn_mask=bias_B11T, scale=self._scale)
        y_BE: Tensor = layer.out.forward(y_BKGD.flatten(1))
        return y_BE

    def _turn(self, x_BE: Tensor, place: int, start_B1: Tensor | None, limit: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [D] or [B, 1, D]; the sines with the signs of the rotation."""
        most = place if start_B1 is None else min(place, limit - 1)
        if most >= len(self._cos_TD):
            position_1T = torch.arange(most + AHEAD, device=x_BE.device)[None]
            cos_1TD, sin_1TD = self._trunk.rotary_emb(x_BE, position_1T)
            signs_D = torch.ones_like(cos_1TD[0, 0])
            signs_D[: self._size // 2] = -1
            self._cos_TD, self._sin_TD = cos_1TD[0], sin_1TD[0] * signs_D
        if start_B1 is None:
            return self._cos_TD[most], self._sin_TD[most]
        position_B1 = (place - start_B1).clamp_(max=limit - 1)
        return self._cos_TD[position_B1], self._sin_TD[position_B1]


def _norm_of(norm: Any) -> Norm:
    """x / √(mean x² + ε) · w, as RMSNorm's authors have it (arXiv 1910.07467), in fp32."""
    weight_E, shape, epsilon = norm.weight, norm.weight.shape, norm.variance_epsilon
    if weight_E.dtype == torch.float32:
        return lambda x: torch.rms_norm(x, shape, weight_E, epsilon)
    return lambda x: weight_E * torch.rms_norm(x.float(), shape, None, epsilon).to(x.dtype)


def _turned(x_BHD: Tensor, cos_D: Tensor, sin_D: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864)."""
    return torch.addcmul(x_BHD * cos_D, x_BHD.roll(x_BHD.shape[-1] // 2, -1), sin_D)


def _feed(mlp: Any, gated: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], Tensor]:
    def feed(x_BE: Tensor) -> Tensor:
        gate_BF, up_BF = gated(x_BE)
        y_BE: Tensor = mlp.down_proj.forward(mlp.act_fn(gate_BF) * up_BF)
        return y_BE

    return feed


def _experts(mlp: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x_BE: mlp(x_BE[:, None])[:, 0]


def _bias(x_BE: Tensor, length: int, start_B1: Tensor | None) -> Tensor | None:
    """What is added to scores, [B, 1, 1, T]: −∞ in front of where a row begins."""
    if start_B1 is None:
        return None
    column_T = torch.arange(length, device=x_BE.device)
    return x_BE.new_zeros(len(x_BE), length).masked_fill_(column_T < start_B1, -torch.inf)[:, None, None]


def _layer_of(layer: Any) -> _Layer:
    of, mlp = layer.self_attn, layer.mlp
    if isinstance(mlp, mixtral.MixtralSparseMoeBlock):
        feed = _experts(mlp)
    else:
        feed = _feed(mlp, lambda x_BE: (mlp.gate_proj.forward(x_BE), mlp.up_proj.forward(x_BE)))

    def queries(x_BE: Tensor) -> tuple[Tensor, ...]:
        return torch.cat((of.q_proj.forward(x_BE), of.k_proj.forward(x_BE)), -1), of.v_proj.forward(x_BE)

    norms = (_norm_of(of.q_norm), _norm_of(of.k_norm)) if hasattr(of, "q_norm") else None
    between = _norm_of(layer.post_attention_layernorm)
    return _Layer(_norm_of(layer.input_layernorm), queries, norms, of.o_proj, between, feed)


# Layers that read the same as one


def _joints(model: Any, number: int) -> list[tuple[str, ...]]:
    layer, place = model.model.layers[number], f"model.layers.{number}"
    found = [tuple(f"{place}.self_attn.{side}_proj" for side in "qkv")]
    if hasattr(layer.mlp, "gate_proj"):
        found.append((f"{place}.mlp.gate_proj", f"{place}.mlp.up_proj"))
    return found


class _Joined:
    """Linear layers as one, [Σ O, I], whose rows they are from now on: nothing is in memory twice."""

    def __init__(self, model: nn.Module, names: Sequence[str], adapt: Adapt | None) -> None:
        layers: list[Any] = [model.get_submodule(name) for name in names]
        self._first, self._adapt = names[0], adapt
        self._weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._bias = torch.cat(biases) if biases else None
        self._ends = [sum(layer.out_features for layer in layers[:count]) for count in range(1, len(layers))]
        for layer, part in zip(layers, self._weight.tensor_split(self._ends), strict=True):
            layer.weight.data = part

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self._weight, self._bias)
        if self._adapt:
            self._adapt(self._first, x, y)
        return y

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        return self(x).tensor_split(self._ends, -1)

    def split_last(self, x: Tensor) -> tuple[Tensor, ...]:
        """The last layer's outputs behind those of all others."""
        return self(x).tensor_split(self._ends[-1:], -1)


# Which modules can go this way

_equal: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Modules whose answers to the probe have been looked at."""


def quick_of(model: nn.Module) -> Quick | None:
    """The short way for a module in evaluation, or None where transformers' own is to be taken."""
    if type(model) not in MODELS or not _known(model):
        return None
    quick = Quick(model)
    if model not in _equal:
        try:
            _equal[model] = _is_equal(quick, model)
        except torch.OutOfMemoryError:  # another time it may be there
            return None
    return quick if _equal[model] else None


def _known(model: Any) -> bool:
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ())
    whole = kinds == {"full_attention"} if kinds else not getattr(config, "sliding_window", None)
    plain = config._attn_implementation in ("sdpa", "eager") and model.model.rotary_emb.rope_type in TURNS
    computed, called = [model, model.model, model.model.norm], []
    for layer in model.model.layers:
        computed += [layer, *layer.children()]
        computed += [part for name, part in layer.self_attn.named_children() if name.endswith("_norm")]
        called += [part for name, part in layer.named_modules() if name.endswith("_proj")]
    unchanged = all(type(part) in PARTS and "forward" not in vars(part) for part in computed)
    return whole and plain and unchanged and not any(map(_hooked, [*computed, *called]))


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _is_equal(quick: Quick, model: Any) -> bool:
    """Whether both ways go on from a probe alike."""
    device = model.model.embed_tokens.weight.device
    ids_BT = torch.tensor(PROBE, device=device) % model.config.vocab_size
    try:
        with torch.inference_mode():
            caches = DynamicCache(), DynamicCache()
            for cache in caches:
                model(input_ids=ids_BT[:, :-1], past_key_values=cache, use_cache=True)
            own_BV = model(input_ids=ids_BT[:, -1:], past_key_values=caches[0], use_cache=True).logits[:, -1]
            quick_BV = quick.step(ids_BT[:, -1], caches[1], None, model.config.max_position_embeddings)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        log.warning("%s cannot go the short way", type(model).__name__, exc_info=True)
        return False
    far = float((own_BV - quick_BV).abs().max() / own_BV.abs().max())
    near = NEAR.get(own_BV.dtype, 0.1)
    if far > near:
        log.warning("%s answers otherwise the short way (%.2g of the largest logit)", type(model).__name__, far)
    return not far > near  # of NaN it cannot be said
