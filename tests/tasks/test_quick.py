"""The short way of a step: the same logits as transformers' own, and left to transformers where anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf

from tunewright.tasks import _quick
from tunewright.tasks._quick import quick_of
from tunewright.tasks._rows import Batch, Form, form_of

SCALED = {
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "linear": {"factor": 2.0},
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    **{
        name: ("llama", {"rope_parameters": {"rope_type": name, "rope_theta": 1e4, **more}})
        for name, more in SCALED.items()
    },
}
LENGTHS = (3, 20, 7)


def load(base: str, **options: Any) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(base, **options).eval()


def steps(module: Any, form: Form, lengths: tuple[int, ...] = LENGTHS, count: int = 12) -> list[torch.Tensor]:
    """Logits of steps with given tokens, with rows that leave, come twice, and come from elsewhere."""
    generator = np.random.default_rng(1)
    given = [generator.integers(5, 250, length).tolist() for length in (*lengths, 9)]
    batch, other = (Batch(form, 0, 256, open=form.joins) for _ in range(2))
    found = []
    with torch.inference_mode():
        batch.read(given[:-1])
        other.read(given[-1:])
        for step in range(count):
            token_B = torch.from_numpy(generator.integers(5, 250, len(batch.start_B)))
            found.append(batch.step(token_B))
            if step == count // 3:
                batch.keep(torch.tensor([len(lengths) - 1, 0, 0]))
            if step == count // 2 and form.joins:
                batch.append(other)
    return found


def plain(form: Form) -> Form:
    return replace(form, quick=None)


def assert_same(quick: list[torch.Tensor], own: list[torch.Tensor], tolerance: float) -> None:
    for one, other in zip(quick, own, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("lengths", [LENGTHS, (6, 6, 6), (4,)])
def test_its_logits_are_transformers_own(
    name: str, lengths: tuple[int, ...], tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_quick, "AHEAD", 4)
    kind, options = BASES[name]
    module = load(tiny_base(kind, **options))
    if kind != "mixtral":  # its experts do not compute in fp64
        module.double()
    form = form_of(module)
    assert form.quick
    tolerance = 1e-6 if kind != "mixtral" else 1e-4  # RoPE and norms are in fp32
    assert_same(steps(module, form, lengths), steps(module, plain(form), lengths), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_it_is_in_the_numbers_of_use(dtype: torch.dtype, tiny_base: Callable[..., str]) -> None:
    module = load(tiny_base("qwen3"), dtype=dtype)
    form = form_of(module)
    assert form.quick
    quick, own = steps(module, form), steps(module, plain(form))
    largest = max(float(one.abs().max()) for one in own)
    assert_same(quick, own, largest * (1e-5 if dtype == torch.float32 else 0.05))


def test_under_autocast_too(tiny_base: Callable[..., str]) -> None:
    module = load(tiny_base("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        form = form_of(module)
        assert form.quick
        quick, own = steps(module, form), steps(module, plain(form))
    assert_same(quick, own, 0.05 * max(float(one.abs().max()) for one in own))


def test_layers_of_adapters_take_part(tiny_base: Callable[..., str]) -> None:
    config = peft.LoraConfig(r=4, target_modules="all-linear", modules_to_save=["norm"])
    assert not form_of(peft.get_peft_model(load(tiny_base("llama")), config).eval()).quick  # a norm of PEFT's kind
    module = peft.get_peft_model(load(tiny_base("llama")), peft.LoraConfig(r=4, target_modules="all-linear"))
    module = module.double().eval()
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(len(name)))
    form = form_of(module)
    assert form.quick
    quick = steps(module, form)
    assert_same(quick, steps(module, plain(form)), 1e-6)
    with module.disable_adapter():
        assert (steps(module, form)[0] - quick[0]).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "mixtral"])
def test_layers_that_read_the_same_compute_as_one(name: str, tiny_base: Callable[..., str]) -> None:
    kind, options = BASES[name]
    module = load(tiny_base(kind, **options))
    form = form_of(module)
    assert form.quick
    own = steps(module, plain(form))
    calls: list[str] = []
    form.quick.join(lambda first, x, y: calls.append(f"{first} {x.shape[-1]} {y.shape[-1]}"))
    assert_same(steps(module, form), own, 1e-4)
    feeds = [] if kind == "mixtral" else ["model.layers.0.mlp.gate_proj 32 96"]
    assert calls[: 1 + len(feeds)] == ["model.layers.0.self_attn.q_proj 32 64", *feeds]
    assert_same(steps(module, plain(form)), own, 0)
    parts = [getattr(module.model.layers[0].self_attn, f"{side}_proj").weight for side in "qkv"]
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1, "the weights are in memory twice"
    assert sum(part.nbytes for part in parts) == parts[0].untyped_storage().nbytes()


def test_adapted_layers_compute_apart(tiny_base: Callable[..., str]) -> None:
    config = peft.LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False)
    module = peft.get_peft_model(load(tiny_base("llama")), config).double().eval()  # type: ignore[operator]
    form = form_of(module)
    assert form.quick
    form.quick.join()
    assert_same(steps(module, form), steps(module, plain(form)), 1e-6)


def hooked(module: Any) -> None:
    module.model.layers[1].mlp.register_forward_hook(lambda *_: None)


def changed(module: Any) -> None:
    attention = module.model.layers[2].self_attn
    real = attention.forward
    attention.forward = lambda *given, **named: real(*given, **named)


def exchanged(module: Any) -> None:
    module.model.layers[0].mlp = torch.nn.Sequential(module.model.layers[0].mlp)


def watched(module: Any) -> None:
    module.model.layers[0].mlp.gate_proj.register_forward_pre_hook(lambda *_: None)


@pytest.mark.parametrize("change", [hooked, changed, exchanged, watched])
def test_what_is_changed_is_left_to_transformers(change: Callable[[Any], None], tiny_base: Callable[..., str]) -> None:
    module = load(tiny_base("llama"))
    assert quick_of(module)
    change(module)
    assert quick_of(module) is None


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mistral", {}),  # a sliding window
        ("qwen2", {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}),
        ("gemma3", {}),
        ("gpt2", {}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    ],
)
def test_other_kinds_are_left_to_transformers(
    kind: str, options: dict[str, Any], tiny_base: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a probe, which would change what dynamic positions remember."""
    assert quick_of(load(tiny_base(kind, **options))) is None
    assert not caplog.text


@pytest.mark.parametrize("way", [lambda x, cos, sin: x, lambda x, cos, sin: x[:, :1]])
def test_a_module_that_answers_the_probe_otherwise_is_left_to_transformers(
    way: Any, tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_quick, "_turned", way)
    assert quick_of(load(tiny_base("llama"))) is None
    assert "LlamaForCausalLM" in caplog.text


def test_memory_that_is_short_for_the_probe_is_asked_for_again(
    tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(tiny_base("llama"))

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as short:
        short.setattr(_quick, "_turned", full)
        assert quick_of(module) is None
    assert quick_of(module)


def test_rows_that_ended_may_stay_beyond_the_context(tiny_base: Callable[..., str]) -> None:
    module = load(tiny_base("llama")).double()
    form = form_of(module)
    found = []
    for way in (form, plain(form)):
        batch = Batch(way, 0, 12, open=True)
        with torch.inference_mode():
            batch.read([[5, 6, 7], [5, 6, 7, 8, 9, 10, 11]])
            found.append([batch.step(torch.tensor([9, 8])) for _ in range(9)])
    assert_same(*found, 1e-6)
