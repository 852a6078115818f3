"""Pipelines of diffusers: how they are loaded, what they are told, what they learn, and what is saved."""

from __future__ import annotations

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tunewright as tw
from tests.contracts.steps import job_of, prepared
from tests.pipelines import diffusers
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import PIPELINES, captioned, pictures
from tunewright.artifacts.fingerprint import files_of, fingerprint
from tunewright.artifacts.prior import stand_in
from tunewright.data.config import DataConfig
from tunewright.data.pictures import Picture
from tunewright.data.records import load_records
from tunewright.engine.loop import Step
from tunewright.engine.processes import Processes
from tunewright.engine.state import TrainState
from tunewright.errors import BaseModelError, DataError, Interrupted, MissingExtra, OutputError, RecipeError
from tunewright.prepare import prepare
from tunewright.recipe import make_recipe, read_recipe
from tunewright.run import make_job
from tunewright.tasks import _kept, task_class
from tunewright.tasks._diffusion import answer, min_snr, schedule_of

TASK = "text-to-image"
ROOT = Path(__file__).parents[2]
LORA = {"type": "lora", "rank": 4, "alpha": 16}


def loaded(base: str) -> Any:
    return task_class(TASK)().load(base)


def encoded(model: Any, rows: list[dict[str, Any]], **options: Any) -> Any:
    data = DataConfig(train="-", **options)
    return model.task.encode(model, load_records(rows, data).records, data)


def pipeline(folder: Any) -> Any:
    found = diffusers.DiffusionPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def of_sizes(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    rows = captioned(len(sizes))
    images = [Image.open(BytesIO(row["image"])).resize(size) for row, size in zip(rows, sizes, strict=True)]
    return [{**row, "image": image} for row, image in zip(rows, images, strict=True)]


# Loading


def test_blocks_are_in_the_order_in_which_they_compute(tiny_base: Any) -> None:
    model = loaded(tiny_base("sdxl"))
    names = [name for name, _ in model.task.blocks(model.module)]
    assert names == [
        "unet.down_blocks.0", "unet.down_blocks.1", "unet.mid_block", "unet.up_blocks.0", "unet.up_blocks.1",
    ]  # fmt: skip
    order = [name.split(".")[1] for name, _ in model.module.unet.named_parameters(prefix="unet")]
    assert order.index("mid_block") < order.index("up_blocks") < order.index("conv_out")
    assert list(dict.fromkeys(n.split(".")[0] for n, _ in model.module.named_parameters())) == [
        "text_encoder", "text_encoder_2", "unet",
    ]  # fmt: skip


def test_the_vae_goes_along_and_trains_never(tiny_base: Any) -> None:
    model = loaded(tiny_base("sd1"))
    vae = model.module.vae
    model.module.requires_grad_(True)
    model.module.train()
    assert not vae.training and not any(p.requires_grad for p in vae.parameters())
    model.module.to(torch.float64)
    assert next(vae.parameters()).dtype == torch.float64


@pytest.fixture
def copy(tiny_base: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base("sd1"), tmp_path / "copy"))


def changed(folder: Path, **values: Any) -> str:
    index = {**json.loads((folder / "model_index.json").read_text()), **values}
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


def test_a_component_that_is_missing_is_named(copy: Path) -> None:
    with pytest.raises(BaseModelError, match="lacks vae, says its model_index"):
        loaded(changed(copy, vae=[None, None]))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_component_without_files_is_named(part: str, copy: Path) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(BaseModelError, match=f"{part} cannot be loaded"):
        loaded(str(copy))


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model", "text_encoder/model"])
@pytest.mark.parametrize("fault", ["lacks weights", "cannot be loaded"])
def test_weights_that_are_missing_or_of_other_shapes_are_refused(fault: str, name: str, copy: Path) -> None:
    """The libraries themselves would draw the missing ones at random."""
    file = copy / f"{name}.safetensors"
    state = load_file(file)
    key = next(key for key in state if state[key].ndim == 2)
    tensor = state.pop(key)
    save_file(state if fault == "lacks weights" else {**state, key: tensor[1:].clone()}, file, {"format": "pt"})
    with pytest.raises(BaseModelError, match=f"{name.split('/')[0]}.*{fault}"):
        loaded(str(copy))


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"])
def test_pickles_are_refused(part: str, copy: Path) -> None:
    (copy / f"{part}.safetensors").rename(copy / f"{part}.bin")
    with pytest.raises(BaseModelError, match="pickle"):
        loaded(str(copy))


def test_other_pipelines_are_refused_with_those_that_can_be_tuned(copy: Path) -> None:
    with pytest.raises(BaseModelError, match=r"StableDiffusion3Pipeline.*StableDiffusionXLPipeline"):
        loaded(changed(copy, _class_name="StableDiffusion3Pipeline"))


def test_a_component_of_the_folders_own_code_is_refused(copy: Path) -> None:
    with pytest.raises(BaseModelError, match=r"unet is a my_unet\.Mine"):
        loaded(changed(copy, unet=["my_unet", "Mine"]))


def test_a_folder_that_is_no_pipeline_is_refused(tiny_base: Any) -> None:
    with pytest.raises(BaseModelError, match="no pipeline of diffusers"):
        loaded(tiny_base("llama"))


def test_without_diffusers_the_extra_is_named(tiny_base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"tunewright\[diffusion\]"):
        loaded(tiny_base("sd1"))


def test_weights_in_half_precision_alone_are_read(copy: Path) -> None:
    for name in ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model"):
        (copy / f"{name}.safetensors").rename(copy / f"{name}.fp16.safetensors")
    assert loaded(str(copy)).module.unet.dtype == torch.float32


def test_shapes_alone_need_no_weights(tiny_base: Any) -> None:
    shape, whole = task_class(TASK)().load(tiny_base("sdxl"), weights=False), loaded(tiny_base("sdxl"))
    assert {n: p.shape for n, p in shape.module.named_parameters()} == {
        n: p.shape for n, p in whole.module.named_parameters()
    }
    assert all(p.is_meta for p in shape.module.parameters())


def test_a_base_is_known_by_the_weights_of_all_its_components(copy: Path) -> None:
    before = fingerprint(str(copy))
    assert {path.parent.name for path in files_of(str(copy))} == {"unet", "vae", "text_encoder"}
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert fingerprint(str(copy)) != before


# What the U-Net is told, and what it should answer


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_noise_is_mixed_in_and_asked_for_as_diffusers_does(predicts: str) -> None:
    ddpm = diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type=predicts)
    schedule, step = schedule_of(ddpm), torch.tensor([0, 500, 999])
    x0, epsilon = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    signal, noise = (table[step].view(-1, 1, 1, 1) for table in (schedule.signal_N, schedule.noise_N))
    torch.testing.assert_close(signal * x0 + noise * epsilon, ddpm.add_noise(x0, epsilon, step))
    wanted = {"epsilon": epsilon, "v_prediction": ddpm.get_velocity(x0, epsilon, step), "sample": x0}[predicts]
    torch.testing.assert_close(answer(schedule.predicts, x0, epsilon, signal, noise), wanted)


def test_flows_are_matched_as_their_scheduler_goes() -> None:
    """Noise is mixed in as it does; and a step along the target leads from one timestep to the next."""
    shifted, flow = (diffusers.FlowMatchEulerDiscreteScheduler(shift=shift) for shift in (3.0, 1.0))
    x0, epsilon = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)

    def noisy(schedule: Any, step: int) -> torch.Tensor:
        return schedule.signal_N[step] * x0 + schedule.noise_N[step] * epsilon

    told_N = schedule_of(shifted).told_N
    torch.testing.assert_close(noisy(schedule_of(shifted), 100), shifted.scale_noise(x0, told_N[100:101], epsilon))
    schedule = schedule_of(flow)
    flow.set_timesteps(timesteps=schedule.told_N[[100, 600]].tolist())
    target = answer(schedule.predicts, x0, epsilon, schedule.signal_N[100], schedule.noise_N[100])
    reached = flow.step(target, flow.timesteps[0], noisy(schedule, 100)).prev_sample
    torch.testing.assert_close(reached, noisy(schedule, 600))


def test_min_snr_weighs_errors_in_the_image_alike_whatever_is_predicted() -> None:
    """An error in x₀ is min(SNR, γ) worth, as which the same error appears in ε and in v."""
    snr_B = torch.tensor([0.1, 1.0, 5.0, 100.0])
    wanted_B = snr_B.clamp(max=5)
    in_x0 = {"sample": torch.ones(4), "epsilon": snr_B, "v_prediction": snr_B + 1}
    for predicts, times_B in in_x0.items():
        torch.testing.assert_close(min_snr(predicts, snr_B, 5.0) * times_B, wanted_B)
    assert min_snr("epsilon", torch.zeros(1), 5.0).item() == 1  # nothing of the image is left, all of the noise


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_captions_are_told_as_in_the_pipeline(kind: str, tiny_base: Any) -> None:
    model, theirs = loaded(tiny_base(kind)), pipeline(tiny_base(kind))
    captions = [example.inputs["caption"] for example in encoded(model, captioned(2)).examples]
    with torch.no_grad():
        states, pooled = model.module.embeddings(torch.from_numpy(np.stack([c.tokens for c in captions])))
        said = theirs.encode_prompt(
            [row["text"] for row in captioned(2)], device="cpu", num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )  # fmt: skip
    torch.testing.assert_close(states, said[0])
    if kind == "sdxl":
        torch.testing.assert_close(pooled, said[2])


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_caption_that_is_left_out_is_what_guidance_leads_away_from(kind: str, tiny_base: Any) -> None:
    """The U-Net's answer to it is that to the pipeline's own embeddings of no prompt."""
    model, theirs = loaded(tiny_base(kind)), pipeline(tiny_base(kind))
    (example,) = encoded(model, captioned(1), caption_dropout=0.999999).examples
    (dropped,) = model.task.vary([example], np.random.default_rng(0))
    assert dropped.inputs["caption"].dropped
    seen: list[torch.Tensor] = []
    model.module.unet.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    with torch.no_grad():
        model.task.nll(model.module, model.task.collate([dropped]))
        _, none, *_ = theirs.encode_prompt(
            "a red wall", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True
        )
    torch.testing.assert_close(seen[0], none)


def test_sdxl_is_told_sizes_and_crops(tiny_base: Any) -> None:
    model = loaded(tiny_base("sdxl"))
    found = encoded(model, of_sizes((40, 20), (16, 16), (3, 4))).examples
    told = [e.inputs["view"].arrays()["sizes"].tolist() for e in found]
    assert told == [[20, 40, 0, 2, 12, 20], [16, 16, 0, 0, 16, 16], [4, 3, 0, 1, 20, 12]]
    assert [e.inputs["view"].pixels().shape for e in found] == [(3, 12, 20), (3, 16, 16), (3, 20, 12)]


# Rows


def test_chance_is_drawn_from_the_step_and_fixed_where_it_is_measured(tiny_base: Any) -> None:
    model = loaded(tiny_base("sd1"))
    one, two = (encoded(model, captioned(8)).examples for _ in range(2))
    steps = [e.inputs["chance"].at for e in one]
    assert steps == [e.inputs["chance"].at for e in two]
    assert max(np.diff(sorted([0, *np.ravel(steps), 1000]))) < 63, "a few rows cover all timesteps"
    drawn = [model.task.vary(one, np.random.default_rng([0, step])) for step in (1, 1, 2)]
    noises = [[e.inputs["chance"].arrays()["noise"] for e in rows] for rows in drawn]
    assert all(np.array_equal(a, b) for a, b in zip(noises[0], noises[1], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(noises[0], noises[2], strict=True))
    assert len({noise.tobytes() for noise in noises[0]}) == 8


@pytest.mark.parametrize("kind", ["sd1", "flow"])
def test_a_row_is_measured_at_timesteps_from_all_of_the_schedule(kind: str, tiny_base: Any) -> None:
    """Its error is the mean over them, and a row counts once however often it is asked."""
    model = loaded(tiny_base(kind))
    (example,) = encoded(model, captioned(1)).examples
    told: list[float] = []
    hook = model.module.unet.register_forward_pre_hook(lambda _, given: told.extend(given[1].tolist()))
    found = model.task.predict(model, [example])
    hook.remove()
    told_N = model.module.told_N.tolist()
    assert sorted(4 * told_N.index(one) // len(told_N) for one in told) == [0, 1, 2, 3]
    chance = example.inputs["chance"]
    noises = chance.arrays()

    def alone(k: int) -> float:
        given = {name: np.take(noises[name], [k], axis=0) for name in ("noise", "offset", "step")}
        one = SimpleNamespace(shape=chance.shape, arrays=lambda: {**noises, **given})
        inputs = {**example.inputs, "chance": one}
        return float(model.task.predict(model, [replace(example, inputs=inputs)]).nll_N[0])

    each = [alone(k) for k in range(4)]
    assert len(set(each)) == 4 and found.nll_N == pytest.approx([np.mean(each)], rel=1e-5)
    (drawn,) = model.task.vary([example], np.random.default_rng(0))
    assert len(drawn.inputs["chance"].at) == 1, "a training row is asked once"


def test_of_a_few_images_none_is_held_out_where_nobody_says_so(tiny_base: Any, tmp_path: Path) -> None:
    base, training = tiny_base("sd1"), {"max_steps": 2, "batch": 1, "learning_rate": 0.01}

    def begun(count: int, **data: Any) -> Any:
        document = {"base": base, "method": LORA, "data": {"train": captioned(count), **data}, "training": training}
        return prepare(make_recipe(document), tmp_path)

    few = begun(5)
    assert len(few.examples("train")) == 5 and not few.examples("validation")
    assert few.recipe.data.validation == 0
    (notice,) = [notice for notice in few.notices if "held out" in notice]
    assert notice.startswith("Of 5 images none is held out for validation") and "the last weights" in notice
    assert begun(19).recipe.data.validation == 0
    assert begun(20).recipe.data.validation == 0.1 and begun(20).examples("validation")
    assert len(begun(5, validation=0.1).examples("validation")) == 1, "a fraction that was given holds"
    quiet = {"before": False, "samples": 0}
    data = {"train": captioned(5), "validation": None}
    run = tw.train(recipe(base, tmp_path / "run", task=TASK, data=data, training=training, evaluation=quiet))
    assert run.recipe.data.validation == 0 and run.info["best"] is None and "of the last step, 2" in run.info["weights"]


def test_prompts_are_drawn_every_so_often_where_nothing_is_held_out(tiny_base: Any) -> None:
    wanted = {"task": TASK, "method": LORA, "training": {"evaluate_every": 2}}
    with pytest.raises(RecipeError, match=r"training\.evaluate_every needs validation rows"):
        prepared(tiny_base("sd1"), captioned(2), **wanted)
    prepared(tiny_base("sd1"), captioned(2), **wanted, evaluation={"prompts": ["a wall"]})


def test_captions_are_left_out_as_often_as_asked(tiny_base: Any) -> None:
    model = loaded(tiny_base("sd1"))
    (example,) = encoded(model, captioned(1), caption_dropout=0.25).examples
    rows = model.task.vary([example] * 1000, np.random.default_rng(0))
    assert 200 < sum(row.inputs["caption"].dropped for row in rows) < 300
    assert not example.inputs["caption"].dropped, "never where it is measured"


def test_a_caption_that_is_too_long_is_cut_and_counted(tiny_base: Any) -> None:
    rows = [*captioned(1), {**captioned(1)[0], "text": "wall " * 100}]
    found = encoded(loaded(tiny_base("sd1")), rows)
    assert found.overlength.truncated == ["rows[1]"]
    assert found.examples[1].inputs["caption"].tokens.shape == (1, 77)


def test_images_that_cannot_be_read_are_named(tiny_base: Any) -> None:
    rows = [*captioned(2), {"image": b"no image", "text": "a wall"}]
    model = loaded(tiny_base("sd1"))
    with pytest.raises(DataError, match=r"1 of 3 images cannot be read") as raised:
        encoded(model, rows)
    assert raised.value.faults[0].startswith("rows[2]: this is no image")
    assert len(encoded(model, rows, on_bad_rows="skip").examples) == 2


def test_images_are_varied_within_their_bucket(tiny_base: Any) -> None:
    model = loaded(tiny_base("sd1"))
    found = encoded(model, of_sizes((20, 20)), augment={"flip": 1.0, "crop": 1.0}).examples
    (varied,) = model.task.vary(found, np.random.default_rng(0))
    before, after = (e.inputs["view"].pixels() for e in (found[0], varied))
    assert np.array_equal(after, before[:, :, ::-1])


def test_mixing_images_is_refused(tiny_base: Any) -> None:
    with pytest.raises(RecipeError, match="mixup"):
        encoded(loaded(tiny_base("sd1")), captioned(1), augment={"mixup": 0.2})


def test_a_resolution_that_the_unet_cannot_halve_is_refused(tiny_base: Any) -> None:
    (tiny,) = encoded(loaded(tiny_base("sd1")), captioned(1), resolution=8).examples
    assert tiny.inputs["chance"].shape == (4, 4, 4)


# Learning


def test_a_few_images_are_learned(tiny_base: Any) -> None:
    """The loss at the fixed timesteps and noises of the training rows themselves."""
    training = {"learning_rate": 0.01, "batch": 6, "max_steps": 150, "schedule": "constant", "seed": 1}
    ready = prepared(tiny_base("sd2"), captioned(6), task=TASK, method="full", training=training)
    job = job_of(ready)
    step = Step(job, TrainState(ready.model, job.method, job.config, "fp32"))
    rows = ready.examples("train")
    before = ready.model.task.predict(ready.model, rows).nll_N.mean()
    for _ in range(150):
        step.take()
    assert ready.model.task.predict(ready.model, rows).nll_N.mean() < 0.4 * before


@pytest.mark.parametrize("kind", ["sd1", "flow"])
@pytest.mark.parametrize("option", [{"min_snr": 1.0}, {"noise_offset": 0.1}])
def test_what_the_objective_asks_for_has_an_effect_or_is_refused(
    kind: str, option: dict[str, float], tiny_base: Any
) -> None:
    if kind == "flow" and "min_snr" in option:
        with pytest.raises(RecipeError, match="not defined for flow matching"):
            prepared(tiny_base(kind), captioned(4), task=TASK, method="full", objective=option)
        return
    losses = []
    for objective in ({}, option):
        ready = prepared(tiny_base(kind), captioned(4), task=TASK, method="full", objective=objective)
        job = job_of(ready, batch=4)
        losses.append(Step(job, TrainState(ready.model, job.method, job.config, "fp32")).take()["loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("option", ["min_snr", "noise_offset"])
def test_options_of_noise_are_refused_elsewhere(option: str, tiny_base: Any) -> None:
    from tests.tiny import labelled

    with pytest.raises(RecipeError, match=rf"objective\.{option} is for text-to-image"):
        prepared(tiny_base("bert"), labelled(), objective={option: 0.1})


def test_an_interrupted_run_ends_bit_for_bit_as_another(tiny_base: Any, tmp_path: Path) -> None:
    changes = {
        "task": TASK, "method": LORA, "training": {"checkpoint_every": 1, "epochs": 1},
        "data": {"caption_dropout": 0.3, "augment": {"flip": 0.5, "crop": 0.7}},
    }  # fmt: skip
    tw.train(recipe(tiny_base("sdxl"), tmp_path / "whole", **changes))

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        tw.train(recipe(tiny_base("sdxl"), tmp_path / "cut", **changes), watchers=[stop_at(3, interrupt)])
    tw.resume(tmp_path / "cut")
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "whole")


@pytest.mark.parametrize("name, steps", [("dreambooth", 800), ("textual-inversion", 5000), ("image-lora", 1500)])
def test_a_recipe_for_images_trains_as_long_as_is_published(
    name: str, steps: int, tiny_base: Any, tmp_path: Path
) -> None:
    """On five images too, of which none is held out."""
    for i, row in enumerate(captioned(5)):
        (tmp_path / f"{i}.png").write_bytes(row["image"])
        (tmp_path / f"{i}.txt").write_text(f"{row['text']} <my-cat>")
    wanted = ["base=" + str(tiny_base("sd1")), f"data.train={tmp_path}", "data.resolution=null"]
    chosen = read_recipe(ROOT / "examples" / "recipes" / f"{name}.yaml", wanted)
    ready = prepare(chosen, tmp_path / "start", draw=stand_in)
    job = make_job(ready, tmp_path / "run", Processes())
    assert len(job.plan) == steps and len(job.plan[0][1]) <= 4 and not job.validation
    assert not any("images usually take" in notice for notice in ready.notices)


def test_so_few_steps_that_no_image_is_learned_are_said(tiny_base: Any) -> None:
    def notices(**training: Any) -> list[str]:
        found = tw.check(base=tiny_base("sd1"), data=captioned(5), method=LORA, training=training)["notices"]
        return [notice for notice in found if "images usually take" in notice]

    (said,) = notices()
    assert said.startswith("15 steps in all") and "training.max_steps" in said
    assert notices(max_steps=99) and not notices(max_steps=100)


def test_automatic_rates_are_those_of_stable_diffusion(tiny_base: Any) -> None:
    """Whatever the width: that of SDXL is 1,280, and of these 8 to 16."""
    wanted = {"full": 1e-5, "freeze": 1e-5, "lora": 5e-5}
    for method, rate in wanted.items():
        found = {
            prepared(tiny_base(kind), captioned(2), task=TASK, method=method).recipe.training.learning_rate
            for kind in ("sd1", "sdxl")
        }
        assert found == {rate}, method


# What is kept


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_what_is_kept_trains_as_what_is_computed(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    kept = {"cache_latents": str(tmp_path / "latents"), "cache_captions": str(tmp_path / "captions")}
    found = []
    for data in ({}, kept, kept):
        ready = prepared(tiny_base(kind), of_sizes((16, 16), (24, 16), (16, 24)), task=TASK, method="full", data=data)
        if data:  # neither is asked again
            ready.model.module.moments = ready.model.module.embeddings = None
        job = job_of(ready, batch=3)
        step = Step(job, TrainState(ready.model, job.method, job.config, "fp32"))
        found.append([step.take()["loss"] for _ in range(3)])
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] == found[1]
    assert len(list((tmp_path / "latents").iterdir())) == len(list((tmp_path / "captions").iterdir())) == 3


def test_other_weights_and_other_sizes_are_kept_apart(tiny_base: Any, copy: Path, tmp_path: Path) -> None:
    def keep(base: Any, **data: Any) -> int:
        data |= {"cache_latents": str(tmp_path / "kept")}
        prepared(str(base), captioned(1), task=TASK, method=LORA, data=data)
        return len(list((tmp_path / "kept").iterdir()))

    assert keep(tiny_base("sd1")) == keep(tiny_base("sd1")) == 1
    assert keep(tiny_base("sd1"), resolution=32) == 2
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * 1.1 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert keep(copy) == 3


def test_a_damaged_kept_file_is_named_and_computed_anew(tiny_base: Any, tmp_path: Path) -> None:
    data = {"cache_latents": str(tmp_path / "latents"), "cache_captions": str(tmp_path / "captions")}

    def keep() -> Any:
        return prepared(tiny_base("sd1"), captioned(4), task=TASK, method=LORA, data=data)

    first = keep()
    files = sorted((tmp_path / "latents").iterdir())
    whole = {path: path.read_bytes() for path in files}
    flipped = bytearray(whole[files[1]])
    flipped[-1] ^= 64
    files[0].write_bytes(whole[files[0]][:-9])
    files[1].write_bytes(flipped)
    caption = next((tmp_path / "captions").iterdir())
    caption.write_bytes(b"")
    example = next(e for e in first.examples("train") if e.inputs["view"].path == files[1])
    with pytest.raises(DataError, match=f"{files[1].name} is damaged: start again"):
        first.model.task.collate([example])
    (notice,) = [notice for notice in keep().notices if "damaged" in notice]
    assert notice.startswith("3 kept files are damaged and were computed anew: ")
    assert all(str(path) in notice for path in (*files[:2], caption))
    assert {path: path.read_bytes() for path in (tmp_path / "latents").iterdir()} == whole
    assert not any("damaged" in notice for notice in keep().notices)


def test_threads_that_keep_the_same_image_at_once_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have written their draft before any of them renames it."""
    together, save = Barrier(4, timeout=20), safetensors.numpy.save_file
    monkeypatch.setattr(safetensors.numpy, "save_file", lambda *given: (save(*given), together.wait()))
    arrays, path = {"moments": np.ones(9, np.float32)}, tmp_path / "there" / "a.safetensors"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: _kept._write(arrays, path), range(4)))
    assert np.array_equal(_kept._read(path)["moments"], arrays["moments"])
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_is_named(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(OutputError, match=r"kept cannot be written .*: choose another folder for data\.cache_latents"):
        prepared(tiny_base("sd1"), captioned(2), task=TASK, method=LORA, data={"cache_latents": str(tmp_path / "kept")})


def test_a_check_keeps_nothing_and_computes_an_image_of_each_shape(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.tasks._diffusion import Diffusion

    asked: list[tuple[int, ...]] = []
    real = Diffusion.moments
    monkeypatch.setattr(Diffusion, "moments", lambda self, pixels: asked.append(pixels.shape) or real(self, pixels))
    data = {
        "train": of_sizes((16, 16), (24, 16), (16, 16), (24, 16), (16, 16)), "validation": 0,
        "cache_latents": str(tmp_path / "latents"), "cache_captions": str(tmp_path / "captions"),
    }  # fmt: skip
    found = tw.check(base=tiny_base("sd1"), data=data, method=LORA, training={"batch": 2, "epochs": 2})
    assert list(tmp_path.iterdir()) == [] and len(asked) == len(set(asked)) == 2
    assert any("cache_latents" in notice and "not foreseen" in notice for notice in found["notices"])
    assert found["steps"] == 6 and len({row["source"] for row in found["preview"]}) == 3


def test_captions_are_not_kept_of_text_encoders_that_train(tiny_base: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="here they train"):
        prepared(
            tiny_base("sd1"), captioned(2), task=TASK, method={**LORA, "targets": "q_proj"},
            data={"cache_captions": str(tmp_path / "kept")},
        )  # fmt: skip


# What is saved


@pytest.fixture(scope="module")
def run(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> tw.Run:
    training = {"max_steps": 6, "learning_rate": 0.05}
    method = {**LORA, "targets": r".*\.(to_q|to_k|to_v|to_out\.0|q_proj)"}
    folder = tmp_path_factory.mktemp("run") / "run"
    return tw.train(recipe(tiny_base("sd1"), folder, task=TASK, method=method, training=training))


def test_a_lora_loads_into_the_pipeline_with_its_alpha(run: tw.Run, tiny_base: Any) -> None:
    file = run.folder / "model" / "pytorch_lora_weights.safetensors"
    with safe_open(file, "pt") as opened:
        said = json.loads(opened.metadata()["lora_adapter_metadata"])
        assert {key.split(".")[0] for key in opened.keys()} == {"unet", "text_encoder"}  # noqa: SIM118
    assert (said["unet.r"], said["unet.lora_alpha"], said["text_encoder.lora_alpha"]) == (4, 16, 16)
    theirs = pipeline(tiny_base("sd1"))
    noise = {"num_inference_steps": 3, "width": 16, "height": 16, "guidance_scale": 5.0, "output_type": "np"}

    def made() -> np.ndarray:
        return theirs("a red wall", generator=torch.Generator().manual_seed(3), **noise).images[0]

    base = made()
    theirs.load_lora_weights(run.folder / "model")
    model = tw.load(run.folder)
    (ours,) = model.task.images(model, ["a red wall"], seed=3, steps=3, guidance=5.0)
    assert np.abs(made() - base).max() > 0.05, "the LoRA does nothing"
    assert np.array_equal(pixels(ours), (made() * 255).round().astype(int))


def test_a_run_goes_on_from_another_with_its_text_encoder(run: tw.Run, tiny_base: Any, tmp_path: Path) -> None:
    """One LoRA over the base is both, and the path between begins where the first one ended."""
    training = {"max_steps": 3, "learning_rate": 0.05}
    then = tw.train(recipe(str(run.folder), tmp_path / "then", task=TASK, method=LORA, training=training))

    def made(model: Any) -> np.ndarray:
        return pixels(model.task.images(model, ["a red wall"], steps=3)[0])

    assert then.info["stacked"] and then.info["base"] == tiny_base("sd1")
    assert np.array_equal(made(tw.load(then.folder, alpha=0.0)), made(tw.load(run.folder)))
    theirs = pipeline(tiny_base("sd1"))
    theirs.load_lora_weights(then.folder / "model")
    noise = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 3, "width": 16, "height": 16}
    assert np.abs(made(tw.load(then.folder)) - pixels(theirs("a red wall", **noise).images[0])).max() <= 1
    assert not np.array_equal(made(tw.load(then.folder, alpha=0.5)), made(tw.load(then.folder)))


def test_the_picture_moves_from_the_bases_to_the_tuned_one(run: tw.Run, tiny_base: Any) -> None:
    made = []
    for alpha in (0, 0.25, 0.5, 0.75, 1):
        model = tw.load(run.folder, alpha=alpha)
        made.append(pixels(model.task.images(model, ["a red wall"], steps=3)[0]))
    base = loaded(tiny_base("sd1"))
    assert np.array_equal(made[0], pixels(base.task.images(base, ["a red wall"], steps=3)[0]))
    away = [np.abs(one - made[0]).mean() for one in made]
    assert away == sorted(away) and away[-1] > 1


def test_an_image_depends_on_its_prompt_and_seed_alone(run: tw.Run) -> None:
    model = tw.load(run.folder)
    one, two = model.task.images(model, ["a red wall", "a blue one"], steps=2, seed=1)
    (alone,) = model.task.images(model, ["a blue one"], steps=2, seed=1)
    (other,) = model.task.images(model, ["a blue one"], steps=2, seed=2)
    assert np.array_equal(pixels(two), pixels(alone))
    assert not np.array_equal(pixels(two), pixels(one)) and not np.array_equal(pixels(two), pixels(other))


def test_sides_that_cannot_be_halved_are_refused(run: tw.Run) -> None:
    model = tw.load(run.folder)
    assert model.task.images(model, ["a wall"], steps=1, size=(24, 16))[0].size == (24, 16)
    with pytest.raises(RecipeError, match="multiples of 4 pixels"):
        model.task.images(model, ["a wall"], size=(18, 16))


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_kind_makes_images(kind: str, tiny_base: Any) -> None:
    model = loaded(tiny_base(kind))
    (made,) = model.task.images(model, ["a red wall"], steps=2)
    assert made.size == (16, 16) and pixels(made).std() > 1


@pytest.mark.parametrize("method", [LORA, {"type": "freeze"}])
def test_the_resolution_stays_with_the_run(method: Any, tiny_base: Any, tmp_path: Path) -> None:
    changes = {"task": TASK, "method": method, "training": {"max_steps": 1}, "data": {"resolution": 32}}
    found = tw.train(recipe(tiny_base("sd1"), tmp_path / "run", **changes))
    model = tw.load(found.folder)
    assert model.processor.resolution == 32
    assert model.task.images(model, ["a wall"], steps=1)[0].size == (32, 32)


def test_the_loss_is_what_is_measured_compared_and_chosen_by(run: tw.Run) -> None:
    rows = captioned(4)
    scores = tw.evaluate(run.folder, rows)["scores"]
    assert list(scores["metrics"]) == ["loss"] and scores == tw.evaluate(run.folder, rows)["scores"]
    found = tw.interpolate(run.folder, alphas="0,0.5,1", choose=0.5)
    assert (found["metric"], found["alphas"], found["chosen"]["alpha"]) == ("loss", [0.0, 0.5, 1.0], 0.5)
    sets = tw.compare(f"{run.folder}@0", run.folder, data=rows)["sets"]
    assert next(iter(sets.values()))["metric"] == "loss"


def test_check_says_what_a_recipe_would_do(tiny_base: Any) -> None:
    data = {"train": captioned(6), "validation": captioned(8)[6:]}
    found = tw.check(base=tiny_base("sdxl"), data=data, method=LORA, training={"batch": 3, "epochs": 2})
    assert (found["task"], found["steps"]) == (TASK, 4)
    assert found["forecast"]["memory"]["fits"]
    assert found["preview"][0]["pieces"][1][0] == " → 16 × 16 pixels"


# Images of the other kind


def test_labels_for_a_pipeline_and_captions_for_a_classifier(tiny_base: Any, tmp_path: Path) -> None:
    labels, captions = pictures(4), captioned(4)
    for task in ("auto", "image-classification"):
        with pytest.raises(RecipeError, match="makes images from captions, and these rows have labels: write captions"):
            prepared(tiny_base("sd1"), labels, task=task)
    with pytest.raises(RecipeError, match="is for image-classification, and these rows are images with captions: give"):
        prepared(save_classifier(tiny_base("resnet"), tmp_path), captions)


def save_classifier(base: str, folder: Path) -> str:
    """A base that tells what it is for."""
    run = tw.train(recipe(base, folder / "run", task="image-classification", training={"max_steps": 1}))
    return str(run.folder)


def test_class_folders_are_read_for_what_the_base_makes_of_them(tiny_base: Any, tmp_path: Path) -> None:
    for row, name in zip(captioned(3), ("2_a", "2_a", "1_b"), strict=True):
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        file = place / f"{len(list(place.iterdir()))}.png"
        file.write_bytes(row["image"])
    with pytest.raises(DataError, match="holds 3 images and no caption"):
        prepared(tiny_base("sd1"), [], data={"train": str(tmp_path)})
    (tmp_path / "1_b" / "0.txt").write_text("one of three has a caption")
    with pytest.raises(DataError, match=r"2_a/0\.png: no caption"):
        prepared(tiny_base("sd1"), [], data={"train": str(tmp_path)})
    ready = prepared(tiny_base("resnet"), [], data={"train": str(tmp_path)}, task="image-classification")
    assert ready.model.task.labels == ["1_b", "2_a"]


def test_an_image_that_repeats_is_decoded_once_to_be_checked(
    tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "9_a").mkdir()
    for i, row in enumerate(captioned(2)):
        (tmp_path / "9_a" / f"{i}.png").write_bytes(row["image"])
        (tmp_path / "9_a" / f"{i}.txt").write_text(row["text"])
    decoded: list[Any] = []
    real = Picture.pixels
    monkeypatch.setattr(Picture, "pixels", lambda self: decoded.append(self) or real(self))
    ready = prepared(tiny_base("sd1"), [], data={"train": str(tmp_path)})
    assert len(ready.examples("train")) == 18 and len(decoded) == 2


def test_images_that_repeat_are_held_out_once_and_shown_once(tiny_base: Any, tmp_path: Path) -> None:
    """Ten passes of an image in an epoch are no ten rows to measure on."""
    from tunewright.account import preview

    (tmp_path / "9_a").mkdir()
    for i, row in enumerate(captioned(6)):
        (tmp_path / "9_a" / f"{i}.png").write_bytes(row["image"])
        (tmp_path / "9_a" / f"{i}.txt").write_text(f"{row['text']} {i}")
    ready = prepared(tiny_base("sd1"), [], data={"train": str(tmp_path), "validation": 0.4})
    held_out = ready.examples("validation")
    assert 0 < len(held_out) < 6 and len(ready.examples("train")) == 9 * (6 - len(held_out))
    assert len({row["source"] for row in preview(ready)}) == min(3, 6 - len(held_out))
