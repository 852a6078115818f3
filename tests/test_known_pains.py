"""The known pains of fine-tuning, numbered as in the list "Fifteen things users suffer from": each is a test here.

Every test goes the way of a user: train a tiny random model of a real class, load what was saved, ask it, export it.
What a pain is about is written once, as a check; the test makes it pass, and `…_would_be_caught` takes the cure out
and sees the same check fail.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib import metadata
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers as hf
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file

import tunewright as tw
from tests.fixtures import FAMILIES, tiny_tokenizer
from tests.runs import recipe, stop_at
from tests.tiny import completions, labelled, words
from tunewright.artifacts.export import read_verification
from tunewright.artifacts.targets import base as targets
from tunewright.data import render, rendered
from tunewright.data.batches import Example, micro_batches
from tunewright.data.encoding import Encoder
from tunewright.data.render import Answer, Renderer
from tunewright.data.rendered import Fitted, Limit, Rendered
from tunewright.engine import job, loop
from tunewright.errors import (
    BaseModelError,
    DataError,
    MethodError,
    OutputError,
    RecipeError,
    TunewrightError,
    VerificationError,
)
from tunewright.methods import LoRA, _peft
from tunewright.prepare import Prepared, prepare
from tunewright.recipe import make_recipe
from tunewright.tasks import _rows, _sampling, text_classification, text_generation
from tunewright.tasks.base import Batch, Likelihood, Model
from tunewright.tasks.text_generation import TextGeneration

ROOT = Path(__file__).parents[1]

# The bench: tiny models, runs, and what can be seen of them

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
HEADS = {**SIZES, "head_dim": 8}
WINDOW = 12
CONFIGS: dict[str, Callable[..., Any]] = {
    "llama": lambda **o: hf.LlamaConfig(**SIZES, **o),
    "qwen3": lambda **o: hf.Qwen3Config(**HEADS, **o),
    "mistral": lambda **o: hf.MistralConfig(**HEADS, sliding_window=WINDOW, **o),
    "gemma3": lambda **o: hf.Gemma3TextConfig(
        **HEADS, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"], **o
    ),
    "gpt2": lambda **o: hf.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=0.15,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **o,
    ),
    "gemma2 with soft-capped logits": lambda **o: hf.Gemma2Config(
        **HEADS, sliding_window=WINDOW, final_logit_softcapping=3.0, **o
    ),
    "cohere with scaled logits": lambda **o: hf.CohereConfig(**SIZES, logit_scale=0.25, **o),
    "granite with scaled logits": lambda **o: hf.GraniteConfig(**SIZES, logits_scaling=4.0, **o),
}  # fmt: skip
MODELS = {"chatml": "gpt2", "qwen3": "qwen3", "llama3": "llama", "gemma": "gemma3", "mistral": "mistral"}
CHATML_END = "<|im_end|>"
END = {"chatml": CHATML_END, "qwen3": CHATML_END, "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}

Teach = Callable[..., tuple[tw.Run, list[Rendered]]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`base("qwen3", tie_word_embeddings=True)`: the folder of a tiny base with the tokenizer of a family."""
    root = tmp_path_factory.mktemp("bases")

    @cache
    def make(family: str = "llama3", kind: str = "", pad_is_eos: bool = False, template: bool = True, **o: Any) -> str:
        tokenizer = tiny_tokenizer(family, pad_is_eos=pad_is_eos, template=template)
        special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        config = CONFIGS[kind or MODELS[family]](vocab_size=len(tokenizer), **special, **o)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            module = hf.AutoModelForCausalLM.from_config(config)
        folder = root / str(len(list(root.iterdir())))
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture
def teach(tmp_path: Path) -> Teach:
    """`run, seen = teach(base, rows)`: train as a user does; `seen` are the sequences that the model was fed."""

    def train(base: str, rows: Any, **recipe: Any) -> tuple[tw.Run, list[Rendered]]:
        recipe = {"method": {"type": "lora", "rank": 2}, "evaluation": {"generate": 0, "before": False}, **recipe}
        recipe["data"] = {"train": rows, "validation": 0, **recipe.get("data", {})}
        recipe["training"] = {"epochs": 1, "checkpoint_every": 1000, **recipe.get("training", {})}
        with watched_training() as seen:
            run = tw.train(base=base, output=str(tmp_path / f"run{len(list(tmp_path.iterdir()))}"), **recipe)
        return run, sorted(seen, key=lambda one: (one.source, _context(one)))

    return train


@contextmanager
def watched_training() -> Iterator[list[Rendered]]:
    """Every sequence of tokens that a language model is trained on, with the weights of its tokens."""
    seen: list[Rendered] = []
    original = TextGeneration.nll

    def nll(self: TextGeneration, module: Any, batch: Batch, **options: Any) -> Likelihood:
        if torch.is_grad_enabled():
            seen.extend(rows_of(batch))
        return original(self, module, batch, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextGeneration, "nll", nll)
        yield seen


def rows_of(batch: Batch) -> Iterator[Rendered]:
    for i, source in enumerate(batch.sources):
        length = int(batch.mask[i].sum())
        first = batch.inputs["input_ids"][i, :1].tolist()
        yield Rendered(first + batch.target[i, :length].tolist(), [0.0, *batch.weight[i, :length].tolist()], source)


def answers(seen: Sequence[Rendered]) -> list[tuple[list[int], list[int]]]:
    """Each trained stretch of the sequences: the tokens in front of it, and its own."""
    found = []
    for one in seen:
        start = 0
        for trained, stretch in groupby(one.weights, bool):
            stop = start + len(list(stretch))
            if trained:
                found.append((one.tokens[:start], one.tokens[start:stop]))
            start = stop
    return found


def _context(one: Rendered) -> int:
    """How many tokens there are in front of the first trained one."""
    return next((i for i, weight in enumerate(one.weights) if weight), len(one.weights))


def served(where: Any, prompt: Any) -> list[int]:
    """The tokens that the model is fed when it is asked."""
    fed: list[list[int]] = []

    def generate(self: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        fed.append(input_ids[0].tolist())
        return input_ids

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hf.GenerationMixin, "generate", generate)
        tw.chat(where, prompt)
    (tokens,) = fed
    return tokens


def stock_tokenizer(run: tw.Run) -> Any:
    """The tokenizer that the run saved, as any other program loads it."""
    return hf.AutoTokenizer.from_pretrained(run.folder / "model")


def logits(module: Any, tokenizer: Any) -> torch.Tensor:
    """The logits of some texts, each alone, one after the other, [T, V]."""
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in TEXTS]
    with torch.no_grad():
        return torch.cat([module(input_ids=one).logits[0] for one in ids])


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def ready(base: str, rows: Any, **recipe: Any) -> Prepared:
    """What the loop is given for this recipe."""
    data = {"train": rows, "validation": 0}
    return prepare(make_recipe({"base": base, "data": data, **recipe}), Path("/nonexistent"))


caught = pytest.raises((AssertionError, pytest.fail.Exception))
"""A check that passes with the cure fails without it; "did not raise" is a failure, too."""

TALK = [
    said("user", "What is the capital of France?"),
    said("assistant", "Paris."),
    said("user", "How many apples are left?"),
    said("assistant", "8 are left."),
]
TEXTS = ["Once upon a time there was a little fox", "How many apples are left? 12 - 4"]
COMPLETION = {"prompt": "Once upon a ti", "completion": "me there was a fox."}  # a token would straddle the seam
CHAT, PROMPT = [{"messages": TALK}], [COMPLETION]


# 1

LORAS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "rsLoRA": {"rslora": True},
    "DoRA": {"dora": True},
    "PiSSA": {"init": "pissa"},
}
ON_THE_HEAD = {"targets": ["q_proj", "lm_head"]}
TOLD = [{"prompt": f"{row['prompt']}<joke>", "completion": f"{row['completion']} <joke>"} for row in completions(8)]
HARD = {"learning_rate": 0.02, "max_steps": 5, "batch": 4}


def check_merged_is_the_adapter(teach: Teach, base: str, method: dict[str, Any], merged: Path) -> None:
    rows = completions(8)
    run, _ = teach(base, rows, method={"type": "lora", "rank": 4, **method}, training=HARD, data={"test": rows})
    tw.export(run.folder, "merged", merged)
    whole, tuned = tw.load(merged), run.model
    stock = hf.AutoModelForCausalLM.from_pretrained(merged), hf.AutoTokenizer.from_pretrained(merged)
    torch.testing.assert_close(logits(*stock), logits(tuned.module, tuned.processor), rtol=0, atol=1e-5)
    for text in TEXTS:
        assert tw.chat(whole, text, max_new_tokens=12) == tw.chat(tuned, text, max_new_tokens=12)
    before = tw.load(base)
    assert (logits(before.module, before.processor) - logits(*stock)).abs().max() > 0.1, "too little was learned"
    trained = run.info["evaluation"]["test"]["after"]["metrics"]  # of the model in memory, before it was saved
    again = tw.evaluate(whole, rows, evaluation={"generate": 0})["scores"]["metrics"]
    for name, value in values_of(trained).items():
        assert values_of(again)[name] == pytest.approx(value, rel=1e-5), name


def values_of(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(metric["value"]) for name, metric in metrics.items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "head of its own"])
@pytest.mark.parametrize("method", LORAS)
def test_pain_1_the_merged_model_is_the_adapter(
    method: str, tied: bool, base: Any, teach: Teach, tmp_path: Path
) -> None:
    """My adapter answers well, and the model that I merged from it answers differently."""
    check_merged_is_the_adapter(teach, base(tie_word_embeddings=tied), LORAS[method], tmp_path / "merged")


def test_pain_1_an_adapter_on_the_head(base: Any, teach: Teach, tmp_path: Path) -> None:
    """I adapted the output layer too, and the merged model is another one."""
    check_merged_is_the_adapter(teach, base(tie_word_embeddings=False), ON_THE_HEAD, tmp_path / "merged")


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_pain_1_an_adapter_on_tied_weights(target: str, base: Any, teach: Teach) -> None:
    """I adapted the output layer, merging changed the input embeddings with it, and nobody told me."""
    with pytest.raises(MethodError, match="tied"):
        teach(base(tie_word_embeddings=True), completions(8), method={"type": "lora", "targets": ["q_proj", target]})


@pytest.mark.parametrize("tied", [True, False], ids=["tied head", "head of its own"])
def test_pain_1_an_adapter_with_new_tokens(tied: bool, base: Any, teach: Teach, tmp_path: Path) -> None:
    """I added tokens of my own, and in the merged model they mean nothing."""
    new = {"special_tokens": ["<joke>"]}
    run, _ = teach(base(tie_word_embeddings=tied), TOLD, training=HARD, data=new)
    merged = tw.load(tw.export(run.folder, "merged", tmp_path / "merged"))
    tuned, start = run.model, tw.load(base(tie_word_embeddings=tied))
    ids = tuned.processor("Tell me a <joke> Once", return_tensors="pt")["input_ids"]
    assert ids.max() == len(start.processor) == len(merged.processor) - 1
    with torch.no_grad():
        torch.testing.assert_close(merged.module(ids).logits, tuned.module(ids).logits, rtol=0, atol=1e-5)
    (table, begun) = (m.module.get_input_embeddings().weight.detach() for m in (merged, start))
    torch.testing.assert_close(table[:-1], begun)
    assert (table[-1] - begun.mean(0)).abs().max() > 1e-3, "its row has not been trained"


@pytest.mark.parametrize("method", LORAS)
def test_pain_1_would_be_caught(method: str, base: Any, teach: Teach, tmp_path: Path, monkeypatch: Any) -> None:
    if method == "PiSSA":  # saved raw: what was trained belongs to a base that PiSSA has changed
        save = LoRA.save
        monkeypatch.setattr(LoRA, "save", lambda self, model, folder: save(self, _raw(model), folder))
    elif method == "rsLoRA":  # saved with a scale that is not its own
        config = LoRA.peft_config
        monkeypatch.setattr(LoRA, "peft_config", lambda self, model: _misread(config(self, model)))
    else:
        monkeypatch.setattr(targets, "merge_adapter", lambda model: setattr(model, "module", model.module.unload()))
    with pytest.raises((AssertionError, VerificationError)):
        check_merged_is_the_adapter(teach, base(), LORAS[method], tmp_path / "merged")


EXPORTS = [("peft", "fp32"), ("merged", "bf16"), ("quantized", "int8"), ("gguf", "f16"), ("gguf", "q8_0")]


def check_every_export_is_the_adapter(teach: Teach, base: str, folder: Path) -> None:
    """Each is run by the libraries of its users and compared on the run's own rows; here a mismatch is an error."""
    rows = completions(8)
    run, _ = teach(base, rows, method={"type": "lora", "rank": 4}, training=HARD, data={"test": rows})
    for target, precision in EXPORTS:
        tw.export(run.folder, target, folder / precision / target, precision=precision)


def test_pain_1_every_export_is_the_adapter(base: Any, teach: Teach, tmp_path: Path) -> None:
    """I exported my model, and what the other program answers is not what I trained."""
    check_every_export_is_the_adapter(teach, base(tie_word_embeddings=False), tmp_path)


@pytest.mark.parametrize(("target", "precision"), EXPORTS[1:])
def test_pain_1_would_be_caught_in_every_export(
    target: str, precision: str, base: Any, teach: Teach, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "EXPORTS", [(target, precision)])
    merge = targets.merge_adapter
    monkeypatch.setattr(targets, "merge_adapter", lambda model: (_halve(model), merge(model)))
    with pytest.raises(VerificationError, match="An output differs"):
        check_every_export_is_the_adapter(teach, base(tie_word_embeddings=False), tmp_path)


def _halve(model: Model) -> None:
    """The adapter's scale, as a program that reads another alpha has it."""
    for layer in model.module.modules():
        if isinstance(getattr(layer, "scaling", None), dict):
            layer.scaling = {name: scale / 2 for name, scale in layer.scaling.items()}


def _raw(model: Model) -> Model:
    model.module.peft_config["default"].init_lora_weights = True
    return replace(model, start_adapter={})


def _misread(config: Any) -> Any:
    """A configuration that is saved as plain LoRA."""
    document = config.to_dict
    config.to_dict = lambda: {**document(), "use_rslora": False}
    return config


# 2 and 4

THOUGHT = [
    *TALK[:1],
    said("assistant", "Paris.", reasoning_content="easy"),
    *TALK[2:3],
    said("assistant", "<think>\n12 - 4\n</think>\n\n8 are left."),
    said("user", "Thank you!"),
    said("assistant", "You are welcome.", reasoning_content="good"),
]


def check_every_turn_is_served_as_trained(teach: Teach, base: str, talk: list[dict[str, Any]]) -> None:
    """By Tunewright, and by any program that loads the tokenizer which the run saved."""
    run, seen = teach(base, [{"messages": talk}])
    turns = [i for i, message in enumerate(talk) if message["role"] == "assistant"]
    trained = answers(seen)
    assert len(trained) == len(turns)
    for (prompt, _), turn in zip(trained, turns, strict=True):
        stock = stock_tokenizer(run).apply_chat_template(talk[:turn], add_generation_prompt=True, return_dict=False)
        assert served(run.model, talk[:turn]) == stock == prompt


def check_a_completion_is_served_as_trained(teach: Teach, base: str) -> None:
    run, seen = teach(base, PROMPT)
    ((prompt, _),) = answers(seen)
    assert served(run.model, COMPLETION["prompt"]) == stock_tokenizer(run)(COMPLETION["prompt"])["input_ids"] == prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_pain_2_a_conversation_is_served_as_it_was_trained(family: str, base: Any, teach: Teach) -> None:
    """Trained well, answers badly: at serving time the model is fed another prompt than it was trained on."""
    check_every_turn_is_served_as_trained(teach, base(family), TALK)


@pytest.mark.parametrize("family", FAMILIES)
def test_pain_2_a_base_without_a_template_is_served_as_it_was_trained(family: str, base: Any, teach: Teach) -> None:
    """My base had no chat template; whoever serves the model has to guess the one it was trained with."""
    check_every_turn_is_served_as_trained(teach, base(family, template=False), TALK)


def check_an_export_is_served_as_trained(teach: Teach, base: str, folder: Path) -> None:
    run, seen = teach(base, CHAT, data={"test": CHAT})
    exported = hf.AutoTokenizer.from_pretrained(tw.export(run.folder, "merged", folder))
    last = max(answers(seen), key=lambda answer: len(answer[0]))[0]
    assert exported.apply_chat_template(TALK[:3], add_generation_prompt=True, return_dict=False) == last


@pytest.mark.parametrize("template", [True, False], ids=["its own template", "the plain template"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pain_2_an_export_is_served_as_it_was_trained(
    family: str, template: bool, base: Any, teach: Teach, tmp_path: Path
) -> None:
    """The exported model answers nonsense elsewhere: its template is another one, or none."""
    check_an_export_is_served_as_trained(teach, base(family, template=template), tmp_path / "merged")


@pytest.mark.parametrize(("family", "kind"), [("llama3", "llama"), ("qwen3", "qwen3"), ("mistral", "llama")])
def test_pain_2_a_gguf_file_is_served_as_it_was_trained(
    family: str, kind: str, base: Any, teach: Teach, tmp_path: Path
) -> None:
    run, _ = teach(base(family, kind), CHAT, data={"test": CHAT})
    folder = tw.export(run.folder, "gguf", tmp_path / "gguf")
    assert read_verification(folder)["figures"]["same_prompt"] == 1.0


@pytest.mark.parametrize("loss", ["another template", "no bos"])
def test_pain_2_would_be_caught_in_an_export(
    loss: str, base: Any, teach: Teach, tmp_path: Path, monkeypatch: Any
) -> None:
    save = targets.save

    def damaged(model: Model, method: Any, folder: Path) -> None:
        lost, put = {"no bos": ("bos_token", "''"), "another template": ("<|start_header_id|>", "")}[loss]
        model.processor.chat_template = model.processor.chat_template.replace(lost, put)
        save(model, method, folder)

    monkeypatch.setattr(targets, "save", damaged)
    with pytest.raises(VerificationError, match="Its tokenizer makes the trained tokens of 0% of the prompts only"):
        check_an_export_is_served_as_trained(teach, base("llama3"), tmp_path / "merged")


@pytest.mark.parametrize("template", [True, False], ids=["instruct", "base"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pain_2_a_completion_is_served_as_it_was_trained(family: str, template: bool, base: Any, teach: Teach) -> None:
    """I trained on prompts and completions; when served, a template is put around them, or they end in other tokens."""
    check_a_completion_is_served_as_trained(teach, base(family, template=template))


def test_pain_2_would_be_caught_without_the_generation_prompt(base: Any, teach: Teach, monkeypatch: Any) -> None:
    text = render.Chat.text
    monkeypatch.setattr(render.Chat, "text", lambda *a, **_: text(*a, add_generation_prompt=False))
    with caught:
        check_every_turn_is_served_as_trained(teach, base("llama3"), TALK)


def test_pain_2_would_be_caught_if_the_template_were_not_saved(base: Any, teach: Teach, monkeypatch: Any) -> None:
    ensure = text_generation.ensure_chat_template

    def forget(tokenizer: Any, choice: str | None) -> str | None:
        own, notice = tokenizer.chat_template, ensure(tokenizer, choice)
        save = tokenizer.save_pretrained
        tokenizer.save_pretrained = lambda folder: (setattr(tokenizer, "chat_template", own), save(folder))
        return notice

    monkeypatch.setattr(text_generation, "ensure_chat_template", forget)
    with pytest.raises((ValueError, AssertionError), match=r"chat.template"):
        check_every_turn_is_served_as_trained(teach, base("mistral", template=False), TALK)


@pytest.mark.parametrize("family", ["llama3", "mistral"])
def test_pain_2_would_be_caught_if_a_token_straddled_the_seam(
    family: str, base: Any, teach: Teach, monkeypatch: Any
) -> None:
    def as_one_text(self: Renderer, turn: Any, record: Any, prompt: list[int], whole: list[int]) -> Answer:
        start = len(self._lead(prompt))
        tokens = self._lead(whole)
        return Answer(tokens[:start], tokens[start:], len(tokens) - start, False, 1.0)

    monkeypatch.setattr(Renderer, "_tokenized", as_one_text)
    with caught:
        check_a_completion_is_served_as_trained(teach, base(family))


# 3


def check_just_the_answers_are_trained(teach: Teach, family: str, base: str) -> None:
    run, seen = teach(base, CHAT)
    thought = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    decode = stock_tokenizer(run).decode
    found = [decode(answer).strip() for _, answer in answers(seen)]
    assert found == [f"{thought}Paris.{END[family]}", f"{thought}8 are left.{END[family]}"]
    info = run.info
    assert info["data"]["train"]["trained_tokens"] == sum(len(answer) for _, answer in answers(seen)) > 0
    shown = [text.strip() for row in info["preview"] for text, weight in row["pieces"] if weight]
    assert shown == found


def check_a_row_without_a_trained_token_is_an_error(teach: Teach, base: str) -> None:
    idle = [*TALK[:3], said("assistant", "8 are left.", weight=0)]
    for row, data in ((idle[2:], {}), (idle, {"loss_on": "last"})):
        with pytest.raises(DataError, match=r"rows\[1\]: .*(nothing to learn|every weight is 0)"):
            teach(base, [*CHAT, {"messages": row}], data=data)


@pytest.mark.parametrize("family", FAMILIES)
def test_pain_3_just_the_answers_are_trained(family: str, base: Any, teach: Teach) -> None:
    """My template has no generation blocks, so the mask of the answers was empty: the run trained nothing, or all."""
    check_just_the_answers_are_trained(teach, family, base(family))


def test_pain_3_a_row_without_a_trained_token_is_an_error(base: Any, teach: Teach) -> None:
    """Some of my rows had nothing to learn from, and were trained on without a word."""
    check_a_row_without_a_trained_token_is_an_error(teach, base())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weight", [0.0, 1.0], ids=["nothing", "everything"])
def test_pain_3_would_be_caught(weight: float, family: str, base: Any, teach: Teach, monkeypatch: Any) -> None:
    stock = tiny_tokenizer(family).apply_chat_template(TALK, return_assistant_tokens_mask=True, return_dict=True)
    assert not any(stock["assistant_masks"]), "this template shows the pain"
    weigh = Renderer._sequence

    def masked(self: Renderer, group: list[Answer], source: str) -> Rendered:
        one = weigh(self, group, source)
        weights = [weight] * len(one.tokens)
        weights[-1] = 1.0  # else the loss is 0 / 0, which nobody overlooks
        return replace(one, weights=[0.0, *weights[1:]])

    monkeypatch.setattr(Renderer, "_sequence", masked)
    with caught:
        check_just_the_answers_are_trained(teach, family, base(family))


def test_pain_3_would_be_caught_if_a_row_without_a_trained_token_passed(
    base: Any, teach: Teach, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Renderer, "_turns", lambda self, record, faults: self._turns_of(record))
    with caught:
        check_a_row_without_a_trained_token_is_an_error(teach, base())


# 4


def check_thoughts_are_trained_once_and_then_forgotten(teach: Teach, base: str) -> None:
    run, seen = teach(base, [{"messages": THOUGHT}])
    decode = stock_tokenizer(run).decode
    thoughts = ["easy", "12 - 4", "good"]
    said_at = [(decode(prompt), decode(answer)) for prompt, answer in answers(seen)]
    assert len(said_at) == len(thoughts)
    for turn, (prompt, answer) in enumerate(said_at):
        assert answer.startswith(f"<think>\n{thoughts[turn]}\n</think>\n\n")
        assert not any(thought in prompt for thought in [*thoughts, "<think>"])


def test_pain_4_thoughts_are_trained_once_and_then_forgotten(base: Any, teach: Teach) -> None:
    """My reasoning model learned to answer after its old thoughts, which it never sees again, or not to think."""
    check_thoughts_are_trained_once_and_then_forgotten(teach, base("qwen3"))


def test_pain_4_each_turn_is_trained_as_it_will_be_served(base: Any, teach: Teach) -> None:
    """The template drops the thoughts of earlier turns, so the later turns of my conversations are never served so."""
    check_every_turn_is_served_as_trained(teach, base("qwen3"), THOUGHT)


def test_pain_4_would_be_caught_if_a_conversation_were_rendered_once(base: Any, teach: Teach, monkeypatch: Any) -> None:
    monkeypatch.setattr(render, "_continuing", lambda answers: [answers])
    with caught:
        check_thoughts_are_trained_once_and_then_forgotten(teach, base("qwen3"))


def test_pain_4_would_be_caught_if_old_thoughts_stayed(base: Any, teach: Teach, monkeypatch: Any) -> None:
    def never_changed(answers: list[Answer]) -> list[list[Answer]]:
        """Each prompt is the whole history as it was trained, and the new question."""
        kept: list[Answer] = []
        for one in answers:
            before = kept[-1] if kept else None
            grown = [*before.history, *one.prompt[len(before.prompt) :]] if before else one.prompt
            kept.append(replace(one, prompt=grown))
        return [[one] for one in kept]

    monkeypatch.setattr(render, "_continuing", never_changed)
    with caught:
        check_thoughts_are_trained_once_and_then_forgotten(teach, base("qwen3"))
    with caught:
        check_every_turn_is_served_as_trained(teach, base("qwen3"), THOUGHT)


# 5

PAIRS = {"Hello": "Good morning.", "Thank you": "You are welcome!", "Apples?": "She ate 4.", "Paris?": "In France."}
TO_LEARN: dict[str, list[dict[str, Any]]] = {
    "chat": [{"messages": [said("user", asked), said("assistant", told)]} for asked, told in PAIRS.items()],
    "prompt_completion": [{"prompt": f"{asked} ->", "completion": f" {told}"} for asked, told in PAIRS.items()],
}
OVERFIT = {"epochs": 40, "batch": 4, "learning_rate": 0.02}


def check_the_end_has_weight(run: tw.Run, seen: list[Rendered]) -> None:
    tokenizer = stock_tokenizer(run)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    stops = Renderer(tokenizer).stop_ids()
    for one in seen:
        assert one.tokens[max(i for i, weight in enumerate(one.weights) if weight)] in stops
        assert {weight for weight in one.weights if weight} == {1.0}


def check_it_stops_by_itself(run: tw.Run, kind: str) -> None:
    for asked, told in PAIRS.items():
        answer = tw.chat(run.model, asked if kind == "chat" else f"{asked} ->", max_new_tokens=40)
        assert answer.removeprefix("<think>\n\n</think>\n\n").strip() == told


@pytest.mark.parametrize("kind", TO_LEARN)
@pytest.mark.parametrize("family", FAMILIES)
def test_pain_5_the_model_learns_to_stop(family: str, kind: str, base: Any, teach: Teach) -> None:
    """My model never stops: its padding token is its EOS, and the mask of the padding took the EOS with it."""
    run, seen = teach(base(family, pad_is_eos=True), TO_LEARN[kind], method="full", training=OVERFIT)
    check_the_end_has_weight(run, seen[:4])
    check_it_stops_by_itself(run, kind)


@pytest.mark.parametrize(("family", "kind"), [("qwen3", "chat"), ("llama3", "prompt_completion")])
def test_pain_5_would_be_caught(family: str, kind: str, base: Any, teach: Teach, monkeypatch: Any) -> None:
    collate, pad = TextGeneration.collate, tiny_tokenizer(family, pad_is_eos=True).pad_token_id

    def masked(self: TextGeneration, examples: Sequence[Example]) -> Batch:
        batch = collate(self, examples)
        return replace(batch, weight=batch.weight.masked_fill(batch.target == pad, 0.0))

    monkeypatch.setattr(TextGeneration, "collate", masked)
    run, seen = teach(base(family, pad_is_eos=True), TO_LEARN[kind], method="full", training=OVERFIT)
    with caught:
        check_the_end_has_weight(run, seen[:4])
    with caught:
        check_it_stops_by_itself(run, kind)


@pytest.fixture
def endless(base: Any, tmp_path: Path) -> Callable[[str], str]:
    """A base that has never seen its end token: the token's row is parallel to those of others it has not seen."""

    def make(family: str) -> str:
        folder = base(family)
        module, tokenizer = hf.AutoModelForCausalLM.from_pretrained(folder), hf.AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            rows = module.get_output_embeddings().weight
            unseen = -rows.sum(0)
            rows[-9:] = 1.01 * unseen  # whatever makes the end likely makes these likelier
            rows[[tokenizer.convert_tokens_to_ids(END[family]), tokenizer.eos_token_id]] = unseen
        module.save_pretrained(tmp_path / "endless")
        tokenizer.save_pretrained(tmp_path / "endless")
        return str(tmp_path / "endless")

    return make


def answers_ended(run: tw.Run, kind: str) -> float:
    found = tw.evaluate(run.folder, TO_LEARN[kind], evaluation={"max_new_tokens": 40})["scores"]
    return float(found["metrics"]["answers_ended"]["value"])


@pytest.mark.parametrize(("family", "kind"), [("llama3", "chat"), ("qwen3", "chat"), ("mistral", "prompt_completion")])
def test_pain_5_lora_teaches_an_end_that_the_base_never_learned(
    family: str, kind: str, endless: Any, teach: Teach
) -> None:
    run, _ = teach(endless(family), TO_LEARN[kind], method={"type": "lora", "rank": 8}, training=OVERFIT)
    assert any("never learned to end" in notice and "trains too" in notice for notice in run.info["notices"])
    assert answers_ended(run, kind) == 1.0


def test_pain_5_an_end_that_cannot_be_learned_is_said(endless: Any, teach: Teach, monkeypatch: Any) -> None:
    base, quick = endless("llama3"), {"max_steps": 1}
    run, _ = teach(base, TO_LEARN["chat"], method="adapter", training=quick)
    assert any("answers may not end" in notice for notice in run.info["notices"])
    run, _ = teach(base, TO_LEARN["chat"], method="full", training=quick)
    assert not any("never learned" in notice for notice in run.info["notices"]), "all rows train anyway"
    monkeypatch.setattr(TextGeneration, "unlearned_ends", lambda *_: [])
    run, _ = teach(base, TO_LEARN["chat"], method={"type": "lora", "rank": 8}, training=OVERFIT)
    assert answers_ended(run, "chat") == 0.0


# 6


def check_bos_comes_once(teach: Teach, family: str, base: str) -> None:
    """In what is trained and in what is served, of every kind of row; also where the text has it already."""
    bos = FAMILIES[family].bos
    texts, prompts = [{"text": "Once upon a time."}], [*PROMPT, {"prompt": "", "completion": "Hello"}]
    if bos:
        texts.append({"text": f"{bos}Once"})
        prompts.append({"prompt": f"{bos}Once", "completion": " upon"})
    for rows in (CHAT, prompts, texts):
        run, seen = teach(base, rows)
        id_of_bos = stock_tokenizer(run).bos_token_id
        asked = [row["messages"][:3] if "messages" in row else row.get("prompt", "Once") for row in rows]
        for tokens in [*(one.tokens for one in seen), *(served(run.model, one) for one in asked)]:
            assert tokens.count(id_of_bos) == (bos is not None)
            assert bos is None or tokens[0] == id_of_bos


@pytest.mark.parametrize("template", [True, False], ids=["its own template", "the plain template"])
@pytest.mark.parametrize("family", FAMILIES)
def test_pain_6_bos_comes_once(family: str, template: bool, base: Any, teach: Teach) -> None:
    """My prompts begin with two BOS tokens, one of the template and one of the tokenizer, and the model is worse."""
    check_bos_comes_once(teach, family, base(family, template=template))


@pytest.mark.parametrize("family", [family for family in FAMILIES if FAMILIES[family].bos])
def test_pain_6_would_be_caught(family: str, base: Any, teach: Teach, monkeypatch: Any) -> None:
    def with_special_tokens(self: Encoder, texts: list[str]) -> list[list[int]]:
        return [self.tokenizer(text)["input_ids"] for text in texts]

    monkeypatch.setattr(Encoder, "__call__", with_special_tokens)
    with caught:
        check_bos_comes_once(teach, family, base(family))


@pytest.mark.parametrize("family", [family for family in FAMILIES if FAMILIES[family].bos])
def test_pain_6_would_be_caught_if_bos_were_lost(family: str, base: Any, teach: Teach, monkeypatch: Any) -> None:
    monkeypatch.setattr(render, "leading_tokens", lambda tokenizer: [])
    with caught:
        check_bos_comes_once(teach, family, base(family))


# 7


@contextmanager
def watched_gradients() -> Iterator[list[torch.Tensor]]:
    """The gradient of each step as one long vector, before it is clipped."""
    seen: list[torch.Tensor] = []
    clip = torch.nn.utils.clip_grad_norm_

    def look(parameters: Any, *limit: Any) -> torch.Tensor:
        seen.append(torch.cat([p.grad.flatten().double() for p in parameters]))
        return clip(parameters, *limit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.utils, "clip_grad_norm_", look)
        yield seen


def weights_in(folder: Path) -> torch.Tensor:
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    return torch.cat([state[name].flatten().double() for name in sorted(state)])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def check_passes_do_not_matter(teach: Teach, base: str, method: str) -> None:
    """Rows of 3 to 25 tokens with 2 to 14 that count, eight a step, in forward passes of 24 or of all positions."""
    found = []
    for positions in (24, 10_000):
        training = {"batch": 8, "epochs": 4, "learning_rate": 1e-3, "micro_batch_tokens": positions}
        with watched_gradients() as gradients:
            run, _ = teach(base, completions(16), method=method, training=training)
        found.append((gradients[0], weights_in(run.folder / "model"), [line["loss"] for line in run.metrics]))
    (small, ended, losses), (large, also_ended, also_losses) = found
    start = torch.zeros(1) if method == "lora" else weights_in(Path(base))
    assert len(losses) == 8
    assert apart(small, large) < 1e-6
    assert losses == pytest.approx(also_losses, rel=1e-5)
    assert apart(ended - start, also_ended - start) < 1e-4


@pytest.mark.parametrize("method", ["full", "lora"])
def test_pain_7_forward_passes_do_not_matter(method: str, base: Any, teach: Teach) -> None:
    """I halved the batch and accumulated two, as everybody says, and got another loss and another model."""
    check_passes_do_not_matter(teach, base(), method)


def test_pain_7_would_be_caught(base: Any, teach: Teach, monkeypatch: Any) -> None:
    def mean_of_means(self: loop.Step, examples: list[Any], counts: Any) -> dict[str, float]:
        groups = micro_batches(range(len(examples)), [e.length for e in examples], self.budget)
        for group in groups:
            own = self.job.objective.counts([examples[i] for i in group])
            term = self._forward([examples[i] for i in group])["loss"]
            (term.total / own[term.per] / len(groups)).backward()
        return {"loss": 0.0}

    monkeypatch.setattr(loop.Step, "_passes", mean_of_means)
    with caught:
        check_passes_do_not_matter(teach, base(), "full")


# 8


@contextmanager
def watched_rows() -> Iterator[list[list[str]]]:
    """The rows of each step that is in the weights: resuming a checkpoint forgets what was trained behind it."""
    seen: list[list[str]] = []
    passes, load = loop.Step._passes, loop.TrainState.load

    def look(self: loop.Step, examples: list[Any], counts: Any) -> dict[str, float]:
        seen.append([example.source for example in examples])
        return passes(self, examples, counts)

    def forget(self: loop.TrainState, tensors: Any, numbers: Any) -> None:
        del seen[numbers["step"] :]
        load(self, tensors, numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Step, "_passes", look)
        patch.setattr(loop.TrainState, "load", forget)
        yield seen


def check_resuming_goes_on_where_it_was(base: str, folder: Path) -> None:
    """Twelve rows, four steps an epoch, three epochs, a checkpoint at every other step; interrupted in two epochs."""

    def document(name: str) -> Any:
        return recipe(base, folder / name, training={"epochs": 3, "checkpoint_every": 2})

    def interrupt() -> None:
        raise KeyboardInterrupt

    with watched_rows() as rows:
        tw.train(document("whole"))
    whole = list(rows)
    with watched_rows() as rows:
        with suppress(KeyboardInterrupt):
            tw.train(document("broken"), watchers=[stop_at(3, interrupt)])
        with suppress(KeyboardInterrupt):
            tw.resume(folder / "broken", watchers=[stop_at(7, interrupt)])
        shutil.rmtree(folder / "broken" / "checkpoints" / "step-6")  # the one before it has to do
        run = tw.resume(folder / "broken")
    assert rows == whole
    for epoch in range(3):
        assert len(set(chain(*rows[4 * epoch : 4 * epoch + 4]))) == 12, "each row once an epoch"
    assert [line["step"] for line in run.metrics if "loss" in line] == list(range(1, 13))


def test_pain_8_a_resumed_run_sees_each_row_once(base: Any, tmp_path: Path) -> None:
    """I resumed in the middle of an epoch, and it began the epoch anew: some rows counted twice, some never."""
    check_resuming_goes_on_where_it_was(base(), tmp_path)


@pytest.mark.parametrize("shift", [-1, 1])
def test_pain_8_would_be_caught(shift: int, base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """A cursor that is one step off replays a step, or skips one."""
    load = loop.TrainState.load

    def shifted(self: loop.TrainState, tensors: Any, numbers: Any) -> None:
        load(self, tensors, numbers)
        self.step += shift

    monkeypatch.setattr(loop.TrainState, "load", shifted)
    with caught:
        check_resuming_goes_on_where_it_was(base(), tmp_path)


def test_pain_8_would_be_caught_if_the_order_were_drawn_anew(base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    draw = random.Random(0)
    plan = job.epoch_plan
    monkeypatch.setattr(
        job, "epoch_plan", lambda lengths, n, seed, *rest: plan(lengths, n, draw.getrandbits(20), *rest)
    )
    with caught:
        check_resuming_goes_on_where_it_was(base(), tmp_path)


# 9


def check_the_adapter_is_whole(base: str, folder: Path, processes: int) -> None:
    """Every part of every adapted layer is in the file, in its shape; and PEFT loads the trained model from it."""
    from peft import PeftModel

    run = tw.train(recipe(base, folder / "run", training={"processes": processes, "epochs": 1}))
    state = load_file(run.folder / "model" / "adapter_model.safetensors")
    assert len(state) == 2 * 7 * 2, "A and B of seven linear layers in each of two blocks"
    assert all(4 in tensor.shape and tensor.numel() >= 4 * 16 for tensor in state.values())
    assert all(tensor.abs().max() > 0 for tensor in state.values())
    plain = hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, run.folder / "model").eval()
    assert torch.equal(logits(theirs, run.model.processor), logits(run.model.module, run.model.processor))


def test_pain_9_several_processes_save_the_whole_adapter(base: Any, tmp_path: Path) -> None:
    """I trained on several devices and got an adapter of a few kilobytes without a weight in it."""
    check_the_adapter_is_whole(base(), tmp_path, processes=2)


@pytest.mark.parametrize("kept", [0, 1, 14])
@pytest.mark.parametrize("method", [{}, {"init": "pissa"}, {"dora": True}], ids=["lora", "pissa", "dora"])
def test_pain_9_an_adapter_that_lacks_weights_is_refused(
    method: dict[str, Any], kept: int, base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """As a sharded model gives its state: nothing, or a share of it."""
    lose_weights(monkeypatch, kept)
    with pytest.raises(OutputError, match="was not written whole"):
        tw.train(recipe(base(), tmp_path / "run", method={"rank": 4, **method}, training={"epochs": 1}))
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / ".model.draft").exists()
    assert tw.open_run(tmp_path / "run").status == "failed"


def test_pain_9_would_be_caught(base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    lose_weights(monkeypatch, 1)
    monkeypatch.setattr(_peft, "refuse_loss", lambda *_: None)
    with caught:
        check_the_adapter_is_whole(base(), tmp_path, processes=1)


def lose_weights(monkeypatch: Any, kept: int) -> None:
    import peft.peft_model

    whole = peft.peft_model.get_peft_model_state_dict
    monkeypatch.setattr(
        peft.peft_model, "get_peft_model_state_dict", lambda *a, **k: dict(list(whole(*a, **k).items())[:kept])
    )


# 10


def check_every_adapter_trains(teach: Teach, base: str, method: dict[str, Any], training: dict[str, Any]) -> None:
    run, _ = teach(base, completions(4), method={"type": "lora", "rank": 2, **method}, training={**HARD, **training})
    state = load_file(run.folder / "model" / "adapter_model.safetensors")
    up = [name for name in state if ".lora_B." in name]
    assert len(up) == 2 * 7, "seven linear layers in each of two blocks"
    for name in up:  # the product, because a converted PiSSA has old and new side by side in B
        assert (state[name] @ state[name.replace("lora_B", "lora_A")]).abs().max() > 1e-5, name
    before, after = tw.load(base), tw.load(run.folder)
    assert (logits(before.module, before.processor) - logits(after.module, after.processor)).abs().max() > 0.01


@pytest.mark.parametrize("training", [{}, {"activation_checkpointing": True}], ids=["plain", "recomputed"])
@pytest.mark.parametrize("method", LORAS)
def test_pain_10_every_adapter_trains(method: str, training: dict[str, Any], base: Any, teach: Teach) -> None:
    """My loss went down a little, and the adapter that I got is exactly zero: it was never trained."""
    check_every_adapter_trains(teach, base(), LORAS[method], training)


def test_pain_10_would_be_caught(base: Any, teach: Teach, monkeypatch: Any) -> None:
    monkeypatch.setattr(LoRA, "rate_factor", lambda self, name: 0.0 if "layers.1.mlp.up_proj.lora_B" in name else 1.0)
    with caught:
        check_every_adapter_trains(teach, base(), {}, {})


TEXT, LABELS = completions(4), labelled(8)
NOTED = [{**row, "note": "x"} for row in TEXT]
NUMBERS = [{"text": row["text"], "label": i / 3} for i, row in enumerate(labelled(8))]
IDLE: dict[str, tuple[list[dict[str, Any]], dict[str, Any], type[TunewrightError], str]] = {
    "a target that matches nothing": (TEXT, {"method": {"type": "lora", "targets": ["query"]}}, MethodError, "query"),
    "one target of two that matches nothing": (
        TEXT, {"method": {"type": "lora", "targets": ["q_proj", "query"]}}, MethodError, "query",
    ),
    "a pattern that matches nothing": (TEXT, {"method": {"type": "lora", "targets": ".*query"}}, MethodError, "query"),
    "a module to train along that is none": (
        TEXT, {"method": {"type": "lora", "train_along": ["score"]}}, MethodError, "score",
    ),
    "experts of a model that has none": (TEXT, {"method": {"type": "lora", "experts": True}}, MethodError, "experts"),
    "an option of another method": (TEXT, {"method": {"type": "full", "rank": 8}}, RecipeError, r"rank.*lora"),
    "a misspelt option": (TEXT, {"training": {"learning_rte": 1e-4}}, RecipeError, "learning_rate"),
    "two options of which one would win": (TEXT, {"training": {"batch": 4, "batch_tokens": 99}}, RecipeError, "batch"),
    "patience without validation": (TEXT, {"training": {"patience": 2}}, RecipeError, "patience"),
    "packing for a classifier": (LABELS, {"training": {"packing": True}}, RecipeError, "packing"),
    "class weights for a regression": (
        NUMBERS, {"objective": {"class_weights": "balanced"}}, RecipeError, "class_weights",
    ),
    "class weights for a language model": (
        TEXT, {"objective": {"class_weights": "balanced"}}, RecipeError, "class_weights",
    ),
    "label smoothing for a regression": (
        NUMBERS, {"objective": {"label_smoothing": 0.1}}, RecipeError, "label_smoothing",
    ),
    "a router's loss without a router": (TEXT, {"objective": {"router_loss": 0.1}}, RecipeError, "router_loss"),
    "the weight of a class that is none": (
        LABELS, {"objective": {"class_weights": {"good": 2.0}}}, RecipeError, "class_weights names good",
    ),
    "a column that is not there": (LABELS, {"data": {"columns": {"text": "review"}}}, DataError, "review"),
    "a column that is not read": (NOTED, {"data": {"columns": {"label": "note"}}}, DataError, "gives label"),
    "a chat template for prompts": (TEXT, {"data": {"chat_template": "plain"}}, DataError, "chat_template"),
    "trained turns of prompts": (TEXT, {"data": {"loss_on": "last"}}, DataError, "loss_on"),
    "trained turns of labels": (LABELS, {"data": {"loss_on": "last"}}, DataError, "loss_on"),
    "special tokens for a classifier": (LABELS, {"data": {"special_tokens": ["<x>"]}}, DataError, "special_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("case", IDLE)
def test_pain_10_an_idle_option_is_an_error(case: str, base: Any, teach: Teach, tmp_path: Path) -> None:
    """I set an option, nothing complained, and nothing happened."""
    rows, recipe, error, message = IDLE[case]
    with pytest.raises(error, match=message):
        teach(base(), rows, **recipe)
    assert not list(tmp_path.iterdir()), "refused before anything is begun"


def test_pain_10_would_be_caught_if_targets_were_not_checked(
    base: Any, teach: Teach, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(LoRA, "_check_targets", lambda self, module: None)
    with caught:  # PEFT takes the target that matches and does not mention the other
        test_pain_10_an_idle_option_is_an_error("one target of two that matches nothing", base, teach, tmp_path)


# 11


def check_packed_rows_do_not_see_each_other(base: str) -> None:
    prepared = ready(base, completions(8), method={"type": "lora", "rank": 2})
    examples = prepared.examples("train")
    assert min(e.length for e in examples) < WINDOW < sum(e.length for e in examples[:2])
    packed, alone = nll_of(prepared.model, examples, packed=True), nll_of(prepared.model, examples, packed=False)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    for changed in (0, 3):
        others = [i for i in range(len(examples)) if i != changed]
        altered = list(examples)
        ids = examples[changed].inputs["input_ids"]
        altered[changed] = replace(examples[changed], inputs={"input_ids": ids[::-1].copy()})
        after = nll_of(prepared.model, altered, packed=True)
        torch.testing.assert_close(after[others], packed[others], rtol=1e-6, atol=1e-6)
        assert (after[changed] - packed[changed]).abs() > 1e-3


def nll_of(model: Model, examples: Sequence[Example], packed: bool) -> torch.Tensor:
    """The loss of each row, in one sequence or each in its own."""
    batches = [[loop.pack(examples)]] if packed else [[one] for one in examples]
    with torch.no_grad():
        found = [model.task.nll(model.module.eval(), model.task.collate(batch)).nll_BT[0] for batch in batches]
    return torch.stack([row.sum() for row in torch.cat(found).split([e.length for e in examples])])


def check_packing_changes_nothing(teach: Teach, base: str) -> None:
    found = []
    for packing in (True, False):
        run, _ = teach(base, completions(8), training={**HARD, "learning_rate": 0.002, "packing": packing})
        found.append([line["loss"] for line in run.metrics])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_pain_11_packed_rows_do_not_see_each_other(family: str, base: Any, teach: Teach) -> None:
    """I packed my rows to be faster, and each was trained as if the rows before it were its context."""
    check_packed_rows_do_not_see_each_other(base(family))
    check_packing_changes_nothing(teach, base(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_pain_11_would_be_caught(family: str, base: Any, teach: Teach, monkeypatch: Any) -> None:
    pack = loop.pack

    def run_on(examples: Sequence[Example]) -> Example:
        one = pack(examples)
        return replace(one, inputs={"input_ids": one.inputs["input_ids"]})

    monkeypatch.setattr(loop, "pack", run_on)
    with caught:
        check_packed_rows_do_not_see_each_other(base(family))
    with caught:
        check_packing_changes_nothing(teach, base(family))


# 12

LIMIT = 24
LONG_ANSWER = {"prompt": "Tell me", "completion": words(1, 60)}
LONG_PROMPT = {"prompt": words(2, 60), "completion": "Hi"}
SOME_LONG = [*completions(2), LONG_ANSWER, LONG_PROMPT]


def check_long_rows_are_named(teach: Teach, base: str) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(base)
    longer = [len(tokenizer(row["prompt"] + row["completion"])["input_ids"]) + 1 for row in (LONG_ANSWER, LONG_PROMPT)]
    with pytest.raises(DataError, match="2 of 4 rows are longer than 24 tokens") as error:
        teach(base, SOME_LONG, data={"max_length": LIMIT})
    for row, length in zip((2, 3), longer, strict=True):
        assert _length_said(str(error.value), f"rows[{row}]: ") == pytest.approx(
            length, abs=1
        )  # a seam may cost one more


def _length_said(text: str, begin: str) -> int:
    """The number of tokens in the line that begins so."""
    (line,) = (line.strip() for line in text.splitlines() if line.strip().startswith(begin))
    return int(line.removeprefix(begin).removesuffix(" tokens"))


def check_long_rows_are_counted(teach: Teach, base: str, policy: str) -> None:
    run, seen = teach(base, SOME_LONG, data={"max_length": LIMIT, "overlength": policy, "test": SOME_LONG})
    kept = [one.source for one in seen]
    account = {"truncate": {"truncated": 1, "dropped": 1}, "drop": {"dropped": 2}}[policy]
    assert kept == {"truncate": ["rows[0]", "rows[1]", "rows[2]"], "drop": ["rows[0]", "rows[1]"]}[policy]
    assert max(len(one.tokens) for one in seen) <= LIMIT
    for name in ("train", "test"):
        assert run.info["data"][name]["overlength"] == account
        notices = [notice for notice in run.info["notices"] if notice.startswith(f"{name}: ")]
        for what, count in account.items():
            assert any(f"{count} too long: {what}" in notice and "rows[" in notice for notice in notices)


def check_a_split_text_is_trained_once(teach: Teach, base: str) -> None:
    text = {"text": words(3, 90)}
    run, seen = teach(base, [text], data={"max_length": LIMIT})
    whole = [*stock_tokenizer(run)(text["text"])["input_ids"], stock_tokenizer(run).eos_token_id]
    assert len(seen) > 3 and max(len(one.tokens) for one in seen) <= LIMIT
    pairs = [(pair, weight) for one in seen for pair, weight in zip(pairwise(one.tokens), one.weights[1:], strict=True)]
    assert Counter(pair for pair, weight in pairs if weight) == Counter(pairwise(whole))
    assert run.info["data"]["train"]["overlength"] == {"split": 1}
    assert any("split into windows" in notice for notice in run.info["notices"])


def check_a_long_question_is_not_cut(teach: Teach, base: str) -> None:
    run, _ = teach(base, TEXT)
    with pytest.raises(BaseModelError, match="no room to answer"):
        tw.chat(run.model, words(1, 600))


def check_a_long_text_is_said_to_be_cut(teach: Teach, base: str) -> None:
    run, _ = teach(base, LABELS)
    short, cut = tw.predict(run.folder, [words(1, 5), words(1, 600)])
    assert cut.get("truncated") is True
    assert "truncated" not in short


def test_pain_12_long_rows_are_named(base: Any, teach: Teach) -> None:
    """A third of my rows were longer than the limit; their answers were cut off, and nothing said so."""
    check_long_rows_are_named(teach, base())


@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_pain_12_long_rows_are_counted(policy: str, base: Any, teach: Teach) -> None:
    """I let long rows be cut, and never learned how many there were, or that some had no answer left."""
    check_long_rows_are_counted(teach, base(), policy)


@pytest.mark.parametrize("family", FAMILIES)
def test_pain_12_a_split_text_is_trained_once(family: str, base: Any, teach: Teach) -> None:
    """My long documents were cut into windows, and what lay at the seams was lost, or learned twice."""
    check_a_split_text_is_trained_once(teach, base(family))


def test_pain_12_a_long_text_is_said_to_be_cut(base: Any, tiny_base: Any, teach: Teach) -> None:
    """The classifier judged the first page of my document, the chat forgot how my question began: silently."""
    check_a_long_text_is_said_to_be_cut(teach, tiny_base("bert"))
    check_a_long_question_is_not_cut(teach, base())


def test_pain_12_would_be_caught_if_rows_were_cut_silently(base: Any, teach: Teach, monkeypatch: Any) -> None:
    def cut(found: Sequence[Rendered], limit: Limit, policy: str) -> Fitted:
        end = limit.tokens
        return Fitted([replace(one, tokens=one.tokens[:end], weights=one.weights[:end]) for one in found])

    monkeypatch.setattr(text_generation, "fit", cut)
    with caught:
        check_long_rows_are_named(teach, base())
    with caught:
        check_long_rows_are_counted(teach, base(), "truncate")
    with caught:
        check_a_split_text_is_trained_once(teach, base())


@pytest.mark.parametrize("step", [LIMIT, LIMIT - 2], ids=["lost", "twice"])
def test_pain_12_would_be_caught_if_seams_were_wrong(step: int, base: Any, teach: Teach, monkeypatch: Any) -> None:
    def windows(one: Rendered, limit: int) -> Iterator[Rendered]:
        for start in range(0, len(one.tokens) - 1, step):
            stop = start + limit
            yield Rendered(one.tokens[start:stop], [0.0, *one.weights[start + 1 : stop]], one.source)

    monkeypatch.setattr(rendered, "_windows", windows)
    with caught:
        check_a_split_text_is_trained_once(teach, base())


def test_pain_12_would_be_caught_if_a_text_were_cut_silently(tiny_base: Any, teach: Teach, monkeypatch: Any) -> None:
    monkeypatch.setattr(text_classification, "replace", lambda fitted, **_: fitted)
    with caught:
        check_a_long_text_is_said_to_be_cut(teach, tiny_base("bert"))


# 13


def check_the_loss_is_that_of_the_model_itself(teach: Teach, base: str) -> None:
    """Against transformers' own loss over the logits of all positions."""
    with watched_gradients() as gradients:
        run, seen = teach(base, completions(8), method="full", training={"batch": 8, "max_steps": 1})
    width = max(len(one.tokens) for one in seen)
    ids = torch.tensor([one.tokens + [0] * (width - len(one.tokens)) for one in seen])
    mask = torch.tensor([[1] * len(one.tokens) + [0] * (width - len(one.tokens)) for one in seen])
    trained = torch.tensor([one.weights + [0.0] * (width - len(one.weights)) for one in seen]) != 0
    module = hf.AutoModelForCausalLM.from_pretrained(base).train()
    loss = module(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(~trained, -100)).loss
    loss.backward()
    assert run.metrics[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert apart(gradients[0], torch.cat([p.grad.flatten().double() for p in module.parameters()])) < 1e-5


@pytest.mark.parametrize("kind", CONFIGS)
def test_pain_13_the_loss_is_that_of_the_model_itself(kind: str, base: Any, teach: Teach) -> None:
    """The fast loss has other gradients than the model's own: it forgot to cap or to scale the logits, or some rows."""
    check_the_loss_is_that_of_the_model_itself(teach, base(kind=kind))


def head_by_hand(self: TextGeneration, module: Any, batch: Batch, **_: Any) -> Likelihood:
    """Cross-entropy on a product with the head's weight, as in most fused kernels."""
    picked = batch.weight != 0
    hidden = module.base_model(**batch.inputs, use_cache=False).last_hidden_state[picked]
    nll = F.cross_entropy(hidden @ module.get_output_embeddings().weight.T, batch.target[picked], reduction="none")
    return Likelihood(nll.new_zeros(picked.shape).masked_scatter(picked, nll))


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if "logits" in kind])
def test_pain_13_would_be_caught(kind: str, base: Any, teach: Teach, monkeypatch: Any) -> None:
    monkeypatch.setattr(TextGeneration, "nll", head_by_hand)
    check_the_loss_is_that_of_the_model_itself(teach, base(kind="llama"))  # where it is the same
    with caught:
        check_the_loss_is_that_of_the_model_itself(teach, base(kind=kind))


# 14


def check_pins(project: dict[str, Any], constraints: str) -> None:
    """What the project asks for is pinned, within its own bounds; the pins agree; and no bound is a ceiling."""
    lines = [line.partition("==") for line in constraints.splitlines() if "==" in line and not line.startswith("#")]
    pins = {canonicalize_name(name): version.strip() for name, _, version in lines}
    extras = project["project"]["optional-dependencies"]
    asked = [Requirement(text) for text in chain(project["project"]["dependencies"], *extras.values())]
    faults = [f"{one} is not pinned" for one in asked if canonicalize_name(one.name) not in pins]
    faults += [f"{one} has a ceiling" for one in asked if not {b.operator for b in one.specifier} <= {">=", "!="}]
    for name, needs in {"tunewright": asked, **{name: _needs_of(name, pin) for name, pin in pins.items()}}.items():
        for one in needs:
            pin = pins.get(canonicalize_name(one.name))
            if pin and not one.specifier.contains(pin, prereleases=True):
                faults.append(f"{name} asks for {one}, pinned is {pin}")
    assert not faults, "\n".join(faults)


def _needs_of(name: str, version: str) -> list[Requirement]:
    """What an installed package asks for; nothing is known of one that is not installed in this version."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return []
    needs = [Requirement(text) for text in found.requires or []] if found.version == version else []
    return [one for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]


def _project() -> tuple[dict[str, Any], str]:
    constraints = ROOT / "constraints.txt"
    if not constraints.is_file():
        pytest.skip("constraints.txt is not there yet")
    return tomllib.loads((ROOT / "pyproject.toml").read_text()), constraints.read_text()


def test_pain_14_pins_and_bounds_agree() -> None:
    """pip resolves for an hour and gives up, or installs a combination that nobody has ever tested."""
    check_pins(*_project())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("torch==", "# torch==", id="not pinned"),
        pytest.param("pydantic==2", "pydantic==1", id="below the bound"),
        pytest.param("hypothesis==6", "hypothesis==5", id="an extra below its bound"),
        pytest.param("huggingface_hub==", "huggingface_hub==0.", id="two packages that disagree"),
    ],
)
def test_pain_14_would_be_caught(old: str, new: str) -> None:
    project, constraints = _project()
    assert f"\n{old}" in constraints
    with caught:
        check_pins(project, constraints.replace(f"\n{old}", f"\n{new}"))


def test_pain_14_would_be_caught_if_a_bound_were_a_ceiling() -> None:
    project, constraints = _project()
    project["project"]["dependencies"].append("numpy<99")
    with caught:
        check_pins(project, constraints)


PLAIN_INSTALL = """
import sys
for name in {absent!r}:
    sys.modules[name] = None  # as if it were not installed
import torch
torch.set_num_threads(1)
import tunewright as tw
for name in tw.__all__:
    getattr(tw, name)
rows = [{{"prompt": "Hi ", "completion": "you"}}] * 4
run = tw.train(base={base!r}, data={{"train": rows, "validation": 0}}, training={{"epochs": 1}}, output={output!r})
tw.chat(run.folder, "Hi ", max_new_tokens=2)
tw.export(run.folder, "merged", {output!r} + "/merged")
print(run.info["status"])
"""


def not_in_a_plain_install() -> list[str]:
    """The modules here that `pip install tunewright` would not bring: extras, what they need, and anything else."""
    brought, queue = set(), [Requirement(text) for text in _project()[0]["project"]["dependencies"]]
    while queue:
        one = queue.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in brought:
            continue
        brought.add(key)
        try:
            needs = [Requirement(text) for text in metadata.distribution(one.name).requires or []]
        except metadata.PackageNotFoundError:
            continue
        asked = ["", *one.extras]
        queue += [n for n in needs if n.marker is None or any(n.marker.evaluate({"extra": extra}) for extra in asked)]
    names = {name for name, _ in brought} | {"tunewright"}
    modules = metadata.packages_distributions()
    return sorted(module for module, of in modules.items() if names.isdisjoint(map(canonicalize_name, of)))


def test_pain_14_a_plain_install_trains(base: Any, tmp_path: Path) -> None:
    """I installed the package as the README says, and it asked for another one, and that one for a third."""
    absent = not_in_a_plain_install()
    assert {"pytest", "hypothesis"} <= set(absent) and not {"torch", "peft", "yaml", "numpy"} & set(absent)
    script = PLAIN_INSTALL.format(absent=absent, base=base(), output=str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == "finished"


# 15. The sampler and the trainer do not agree on how likely an answer is


def gaps(base: str, folder: Path, kind: Any) -> list[float]:
    """How far the two are apart in each step of a run from a reward, in nats a token."""
    options = {"type": "rl", "rewards": [{"type": "length", "min": 2, "max": 6, "slack": 8}], "max_new_tokens": 12}
    method = {"type": "lora", "rank": 4} if kind == "grpo" else "full"
    data = {"train": [{"prompt": words(i, 1 + 5 * (i % 4)) + " "} for i in range(8)], "validation": 0}
    made = recipe(base, folder, data=data, method=method, objective={**options, "algorithm": kind, "temperature": 0.7},
                  training={"max_steps": 4, "batch": 4, "learning_rate": 0.02})  # fmt: skip
    return [line["sampler_gap"] for line in tw.train(made).metrics if "loss" in line]


def check_agrees(found: Sequence[float]) -> None:
    assert len(found) == 4 and all(0 < gap < 1e-4 for gap in found), found


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral", "gpt2"])
def test_pain_15_sampler_and_trainer_agree(kind: str, algorithm: str, tiny_base: Any, tmp_path: Path) -> None:
    """My run from rewards fell apart: the engine that sampled gave tokens other probabilities than the trainer."""
    check_agrees(gaps(tiny_base(kind), tmp_path / "run", algorithm))


@pytest.mark.parametrize("fault", ["temperature", "padding"])
def test_pain_15_would_be_caught(fault: str, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "temperature":
        real = _sampling.draw
        monkeypatch.setattr(_sampling, "draw", lambda logits_BV, temperature, u_B: real(logits_BV, 0.9, u_B))
    else:
        monkeypatch.setattr(_rows.Batch, "_start", lambda *_: None)
    with caught:
        check_agrees(gaps(tiny_base("llama"), tmp_path / "run", "grpo"))
