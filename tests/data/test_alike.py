"""Images that are nearly the same are found, and distinct ones are not."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from tunewright.data import alike
from tunewright.data.alike import NEAR, STRICT, Near, near, patterns
from tunewright.data.config import DataConfig
from tunewright.data.kinds import LabelledImage
from tunewright.data.pictures import Picture
from tunewright.data.records import Records, load_records
from tunewright.data.repeats import find_repeats


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
    "cropped by 5 %": lambda image: saved(image.crop((5, 4, 195, 146)), "JPEG", quality=75),
    "mirrored": lambda image: saved(ImageOps.mirror(image), "JPEG", quality=75),
    "mirrored and cropped": lambda image: saved(ImageOps.mirror(image.crop((5, 4, 195, 146))), "JPEG", quality=75),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_found(name: str) -> None:
    others = [saved(scene(i)) for i in range(20)]
    found = find_repeats({"train": records(others), "test": records([COPIES[name](scene(7)), saved(scene(30))])})
    leaks = found["leaks"]["test"]
    assert leaks["exact"]["count"] == 0 and leaks["near"]["count"] == 1
    assert leaks["near"]["pairs"][0][:2] == ["rows[0]", "rows[7]"] and NEAR <= leaks["near"]["pairs"][0][2] <= 1
    assert leaks["near"].get("mirrored", 0) == ("mirrored" in name)


def test_copies_among_the_training_rows() -> None:
    rows = [saved(scene(0)), saved(scene(1)), copy(scene(0)), saved(scene(1)), saved(scene(2))]
    duplicates = find_repeats({"train": records(rows)})["duplicates"]
    assert duplicates["exact"]["pairs"] == [["rows[3]", "rows[1]", 1.0]]
    assert duplicates["near"]["count"] == 1 and duplicates["near"]["pairs"][0][:2] == ["rows[2]", "rows[0]"]


def test_copies_among_captioned_images() -> None:
    rows = [{"image": content, "text": "a scene"} for content in (saved(scene(0)), saved(scene(1)), copy(scene(0)))]
    train = load_records(rows, DataConfig(train=rows))
    assert find_repeats({"train": train})["duplicates"]["near"]["pairs"][0][:2] == ["rows[2]", "rows[0]"]


def test_plain_and_unreadable_images_are_like_nothing() -> None:
    plain = [saved(Image.new("RGB", (40, 40), colour)) for colour in ("white", "black", "red")]
    found = patterns(pictures(*plain, b"no image"))
    assert not found.upright_ND.any() and list(near(found)) == [None] * 4
    assert list(near(patterns([]))) == [] and list(near(patterns(pictures(saved(scene(1)))), patterns([]))) == [None]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    some = pictures(*(saved(scene(i)) for i in range(9)), copy(scene(2)), copy(scene(8)))

    def found() -> list[Near | None]:
        one, other = patterns(some[:5]), patterns(some[5:])
        return [*near(patterns(some)), *near(one, other), *near(other, one)]

    whole = found()
    monkeypatch.setattr(alike, "BLOCK", 2)
    for one, another in zip(whole, found(), strict=True):
        assert (one and one.row) == (another and another.row)
        assert one is None or (another is not None and one.cosine == pytest.approx(another.cosine, abs=1e-5))
    assert [one and one.row for one in whole] == [*[None] * 9, 2, 8, None, None, 4, None, None, *[None] * 4, 2, None]


# Drawings


def drawing(number: int) -> Image.Image:
    """A digit, light on dark, by another hand each time."""
    random, side = np.random.default_rng(number), 112
    image = Image.new("L", (side, side))
    middle = side / 2 + random.normal(0, 0.03 * side, 2)
    ImageDraw.Draw(image).text(
        tuple(middle), str(number % 10), 255, _font(side * random.uniform(0.6, 0.8)), "mm",
        stroke_width=int(random.integers(4)),
    )  # fmt: skip
    shear = (1, random.normal(0, 0.15), 0, random.normal(0, 0.05), 1, 0)
    image = image.rotate(random.normal(0, 8), Image.Resampling.BICUBIC)
    return image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC).resize((28, 28))


def _font(size: float) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def test_digits_are_not_copies_of_each_other() -> None:
    """Six of ten were, by their pattern alone."""
    found = list(near(patterns(pictures(*(saved(drawing(i)) for i in range(300))))))
    assert sum(one is not None for one in found) <= 12


def test_a_digit_saved_anew_is_found() -> None:
    digits = [saved(drawing(i)) for i in range(60)]
    again = [saved(drawing(i), "JPEG", quality=85) for i in range(60)]
    found = list(near(patterns(pictures(*again)), patterns(pictures(*digits))))
    right = sum(one is not None and one.row == i and one.cosine >= STRICT for i, one in enumerate(found))
    assert right >= 57


# Photos


def photos(shared: Path, name: str, *sets: str) -> list[Picture]:
    rows = [load_records(str(shared / f"data/{name}/{one}.parquet"), DataConfig(train="-")).records for one in sets]
    return [record.image for records in rows for record in records if isinstance(record, LabelledImage)]


def test_photos_of_one_class_are_not_alike(shared: Path) -> None:
    """All pairs of 396 photos of ants and bees; of 5,000 small ones 16 of the 22 that are found show the same scene."""
    assert not any(near(patterns(photos(shared, "ants_bees", "train", "test"))))
    found = [one for one in near(patterns(photos(shared, "cifar10", "train", "test"))) if one]
    assert (len(found), sum(one.mirrored for one in found)) == (22, 2)


REACHED = {
    "half": (0.99, lambda image: image.resize((image.width // 2, image.height // 2))),
    "95 %": (0.98, lambda image: _middle(image, 0.95)),
    "90 %": (0.7, lambda image: _middle(image, 0.9)),
    "mirrored": (0.99, ImageOps.mirror),
    "brighter": (0.98, lambda image: ImageEnhance.Brightness(image).enhance(1.3)),
    "darker": (0.98, lambda image: ImageEnhance.Brightness(image).enhance(0.7)),
}


def _middle(image: Image.Image, share: float) -> Image.Image:
    x, y = (round(side * (1 - share) / 2) for side in image.size)
    return image.crop((x, y, image.width - x, image.height - y))


@pytest.mark.parametrize("name", REACHED)
def test_copies_of_photos_are_found(name: str, shared: Path) -> None:
    share, change = REACHED[name]
    some = photos(shared, "ants_bees", "train")[:120]
    copies = pictures(*(saved(change(picture.pixels()), "JPEG", quality=70) for picture in some))
    found = list(near(patterns(copies), patterns(some)))
    assert sum(one is not None and one.row == i for i, one in enumerate(found)) >= share * len(some)
