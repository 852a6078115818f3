"""DreamBooth: images of the class are learned beside those of the subject, with a loss of their own."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tunewright as tw
from tests.contracts.steps import prepared
from tests.runs import left_behind, recipe, stop_at
from tests.tiny import captioned, rows_for
from tunewright.engine.loop import Step
from tunewright.engine.processes import Processes
from tunewright.engine.state import TrainState
from tunewright.errors import Interrupted, RecipeError
from tunewright.run import make_job

TASK = "text-to-image"


@pytest.fixture(scope="module")
def base(tiny_base: Any) -> str:
    return str(tiny_base("sd1"))


def of_the_class(count: int = 4) -> list[dict[str, Any]]:
    rows = captioned(count)
    images = [Image.open(BytesIO(row["image"])).rotate(90) for row in rows]
    return [{**row, "image": image, "text": "a wall"} for row, image in zip(rows, images, strict=True)]


def ready(base: str, prior_weight: float = 0.5, **training: Any) -> Any:
    objective = {"type": "supervised", "prior_weight": prior_weight}
    training = {"batch": 3, "learning_rate": 0.01, **training}
    return prepared(base, rows_for(TASK), task=TASK, method={"type": "full"}, objective=objective, training=training,
                    data={"prior": of_the_class()})  # fmt: skip


def step_of(found: Any) -> Step:
    job = make_job(found, Path("/nonexistent"), Processes())
    return Step(job, TrainState(found.model, found.recipe.method, job.config, "fp32"))


def test_each_row_brings_one_of_the_class_and_each_kind_has_its_mean(base: str) -> None:
    """loss = Σ own / own rows + prior_weight · Σ class / class rows, by the formula from each row alone."""
    found = ready(base)
    step = step_of(found)
    job, task = step.job, found.model.task
    rows = [job.train[i] for i in job.plan[0][1]]
    chance = np.random.default_rng([job.config.seed, 1])
    rows += [job.prior[i] for i in chance.integers(len(job.prior), size=len(rows))]
    found.model.module.train()
    with torch.no_grad():
        each = [float(task.nll(found.model.module, task.collate([e])).nll_BT) for e in task.vary(rows, chance)]
    line = step.take()
    assert line["loss"] == pytest.approx(np.mean(each[:3]), rel=1e-5)
    assert line["prior_loss"] == pytest.approx(np.mean(each[3:]), rel=1e-5)


def test_the_weight_scales_the_gradient_of_the_class_alone(base: str) -> None:
    gradients = {}
    for weight in (0.0, 0.5, 1.0):
        step = step_of(ready(base, weight))
        examples = [*step.job.train[:3], *step.job.prior[:2]]
        step._accumulate(examples, step.job.objective.counts(examples))
        gradients[weight] = torch.cat([p.grad.flatten() for p in step.state.parameters.values() if p.grad is not None])
    none, half, whole = gradients.values()
    torch.testing.assert_close(half, (none + whole) / 2, rtol=1e-4, atol=1e-6)
    assert (whole - none).abs().max() > 1e-3


def drawn(base: str, output: Path, **changes: Any) -> Any:
    data = {"prior_prompt": "a wall", "prior_images": 2}
    return recipe(base, output, task=TASK, data=data, **changes)


def test_images_of_the_class_are_drawn_once_and_kept(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tw.train(drawn(base, tmp_path / "whole"))
    folder = whole.folder / "start" / "prior"
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(made) == ["0000.png", "0001.png", "metadata.jsonl"] and made["0000.png"] != made["0001.png"]
    assert json.loads((whole.folder / "run.json").read_text())["data"]["prior"]["rows"] == 2
    assert any("prior_loss" in line for line in (whole.folder / "metrics.jsonl").read_text().splitlines())

    def stop() -> None:
        raise Interrupted(3)

    with pytest.raises(Interrupted):
        tw.train(drawn(base, tmp_path / "stopped", training={"checkpoint_every": 2}), watchers=[stop_at(3, stop)])
    from tunewright.tasks.text_to_image import TextToImage

    monkeypatch.setattr(TextToImage, "images", lambda *_, **__: pytest.fail("drawn again"))
    tw.resume(tmp_path / "stopped")
    assert left_behind(tmp_path / "stopped") == left_behind(whole.folder)


def test_what_has_no_effect_is_refused(base: str, tmp_path: Path, tiny_base: Any) -> None:
    with pytest.raises(RecipeError, match="prior_weight is for"):
        tw.train(recipe(base, tmp_path / "a", task=TASK, objective={"type": "supervised", "prior_weight": 0.5}))
    with pytest.raises(RecipeError, match="choose one"):
        recipe(base, tmp_path / "b", task=TASK, data={"prior": of_the_class(), "prior_prompt": "a wall"})
    with pytest.raises(RecipeError, match="give that too"):
        recipe(base, tmp_path / "c", task=TASK, data={"prior_images": 3})
    with pytest.raises(RecipeError, match="is for text-to-image"):
        tw.train(recipe(tiny_base("llama"), tmp_path / "d", data={"prior_prompt": "a wall"}))
    assert not list(tmp_path.iterdir())
