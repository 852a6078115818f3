"""Sampling in batches: the tokens are those that the numbers choose, with the probabilities of a whole forward pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

from tunewright.errors import BaseModelError
from tunewright.tasks._rows import draw
from tunewright.tasks._sampling import Sampled, sample
from tunewright.tasks.text_generation import TextGeneration, shifted

KINDS = ("llama", "qwen3", "mistral", "mixtral", "gpt2", "gemma3", "bloom", "gpt_neox", "mamba")
"""Rotary, sliding, mixed, absolute and no positions (ALiBi); Mamba has states in place of keys and values."""
LENGTHS = (5, 31, 1, 18, 30, 18)  # the sliding windows are of 12


def load(base: str) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(base).eval()


def prompts(module: Any, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    generator = np.random.default_rng(3)
    return [generator.integers(5, module.config.vocab_size, length).tolist() for length in lengths]


def numbers(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(5).random((rows, columns))


def answers(module: Any, of: Sequence[Sequence[int]], *, copies: int = 3, **options: Any) -> list[list[Sampled]]:
    options = {"max_new_tokens": 14, "temperature": 0.8, "stop": [], "pad": 0, "limit": 256, **options}
    options.setdefault("uniform", numbers(len(of) * copies, options["max_new_tokens"]))
    return sample(module, of, copies=copies, **options)


def tokens(found: list[list[Sampled]]) -> list[list[list[int]]]:
    return [[answer.tokens for answer in of_prompt] for of_prompt in found]


def whole_pass(module: Any, prompt: Sequence[int], answer: Sequence[int], temperature: float) -> np.ndarray:
    """−log softmax(logits / temperature) of the answer's tokens, [len(answer)], from one pass without a cache."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *answer]])
        logits_TV = module(input_ids=ids, use_cache=False).logits[0, -len(answer) - 1 : -1].double() / temperature
    return -logits_TV.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0].numpy()


def assert_exact(module: Any, of: Sequence[Sequence[int]], found: list[list[Sampled]], temperature: float) -> None:
    for prompt, samples in zip(of, found, strict=True):
        for one in samples:
            expected = whole_pass(module, prompt, one.tokens, temperature)
            np.testing.assert_allclose(one.nll, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_transformers_own(kind: str, tiny_base: Callable[..., str]) -> None:
    module = load(tiny_base(kind))
    of = prompts(module)
    free = answers(module, of, copies=1, temperature=0.0)
    stop = sorted({one.tokens[7] for (one,) in free[:3]})
    found = answers(module, of, copies=1, temperature=0.0, stop=stop)
    width = max(LENGTHS)
    padded = {
        "input_ids": torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in of]),
        "attention_mask": torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in of]),
    }
    output = module.generate(**padded, max_new_tokens=14, do_sample=False, eos_token_id=stop, pad_token_id=0)
    for (one,), whole in zip(found, output[:, width:].tolist(), strict=True):
        end = next((n + 1 for n, token in enumerate(whole) if token in stop), len(whole))
        assert one.tokens == whole[:end] and one.ended == (whole[end - 1] in stop)
    assert any(one.ended for (one,) in found)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_a_whole_pass_however_batches_are_cut(
    kind: str, tiny_base: Callable[..., str]
) -> None:
    module = load(tiny_base(kind))
    of = prompts(module)
    stop = list(range(5, module.config.vocab_size, 9))  # rows end all the time
    found = answers(module, of, stop=stop)
    assert_exact(module, of, found, 0.8)
    assert len({len(one.tokens) for samples in found for one in samples}) > 4
    for one in (one for samples in found for one in samples):
        assert [token in stop for token in one.tokens] == [False] * (len(one.tokens) - 1) + [one.ended]
    assert tokens(answers(module, of, stop=stop, batch_tokens=1)) == tokens(found)
    swapped = numbers(len(of) * 3, 14).reshape(len(of), 3, 14)[::-1, ::-1].reshape(-1, 14)
    again = answers(module, of[::-1], stop=stop, uniform=swapped, batch_tokens=300)
    assert [samples[::-1] for samples in tokens(again)[::-1]] == tokens(found)


def test_the_real_model_agrees_with_the_trainers_own_nll(shared: Path) -> None:
    base = shared / "models/stories260k"
    module, tokenizer = load(str(base)), hf.AutoTokenizer.from_pretrained(base)
    with (shared / "data/sst2/validation.jsonl").open() as lines:
        of = [tokenizer(json.loads(line)["text"])["input_ids"] for line, _ in zip(lines, range(12), strict=False)]
    of.append((of[0] * 60)[:500])
    found = answers(module, of, copies=4, temperature=1.0, max_new_tokens=40, limit=512, stop=[2, 13, 426])
    assert max(len(one.tokens) for one in found[-1]) == 12  # which fills the context
    assert {one.ended for samples in found for one in samples} == {True, False}
    task = TextGeneration()
    for prompt, samples in zip(of, found, strict=True):
        rows = [
            shifted([*prompt, *one.tokens], [0.0] * len(prompt) + [1.0] * len(one.tokens), "row") for one in samples
        ]
        batch = task.collate(rows)
        with torch.no_grad():
            nll = task.nll(module, batch).nll_BT[batch.weight != 0].numpy()
        np.testing.assert_allclose(np.concatenate([one.nll for one in samples]), nll, rtol=0, atol=1e-4)


@given(st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 2.5]))
def test_a_draw_inverts_the_cumulative_distribution(seed: int, temperature: float) -> None:
    generator = np.random.default_rng(seed)
    logits_BV = generator.normal(0, 4, (40, 50)).astype(np.float32)
    logits_BV[:, generator.integers(50, size=12)] = -np.inf
    uniform_B = generator.random(40)
    uniform_B[:2] = 0, np.nextafter(1, 0)
    found_B, nll_B = (part.numpy() for part in draw(torch.tensor(logits_BV), temperature, torch.tensor(uniform_B)))
    p_BV = np.exp((logits_BV - logits_BV.max(-1, keepdims=True)).astype(float) / temperature)
    p_BV /= p_BV.sum(-1, keepdims=True)
    assert (p_BV[range(40), found_B] > 0).all()
    np.testing.assert_allclose(nll_B, -np.log(p_BV[range(40), found_B]), rtol=0, atol=1e-5)
    below_B, above_B = uniform_B - 1e-6, uniform_B + 1e-6
    total_BV = p_BV.cumsum(-1)
    assert (total_BV[range(40), found_B] >= below_B).all()
    assert (total_BV[range(40), found_B] - p_BV[range(40), found_B] <= above_B).all()


def test_a_prompt_is_read_once_and_rows_that_ended_cost_nothing(tiny_base: Callable[..., str]) -> None:
    module = load(tiny_base("llama"))
    of = prompts(module)
    fed: list[tuple[int, ...]] = []
    module.model.register_forward_pre_hook(
        lambda _, __, given: fed.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    found = answers(module, of, copies=8, max_new_tokens=60, stop=list(range(5, module.config.vocab_size, 9)))
    assert fed[0] == (len(of), max(LENGTHS)) and all(width == 1 for _, width in fed[1:])
    lengths = [len(one.tokens) for samples in found for one in samples]
    for t, (rows, _) in enumerate(fed[1:], start=1):
        going = sum(length > t for length in lengths)
        assert 0 < going <= rows < going / 0.75 + 1e-9
    assert len(fed) == max(lengths) and fed[-1][0] < len(lengths) / 4


def test_the_context_is_never_overrun(tiny_base: Callable[..., str]) -> None:
    """A row that is full stays in the batch while few are; GPT-2 has no positions past its 256."""
    module = load(tiny_base("gpt2"))
    of = prompts(module, (250, 225, 226, 227, 225, 225))
    found = answers(module, of, copies=1, max_new_tokens=30, limit=256)
    assert [len(one.tokens) for (one,) in found] == [6, 30, 30, 29, 30, 30]
    assert_exact(module, of, found, 0.8)
    virtual = peft.get_peft_model(module, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    found = answers(virtual, of[:2], copies=1, max_new_tokens=30, limit=256)
    assert [len(one.tokens) for (one,) in found] == [2, 27]
    assert_exact(virtual, of[:2], found, 0.8)


@pytest.mark.parametrize("kind", [peft.PromptTuningConfig, peft.PrefixTuningConfig])
def test_the_context_is_used_to_its_end_behind_virtual_tokens(kind: Any, tiny_base: Callable[..., str]) -> None:
    torch.manual_seed(0)
    module = peft.get_peft_model(load(tiny_base("llama")), kind(task_type="CAUSAL_LM", num_virtual_tokens=16)).eval()
    of = prompts(module, (210, 212))
    found = answers(module, of, copies=1, max_new_tokens=40, limit=256)
    assert [len(one.tokens) for (one,) in found] == [30, 28]
    assert_exact(module, of, found, 0.8)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False),
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_adapters_take_part_and_training_goes_on(config: Any, tiny_base: Callable[..., str]) -> None:
    torch.manual_seed(0)
    module = peft.get_peft_model(load(tiny_base("llama")), config)
    module.train()
    module.get_base_model().lm_head.eval()
    flags = [part.training for part in module.modules()]
    of = prompts(module)
    found = answers(module, of)
    assert [part.training for part in module.modules()] == flags and True in flags and False in flags
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    module.eval()
    assert_exact(module, of, found, 0.8)
    with module.disable_adapter():
        base = answers(module, of)
        assert_exact(module, of, base, 0.8)
    assert tokens(base) != tokens(found)


def test_a_cache_that_cannot_drop_rows_keeps_them(
    tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(tiny_base("mistral"))
    of = prompts(module)
    stop = list(range(5, module.config.vocab_size, 9))
    usual = answers(module, of, stop=stop)
    monkeypatch.delattr(hf.cache_utils.Cache, "reorder_cache")
    kept = answers(module, of, stop=stop)
    assert tokens(kept) == tokens(usual)
    assert_exact(module, of, kept, 0.8)


def test_what_cannot_be_sampled_is_refused(tiny_base: Callable[..., str]) -> None:
    config = hf.RwkvConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, context_length=64)
    with pytest.raises(BaseModelError, match="RwkvForCausalLM returns no past_key_values"):
        answers(hf.RwkvForCausalLM(config), [[5, 6]])
    module = load(tiny_base("llama"))
    with torch.no_grad():
        module.model.norm.weight[0] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(BaseModelError, match="not finite"):
            answers(module, [[5, 6]], temperature=temperature)
