"""A base of any kind answers what it can, and says what to do where it cannot; a run may be one."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

import tunewright as tw
from tests.runs import recipe
from tests.service.inference import METHODS, chats, pieces, train, tuned, with_engine
from tests.service.served import CHAT, Served, ended, jsonl, served
from tests.service.test_inference_adapters import alone, assert_same, ids, in_memory
from tests.tiny import DECODERS, ENCODERS, VISION, encoder_tokenizer, pictures, random_weights
from tunewright.errors import BaseModelError
from tunewright.service.bases import find_bases, task_of
from tunewright.service.errors import Refused
from tunewright.service.inference.local import LocalEngine
from tunewright.service.inference.models import Models, Ready
from tunewright.service.inference.protocol import Classify, Draw, Embed, Loaded, ModelRef

PICTURE = base64.b64encode(pictures(1)[0]["image"]).decode()
ASKED: dict[str, Callable[[LocalEngine, ModelRef], Awaitable[Any]]] = {
    "generate": lambda engine, model: pieces(engine, model, "the fox", max_tokens=3, temperature=0),
    "classify": lambda engine, model: engine.classify(Classify(model, (PICTURE,))),
    "images": lambda engine, model: engine.images(Draw(model, "a dog", steps=2)),
    "embed": lambda engine, model: engine.embed(Embed(model, ("the fox",))),
}
LABELS = {"id2label": {0: "fox", 1: "dog"}, "label2id": {"fox": 0, "dog": 1}}
BASES: dict[str, tuple[str, ...]] = {
    "llama": ("generate", "embed"),
    "sd1": ("images",),
    "sdxl": ("images",),
    "bert": ("embed",),
    "bert with a head": ("classify", "embed"),
    "llama with a head": ("classify", "embed"),
    "vit with a head": ("classify",),
    "resnet with a head": ("classify",),
    "run of a module": ("classify",),
    "vit": (),
    "resnet": (),
    "clip": (),
    "t5": (),
}
"""What each can be asked."""


@pytest.fixture(scope="module")
def a_base(tiny_base: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    root = tmp_path_factory.mktemp("bases")

    def base(name: str) -> str:
        kind, _, head = name.partition(" with ")
        folder = root / name
        if folder.is_dir():
            return str(folder)
        if name == "run of a module":
            how: Any = {"method": "full", "module": {"image": {"resize": 16, "crop": 16}}}
            return str(tw.train(recipe("tests.networks:lived_net", folder, task="image-classification", **how)).folder)
        if name == "t5":
            config = hf.T5Config(vocab_size=300, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
            random_weights(hf.AutoModel, config).save_pretrained(folder)
            encoder_tokenizer("roberta").save_pretrained(folder)
            return str(folder)
        if not head:
            return tiny_base(kind)
        return str(with_head(Path(shutil.copytree(tiny_base(kind), folder)), kind))

    return base


def with_head(folder: Path, kind: str) -> Path:
    """The base in a folder as a classifier."""
    auto: Any = hf.AutoModelForImageClassification
    if kind in VISION:
        config = VISION[kind](**LABELS)
    else:
        tokenizer = hf.AutoTokenizer.from_pretrained(folder)
        make = ENCODERS[kind] if kind in ENCODERS else DECODERS[kind][1]
        special = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        auto, config = hf.AutoModelForSequenceClassification, make(**special, **LABELS)
    random_weights(auto, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", BASES)
def test_a_base_answers_what_it_can(name: str, precision: str, a_base: Callable[[str], str]) -> None:
    """In bf16 too, in which weights lie on a GPU."""
    model = ModelRef("mine", a_base(name))

    async def ask(engine: LocalEngine) -> None:
        engine.models.dtype = getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[precision])
        for asked, ask in ASKED.items():
            if asked in BASES[name]:
                assert await ask(engine, model)
                continue
            with pytest.raises(Refused, match=r"^mine .*(tune it first|Ask it for [a-z]+ \(/)") as caught:
                await ask(engine, model)
            assert (caught.value.status, caught.value.param) == (400, "model")
        assert len(engine.models.loaded()) == bool(BASES[name])

    with_engine(ask)


TASKS = {
    "llama": "text-generation",
    "sd1": "text-to-image",
    "bert with a head": "text-classification",
    "vit with a head": "image-classification",
    "run of a module": "image-classification",
    "bert": None,
}


@pytest.mark.parametrize("name", TASKS)
def test_a_base_says_what_it_answers(name: str, a_base: Callable[[str], str]) -> None:
    assert task_of(Path(a_base(name))) == TASKS[name]


def test_to_say_so_no_library_of_models_is_loaded() -> None:
    """The process that speaks with clients asks at its start, and for each list."""
    code = """import sys
from tunewright.service.bases import task_of
from tunewright.tiny_base import tiny_base
assert task_of(tiny_base()) == "text-generation" and not {"torch", "transformers"} & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)


STEPS = {"lora": ("lora", "full", "dora"), "full": ("lora", "full"), "dora": ("lora",), "adapter": ("adapter",)}
"""Of what a run was tuned, and what was tuned on it."""


@pytest.fixture(scope="module")
def runs(tiny_base: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {name: train(tiny_base("llama"), root / name, name) for name in STEPS}


def logits_of(ready: Ready, ids_BT: torch.Tensor) -> torch.Tensor:
    bank = ready.shared.bank
    with torch.inference_mode(), bank.using(bank.route([ready.terms] * len(ids_BT))) if bank else nullcontext():
        return ready.shared.module(input_ids=ids_BT).logits


@pytest.mark.parametrize("below, method", [(below, method) for below, each in STEPS.items() for method in each])
def test_a_run_is_a_base(below: str, method: str, runs: dict[str, Path], tmp_path: Path) -> None:
    """It answers as it was trained, and so does every point of a run on it: at 0, the base."""
    base = str(runs[below])
    run, models = train(base, tmp_path / "run", method, training={"seed": 3}), in_memory()
    ready = models.take(ModelRef("mine", base))
    rows = ids(2)
    given = logits_of(ready, rows)
    assert_same(given, alone(base, 1.0, rows))
    for alpha in (0.0, 0.5, 1.0):
        point = models.take(tuned(base, run, alpha))
        assert_same(logits_of(point, rows), given if alpha == 0 else alone(run, alpha, rows))
        assert (point.shared is ready.shared) == (method == "lora" and below in ("lora", "full"))
    assert {one.name for one in models.loaded() if one.kind != "own"} <= {"mine", "ft:base:" + f"{run.parent.name}/run"}


def test_a_base_that_is_a_run_takes_the_room_of_all_that_it_is(runs: dict[str, Path], tmp_path: Path) -> None:
    """Where a LoRA lies on it that is a model of its own, and is loaded with what lies below."""
    run = train(str(runs["lora"]), tmp_path / "run", "dora", training={"seed": 3})
    sizes = {one.name: one.bytes for one in loaded_by(tuned(str(runs["lora"]), run))}
    with pytest.raises(Refused, match="takes") as caught:
        Models(sum(sizes.values()) - 5000, "cpu").take(tuned(str(runs["lora"]), run))
    assert caught.value.code == "model_too_large"
    for name in ("lora", "full"):
        size = sum(one.bytes for one in loaded_by(ModelRef("mine", str(runs[name]))))
        with pytest.raises(Refused):
            Models(size - 5000, "cpu").take(ModelRef("mine", str(runs[name])))


def loaded_by(model: ModelRef) -> list[Loaded]:
    models = Models(10**9, "cpu")
    assert models.take(model)
    return models.loaded()


def test_tokenizers_are_those_of_each_run(tiny_base: Callable[..., str], tmp_path: Path) -> None:
    """Two LoRAs on one base, and that base: none is fed by the tokenizer of another."""
    made = [train(tiny_base("qwen3"), tmp_path / name, "lora", training={"seed": i}) for i, name in enumerate("ab")]
    models = Models(10**9, "cpu")
    refs = [ModelRef("plain", tiny_base("qwen3")), *(ModelRef(run.name, str(run)) for run in made)]
    readies = [models.take(ref) for ref in refs]
    assert len({id(ready.model.processor) for ready in readies}) == 3
    assert len({ready.shared for ready in readies}) == 1
    assert {one.name for one in models.loaded()} == {"plain", "a", "b"}


def test_what_cannot_answer_is_refused_at_the_start(
    runs: dict[str, Path], a_base: Callable[[str], str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(runs["lora"], tmp_path / "run"))
    assert find_bases([tmp_path])["run"] == folder == find_bases([folder])["run"]
    module = Path(a_base("run of a module"))
    with pytest.raises(BaseModelError, match="Name the run that it was trained in"):
        find_bases([module / "model"])
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "status": "stopped"}))
    shutil.move(folder / "model", tmp_path / "away")
    with pytest.raises(BaseModelError, match=r"no model yet .* tunewright resume"):
        find_bases([tmp_path])
    shutil.move(tmp_path / "away", folder / "model")
    card = json.loads((folder / "model" / "tunewright.json").read_text())
    (folder / "model" / "tunewright.json").write_text(json.dumps({**card, "base": str(tmp_path / "gone")}))
    with pytest.raises(BaseModelError, match=r"gone, which is not there.*tunewright export"):
        find_bases([folder])


@pytest.fixture(scope="module")
def service(
    tiny_base: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, dict[str, Path]]]:
    root = tmp_path_factory.mktemp("served")
    made = {name: train(tiny_base("llama"), root / "runs" / name, name, data=chats()) for name in ("lora", "full")}
    with served(root / "home", [str(root / "runs")]) as found:
        yield found, made


@pytest.mark.parametrize("below", ["lora", "full"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_is_served_and_tuned(below: str, method: str, service: tuple[Served, dict[str, Path]]) -> None:
    client = service[0].client()
    rows = client.files.create(file=("rows.jsonl", jsonl(CHAT)), purpose="fine-tune")
    training = {"learning_rate": 0.05 if method == "lora" else 0.002}
    made = client.fine_tuning.jobs.create(
        model=below,
        training_file=rows.id,
        hyperparameters={"n_epochs": 1, "batch_size": 4},
        extra_body={"recipe": {"method": METHODS[method], "training": training}},
    )
    done = ended(client, made)
    assert done.status == "succeeded", done.error
    asked: Any = [{"role": "user", "content": "fox stone"}]

    def said(name: str) -> str:
        found: Any = client.chat.completions.create(
            model=name, messages=asked, temperature=0, max_tokens=6, logprobs=True
        )
        return str([(one.token, round(one.logprob, 3)) for one in found.choices[0].logprobs.content])

    begin, half, end = (said(f"{done.fine_tuned_model}@{alpha}") for alpha in (0, 0.5, 1))
    assert begin == said(below) and len({begin, half, end}) == 3 and end == said(done.fine_tuned_model)
    answer = client.chat.completions.create(model=below, messages=asked, temperature=0, max_tokens=6)
    assert answer.choices[0].message.content == tw.chat(service[1][below], asked, max_new_tokens=6)
