"""Captioned images: where they are read from, and the buckets that they are fitted into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tunewright.data.augmentation import Draw
from tunewright.data.buckets import Fit, bucket, buckets
from tunewright.data.config import DataConfig
from tunewright.data.kinds import CaptionedImage
from tunewright.data.pictures import Picture
from tunewright.data.records import load_records
from tunewright.errors import DataError, RecipeError
from tunewright.recipe import make_recipe
from tunewright.tasks._captioned import View


def image(path: Path, size: tuple[int, int] = (6, 4), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def read(location: Any, **options: Any) -> Any:
    return load_records(location, DataConfig(train="-", **options))


def test_a_folder_with_metadata(tmp_path: Path) -> None:
    rows = [{"file_name": "in/a.png", "text": "a red wall"}, {"file_name": "b.jpg", "text": "a blue one", "weight": 2}]
    image(tmp_path / "in" / "a.png")
    image(tmp_path / "b.jpg")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read(str(tmp_path))
    assert found.kind == "captioned_image"
    assert [(r.text, r.weight, r.image.pixels().size) for r in found.records] == [
        ("a red wall", 1.0, (6, 4)),
        ("a blue one", 2.0, (6, 4)),
    ]


def test_a_text_file_beside_each_image(tmp_path: Path) -> None:
    for name in ("b", "a"):
        image(tmp_path / f"{name}.png").with_suffix(".txt").write_text(f"wall {name}\n")
    found = read(str(tmp_path))
    assert [(Path(r.source).name, r.text) for r in found.records] == [("a.png", "wall a"), ("b.png", "wall b")]


def test_an_image_without_its_text_file_is_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png").with_suffix(".txt").write_text("a wall")
    image(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: no caption: write it into b\.txt"):
        read(str(tmp_path))
    skipped = read(str(tmp_path), on_bad_rows="skip")
    assert len(skipped.records) == 1 and len(skipped.bad_rows) == 1


def test_parquet_with_images_and_captions(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [str(image(tmp_path / "a.png"))], "caption": ["a wall"]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(tmp_path / "rows.parquet")
    (record,) = read(str(tmp_path / "rows.parquet"), columns={"text": "caption"}).records
    assert isinstance(record, CaptionedImage)
    assert (record.text, record.image.pixels().size) == ("a wall", (6, 4))


@pytest.mark.parametrize("text", ["", "  ", None, 3])
def test_a_caption_that_is_missing_is_named(text: Any, tmp_path: Path) -> None:
    row = {"image": str(image(tmp_path / "a.png")), "text": text}
    with pytest.raises(DataError, match=r"rows\[0\]: text"):
        read([row])


@pytest.mark.parametrize(
    "options", [{"resolution": 64}, {"caption_dropout": 0.1}, {"cache_latents": "x"}, {"cache_captions": "x"}]
)
def test_options_for_captioned_images_are_refused_elsewhere(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="has no effect on text rows"):
        read([{"text": "a wall"}], **options)


@pytest.mark.parametrize(
    "options", [{"cache_latents": "x", "augment": {}}, {"cache_captions": "x", "caption_dropout": 0.1}]
)
def test_what_varies_cannot_be_kept(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="choose one"):
        make_recipe({"base": "x", "data": {"train": "x", **options}})


def test_buckets_have_about_as_many_pixels_and_sides_that_can_be_halved() -> None:
    found = buckets(512, 64)
    assert (512, 512) in found and (448, 576) in found and (1024, 256) in found
    assert all(w % 64 == h % 64 == 0 and w * h <= 512**2 and max(w, h) <= 4 * min(w, h) for w, h in found)
    assert all(w * (h + 64) > 512**2 for w, h in found)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 100), (512, 512)), ((3000, 2000), (640, 384)), ((2000, 3000), (384, 640)), ((9000, 100), (1024, 256))],
)
def test_an_image_gets_the_bucket_nearest_in_ratio(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert bucket(size, 512, 64) == expected


def test_what_hangs_over_is_cropped_at_both_ends() -> None:
    """Three stripes of 4 pixels, of which a square keeps the middle and a half of each other one."""
    stripes = Image.new("RGB", (12, 6))
    for i, colour in enumerate(("red", "lime", "blue")):
        stripes.paste(colour, (4 * i, 0, 4 * i + 4, 6))
    fit = Fit.of((12, 6), (6, 6))
    assert (fit.covering, fit.corner) == ((12, 6), (3, 0))
    assert fit.conditions(fit.corner) == (6, 12, 0, 3, 6, 6)
    kept = fit.apply(stripes)
    assert [kept.getpixel((x, 0)) for x in range(6)] == [
        (255, 0, 0), *[(0, 255, 0)] * 4, (0, 0, 255),
    ]  # fmt: skip


def test_a_smaller_image_is_enlarged() -> None:
    fit = Fit.of((3, 4), (6, 6))
    assert (fit.covering, fit.corner, fit.apply(Image.new("RGB", (3, 4))).size) == ((6, 8), (0, 1), (6, 6))


@pytest.mark.parametrize("flip", [False, True])
def test_sdxl_is_told_the_crop_that_was_drawn(flip: bool) -> None:
    """Where the crop lies in the image as it is seen: at its own scale, mirrored if it is."""
    draw = Draw(flip=flip, area=0.25, ratio=1.0, place=(0.25, 1.0), factors=())
    view = View(Picture(content=b""), Fit.of((100, 100), (20, 20)), draw=draw)
    assert draw.box((100, 100), (20, 20)) == (12.5, 50.0, 62.5, 100.0)
    left = (100 - 62.5 if flip else 12.5) * 20 / 50
    assert view.beside()["sizes"].tolist() == [100, 100, 20, left, 20, 20]


def test_sdxl_is_told_the_crop_of_a_mirrored_image() -> None:
    fit = Fit((61, 30), (61, 30), (30, 30))
    assert [View(Picture(content=b""), fit, draw=Draw(flip, None, 1.0, (0, 0), ())).beside()["sizes"].tolist()[3]
            for flip in (False, True)] == [15, 16]  # fmt: skip
