"""Continuous batching: an answer is the one that its prompt would get alone, whoever comes and goes meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

import tunewright as tw
from tests.fixtures import tiny_tokenizer
from tests.pipelines import make_pipeline
from tests.service.inference import chats, pieces, texts, train, tuned, with_engine
from tunewright.artifacts.load import load
from tunewright.data.render import Renderer
from tunewright.service.errors import Refused
from tunewright.service.inference import local
from tunewright.service.inference.answers import Stops, Words, described
from tunewright.service.inference.lane import Lane, Limits
from tunewright.service.inference.local import LocalEngine, drawn
from tunewright.service.inference.prompts import PIECE
from tunewright.service.inference.protocol import Draw, Embed, Generate, ModelRef, Sampling, Usage
from tunewright.tasks._rows import Batch, draw_each

JOINING = ("llama", "mistral", "gemma3", "gpt2", "bloom", "gpt_neox")
"""Rotary, sliding, mixed, learned and no positions (ALiBi)."""
LENGTHS = (5, 31, 1, 18, 40, 3, 25, 9, 60, 2, 14, 33)  # the sliding windows are of 12
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.3, "seed": 4, "top_p": 0.8, "n": 2},
)


def prompts(vocabulary: int = 250) -> list[tuple[int, ...]]:
    generator = np.random.default_rng(3)
    return [tuple(generator.integers(5, vocabulary, length).tolist()) for length in LENGTHS]


def asked() -> list[tuple[tuple[int, ...], dict[str, Any]]]:
    """Prompts of all lengths with answers of all lengths, greedy and drawn."""
    settings = [{**SETTINGS[i % 3], "max_tokens": 3 + (i * 7) % 23} for i in range(len(LENGTHS))]
    return list(zip(prompts(), settings, strict=True))


async def one_by_one(engine: LocalEngine, models: list[ModelRef]) -> list[list[str]]:
    return [
        texts(await pieces(engine, models[i % len(models)], prompt, **how)) for i, (prompt, how) in enumerate(asked())
    ]


async def at_once(engine: LocalEngine, models: list[ModelRef], clients: int = 5) -> list[list[str]]:
    """Each client asks its next question when the last one is answered: rows come and go all the time."""
    found: dict[int, list[str]] = {}
    left = list(enumerate(asked()))

    async def client() -> None:
        while left:
            i, (prompt, how) = left.pop(0)
            found[i] = texts(await pieces(engine, models[i % len(models)], prompt, **how))

    await asyncio.gather(*(client() for _ in range(clients)))
    return [found[i] for i in range(len(found))]


def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that take a while, so that others come meanwhile."""
    real = Batch.step

    def step(self: Batch, token_B: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002)
        return real(self, token_B)

    monkeypatch.setattr(Batch, "step", step)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often rows took the place of others, came behind them, left, and gave up columns."""
    seen: Counter[str] = Counter()
    for name in ("put", "append", "keep", "trim"):
        real = getattr(Batch, name)

        def counted(self: Batch, *given: Any, name: str = name, real: Any = real) -> None:
            before = self.length
            real(self, *given)
            seen[name] += 1 if name != "trim" else self.length < before

        monkeypatch.setattr(Batch, name, counted)
    slowly(monkeypatch)
    return seen


@pytest.mark.parametrize("kind", [*JOINING, "mamba"])
def test_an_answer_does_not_depend_on_who_else_asks(
    kind: str, tiny_base: Callable[..., str], moves: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.tasks._rows.WASTE", 4)
    models = [ModelRef("base", tiny_base(kind))]
    alone = with_engine(lambda engine: one_by_one(engine, models))
    moves.clear()
    assert with_engine(lambda engine: at_once(engine, models)) == alone
    assert moves["keep"] and (kind == "mamba" or moves["put"] + moves["append"] > 3)
    if kind == "llama":
        monkeypatch.setattr(
            "tunewright.service.inference.lane.ENDED", 2.0
        )  # who ended stays, and others take the place
        assert with_engine(lambda engine: at_once(engine, models)) == alone
        assert moves["put"] and moves["append"] and moves["trim"]
    module, tokenizer = hf.AutoModelForCausalLM.from_pretrained(models[0].base_folder), load_tokenizer(models[0])
    for (prompt, how), said in zip(asked(), alone, strict=True):
        if how["temperature"]:
            continue
        ids = torch.tensor([prompt])
        room = {"max_new_tokens": how["max_tokens"], "attention_mask": torch.ones_like(ids)}
        words = Words(tokenizer, list(prompt))
        found = module.generate(ids, do_sample=False, **room)[0, len(prompt) :].tolist()
        assert "".join(words.add(token) for token in found) + words.rest() == said[0]


def load_tokenizer(model: ModelRef) -> Any:
    return hf.AutoTokenizer.from_pretrained(model.base_folder)


@pytest.fixture(scope="module")
def runs(tiny_base: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [train(tiny_base("llama"), root / name, name) for name in ("lora", "rslora", "full", "prompt")]


def test_so_it_is_with_many_models_at_once(runs: list[Path], tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    models = [
        tuned(base, runs[0]), tuned(base, runs[1]), ModelRef("base", base), tuned(base, runs[0], 0.5),
        tuned(base, runs[2]), tuned(base, runs[3]), tuned(base, runs[2], 0.5),
    ]  # fmt: skip
    alone = with_engine(lambda engine: one_by_one(engine, models))
    assert with_engine(lambda engine: at_once(engine, models, clients=9)) == alone
    few = Limits(rows=3, tokens=200, reading=30)
    assert with_engine(lambda engine: at_once(engine, models, clients=9), limits=few) == alone


def test_it_says_what_tunewright_says(tiny_base: Callable[..., str], tmp_path: Path) -> None:
    """Conversations with tools, read as in training; and a model that does not chat is given plain text."""
    base = tiny_base("qwen3")
    run = train(base, tmp_path / "run", "lora", data=chats())
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "fox"}]},
    ]

    async def ask(engine: LocalEngine) -> list[str]:
        model = tuned(base, run, 0.7)
        said = [
            await pieces(engine, model, messages, temperature=0, max_tokens=12, tools=tools) for tools in (None, [tool])
        ]
        return [text for one in said for text in texts(one)]

    expected = [tw.chat(f"{run}@0.7", messages, max_new_tokens=12, tools=tools) for tools in (None, [tool])]
    assert with_engine(ask) == expected and expected[0] != expected[1]

    plain = tiny_base("llama")
    continued = train(plain, tmp_path / "plain", "lora")

    async def tell(engine: LocalEngine) -> list[str]:
        model = tuned(plain, continued)
        return texts(
            await pieces(engine, model, [{"role": "user", "content": "the fox "}], temperature=0, max_tokens=9)
        )

    assert with_engine(tell) == [tw.chat(continued, "the fox ", max_new_tokens=9)]


def test_stories_go_on_from_their_beginning(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text joins the prompt's, spaces included; and it ends before a stop text, wherever tokens lie."""
    model = ModelRef("stories", str(shared / "models/stories260k"))
    beginning = "Once upon a time, there was a"

    async def ask(engine: LocalEngine) -> tuple[Any, ...]:
        how = {"temperature": 0, "max_tokens": 60}
        monkeypatch.setattr("tunewright.service.inference.request.PAUSE", 1000.0)
        hasty = await pieces(engine, model, beginning, logprobs=0, **how)
        assert len(hasty) == 3, "the first token, then the others together as they came too soon, and the usage"
        monkeypatch.setattr("tunewright.service.inference.request.PAUSE", 0.0)
        whole = await pieces(engine, model, beginning, logprobs=0, **how)
        assert texts(hasty) == texts(whole)
        assert [t.text for p in hasty[:-1] for t in p.tokens] == [t.text for p in whole[:-1] for t in p.tokens]
        whole = await pieces(engine, model, beginning, **how)
        cut = await pieces(engine, model, beginning, stop=("girl nam", "nothing"), **how)
        once = await pieces(engine, model, beginning, stop=("girl nam",), stream=False, **how)
        return whole, cut, once

    whole, cut, once = with_engine(ask)
    (text,) = texts(whole)
    assert text.startswith(" little girl named Lily") and len(whole) > 40
    assert texts(cut) == texts(once) == [" little "] and len(once) == 2
    assert cut[-2].finish == "stop" and whole[-2].finish == "length"
    assert cut[-1].completion_tokens < whole[-1].completion_tokens == 60


def test_log_probabilities_are_those_of_a_whole_pass(shared: Path) -> None:
    model = ModelRef("stories", str(shared / "models/stories260k"))
    tokenizer, module = load_tokenizer(model), hf.AutoModelForCausalLM.from_pretrained(model.base_folder)
    prompt = tuple(tokenizer("Tom and Lily went")["input_ids"])

    async def ask(engine: LocalEngine) -> list[Any]:
        return await pieces(engine, model, prompt, temperature=0.7, seed=1, max_tokens=20, logprobs=3, stop=("zzz",))

    said = with_engine(ask)
    tokens = [token for piece in said[:-1] for token in piece.tokens]
    assert "".join(token.text for token in tokens) == texts(said)[0] and len(tokens) == 20
    ids: list[int] = list(prompt)
    names = [described(tokenizer, i, 0.0) for i in range(512)]
    for token in tokens:
        with torch.no_grad():
            logprob_V = module(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        values, likeliest = logprob_V.topk(3)
        assert [one.text for one in token.top] == [names[i].text for i in likeliest.tolist()]
        np.testing.assert_allclose([one.logprob for one in token.top], values.numpy(), atol=1e-4)
        same = [i for i, name in enumerate(names) if name.bytes == token.bytes]
        chosen = min(same, key=lambda i: abs(float(logprob_V[i]) - token.logprob))
        assert abs(float(logprob_V[chosen]) - token.logprob) < 1e-4
        ids.append(chosen)


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.randoms())
def test_stop_texts_end_an_answer_however_it_comes(text: str, stops: list[str], random: Any) -> None:
    held, said = Stops(tuple(stops)), ""
    for start in range(0, len(text), size := random.randint(1, 4)):
        said += held.add(text[start : start + size])
        ends = [text[: start + size].find(stop) for stop in stops]
        if held.hit:
            assert said == text[: min(end for end in ends if end >= 0)]
            return
        assert all(end < 0 for end in ends)
        assert not any((said + "|").find(stop) >= 0 for stop in stops)
    assert said + held.held == text


@pytest.mark.parametrize("family", ["llama3", "mistral", "gemma", "qwen3"])
def test_no_broken_characters_are_said(family: str) -> None:
    tokenizer = tiny_tokenizer(family)
    generator = np.random.default_rng(0)
    for _ in range(40):
        text = "".join(map(chr, generator.choice([*range(97, 123), 32, 32, 228, 8364, 128512, 0x4E2D], 12)))
        tokens = tokenizer.encode(text, add_special_tokens=False)
        noise = generator.integers(0, len(tokenizer), 6).tolist()
        words, noisy = Words(tokenizer, []), Words(tokenizer, [])
        said = [words.add(token) for token in tokens]
        assert not any("\ufffd" in one for one in said)
        assert "".join(said) + words.rest() == tokenizer.decode(tokens, skip_special_tokens=True)
        garbled = "".join(noisy.add(token) for token in tokens + noise) + noisy.rest()
        assert garbled.startswith("".join(said)[:-1])
        for token in tokens:
            assert len(described(tokenizer, token, 0.0).bytes) > 0
        joined = b"".join(bytes(described(tokenizer, token, 0.0).bytes) for token in tokens).decode()
        assert joined.strip() == tokenizer.decode(tokens).strip()


def test_tokens_are_drawn_from_the_top_k_and_of_these_from_the_nucleus() -> None:
    """Each as often as it is likely among those that are left, and ties with the last of these too."""
    generator = np.random.default_rng(1)
    logits_BV = torch.tensor(generator.normal(0, 2, (40, 12)).round(1), dtype=torch.float32)
    top_k_B = torch.tensor(generator.choice([1, 2, 5, 12], 40))
    top_p_B = torch.tensor(generator.choice([0.1, 0.5, 0.9, 1.0], 40), dtype=torch.float32)
    temperature_B = torch.tensor(generator.choice([0.0, 0.5, 1.0], 40), dtype=torch.float32)
    uniform_B = torch.linspace(0, 1 - 1e-9, 4001, dtype=torch.float64)
    for top_k, top_p in itertools.product((None, top_k_B), (None, top_p_B)):
        for row in range(40):
            one = slice(row, row + 1)
            temperature = float(temperature_B[row])
            p_V = (logits_BV[row].double() / (temperature or 1)).softmax(-1).numpy()
            left = plain_rule(
                p_V, 12 if top_k is None else int(top_k[row]), 1.0 if top_p is None else float(top_p[row])
            )
            expected_V = np.where(left, p_V, 0) / p_V[left].sum()
            if not temperature:
                expected_V = np.eye(12)[p_V.argmax()]
            drawn = draw_each(
                logits_BV[one].expand(4001, -1), temperature_B[one].expand(4001),
                None if top_k is None else top_k[one].expand(4001), None if top_p is None else top_p[one].expand(4001),
                uniform_B,
            )  # fmt: skip
            assert np.abs(np.bincount(drawn, minlength=12) / 4001 - expected_V).max() < 1e-3
            assert set(drawn.tolist()) <= set(np.flatnonzero(expected_V))


def plain_rule(p_V: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Which tokens may be drawn, [V] of bool."""
    left = p_V >= np.sort(p_V)[-top_k] * (1 - 1e-6)
    falling = np.sort(p_V[left])[::-1]
    reached = np.cumsum(falling) / falling.sum()
    last = falling[min(int((reached < top_p - 1e-12).sum()), len(falling) - 1)]
    return left & (p_V >= last * (1 - 1e-6))


def test_a_row_draws_from_the_top_k_that_it_asked_for(shared: Path) -> None:
    """And rows beside it as they would without it."""
    model = ModelRef("stories", str(shared / "models/stories260k"))

    async def ask(engine: LocalEngine) -> None:
        def said(**how: Any) -> Any:
            return pieces(engine, model, "Once upon a time", max_tokens=20, **how)

        alone = [await said(seed=3), await said(seed=3, top_k=2, temperature=2), await said(seed=3, top_p=0.5)]
        together = await asyncio.gather(
            said(seed=3), said(seed=3, top_k=2, temperature=2), said(seed=3, top_p=0.5), said(temperature=0),
            said(seed=5, top_k=1, temperature=2), said(seed=5, top_k=10**9), said(seed=5),
        )  # fmt: skip
        found = [texts(one) for one in together]
        assert found[:3] == [texts(one) for one in alone] and len({one[0] for one in found[:3]}) == 3
        assert found[4] == found[3] and found[5] == found[6]
        likely = await said(seed=1, top_k=2, temperature=2, logprobs=2)
        tokens = [token for piece in likely[:-1] for token in piece.tokens]
        assert tokens and all(token.text in [top.text for top in token.top] for token in tokens)

    with_engine(ask)


def test_penalties_and_biases_change_what_is_drawn_and_not_what_is_told(shared: Path) -> None:
    """logit − presence − frequency · count + bias, of the answer's own tokens; rows beside it stay as they are."""
    model = ModelRef("stories", str(shared / "models/stories260k"))
    module = hf.AutoModelForCausalLM.from_pretrained(model.base_folder)
    prompt, count = (1, 403, 407, 261, 378), 60

    def expected(presence: float, frequency: float, bias: dict[int, float]) -> list[int]:
        ids, said = list(prompt), Counter[int]()
        for _ in range(count):
            with torch.no_grad():
                logits_V = module(input_ids=torch.tensor([ids])).logits[0, -1]
            for token, change in bias.items():
                logits_V[token] += change
            for token, times in said.items():
                logits_V[token] -= presence + frequency * times
            ids.append(int(logits_V.argmax()))
            said[ids[-1]] += 1
        return ids[len(prompt) :]

    async def ask(engine: LocalEngine) -> None:
        plain = expected(0, 0, {})
        for presence, frequency, bias in (
            (0.0, 0.0, {plain[0]: -100.0, 500: 3.0}),
            (2.0, 0.0, {}),
            (0.0, 2.0, {}),
            (-1.0, 0.4, {plain[1]: 2.0}),
        ):
            how: dict[str, Any] = {"presence": presence, "frequency": frequency, "bias": tuple(bias.items())}
            both = [pieces(engine, model, prompt, temperature=0, max_tokens=count, **one) for one in (how, {})]
            said, beside = await asyncio.gather(*both)
            found = expected(presence, frequency, bias)
            assert found != plain
            assert texts(said) == [continued(found)] and texts(beside) == [continued(plain)]
        logprobs = [
            await pieces(engine, model, prompt, temperature=0, max_tokens=1, logprobs=2, bias=bias)
            for bias in ((), ((plain[0], -100.0),))
        ]
        assert logprobs[0][0].tokens[0].top == logprobs[1][0].tokens[0].top, "probabilities are the model's own"
        with pytest.raises(Refused, match="logit_bias"):
            await pieces(engine, model, prompt, bias=((512, 1.0),))

    engine_tokenizer = load_tokenizer(model)

    def continued(tokens: list[int]) -> str:
        words = Words(engine_tokenizer, list(prompt))
        return "".join(words.add(token) for token in tokens) + words.rest()

    with_engine(ask)


SCHEMA: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "likes"],
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 9},
                   "likes": {"type": "array", "items": {"enum": ["cake", "boats"]}, "maxItems": 2}},
}  # fmt: skip


def test_an_answer_follows_its_schema(shared: Path, tiny_base: Callable[..., str]) -> None:
    """Whatever the model would say, and beside rows that follow another one, or none."""
    model = ModelRef("stories", str(shared / "models/stories260k"))
    beginning = "Once upon a time, there was a"

    async def ask(engine: LocalEngine) -> None:
        schema = json.dumps(SCHEMA)
        asked = [
            pieces(engine, model, beginning, temperature=1.2, seed=4, max_tokens=300, n=4, schema=schema),
            pieces(engine, model, beginning, temperature=0, max_tokens=40),
            pieces(engine, model, beginning, temperature=0, max_tokens=300, schema='{"enum": ["yes", "no"]}'),
        ]
        following, plain, chosen = await asyncio.gather(*asked)
        documents = [json.loads(text) for text in texts(following)]
        assert len({json.dumps(one) for one in documents}) > 1, "each is drawn for itself"
        for one in documents:
            assert (
                set(one) == {"name", "age", "likes"} and set(one["likes"]) <= {"cake", "boats"} and 0 <= one["age"] < 10
            )
        assert {piece.finish for piece in following[:-1] if piece.finish} == {"stop"}, "it ends where the document does"
        assert json.loads(texts(chosen)[0]) in ("yes", "no")
        assert texts(plain) == texts(await pieces(engine, model, beginning, temperature=0, max_tokens=40))
        cut = await pieces(engine, model, beginning, temperature=0, max_tokens=3, schema=schema)
        assert cut[-2].finish == "length" and texts(cut)[0].lstrip().startswith("{")
        for wrong in ('{"type": "objct"}', "[]", "{", json.dumps({"enum": ["a" * 200_000]})):
            with pytest.raises(Refused, match="response_format") as caught:
                await pieces(engine, model, beginning, schema=wrong)
            assert caught.value.status == 400

    with_engine(ask)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma3", "mamba"])
def test_so_it_does_with_any_tokenizer(kind: str, tiny_base: Callable[..., str]) -> None:
    model = ModelRef("base", tiny_base(kind))

    async def ask(engine: LocalEngine) -> None:
        said = texts(
            await pieces(engine, model, "the fox", seed=1, max_tokens=150, n=2, schema='{"enum": ["a fox", 7]}')
        )
        assert all(json.loads(one) in ("a fox", 7) for one in said), said

    with_engine(ask)


def test_who_goes_away_makes_room(tiny_base: Callable[..., str]) -> None:
    model = ModelRef("base", tiny_base("llama"))

    async def go(engine: LocalEngine) -> None:
        first = engine.generate(Generate(model, prompt=(5, 6, 7), sampling=Sampling(temperature=0, max_tokens=200)))
        await anext(first)
        other = asyncio.create_task(pieces(engine, model, (7, 8), temperature=0, max_tokens=20))
        assert (await engine.loaded())[0].used
        await first.aclose()  # type: ignore[attr-defined]
        assert isinstance((await other)[-1], Usage)
        waiting = asyncio.create_task(pieces(engine, model, (5, 6, 7), temperature=0, max_tokens=200))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await engine.loaded())[0].used == 0
        for _ in range(1000):
            if not engine._batching._lanes:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("somebody is still answered")

    with_engine(go, limits=Limits(rows=1))


def test_more_answers_than_rows_are_given_one_after_another(tiny_base: Callable[..., str]) -> None:
    model, most = ModelRef("base", tiny_base("llama")), list[int]()

    async def ask(engine: LocalEngine) -> list[str]:
        how = {"temperature": 0.9, "seed": 5, "max_tokens": 6, "n": 9}
        both = [pieces(engine, model, (5, 6, 7), **how), pieces(engine, model, (7, 8), temperature=0, max_tokens=4)]
        many, one = await asyncio.gather(*both)
        assert isinstance(one[-1], Usage) and many[-1] == Usage(3, 54)
        return texts(many)

    expected = with_engine(ask)
    real = Lane._step

    def step(self: Lane, told: list[Any]) -> None:
        most.append(len([row for row in self.rows if row.going]))
        real(self, told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lane, "_step", step)
        assert with_engine(ask, limits=Limits(rows=4)) == expected and len(set(expected)) > 5
    assert max(most) == 4


def test_caches_take_what_weights_leave_of_the_memory(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are answered one after another where there is no room for several, and one always is."""
    model, most = ModelRef("stories", str(shared / "models/stories260k")), list[int]()
    real = Lane._step

    def step(self: Lane, told: list[Any]) -> None:
        most.append(len([row for row in self.rows if row.going]))
        real(self, told)

    monkeypatch.setattr(Lane, "_step", step)

    async def ask(engine: LocalEngine) -> list[str]:
        return texts(await pieces(engine, model, (5,) * 30, temperature=0.9, seed=5, max_tokens=10, n=6))

    position = 1.25 * 2 * 5 * 4 * 8 * 4  # with room, keys and values, layers, heads that are kept, their size, fp32
    weights = 1_052_000
    found = []
    for rows in (0, 2, 6):
        most.clear()
        found.append(with_engine(ask, memory=int(weights + (rows + 0.5) * 40 * position)))
        assert max(most) == max(1, rows)
    assert found[0] == found[1] == found[2]


def test_a_prompt_is_counted_as_it_is_fed(tiny_base: Callable[..., str]) -> None:
    """Also one for whose answer no room is left."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "fox"}]

    async def ask(engine: LocalEngine) -> None:
        chats, plain = ModelRef("chats", tiny_base("qwen3")), ModelRef("plain", tiny_base("llama"))
        counts = []
        for model, tools in ((chats, None), (chats, [tool]), (plain, None)):
            said = await pieces(engine, model, messages, max_tokens=1, tools=tools)
            counts.append(await engine.count(Generate(model, messages, tools=tools)))
            assert counts[-1] == said[-1].prompt_tokens
        assert len(set(counts)) == 3
        assert await engine.count(Generate(plain, prompt=(5,) * 300)) == 300
        long = [{"role": "user", "content": "the fox " * 200}]
        assert await engine.count(Generate(plain, long)) > 256
        with pytest.raises(Refused, match="and plain can hold 256"):
            await engine.count(Generate(plain, prompt="the fox " * 100_000))

    with_engine(ask)


def test_a_prompt_that_is_much_too_long_is_refused_before_it_is_read(
    tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read = ModelRef("base", tiny_base("llama")), list[int]()
    real = Renderer.count

    def count(self: Renderer, text: str) -> int:
        read.append(len(text))
        return real(self, text)

    async def ask(engine: LocalEngine) -> None:
        for long in ("the fox " * 100_000, [{"role": "user", "content": "the fox " * 100_000}]):
            with pytest.raises(Refused, match=r"more than \d+ tokens, and base can hold 256") as caught:
                await pieces(engine, model, long)
            assert caught.value.code == "context_length_exceeded"
        assert read == [PIECE, PIECE]

    monkeypatch.setattr(Renderer, "count", count)
    with_engine(ask)


def test_work_for_who_has_gone_is_given_up(tmp_path: Path, tiny_base: Callable[..., str]) -> None:
    """Images between two steps, predictions and vectors between two slices."""
    drawings = make_pipeline(tmp_path / "drawings", "sd1")
    steps, model = list[int](), load(str(drawings))

    def between() -> None:
        steps.append(1)
        if len(steps) == 3:
            gone.set()

    gone = threading.Event()
    asked = Draw(ModelRef("drawings", str(drawings)), "a dog", steps=20, size=(16, 16))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Refused, match="Nobody waits"):
        patch.setattr(gone, "is_set", lambda: between() or len(steps) > 3)
        drawn(model, asked, 0, gone)
    assert len(steps) == 4

    base, taken = ModelRef("base", tiny_base("llama")), list[int]()
    real = local.embedded

    def slow(ready: Any, some: Any) -> Any:
        taken.append(len(some))
        time.sleep(0.05)
        return real(ready, some)

    async def leave(engine: LocalEngine) -> None:
        going = asyncio.create_task(engine.embed(Embed(base, ((5,) * 200,) * 100)))
        while not taken:
            await asyncio.sleep(0.01)
        going.cancel()
        await asyncio.sleep(0.3)
        assert len(taken) <= 2 and (await engine.loaded())[0].used == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "embedded", slow)
        with_engine(leave)


def test_what_cannot_be_asked_is_refused(
    tiny_base: Callable[..., str], tmp_path: Path, runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ModelRef("base", tiny_base("llama"))
    bert = ModelRef("bert", tiny_base("bert"))
    nowhere = ModelRef("base", base.base_folder, "ft:gone", str(tmp_path / "gone"))

    async def refused(engine: LocalEngine, status: int, match: str, model: ModelRef, given: Any, **how: Any) -> None:
        with pytest.raises(Refused, match=match) as caught:
            await pieces(engine, model, given, **how)
        assert caught.value.status == status

    async def ask(engine: LocalEngine) -> None:
        await refused(engine, 404, "no model ft:gone", nowhere, "a")
        await refused(engine, 404, "no model other", ModelRef("other", str(tmp_path / "other")), "a")
        await refused(engine, 400, "256 together", base, (5,) * 256)
        await refused(engine, 400, "token id", base, (5, 10**6))
        await refused(engine, 400, "token id", base, (-1,))
        await refused(engine, 400, "token id", base, ())
        await refused(engine, 400, "half of a character", base, "a\ud800")
        await refused(engine, 400, "role", base, [{"role": "nobody", "content": "a"}])
        await refused(engine, 400, "does not generate", bert, "a")
        await refused(engine, 400, "temperature", base, "a", temperature=3)
        await refused(engine, 400, "only alpha 0 and 1", tuned(base.base_folder, runs[3], 0.5), "a")
        for long, param in (((5,) * 256, "prompt"), ([{"role": "user", "content": "fox " * 256}], "messages")):
            with pytest.raises(Refused, match="256 together") as caught:
                await pieces(engine, base, long)
            assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)
        with pytest.raises(Refused, match="reads 256"):
            await engine.embed(Embed(base, ((5,) * 300,)))
        full = await pieces(engine, base, (5,) * 250, temperature=0)
        assert full[-1] == Usage(250, 6) and full[-2].finish == "length"

    with_engine(ask)


def test_a_row_that_is_not_finite_fails_alone(tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelRef("base", tiny_base("llama"))
    slowly(monkeypatch)
    real = Batch.step
    sound = [True]

    def damaged(self: Batch, token_B: torch.Tensor) -> torch.Tensor:
        logits_BV = real(self, token_B)
        if len(logits_BV) == 2 and sound and sound.pop():
            logits_BV[0] = torch.nan
        return logits_BV

    async def ask(engine: LocalEngine) -> list[Any]:
        both = [pieces(engine, model, (5, 6, i), temperature=0, max_tokens=6) for i in (7, 8)]
        return await asyncio.gather(*both, return_exceptions=True)

    expected = with_engine(ask)
    monkeypatch.setattr(Batch, "step", damaged)
    one, other = with_engine(ask)
    assert isinstance(one, Refused) and "NaN" in str(one) and one.status == 500
    assert texts(other) == texts(expected[1])


def test_an_error_in_a_batch_is_told_and_the_next_is_answered(
    tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelRef("base", tiny_base("llama"))
    real = Batch.step
    fails = [True]

    def step(self: Batch, token_B: torch.Tensor) -> torch.Tensor:
        if fails and fails.pop():
            raise RuntimeError("out of memory, in /secret/place")
        return real(self, token_B)

    async def ask(engine: LocalEngine) -> None:
        with pytest.raises(Refused) as caught:
            await pieces(engine, model, "the fox", max_tokens=5)
        assert caught.value.status == 500 and "secret" not in str(caught.value)
        assert isinstance((await pieces(engine, model, "the fox", max_tokens=5))[-1], Usage)

    monkeypatch.setattr(Batch, "step", step)
    with_engine(ask)
