"""Textual inversion: one new word trains, diffusers reads it, and nothing else has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tunewright as tw
from tests.contracts.steps import prepared
from tests.pipelines import diffusers
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import captioned
from tunewright.errors import BaseModelError, DataError, Interrupted, MethodError, RecipeError
from tunewright.methods.textual_inversion import EMBEDS

TASK, TOKEN = "text-to-image", "<my-wall>"
WORD: dict[str, Any] = {"type": "textual_inversion", "token": TOKEN, "word": "a", "vectors": 2}
SHORT: dict[str, Any] = {"steps": 2, "seed": 3}


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [{**row, "text": f"a photo of {TOKEN}, number {i}"} for i, row in enumerate(captioned(count))]


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def base(request: Any, tiny_base: Any) -> str:
    return str(tiny_base(request.param))


@pytest.fixture(scope="module")
def run(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tw.train(a_recipe(base, tmp_path_factory.mktemp("runs") / "run")).folder


def a_recipe(base: str, output: Path, **changes: Any) -> Any:
    data = {"train": rows(), "validation": rows(3), **changes.pop("data", {})}
    return recipe(base, output, task=TASK, **{"method": WORD, "data": data, **changes})


def image(where: Any, prompt: str, **options: Any) -> np.ndarray:
    (found,) = tw.generate(where, prompt, **SHORT, **options).values()
    return np.asarray(found[0])


def test_nothing_but_the_new_rows_changes(base: str, run: Path, tmp_path: Path) -> None:
    merged = tw.export(run, "merged", tmp_path / "merged")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for path in (Path(base) / part).glob("*.safetensors"):
            before, after = load_file(path), load_file(merged / part / path.name)
            assert before.keys() == after.keys()
            for name, tensor in before.items():
                grown = name.endswith("token_embedding.weight")
                assert torch.equal(after[name][: len(tensor)], tensor) and len(after[name]) == len(tensor) + 2 * grown
                if grown:
                    assert (after[name][-2:] - after[name][-1]).abs().max() > 0  # each went its own way


def test_diffusers_reads_the_word(base: str, run: Path) -> None:
    pipe = diffusers.DiffusionPipeline.from_pretrained(base)
    state = load_file(run / "model" / EMBEDS)
    if "clip_g" in state:
        pipe.load_textual_inversion(state["clip_l"], token=TOKEN)
        pipe.load_textual_inversion(
            state["clip_g"], token=TOKEN, text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2
        )
    else:
        pipe.load_textual_inversion(run / "model")
    noise = torch.Generator().manual_seed(3)
    found = pipe(TOKEN, num_inference_steps=2, guidance_scale=7.5, generator=noise, width=16, height=16)
    np.testing.assert_allclose(np.asarray(found.images[0], int), image(run, TOKEN).astype(int), atol=1)


def test_the_path_begins_at_the_word(base: str, run: Path) -> None:
    start = image(run, TOKEN, alphas=[0])
    np.testing.assert_array_equal(start, image(base, "a a"))  # two vectors, each begun as the word
    middle, end = image(run, TOKEN, alphas=[0.5]), image(run, TOKEN)
    assert (start != middle).any() and (middle != end).any()
    np.testing.assert_array_equal(image(run, "a red wall", alphas=[0]), image(run, "a red wall"))
    held = load_file(run / "model" / EMBEDS)
    names = ["clip_l", "clip_g"] if len(held) == 2 else [TOKEN]
    for name, table in zip(names, _tables(tw.load(run, alpha=0.5)), strict=True):
        torch.testing.assert_close(table.rows.detach(), (table.start_VD + held[name]) / 2)


def _tables(model: Any) -> list[Any]:
    return [m for m in model.module.modules() if hasattr(m, "start_VD")]


def test_a_run_that_is_resumed_ends_the_same(base: str, run: Path, tmp_path: Path) -> None:
    def stop() -> None:
        raise Interrupted(5)

    with pytest.raises(Interrupted):
        tw.train(a_recipe(base, tmp_path / "stopped"), watchers=[stop_at(5, stop)])
    tw.resume(tmp_path / "stopped")
    assert left_behind(tmp_path / "stopped") == left_behind(run)


def test_the_loss_falls(base: str, run: Path) -> None:
    before, after = (tw.evaluate(f"{run}@{alpha}", rows(6))["scores"]["metrics"]["loss"]["value"] for alpha in (0, 1))
    assert after < before


def test_the_next_run_knows_the_word(run: Path, tmp_path: Path) -> None:
    lora = {"type": "lora", "rank": 2}
    after = tw.train(a_recipe(str(run), tmp_path / "next", method=lora, training={"epochs": 1})).folder
    np.testing.assert_array_equal(image(after, TOKEN, alphas=[0]), image(run, TOKEN))
    with pytest.raises(MethodError, match="knows <my-wall> already"):
        tw.train(a_recipe(str(run), tmp_path / "again"))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"word": "mountains"}, MethodError, r"is \d+ tokens here, and there is room for 2"),
        ({"token": "a"}, MethodError, "already"),
        ({"token": "<none>"}, DataError, "No caption names <none>"),
        ({"token": "my wall"}, RecipeError, "without spaces"),
    ],
)
def test_what_cannot_be_is_said(base: str, tmp_path: Path, changes: dict[str, Any], kind: Any, said: str) -> None:
    with pytest.raises(kind, match=said):
        tw.train(a_recipe(base, tmp_path / "run", method={**WORD, **changes}))
    assert not (tmp_path / "run").exists()


def test_a_file_without_its_card_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / EMBEDS).write_bytes((run / "model" / EMBEDS).read_bytes())
    with pytest.raises(BaseModelError, match="Name its run"):
        tw.load(tmp_path)


def test_the_automatic_rate_is_the_papers_at_every_width(base: str) -> None:
    ready = prepared(base, rows(), task=TASK, method=WORD)
    assert ready.recipe.training.learning_rate == 0.005
