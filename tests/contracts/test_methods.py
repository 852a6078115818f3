"""Methods × tasks × kinds of base: what trains, what stays, and that what is saved is what was trained."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from tests.contracts.journeys import Journey, base_logits, close, journey, logits
from tests.tiny import DECODERS, KINDS, VISION
from tunewright.errors import TunewrightError
from tunewright.methods import METHODS
from tunewright.methods._lora_file import lora_scale, read_adapter
from tunewright.tasks import MODULES


def peft(kind: str, **options: Any) -> dict[str, Any]:
    return {"type": "peft", "config": {"peft_type": kind, **options}}


LORA = {"type": "lora", "rank": 4, "alpha": 8}
LLAMA, BERT = ["q_proj", "down_proj"], ["query", "value"]

# Every method as it is, on every kind of base …
PLAIN: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "full": {"type": "full"},
    "freeze": {"type": "freeze"},
    "head": {"type": "head"},
    "adapter": {"type": "adapter", "width": 8},
    "peft": peft("LORA", r=4, target_modules="all-linear"),
}
# … and its variants on a few.
VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {**LORA, "rslora": True},
    "dora": {**LORA, "dora": True},
    "pissa": {**LORA, "init": "pissa"},
    "pissa rslora": {**LORA, "init": "pissa", "rslora": True},
    "lora+": {**LORA, "plus_ratio": 16},
    "lora by name": {**LORA, "targets": r".*\.(v_proj|value)"},
    "freeze 2": {"type": "freeze", "last": 2},
    "pfeiffer": {"type": "adapter", "width": 8, "variant": "pfeiffer"},
    "prefix": peft("PREFIX_TUNING", num_virtual_tokens=3),
    "prompt": peft("PROMPT_TUNING", num_virtual_tokens=3),
    "p-tuning": peft("P_TUNING", num_virtual_tokens=3, encoder_hidden_size=8),
}
PEFT_TYPES: dict[str, dict[str, Any]] = {
    "LOHA": {"r": 4}, "LOKR": {"r": 4}, "IA3": {"feedforward_modules": []}, "OFT": {"r": 0, "oft_block_size": 4},
    "BOFT": {"boft_block_size": 4}, "VERA": {"r": 4}, "HRA": {"r": 4}, "FOURIERFT": {"n_frequency": 10},
    "LORA": {"r": 4, "init_lora_weights": "pissa"},
}  # fmt: skip
PEFT_VARIANTS = {
    **{f"peft {kind}": peft(kind, target_modules=[*LLAMA, *BERT], **options) for kind, options in PEFT_TYPES.items()},
    "peft bias": peft("LORA", r=4, target_modules=[*LLAMA, *BERT], bias="all"),
}
CASES = {**PLAIN, **VARIANTS, **PEFT_VARIANTS, "experts": {**LORA, "experts": True}}

KINDS_OF = {
    "text-generation": DECODERS,
    "text-classification": KINDS,
    "image-classification": [*VISION, "clip", "module"],
}
Pair = tuple[str, str, str]
PAIRS: list[Pair] = [
    *[(task, kind, name) for task, kinds in KINDS_OF.items() for kind in kinds for name in PLAIN],
    *[(task, kind, name) for task, kind in (("text-generation", "llama"), ("text-classification", "bert"))
      for name in (*VARIANTS, *PEFT_VARIANTS)],
    ("text-generation", "gpt2", "pissa"), ("text-generation", "gpt2", "dora"), ("text-generation", "gemma3", "dora"),
    ("text-generation", "mixtral", "experts"), ("text-classification", "mixtral", "experts"),
    ("text-generation", "gpt_neox", "adapter"), ("text-generation", "qwen3_moe", "experts"),
    ("text-generation", "llama", "experts"), ("text-classification", "llama", "prompt"),
    ("text-classification", "llama", "prefix"),
]  # fmt: skip
MOVING = ("running_mean", "running_var", "num_batches_tracked")
EXACT = {"pissa": 1e-5, "pissa rslora": 1e-5}  # saved as what was added less what was taken out: exact but for rounding
REFUSED = {  # (task, kind, method): what the refusal must say
    ("text-generation", "qwen3", "head"): "tied",
    ("text-generation", "gemma3", "head"): "tied",
    ("text-generation", "gpt2", "head"): "tied",
    ("text-generation", "llama", "experts"): "no fused expert",
    ("image-classification", "resnet", "peft"): "No modules were targeted",  # its all-linear has no convolutions
    ("image-classification", "module", "peft"): "No modules were targeted",
    ("text-classification", "llama", "prompt"): "method: lora",
}


@pytest.fixture(scope="session")
def made(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Pair], Journey]:
    @cache
    def make(pair: Pair) -> Journey:
        task, kind, name = pair
        return journey(tiny_base(kind), task, CASES[name], tmp_path_factory.mktemp("journey"))

    return make


def pairs(choose: Callable[[Pair], bool] = lambda _: True) -> Any:
    chosen = [pair for pair in PAIRS if pair not in REFUSED and choose(pair)]
    return pytest.mark.parametrize("pair", chosen, ids=[" ".join(pair) for pair in chosen])


def test_every_task_and_method_is_here() -> None:
    assert set(MODULES) == set(KINDS_OF)
    assert set(METHODS) == {case["type"] for case in CASES.values()} == set(PLAIN)


@pytest.mark.parametrize("pair", REFUSED, ids=[" ".join(pair) for pair in REFUSED])
def test_a_pair_that_cannot_be_is_refused_with_what_to_do(pair: Pair, made: Any) -> None:
    refusal = made(pair).refusal
    assert isinstance(refusal, TunewrightError)
    assert REFUSED[pair] in str(refusal)


@pairs()
def test_only_what_trains_moves(pair: Pair, made: Any) -> None:
    seen = made(pair)
    assert seen.refusal is None
    assert seen.moved, "nothing moved"
    statistics = {f"{name.removesuffix('weight')}{which}" for name in seen.trained for which in MOVING}
    assert seen.moved <= seen.trained | statistics  # of batch norms that train
    assert not torch.equal(seen.end, seen.start)
    assert all(torch.isfinite(torch.tensor(seen.losses)))


# PiSSA takes the principal part out of the base and adds it again; prompts, and a few of PEFT's kinds, begin elsewhere.
BEGINS_ELSEWHERE = ("pissa", "prefix", "prompt", "p-tuning", "peft HRA", "peft FOURIERFT", "peft LORA")


@pairs(lambda pair: not pair[2].startswith(BEGINS_ELSEWHERE))
def test_the_start_is_the_base_exactly(pair: Pair, made: Any, tiny_base: Any) -> None:
    task, kind, _ = pair
    assert torch.equal(made(pair).start, base_logits(tiny_base(kind), task))


@pairs(lambda pair: pair[2].startswith("pissa"))
def test_pissa_starts_as_the_base(pair: Pair, made: Any, tiny_base: Any) -> None:
    assert close(made(pair).start, base_logits(tiny_base(pair[1]), pair[0]))


@pairs()
def test_what_is_saved_loads_as_it_was(pair: Pair, made: Any) -> None:
    seen = made(pair)
    assert close(seen.loaded, seen.end, EXACT.get(pair[2], 0.0))


@pairs(
    lambda pair: (
        METHODS[CASES[pair[2]]["type"]].saved_as != "adapter" and pair[2] not in ("prefix", "prompt", "p-tuning")
    )
)
def test_merged_equals_unmerged(pair: Pair, made: Any) -> None:
    seen = made(pair)
    model = seen.again()
    seen.method.merge(model)
    assert not isinstance(model.module, PeftModel)
    assert close(logits(model), seen.end)


@pairs(
    lambda pair: METHODS[CASES[pair[2]]["type"]].saved_as == "adapter" or pair[2] in ("prefix", "prompt", "p-tuning")
)
def test_what_cannot_be_merged_says_so(pair: Pair, made: Any) -> None:
    seen = made(pair)
    with pytest.raises(TunewrightError, match="cannot be merged"):
        seen.method.merge(seen.again())


@pairs()
def test_off_gives_the_base_or_refuses(pair: Pair, made: Any, tiny_base: Any) -> None:
    seen = made(pair)
    try:
        with seen.method.off(seen.model):
            off = logits(seen.model)
    except TunewrightError:
        assert pair[2] not in ("lora", "rslora", "dora", "lora+"), "LoRA can be switched off"
    else:
        assert torch.equal(off, base_logits(tiny_base(pair[1]), pair[0]))
    assert torch.equal(logits(seen.model), seen.end), "it stayed off"


@pairs(lambda pair: METHODS[CASES[pair[2]]["type"]].saved_as == "peft" and pair[1] != "module")
def test_peft_itself_loads_it_over_the_base(pair: Pair, made: Any, tiny_base: Any) -> None:
    seen = made(pair)
    assert close(by_peft(tiny_base(pair[1]), seen), seen.end, EXACT.get(pair[2], 0.0))


def by_peft(base: str, seen: Journey, vocabulary: int | None = None) -> torch.Tensor:
    """The logits that somebody gets who has PEFT and transformers alone."""
    if seen.model.task.name == "text-generation":
        module = transformers.AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    elif seen.model.task.name == "image-classification":
        module = transformers.AutoModelForImageClassification.from_pretrained(base, num_labels=3, dtype="float32")
    else:
        module = transformers.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype="float32")
    if vocabulary:
        module.resize_token_embeddings(vocabulary)
    model = seen.again()
    model.module = PeftModel.from_pretrained(module, str(seen.folder))
    return logits(model)


@pairs(lambda pair: METHODS[CASES[pair[2]]["type"]].saved_as == "transformers" and pair[1] != "module")
def test_transformers_itself_loads_it(pair: Pair, made: Any) -> None:
    seen = made(pair)
    auto = {
        "text-generation": transformers.AutoModelForCausalLM,
        "text-classification": transformers.AutoModelForSequenceClassification,
        "image-classification": transformers.AutoModelForImageClassification,
    }[pair[0]]
    model = seen.again()
    model.module = auto.from_pretrained(seen.folder, dtype="float32")
    assert torch.equal(logits(model), seen.end)


@pairs(lambda pair: pair[2].startswith("pissa"))
def test_pissa_is_saved_as_a_plain_lora(pair: Pair, made: Any, tiny_base: Any) -> None:
    """Over the original base, and without a decomposition to repeat: W + scale · B · A, with twice the rank."""
    seen = made(pair)
    state, config = read_adapter(seen.folder)
    assert config["init_lora_weights"] is True
    assert config["r"] == 2 * seen.method.rank
    name = next(name for name in state if name.endswith("lora_A.weight"))
    layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    merged = seen.again()
    seen.method.merge(merged)
    before = load_file(Path(tiny_base(pair[1])) / "model.safetensors")
    update = lora_scale(config, layer) * state[name.replace("lora_A", "lora_B")] @ state[name]
    after = merged.module.get_submodule(layer).weight.detach()
    original = next(
        t for key, t in before.items() if key.endswith(f"{layer}.weight") or f"{layer}.weight".endswith(key)
    )
    update = update.T if pair[1] == "gpt2" else update
    torch.testing.assert_close(after, original + update, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task, kind", [("text-generation", "llama"), ("text-classification", "bert")])
def test_variants_differ(task: str, kind: str, made: Any) -> None:
    """An option that has no effect would pass every other test."""
    names = [
        "lora",
        "rslora",
        "dora",
        "pissa",
        "lora+",
        "lora by name",
        "adapter",
        "pfeiffer",
        "full",
        "freeze",
        "freeze 2",
    ]
    ends = {name: made((task, kind, name)).end for name in names}
    same = [(a, b) for a in names for b in names if a < b and close(ends[a], ends[b], 1e-3)]
    assert not same
