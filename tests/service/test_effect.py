"""Whether trained weights show where a model answers is found out, however they were trained."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.runs import apart, recipe
from tests.service.inference import METHODS, train, tuned
from tunewright.errors import MethodError
from tunewright.launch.apart import FORKED
from tunewright.service.effect import _look, look_apart
from tunewright.service.errors import Lost
from tunewright.service.inference.adapters import Bank
from tunewright.service.inference.effect import effect_of
from tunewright.service.inference.models import Models
from tunewright.service.inference.protocol import Effect, Finding, ModelRef
from tunewright.service.inference.stacks import Route


@pytest.mark.parametrize("method", sorted({*METHODS} - {"gpt2"}))
def test_what_was_trained_shows(tiny_base: Callable[..., str], tmp_path: Path, method: str) -> None:
    base = tiny_base("llama")
    run = train(base, tmp_path / "run", method)
    assert effect_of(tuned(base, run), "text-generation") == Finding(Effect.THERE)


def test_a_head_alone_shows(tiny_base: Callable[..., str], tmp_path: Path) -> None:
    """It changes no hidden state."""
    base = tiny_base("llama")
    made = recipe(base, tmp_path / "run", method="head", training={"max_steps": 2, "batch": 4, "learning_rate": 0.05})
    run = tw.train(made).folder
    assert effect_of(tuned(base, run), "text-generation") == Finding(Effect.THERE)


def test_weights_without_effect_are_found(
    tiny_base: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    runs = {rate: train(base, tmp_path / f"{rate}", "lora", training={"learning_rate": rate}) for rate in (0.05, 1e-30)}
    assert effect_of(tuned(base, runs[1e-30]), "text-generation") == Finding(Effect.NONE)
    monkeypatch.setattr(Bank, "using", lambda *_: nullcontext())
    assert effect_of(tuned(base, runs[0.05]), "text-generation") == Finding(Effect.LOST)
    assert effect_of(tuned(base, runs[1e-30]), "text-generation") == Finding(Effect.NONE)


@pytest.mark.parametrize("part", ["prompts", "steps", "joined layers of steps"])
def test_weights_without_effect_in_one_of_the_ways_that_answers_are_made_are_found(
    tiny_base: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    base = tiny_base("llama")
    run = train(base, tmp_path / "run", "lora")
    route = Bank.route

    if part == "prompts":  # of which one is read, and several rows go on from it
        monkeypatch.setattr(Bank, "route", lambda bank, rows: route(bank, rows) if len(rows) > 1 else ())
    elif part == "steps":
        monkeypatch.setattr(Route, "_act", lambda *_: lambda x, y: None)
    else:
        monkeypatch.setattr(Bank, "add", lambda *_: None)
    assert effect_of(tuned(base, run), "text-generation") == Finding(Effect.LOST)


def test_a_start_that_cannot_be_loaded_is_no_proof(
    tiny_base: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where there is no path to it nothing can be compared."""
    base = tiny_base("llama")
    run = train(base, tmp_path / "run", "full")
    load = Models._apart

    def fails(error: Exception) -> Callable[..., Any]:
        def apart(models: Models, ref: ModelRef, folder: Path) -> Any:
            if ref.alpha == 0:
                raise error
            return load(models, ref, folder)

        return apart

    monkeypatch.setattr(Models, "_apart", fails(RuntimeError("CUDA out of memory")))
    assert effect_of(tuned(base, run), "text-generation") == Finding(Effect.UNKNOWN, "CUDA out of memory")
    monkeypatch.setattr(Models, "_apart", fails(MethodError("its head began at random")))
    assert effect_of(tuned(base, run), "text-generation") == Finding(Effect.THERE)


def test_a_model_that_cannot_be_loaded_is_told_from_a_lack_of_memory(
    tiny_base: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base("llama")
    run = train(base, tmp_path / "run", "lora")
    with monkeypatch.context() as patch:
        patch.setattr(Models, "_base", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA out of memory")))
        assert effect_of(tuned(base, run), "text-generation") == Finding(Effect.UNKNOWN, "CUDA out of memory")
    next((run / "model").glob("*.safetensors")).write_bytes(b"no weights")
    assert effect_of(tuned(base, run), "text-generation").effect is Effect.BROKEN


def test_a_look_that_is_broken_off_leaves_no_process(
    tiny_base: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> bool:
        raise Lost("cancelled")

    base = tiny_base("llama")
    assert look_apart(tuned(base, tmp_path), "text-generation", "cpu", lambda: False).effect is Effect.BROKEN
    monkeypatch.setattr("tunewright.service.effect.SECONDS_BETWEEN_LOOKS", 0)
    with pytest.raises(Lost):
        look_apart(tuned(base, tmp_path), "text-generation", "cpu", lost)
    assert look_apart(tuned(base, tmp_path), "text-generation", "cpu", lambda: True).effect is Effect.UNKNOWN
    assert not apart()


class Slow(str):
    """A task that takes long to look at."""

    def __hash__(self) -> int:
        time.sleep(60)
        return super().__hash__()


def test_a_look_ends_with_the_worker_that_was_killed(tiny_base: Callable[..., str], tmp_path: Path) -> None:
    here, there = FORKED.Pipe()
    model = tuned(tiny_base("llama"), tmp_path)
    process = FORKED.Process(target=_look, args=(there, model, Slow("text-generation"), "cpu"))
    process.start()
    there.close()
    try:
        assert not here.poll(3) and process.is_alive()
        here.close()  # as when its process is gone
        process.join(20)
        assert process.exitcode == 1
    finally:
        process.kill()
