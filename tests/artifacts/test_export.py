"""Exports: damage to any of them is noticed, and what is not verified is not left under the name that was asked for."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import tunewright as tw
from tests.runs import recipe
from tests.tiny import chats, completions, labelled
from tunewright.artifacts import export as exporting
from tunewright.artifacts.apart import foreign
from tunewright.artifacts.apart.foreign import GGUF, ONNX
from tunewright.artifacts.export import export, read_verification
from tunewright.artifacts.questions import BUILT_IN
from tunewright.artifacts.targets import TARGETS
from tunewright.artifacts.targets import gguf as gguf_target
from tunewright.artifacts.verify import Comparison
from tunewright.data.render import Renderer
from tunewright.errors import BaseModelError, DataError, MissingExtra, OutputError, RecipeError, VerificationError

FRESH = exporting.in_a_fresh_process  # as it is before conftest replaces it


@pytest.fixture(scope="module")
def talker(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> tw.Run:
    """A LoRA on conversations."""
    rows = {"train": chats(12), "validation": chats(16)[12:]}
    base = tiny_base("llama", num_hidden_layers=1)
    return tw.train(recipe(base, tmp_path_factory.mktemp("run") / "talker", data=rows))


# What is damaged, and how it is seen

Damage = Callable[[Path], None]


def one_weight(folder: Path) -> None:
    """One number of one matrix becomes 3, whatever it was."""
    if (folder / GGUF).is_file():
        _one_weight_of_gguf(folder / GGUF)
    elif (folder / ONNX).is_file():
        _one_weight_of_onnx(folder / ONNX)
    else:
        _one_weight_of_safetensors(next(folder.glob("*.safetensors")))


def _one_weight_of_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(path)
    name = next(name for name in tensors if "v_proj" in name and tensors[name].ndim == 2)
    tensors[name].view(-1)[5] = 127 if tensors[name].dtype == torch.int8 else 3
    save_file(tensors, path, metadata=metadata)


def _one_weight_of_onnx(path: Path) -> None:
    import onnx

    graph = onnx.load(path)
    matrix = next(one for one in graph.graph.initializer if len(one.dims) == 2 and "embed" not in one.name)
    values = onnx.numpy_helper.to_array(matrix).copy()
    values.flat[5] = 3
    matrix.CopyFrom(onnx.numpy_helper.from_array(values, matrix.name))
    onnx.save(graph, path)


def _one_weight_of_gguf(path: Path) -> None:
    from gguf import GGUFReader

    reader = GGUFReader(path, "r+")
    matrix = next(tensor for tensor in reader.tensors if tensor.name.endswith("attn_v.weight"))
    matrix.data.reshape(-1)[5] = 3
    matrix.data.flush()


def template(folder: Path) -> None:
    """A word of the chat template becomes another one of the same length."""
    if (folder / GGUF).is_file():
        content = (folder / GGUF).read_bytes()
        before, found, after = content.rpartition(b"<|eot_id|>")
        assert found
        (folder / GGUF).write_bytes(before + b"<|eot_if|>" + after)
    else:
        path = folder / "chat_template.jinja"
        path.write_text(path.read_text().replace("<|eot_id|>", "<|eot_if|>"))


def scale(folder: Path) -> None:
    """Only an adapter's folder has one."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": config["lora_alpha"] / 2}))


TEXT = {name: target for name, target in TARGETS.items() if "text-generation" in target.tasks}
PAIRS = [(name, precision) for name, target in TEXT.items() for precision in target.precisions]
CASES = [
    ("peft", "fp32", scale, "An output differs"),
    *[(name, target.precisions[0], template, "Its tokenizer") for name, target in TEXT.items()],
    *[(*pair, one_weight, "An output differs") for pair in PAIRS if pair[1] not in ("int4", "q8_0")],
]
NAMED = pytest.mark.parametrize(
    ("target", "precision", "harm", "said"), CASES, ids=[f"{c[0]} {c[1]} {c[2].__name__}" for c in CASES]
)


@NAMED
def test_damage_is_noticed(
    target: str, precision: str, harm: Damage, said: str, talker: tw.Run, damaged: Any, tmp_path: Path
) -> None:
    damaged(target, harm)
    with pytest.raises(VerificationError, match=said) as caught:
        tw.export(talker.folder, target, tmp_path / "out", precision=precision)
    assert [path.name for path in tmp_path.iterdir()] == ["out.unverified"]
    assert read_verification(tmp_path / "out.unverified") == caught.value.verification
    assert caught.value.verification["verified"] is False


@NAMED
def test_damage_would_not_be_noticed_without_the_comparison(
    target: str, precision: str, harm: Damage, said: str, talker: tw.Run, damaged: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(exporting, "compare", lambda *_, **__: Comparison({}, {}, []))
    damaged(target, harm)
    assert tw.export(talker.folder, target, tmp_path / "out", precision=precision).is_dir()


@pytest.mark.parametrize(("target", "precision"), [("merged", "bf16"), ("quantized", "int8"), ("gguf", "q8_0")])
@pytest.mark.parametrize("share", [1.0, 0.9])
def test_a_tenth_less_of_the_adapter_is_noticed(
    share: float, target: str, precision: str, tiny_base: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """It is no larger than the rounding to eight bits, but goes one way."""
    from peft.tuners.lora import LoraLayer

    data = {"train": chats(12), "validation": chats(28)[12:]}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", data=data, training={"learning_rate": 0.002}))
    write = type(TARGETS[target]).write

    def scaled(self: Any, model: Any, *rest: Any) -> None:
        for module in model.module.modules():
            if isinstance(module, LoraLayer):
                module.scaling = {name: share * scale for name, scale in module.scaling.items()}
        write(self, model, *rest)

    monkeypatch.setattr(type(TARGETS[target]), "write", scaled)
    if share == 1:
        found = read_verification(tw.export(run.folder, target, tmp_path / "out", precision=precision))
        assert abs(found["figures"]["effect"] - 1) < 0.03
        return
    with pytest.raises(VerificationError) as caught:
        tw.export(run.folder, target, tmp_path / "out", precision=precision)
    assert any(line.startswith("It has ") for line in caught.value.verification["failures"])


# The way of an export


def test_a_fresh_process_answers_as_this_one(talker: tw.Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(exporting, "in_a_fresh_process", FRESH)
    apart = read_verification(tw.export(talker.folder, "merged", tmp_path / "apart"))
    monkeypatch.setattr(exporting, "in_a_fresh_process", foreign.ask)
    here = read_verification(tw.export(talker.folder, "merged", tmp_path / "here"))
    assert apart["figures"] == here["figures"] and apart["verified"]
    assert apart["rows_from"] == "the run's validation rows" and apart["rows"] == 4


def test_an_export_that_cannot_be_loaded_is_not_verified(
    talker: tw.Run, damaged: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(exporting, "in_a_fresh_process", FRESH)
    damaged("merged", lambda folder: (folder / "config.json").unlink())
    with pytest.raises(VerificationError, match="It could not be run: "):
        tw.export(talker.folder, "merged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_runs_an_export_imports_nothing_of_ours() -> None:
    modules: list[str] = []
    for path in Path(foreign.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level < 2
                modules.append(node.module or "")
            elif isinstance(node, ast.Import):
                modules += [name.name for name in node.names]
    assert "transformers" in modules and not [name for name in modules if name.split(".")[0] == "tunewright"]


def test_a_first_failure_makes_way_for_a_second(talker: tw.Run, damaged: Any, tmp_path: Path) -> None:
    damaged("peft", scale)
    for _ in range(2):
        with pytest.raises(VerificationError):
            tw.export(talker.folder, "peft", tmp_path / "out")


def test_what_lies_beside_an_export_stays(talker: tw.Run, damaged: Any, tmp_path: Path) -> None:
    damaged("peft", scale)
    mine = [tmp_path / "out.unverified" / "mine.txt", tmp_path / ".other.draft" / "mine.txt"]
    for path in mine:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(OutputError, match=r"out\.unverified is in use"):
        tw.export(talker.folder, "peft", tmp_path / "out")
    with pytest.raises(VerificationError):
        tw.export(talker.folder, "peft", tmp_path / "other")
    assert all(path.is_file() for path in mine)
    assert {path.name for path in tmp_path.iterdir()} == {"out.unverified", ".other.draft", "other.unverified"}


@pytest.mark.parametrize("folder", [".", "sub/.."])
def test_an_export_does_not_take_the_place_of_the_folder_one_is_in(
    folder: str, talker: tw.Run, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="Name a new folder"):
        tw.export(talker.folder, "peft", folder)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"target": "peft", "precision": "bf16"}, RecipeError, "peft has no precision bf16. Possible: fp32"),
        ({"target": "merged", "precision": "q8_0"}, RecipeError, "Possible: fp32, bf16, fp16"),
        ({"target": "quantized", "precision": "int4"}, BaseModelError, "a CUDA GPU only.*int8"),
        ({"target": "merged", "rows": labelled(3)}, DataError, "classification rows; this model needs chat"),
    ],
)
def test_what_cannot_be_is_refused(
    arguments: dict[str, Any], error: type[Exception], said: str, talker: tw.Run, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        tw.export(talker.folder, folder=tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_chat_serves_otherwise_than_it_was_trained_is_refused(
    talker: tw.Run, tmp_path: Path, monkeypatch: Any
) -> None:
    prompt = Renderer.prompt
    monkeypatch.setattr(Renderer, "prompt", lambda *given: [*prompt(*given), 7])
    with pytest.raises(DataError, match="served in other tokens than it was trained in"):
        tw.export(talker.folder, "peft", tmp_path / "longer")


@pytest.mark.parametrize(("target", "extra"), [("quantized", "quantize"), ("onnx", "onnx"), ("gguf", "gguf")])
def test_a_missing_extra_is_named(target: str, extra: str, talker: tw.Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tunewright.artifacts.targets.base.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=rf"tunewright\[{extra}\]"):
        tw.export(talker.folder, target, tmp_path / "out")


def test_rows_may_be_given_and_are_built_in_where_there_are_none(talker: tw.Run, tmp_path: Path) -> None:
    rows = [*chats(3), {"messages": [{"role": "user", "content": "x " * 400}, {"role": "assistant", "content": "y"}]}]
    given = read_verification(tw.export(talker.folder, "peft", tmp_path / "given", rows=rows))
    assert (given["rows_from"], given["prompts"]) == ("rows", 3), "a prompt that fills the context is not asked"
    nameless = read_verification(tw.export(talker.folder / "model", "peft", tmp_path / "nameless"))
    assert nameless["rows_from"] == BUILT_IN and nameless["rows"] == 8


@pytest.mark.parametrize("kind", ["single", "several", "number", "pairs"])
def test_classifiers_of_every_kind(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    rows = labelled(12)
    for i, row in enumerate(rows):
        row |= {"label": [["a"], ["a", "b"], []][i % 3]} if kind == "several" else {}
        row |= {"label": i / 4} if kind == "number" else {}
        row |= {"text_pair": row["text"][::-1]} if kind == "pairs" else {}
    data = {"train": rows, "validation": rows[:6]}
    run = tw.train(recipe(tiny_base("bert"), tmp_path / "run", task="text-classification", data=data))
    for target in ("peft", "merged"):
        assert read_verification(tw.export(run.folder, target, tmp_path / target))["verified"]


def test_a_graph_reads_padded_batches(tiny_base: Any, tmp_path: Path) -> None:
    import onnxruntime

    run = tw.train(recipe(tiny_base("bert", num_hidden_layers=1), tmp_path / "run", task="text-classification"))
    folder = tw.export(run.folder, "onnx", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(folder / ONNX)
    texts = ["fox", "the little fox lived in a forest"]
    (together,) = session.run(["logits"], dict(run.model.processor(texts, padding=True, return_tensors="np")))
    alone = [session.run(["logits"], dict(run.model.processor([t], return_tensors="np")))[0][0] for t in texts]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_an_export_says_itself_what_ends_an_answer(talker: tw.Run, tmp_path: Path) -> None:
    folder = tw.export(talker.folder, "merged", tmp_path / "out")
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(talker.model.processor.convert_ids_to_tokens(ends)) == ["<|end_of_text|>", "<|eot_id|>"]


@pytest.mark.parametrize("target", ["onnx", "quantized"])
def test_experts(target: str, tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("qwen3_moe")
    if target == "onnx":
        assert export(base, target, tmp_path / "out").is_dir()
    else:
        with pytest.raises(tw.TunewrightError, match="experts"):
            export(base, target, tmp_path / "out")


# gguf

LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}  # fmt: skip


def test_stretched_rotations_travel(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    base = tiny_base("llama", **LLAMA3)
    assert export(base, "gguf", tmp_path / "right").is_dir()
    monkeypatch.setattr(gguf_target, "rope_factors", lambda *_: np.ones(4, dtype=np.float32))
    with pytest.raises(VerificationError):
        export(base, "gguf", tmp_path / "wrong")


def test_rows_of_queries_and_keys_change_places(tiny_base: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gguf_target, "interleaved", lambda weight, heads: weight)
    with pytest.raises(VerificationError):
        export(tiny_base("llama"), "gguf", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("mistral", {}, "a window of 12 tokens"),
        ("gemma3", {}, "of the types llama, mistral, qwen2, qwen3"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "the type linear"),
    ],
)
def test_what_gguf_does_not_hold(kind: str, options: dict[str, Any], said: str, tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=said):
        export(tiny_base(kind, **options), "gguf", tmp_path / "out")


def test_stories(shared: Path, tmp_path: Path) -> None:
    """A real tokenizer of SentencePiece's kind, in every form."""
    rows = {"train": completions(12), "validation": completions(16)[12:]}
    run = tw.train(recipe(str(shared / "models" / "stories260k"), tmp_path / "run", data=rows))
    for target, precision in [("merged", "fp16"), ("quantized", "int8"), ("gguf", "f16"), ("gguf", "q8_0")]:
        assert tw.export(run.folder, target, tmp_path / precision, precision=precision).is_dir()
