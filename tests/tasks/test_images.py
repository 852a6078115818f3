"""Image classification from rows to predictions."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tunewright as tw
from tests.contracts.steps import prepared
from tests.runs import TRAINING, left_behind, recipe, stop_at
from tests.tiny import pictures
from tunewright.data.augmentation import Augmentation
from tunewright.errors import DataError

TASK = "image-classification"
ALL = {"flip": 0.5, "crop": 0.5, "colour": 0.3, "mixup": 0.4}


def pixels(examples: Any) -> list[np.ndarray]:
    return [np.asarray(example.inputs["pixel_values"]) for example in examples]


def varied(ready: Any, seed: int) -> Any:
    return ready.model.task.vary(ready.examples("train"), np.random.default_rng(seed))


@pytest.mark.parametrize("augment", [ALL, {}, {"flip": 0, "crop": 1, "colour": 0.5}])
def test_a_step_draws_and_draws_the_same_again(augment: dict[str, float], tiny_base: Any) -> None:
    ready = prepared(tiny_base("vit"), pictures(6), task=TASK, method="full", data={"augment": augment})
    one, again, other = (pixels(varied(ready, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert {image.shape for image in one} == {(3, 16, 16)}


def test_a_mirror_is_a_mirror() -> None:
    image = Image.open(BytesIO(pictures(1)[0]["image"]))
    mirrored = Augmentation(flip=1, crop=1).draw(np.random.default_rng(0)).apply(image, (16, 16))
    assert np.array_equal(np.asarray(mirrored), np.asarray(image)[:, ::-1])


def test_what_is_mixed_has_both_labels(tiny_base: Any) -> None:
    ready = prepared(tiny_base("vit"), pictures(9), task=TASK, method="full", data={"augment": ALL})
    examples = varied(ready, 1)
    targets = np.stack([example.target for example in examples])
    assert np.allclose(targets.sum(-1), 1) and (targets.max(-1) >= 0.5).all()
    assert ((targets > 0).sum(-1) == 2).any(), "none was mixed with one of another class"
    assert [e.source for e in examples] == [e.source for e in ready.examples("train")]


def test_a_crop_keeps_what_was_asked() -> None:
    rng, augment = np.random.default_rng(0), Augmentation(crop=0.4, flip=0)
    for _ in range(200):
        left, top, right, bottom = augment.draw(rng).box((100, 50), (32, 16))
        assert 0 <= left < right <= 100 + 1e-9 and 0 <= top < bottom <= 50 + 1e-9
        assert 0.29 <= (right - left) * (bottom - top) / 5000 <= 1 + 1e-9


def test_a_crop_of_a_wide_image_is_stretched_no_more_than_that_of_a_square_one() -> None:
    rng, augment = np.random.default_rng(0), Augmentation(crop=0.6, flip=0)
    for original in ((600, 200), (200, 600), (300, 300)):
        for _ in range(50):
            left, top, right, bottom = augment.draw(rng).box(original, (64, 64))
            assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9
            assert min(left, top) >= 0 and right <= original[0] + 1e-9 and bottom <= original[1] + 1e-9


def test_a_crop_is_resized_as_the_processor_does() -> None:
    """A pixel of its own in every place: the nearest one has no colours between."""
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    draw = Augmentation(crop=0.5, flip=0).draw(np.random.default_rng(0))
    nearest, smooth = (np.asarray(draw.apply(board, (16, 16), filter)) for filter in (0, 3))
    assert set(np.unique(nearest)) <= {0, 255} and not {0, 255} & set(np.unique(smooth))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    def document(name: str) -> Any:
        training = {"checkpoint_every": 1, "ema": 0.9}
        return recipe(
            tiny_base(kind), tmp_path / name, task=TASK, method="full", data={"augment": ALL}, training=training
        )

    def cut() -> None:
        raise KeyError("cut")

    whole = tw.train(document("whole"))
    with pytest.raises(KeyError):
        tw.train(document("cut"), watchers=[stop_at(5, cut)])
    assert left_behind(tw.resume(tmp_path / "cut").folder) == left_behind(whole.folder)


def test_images_are_predicted_however_they_are_given(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("resnet"), tmp_path / "run", task=TASK, method="full"))
    content = pictures(1)[0]["image"]
    path = tmp_path / "one.png"
    path.write_bytes(content)
    found = tw.predict(run.folder, [path, str(path), content, Image.open(path)])
    assert [one["image"] for one in found[:2]] == [str(path)] * 2
    assert len({one["label"] for one in found}) == 1
    chances = [list(one["probabilities"].values()) for one in found]
    assert np.allclose(chances, chances[0], atol=1e-6) and sum(chances[0]) == pytest.approx(1)
    assert tw.predict(run.folder, path)[0]["label"] == found[0]["label"]


def test_each_image_that_cannot_be_read_is_named(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("vit"), tmp_path / "run", task=TASK, method="head"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(DataError, match=r"2 of 3 images cannot be read") as found:
        tw.predict(run.folder, [pictures(1)[0]["image"], tmp_path / "text.png", tmp_path / "gone.png"])
    assert len(found.value.faults) == 2 and "text.png: this is no image" in found.value.faults[0]
    with pytest.raises(DataError, match=r"images\[0\] must be a path"):
        tw.predict(run.folder, [3])


def test_a_folder_and_a_file_that_is_not_there_are_named_once(tiny_base: Any, tmp_path: Path) -> None:
    run = tw.train(recipe(tiny_base("vit"), tmp_path / "run", task=TASK, training={"max_steps": 1}))
    with pytest.raises(DataError) as found:
        tw.predict(run.folder, [tmp_path, tmp_path / "none.png"])
    assert found.value.faults == [
        f"{tmp_path} is a folder: name the images in it",
        f"{tmp_path / 'none.png'} cannot be read (No such file or directory)",
    ]


def test_a_class_whose_images_are_all_skipped_is_named(tiny_base: Any) -> None:
    rows = [*pictures(6), {"image": b"none", "label": "lost"}, {"image": b"none", "label": pictures(1)[0]["label"]}]
    ready = prepared(tiny_base("vit"), rows, task=TASK, data={"on_bad_rows": "skip"})
    (notice,) = [notice for notice in ready.notices if notice.startswith("No training row")]
    assert (
        notice
        == "No training row of lost can be used, but the model gets the label: mend the rows, or remove them all."
    )


def test_a_broken_image_is_named_before_anything_trains_or_put_aside(tiny_base: Any, tmp_path: Path) -> None:
    rows = pictures(13)
    rows[5] = {**rows[5], "image": rows[5]["image"][:100]}
    data = {"train": rows, "validation": 0}
    with pytest.raises(DataError, match=r"1 of 13 rows cannot be used: mend it.*\n.*rows\[5\]: the image is broken"):
        tw.train(recipe(tiny_base("vit"), tmp_path / "run", task=TASK, data=data))
    assert not (tmp_path / "run").exists()
    run = tw.train(recipe(tiny_base("vit"), tmp_path / "run", task=TASK, data={**data, "on_bad_rows": "skip"}))
    assert run.info["data"]["train"]["rows"] == 12 and run.info["data"]["train"]["bad_rows"] == 1


def test_the_task_is_seen_from_the_rows(tiny_base: Any, tmp_path: Path) -> None:
    data = {"train": pictures(12), "validation": 0}
    run = tw.train(base=tiny_base("resnet"), data=data, method="head", training=TRAINING, output=tmp_path / "run")
    assert run.info["task"] == TASK


def test_images_of_several_sizes_are_refused(tiny_base: Any, tmp_path: Path) -> None:
    import shutil

    base = Path(shutil.copytree(tiny_base("resnet"), tmp_path / "base"))
    settings = base / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"do_center_crop": true', '"do_center_crop": false'))
    wide = BytesIO()
    Image.new("RGB", (60, 20)).save(wide, "PNG")
    rows = [*pictures(3), {"image": wide.getvalue(), "label": "class 1"}]
    with pytest.raises(DataError, match="of several sizes"):
        tw.train(recipe(str(base), tmp_path / "run", task=TASK, data={"train": rows, "validation": 0}))
