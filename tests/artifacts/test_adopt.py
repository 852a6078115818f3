"""LoRA files that others made are brought into another form, and verified like those of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tunewright as tw
from tests.methods.test_diffusers_file import same, uneven
from tests.pipelines import diffusers
from tests.runs import recipe
from tests.tiny import captioned, make_base
from tunewright.artifacts.export import read_verification
from tunewright.artifacts.noise import noise_questions
from tunewright.artifacts.questions import HeldOut
from tunewright.artifacts.targets.kohya import Kohya
from tunewright.cli import app
from tunewright.data.config import DataConfig
from tunewright.data.records import load_records
from tunewright.errors import BaseModelError, VerificationError
from tunewright.methods import _diffusers_file as files
from tunewright.methods._diffusers_file import evened, read_lora, write_kohya


@pytest.fixture(scope="module")
def base(tiny_base: Any) -> str:
    return str(tiny_base("sdxl"))


@pytest.fixture(scope="module")
def theirs(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kohya's, with the original names of SDXL's blocks, and a rank and alpha of each layer's own."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(base)
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    write_kohya(uneven(pipe), pipe.unet.config, path)
    return path


def test_a_file_of_kohyas_becomes_diffusers_and_kohyas_again(base: str, theirs: Path, tmp_path: Path) -> None:
    own = tw.export(theirs, "diffusers", tmp_path / "own", base=base)
    assert read_verification(own)["verified"] and read_verification(own)["figures"]["effect"] == pytest.approx(1)
    first, again = read_lora(theirs, 1), read_lora(own)
    assert first.modules == again.modules and all((first.state[k] == t).all() for k, t in again.state.items())
    assert all(first.alpha(layer) == again.alpha(layer) for layer in first.modules)
    back = tw.export(own, "kohya", tmp_path / "back")
    assert same(read_lora(back, 1), evened(first))
    assert tw.generate(own, "a red wall", steps=1)[1.0][0].size == (16, 16)


def test_another_alpha_is_found(base: str, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = files.to_kohya

    def weaker(*given: Any) -> dict[str, Any]:
        return {key: 0.9 * t if key.endswith(".alpha") else t for key, t in right(*given).items()}

    monkeypatch.setattr(files, "to_kohya", weaker)
    with pytest.raises(VerificationError, match="differs by"):
        tw.export(theirs, Kohya.name, tmp_path / "out", base=base)


def test_what_does_not_fit_is_refused(theirs: Path, tmp_path: Path, tiny_base: Any) -> None:
    other = make_base(tmp_path / "sd1", "sd1")
    with pytest.raises(BaseModelError, match=r"style\.safetensors was made for another base"):
        tw.export(theirs, "diffusers", tmp_path / "out", base=other)
    with pytest.raises(BaseModelError, match="is for text-generation"):
        tw.export(theirs, "diffusers", tmp_path / "out", base=tiny_base("llama"))
    assert not (tmp_path / "out").exists()


def test_the_dora_of_kohyas_is_read(base: str, tmp_path: Path) -> None:
    """W·m / |W| where A·B is nothing, by the formula (arXiv 2402.09353): at half the magnitudes half the weight."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(base)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    weight = pipe.unet.get_submodule(name).weight.detach()
    convolution = pipe.unet.mid_block.resnets[0].conv1.weight.detach()
    state = {}
    for key, w in {name: weight, "mid_block.resnets.0.conv1": convolution}.items():
        down = f"lora_unet_{key.replace('.', '_')}"
        norm = w.flatten(1).norm(dim=1)
        state |= {
            f"{down}.lora_down.weight": torch.ones(2, *w.shape[1:]),
            f"{down}.lora_up.weight": torch.zeros(len(w), 2, *(1 for _ in w.shape[2:])),
            f"{down}.alpha": torch.tensor(2.0),
            f"{down}.dora_scale": 0.5 * norm.reshape(-1, *(1 for _ in w.shape[1:])),
        }
    save_file(state, tmp_path / "dora.safetensors")
    own = tw.export(tmp_path / "dora.safetensors", "merged", tmp_path / "own", base=base)
    after = diffusers.DiffusionPipeline.from_pretrained(own).unet
    torch.testing.assert_close(after.get_submodule(name).weight, weight / 2)
    torch.testing.assert_close(after.mid_block.resnets[0].conv1.weight, convolution / 2)
    assert read_verification(tw.export(tmp_path / "dora.safetensors", "diffusers", tmp_path / "d", base=base))[
        "verified"
    ]
    inputs = {key: t.movedim(0, 1) if "dora_scale" in key else t for key, t in state.items()}
    save_file({k: t.contiguous() for k, t in inputs.items()}, tmp_path / "inputs.safetensors")
    with pytest.raises(BaseModelError, match="has a magnitude for each input"):
        tw.export(tmp_path / "inputs.safetensors", "diffusers", tmp_path / "no", base=base)


def test_a_file_in_place_of_a_model_is_told_where_to_go(base: str, theirs: Path, tmp_path: Path) -> None:
    """And that way ends: a folder that makes images, and that a run goes on from."""
    advice = rf"{theirs} is a LoRA for images, in a file.*tunewright export {theirs} FOLDER --to diffusers --base PIPE"
    for use in (
        lambda: tw.generate(theirs, "a wall"), lambda: tw.export(theirs, "kohya", tmp_path / "no"),
        lambda: tw.train(base=str(theirs), data=captioned(4)), lambda: tw.check(base=str(theirs), data=captioned(4)),
    ):  # fmt: skip
        with pytest.raises(BaseModelError, match=advice):
            use()
    folder = tw.export(theirs, "diffusers", tmp_path / "own", base=base)
    found = {a: np.asarray(tw.generate(folder, "a wall", steps=1, alphas=a)[a][0]) for a in (0.0, 1.0)}
    np.testing.assert_array_equal(found[0], np.asarray(tw.generate(base, "a wall", steps=1)[1][0]))
    assert (found[0] != found[1]).any()
    run = tw.train(recipe(str(folder), tmp_path / "run", task="text-to-image", training={"max_steps": 1}))
    assert run.info["stacked"]
    with pytest.raises(BaseModelError, match=r"is one file of a model. Name its folder"):
        tw.generate(folder / "pytorch_lora_weights.safetensors", "a wall")
    whole = tmp_path / "v1-5.safetensors"
    save_file({"model.diffusion_model.out.2.weight": torch.ones(1)}, whole)
    with pytest.raises(BaseModelError, match=r"is a whole model, no LoRA. Make it a folder: diffusers\.Stable"):
        tw.generate(whole, "a wall")


def test_a_single_row_is_asked_at_many_noise_levels(
    base: str, theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tw.export(theirs, "diffusers", tmp_path / "own", base=base)
    model = tw.load(folder)
    rows = load_records(captioned(1), DataConfig(train="-")).records
    asked = noise_questions(model, HeldOut(rows, "a row"), None)["rows"]
    levels = [row["told"] for row in asked]
    assert len(levels) == 8 and min(levels) < 100 and max(levels) > 900 and len(set(levels)) == 8
    assert len({str(row["noisy"]) for row in asked}) == 8
    with pytest.raises(SystemExit) as ended:
        app(["export", str(folder), str(tmp_path / "kohya"), "--to", "kohya"])
    said = capsys.readouterr()
    assert ended.value.code == 0
    assert "Largest difference of a prediction" in said.out and "logit" not in said.out + said.err
    assert "Both were asked 8 noise levels of Tunewright's own sentences" in said.err
