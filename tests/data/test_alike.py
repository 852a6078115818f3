"""Images that are nearly the same are found, and distinct ones are not."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tunewright.data import alike
from tunewright.data.alike import most_alike, pattern
from tunewright.data.config import DataConfig
from tunewright.data.pictures import Picture
from tunewright.data.records import Records, load_records
from tunewright.data.repeats import NEAR, find_repeats


def scene(number: int) -> Image.Image:
    """Soft patches of any colours, 200 × 150 pixels."""
    coarse = np.random.default_rng(number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((200, 150), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def copy(image: Image.Image) -> bytes:
    return saved(image.resize((180, 134)), "JPEG", quality=60)


def pictures(*contents: bytes) -> list[Picture]:
    return [Picture(content=content) for content in contents]


def records(contents: list[bytes], label: str = "a") -> Records:
    rows = [{"image": content, "label": label} for content in contents]
    return load_records(rows, DataConfig(train=rows))


COPIES = {
    "resized and saved anew": copy,
    "smaller by half": lambda image: saved(image.resize((100, 75)), "JPEG", quality=50),
    "of another shape": lambda image: saved(image.resize((160, 160))),
    "in grey": lambda image: saved(image.convert("L")),
    "brighter": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.15)),
    "cropped a little": lambda image: saved(image.crop((3, 2, 197, 148)), "JPEG", quality=75),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(name: str) -> None:
    others = [saved(scene(i)) for i in range(20)]
    found = find_repeats({"train": records(others), "test": records([COPIES[name](scene(7)), saved(scene(30))])})
    leaks = found["leaks"]["test"]
    assert leaks["exact"]["count"] == 0 and leaks["near"]["count"] == 1
    assert leaks["near"]["pairs"][0][:2] == ["rows[0]", "rows[7]"] and NEAR <= leaks["near"]["pairs"][0][2] <= 1


def test_copies_among_the_training_rows() -> None:
    rows = [saved(scene(0)), saved(scene(1)), copy(scene(0)), saved(scene(1)), saved(scene(2))]
    duplicates = find_repeats({"train": records(rows)})["duplicates"]
    assert duplicates["exact"]["pairs"] == [["rows[3]", "rows[1]", 1.0]]
    assert duplicates["near"]["count"] == 1 and duplicates["near"]["pairs"][0][:2] == ["rows[2]", "rows[0]"]


def test_plain_and_unreadable_images_are_like_nothing() -> None:
    plain = [saved(Image.new("RGB", (40, 40), colour)) for colour in ("white", "black", "red")]
    assert not pattern(Picture(content=plain[0])).any() and not pattern(Picture(content=b"no image")).any()
    assert list(most_alike(pictures(*plain, b"no image"))) == [(-1, 0.0)] * 4
    assert list(most_alike([])) == [] and list(most_alike(pictures(saved(scene(1))), [])) == [(-1, 0.0)]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    some = pictures(*(saved(scene(i)) for i in range(9)), copy(scene(2)), copy(scene(8)))
    whole = list(most_alike(some)), list(most_alike(some[:5], some[5:]))
    monkeypatch.setattr(alike, "BLOCK", 2)
    blocks = list(most_alike(some)), list(most_alike(some[:5], some[5:]))
    for one, other in zip(whole, blocks, strict=True):
        assert [j for j, _ in one] == [j for j, _ in other]
        np.testing.assert_allclose([c for _, c in one], [c for _, c in other], atol=1e-5)
    assert whole[0][0] == (-1, 0.0) and (whole[0][9][0], whole[0][10][0]) == (2, 8)
    assert all(j < i for i, (j, _) in enumerate(whole[0]))


def test_photos_of_one_class_are_not_alike(shared: Path) -> None:
    """All pairs of 396 photos of ants and bees; of 5,000 small ones the eight that are found do show the same scene."""
    for name, duplicates, leaks in (("ants_bees", 0, 0), ("cifar10", 1, 7)):
        sets = {one: load_records(str(shared / f"data/{name}/{one}.parquet"), DataConfig(train="-"))
                for one in ("train", "test")}  # fmt: skip
        found = find_repeats(sets)
        assert found["duplicates"]["near"]["count"] == duplicates
        assert found["leaks"]["test"]["near"]["count"] == leaks
