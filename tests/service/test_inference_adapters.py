"""One base with many LoRAs: each row is answered by its own, at its own α, as if the run had been loaded alone."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.service.inference import train, tuned
from tunewright.artifacts.interpolate import load
from tunewright.service.errors import Refused
from tunewright.service.inference.models import Models, Ready
from tunewright.service.inference.protocol import ModelRef
from tunewright.tasks._pretrained import load_tokenizer
from tunewright.tasks._rows import Batch

ALPHAS = (0.0, 0.35, 1.0)
TOKENS = 9


@pytest.fixture(scope="module")
def runs(tiny_base: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    base = tiny_base("llama")
    made = {name: train(base, root / name, name) for name in ("lora", "rslora", "lora+", "table")}
    made["other"] = train(base, root / "other", "lora", training={"seed": 5})
    made["stacked"] = train(str(made["lora"]), root / "stacked", "lora+", training={"seed": 3})
    return made


def ids(rows: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(5, 250, (rows, TOKENS)))


def alone(run: Path | str, alpha: float, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load(run, alpha=alpha).module.double()(input_ids=ids_BT).logits


def in_memory() -> Models:
    """In fp64, in which nothing but a mistake differs by 1e-5: these models have gone far, and round visibly."""
    models = Models(10**9, "cpu")
    models.dtype = torch.float64
    return models


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def together(readies: list[Ready], ids_BT: torch.Tensor) -> torch.Tensor:
    """[B, T, V] of one batch, a model for each row."""
    (shared,) = {ready.shared for ready in readies}
    assert shared.bank
    with torch.inference_mode(), shared.bank.using(shared.bank.route([ready.terms for ready in readies])):
        return shared.module(input_ids=ids_BT).logits


def test_each_row_is_answered_by_its_own(runs: dict[str, Path], tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    models = in_memory()
    points = [(run, alpha) for run, alpha in itertools.product(runs.values(), ALPHAS)]
    np.random.default_rng(2).shuffle(points)  # type: ignore[arg-type]
    readies = [models.take(tuned(base, run, alpha)) for run, alpha in points]
    readies.insert(4, models.take(ModelRef("base", base)))
    ids_1T = ids(1)
    found_BTV = together(readies, ids_1T.expand(len(readies), -1))
    expected = [alone(run, alpha, ids_1T)[0] for run, alpha in points]
    expected.insert(4, alone(base, 1.0, ids_1T)[0])
    assert_same(found_BTV, torch.stack(expected))
    ends = [place for place, ready in enumerate(readies) if ready.ref.alpha == 1]
    apart = [(found_BTV[i] - found_BTV[j]).abs().max() for i, j in itertools.combinations(ends, 2)]
    assert min(apart) > 0.05, "the runs answer alike, so that this shows nothing"
    assert {one.kind for one in models.loaded()} == {"base", "adapter"}
    assert len(models.loaded()) == 1 + len(runs) + 1  # and what `stacked` began with


@pytest.mark.parametrize(
    "names",
    [["lora", "stacked", "table", "lora"], ["stacked"] * 2, ["lora+"] * 3, ["other"] * 2, ["lora+", "none", "lora+"]],
)
@pytest.mark.parametrize("joined", [0, 16384])
def test_so_it_is_in_single_steps(
    names: list[str], joined: int, runs: dict[str, Path], tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In which layers that read the same compute as one."""
    monkeypatch.setattr("tunewright.service.inference.stacks.JOINED", joined)
    models = in_memory()
    base = tiny_base("llama")
    points = [(runs.get(name, Path(base)), 0.35 if name in ("stacked", "other") else 1.0) for name in names]
    asked = [tuned(base, run, alpha) if str(run) != base else ModelRef("base", base) for run, alpha in points]
    readies = [models.take(one) for one in asked]
    shared = readies[0].shared
    assert shared.bank and shared.form and shared.form.quick
    ids_BT = ids(1).expand(len(names), -1)
    batch = Batch(shared.form, 0, 256, open=True)
    with torch.inference_mode(), shared.bank.using(shared.bank.route([ready.terms for ready in readies])):
        batch.read(ids_BT[:, :-2].tolist())
        found = torch.stack([batch.step(ids_BT[:, -2]), batch.step(ids_BT[:, -1])], 1)
    assert_same(found, torch.stack([alone(run, alpha, ids(1))[0, -2:] for run, alpha in points]))


def test_layers_are_as_before_where_no_row_has_one(runs: dict[str, Path], tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    models = in_memory()
    ready, plain = models.take(tuned(base, runs["lora"])), models.take(ModelRef("base", base))
    together([ready], ids(1))
    assert torch.equal(together([plain] * 3, ids(3)), alone(base, 1.0, ids(3)))


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "qwen3"])
def test_other_architectures(kind: str, tiny_base: Callable[..., str], tmp_path: Path) -> None:
    """Transposed layers, windows and scaled tables, normed heads."""
    base = tiny_base(kind)
    made = [train(base, tmp_path / str(seed), "gpt2", training={"seed": seed}) for seed in (1, 2)]
    models = in_memory()
    readies = [models.take(tuned(base, made[i], alpha)) for i, alpha in ((1, 1.0), (0, 0.5), (1, 0.2))]
    found = together(readies, ids(3))
    for i, (n, alpha) in enumerate(((1, 1.0), (0, 0.5), (1, 0.2))):
        assert_same(found[i], alone(made[n], alpha, ids(3))[i])


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_rows_of_tokens_train_beside(kind: str, tiny_base: Callable[..., str], tmp_path: Path) -> None:
    """A table and a head of their own, and one weight for both, which Gemma scales where it is the table."""
    base = tiny_base(kind)
    names = load_tokenizer(base).convert_ids_to_tokens([31, 77, 140])
    made = [
        train(base, tmp_path / str(i), "lora", data={"special_tokens": names[i : i + 2]}, training={"seed": i})
        for i in (0, 1)
    ]
    made.append(train(str(made[0]), tmp_path / "stacked", "lora+", data={"special_tokens": names[1:]}))
    ids_BT = ids(1)
    ids_BT[0, 2:5] = torch.tensor([31, 77, 140])
    models = in_memory()
    points = [*itertools.product(made, ALPHAS)]
    readies = [models.take(tuned(base, run, alpha)) for run, alpha in points]
    readies.append(models.take(ModelRef("base", base)))
    found = together(readies, ids_BT.expand(len(readies), -1))
    assert_same(found, torch.stack([alone(run, alpha, ids_BT)[0] for run, alpha in [*points, (base, 1.0)]]))


@pytest.mark.parametrize("method", ["full", "freeze", "dora", "along", "adapter", "ia3", "prompt"])
def test_all_others_are_models_of_their_own(method: str, tiny_base: Callable[..., str], tmp_path: Path) -> None:
    base = tiny_base("llama")
    run = train(base, tmp_path / "run", method)
    models = in_memory()
    for alpha in (0.0, 0.4, 1.0):
        if method == "prompt" and alpha == 0.4:
            with pytest.raises(Refused, match="only alpha 0 and 1"):
                models.take(tuned(base, run, alpha))
            continue
        ready = models.take(tuned(base, run, alpha))
        with torch.no_grad():
            assert_same(ready.shared.module(input_ids=ids(2)).logits, alone(run, alpha, ids(2)))
        assert not ready.terms and models.at_hand(ready.ref)
    assert {one.kind for one in models.loaded()} == {"own"}
    assert len(models.loaded()) == (2 if method == "prompt" else 3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_broken_adapter_does_not_reach_others(
    value: float, runs: dict[str, Path], tiny_base: Callable[..., str], tmp_path: Path
) -> None:
    """0 times infinity is not 0: a row meets no weights but its own."""
    base = tiny_base("llama")
    broken = tmp_path / "broken"
    shutil.copytree(runs["lora"], broken)
    file = broken / "model" / "adapter_model.safetensors"
    state: dict[str, Any] = load_file(file)
    next(tensor for name, tensor in state.items() if "lora_A" in name)[0, 0] = value
    save_file(state, file, metadata={"format": "pt"})
    models = in_memory()
    readies = [models.take(tuned(base, run)) for run in (runs["other"], broken, broken, runs["lora"])]
    readies.insert(2, models.take(ModelRef("base", base)))
    found_BTV = together(readies, ids(1).expand(5, -1))
    for place, run in ((0, runs["other"]), (2, base), (4, runs["lora"])):
        assert_same(found_BTV[place], alone(run, 1.0, ids(1))[0])
    assert (found_BTV[1] - found_BTV[4]).abs().max() > 0.05 or found_BTV[1].isnan().any()


def test_loras_that_were_used_stay_stacked_while_there_is_room(
    runs: dict[str, Path], tiny_base: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    models = in_memory()
    taken = {name: models.take(tuned(base, run)) for name, run in runs.items()}
    bank = taken["lora"].shared.bank
    assert bank

    def stacked(*names: str) -> list[list[int]]:
        readies = [taken[name] for name in names]
        whole = [alone(ready.ref.run_folder or "", 1.0, ids(1))[0] for ready in readies]
        assert_same(together(readies, ids(1).expand(len(readies), -1)), torch.stack(whole))
        assert bank
        routes = bank.route([ready.terms for ready in readies])
        return [[lora.rank for lora in route.stack.loras] for route in routes]

    monkeypatch.setattr("tunewright.service.inference.adapters.RANKS", 12)
    assert stacked("lora", "other") == [[4, 4]]
    assert stacked("other", "rslora") == [[4, 6]], "there was no room for the first"
    assert stacked("lora+") == [[3]]
    assert stacked("lora+", "lora", "other") == [[3], [4, 4]], "ranks that are not alike were filled up"
    monkeypatch.setattr("tunewright.service.inference.adapters.RANKS", 24)
    assert stacked("other", "rslora") == [[4, 6, 4]]
    assert stacked("table", "lora") == [[4, 4]], "what rows do not use was computed"
    assert stacked("rslora", "lora") == [[6, 4]]
    assert stacked("rslora", "lora", "other") == [[4, 4, 4, 6]]
    bank._stacks.clear()
    monkeypatch.setattr("tunewright.service.inference.adapters.RANKS", 12)
    assert stacked("rslora", "table") == [[6, 4]]
    assert stacked("lora", "other") == [[4, 4, 4]], "the rank of one that is left out was counted"


def test_a_lora_may_be_forgotten_while_a_row_that_uses_it_waits(
    runs: dict[str, Path], tiny_base: Callable[..., str]
) -> None:
    base = tiny_base("llama")
    models = in_memory()
    one, two = (models.take(tuned(base, runs[name])) for name in ("lora", "other"))
    bank = one.shared.bank
    assert bank
    together([one, two], ids(2))
    bank.forget(one.terms[0][0])
    for readies in ([one], [one, two]):
        whole = [alone(ready.ref.run_folder or "", 1.0, ids(1))[0] for ready in readies]
        assert_same(together(readies, ids(1).expand(len(readies), -1)), torch.stack(whole))
    assert not bank._stacks and one.terms[0][0] not in bank._alone, "what was forgotten is still in memory"


def test_rows_with_one_lora_with_two_and_without(runs: dict[str, Path], tiny_base: Callable[..., str]) -> None:
    base = tiny_base("llama")
    models = in_memory()
    kinds: dict[str, tuple[Path | str, float]] = {
        "one": (runs["lora"], 1.0), "other": (runs["other"], 1.0), "two": (runs["stacked"], 0.35), "none": (base, 1.0),
    }  # fmt: skip
    readies = {name: models.take(tuned(base, run, alpha)) for name, (run, alpha) in kinds.items() if run != base}  # type: ignore[arg-type]
    readies["none"] = models.take(ModelRef("base", base))
    whole = {name: alone(run, alpha, ids(1))[0] for name, (run, alpha) in kinds.items()}
    for names in (["none", "one"], ["one", "none", "one"], ["none", "two"], ["other", "one", "other"], ["one", "one"]):
        found = together([readies[name] for name in names], ids(1).expand(len(names), -1))
        assert_same(found, torch.stack([whole[name] for name in names]))
    bank = readies["one"].shared.bank
    assert bank
    (route,) = bank.route([readies[name].terms for name in ("other", "one", "other")])
    assert route.moves and route.moves.to_N is None, "what is most frequent is not done in the fast way"
    name_of = {readies[name].terms[0][0]: name for name in ("one", "other")}
    for names in (["one", "one"], [name_of[lora] for lora in route.stack.loras]):
        (route,) = bank.route([readies[name].terms for name in names])
        assert route.moves is None and route.factor_GM1 is None, "rows that lie in order were moved"
        whole_BTV = torch.stack([whole[name] for name in names])
        assert_same(together([readies[name] for name in names], ids(1).expand(2, -1)), whole_BTV)
