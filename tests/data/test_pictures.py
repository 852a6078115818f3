"""Images of every kind that people have become upright RGB pixels, and those that cannot be are named."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.tiny import pictures
from tunewright.data.config import DataConfig
from tunewright.data.kinds import LabelledImage
from tunewright.data.pictures import Picture, as_picture, decode
from tunewright.data.records import load_records
from tunewright.errors import DataError


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_what_is_transparent_becomes_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    assert list(decode(saved(image)).getdata()) == [(255, 255, 255), (255, 0, 0)]


def test_sixteen_bits_become_eight_and_are_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert [pixel[0] for pixel in decode(saved(Image.fromarray(values))).getdata()] == [0, 100, 255]


def test_a_photograph_stands_upright() -> None:
    """A camera that was held sideways says so in EXIF, orientation 6: turn it by a quarter clockwise."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (4, 2), "black")
    image.paste("white", (0, 0, 2, 2))
    upright = decode(saved(image, "JPEG", exif=exif, quality=95))
    assert upright.size == (2, 4)
    assert upright.getpixel((0, 0))[0] > 200 and upright.getpixel((0, 3))[0] < 50  # type: ignore[index]


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("RGB", (3, 3), "white").convert(mode)
    found = decode(saved(image, "TIFF" if mode == "CMYK" else "PNG"))
    assert found.mode == "RGB" and found.getpixel((1, 1)) == (255, 255, 255)


def test_a_moving_image_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    assert decode(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no image"),
        (b"hello", "no image"),
        (saved(Image.effect_noise((64, 64), 50), "JPEG")[:-300], "broken"),
        (saved(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
    ],
)
def test_what_is_no_image_says_why(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        decode(content)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.new("F", (2, 2)), "the image has floating-point pixels, of no known range: save it with 8 or 16 bits"),
        (Image.new("I", (2, 2), 70_000), "the image has more than 16 bits a pixel: save it with 8 or 16"),
    ],
)
def test_pixels_of_another_kind_are_one_sentence(image: Image.Image, reason: str) -> None:
    with pytest.raises(DataError) as raised:
        decode(saved(image, "TIFF"))
    assert str(raised.value) == reason


def test_a_bomb_is_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    content = saved(Image.new("1", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # what Pillow only warns of is refused too
    with pytest.raises(DataError, match="more than 9,000 pixels"):
        decode(content)


# Where they lie


def folders(root: Path, rows: list[dict[str, Any]]) -> Path:
    for i, row in enumerate(rows):
        place = root / row["label"] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(row["image"])
    return root


def labels(location: Any) -> list[tuple[str, Any]]:
    loaded = load_records(location, DataConfig(train="-"))
    records = [record for record in loaded.records if isinstance(record, LabelledImage)]
    assert len(records) == len(loaded.records) and loaded.kind == "image"
    return sorted((record.image.sha256, record.label) for record in records)


def test_every_form_gives_the_same_images(tmp_path: Path) -> None:
    rows = pictures(6)
    wanted = sorted((Picture(content=row["image"]).sha256, row["label"]) for row in rows)
    assert labels(rows) == wanted
    assert labels(str(folders(tmp_path / "folder", rows))) == wanted
    folders(tmp_path / "splits" / "train", rows)
    folders(tmp_path / "splits" / "test", rows[:3])
    assert labels(f"{tmp_path / 'splits'}:train") == wanted
    table = pyarrow.Table.from_pylist([{**row, "image": {"bytes": row["image"], "path": None}} for row in rows])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert labels(str(tmp_path / "rows.parquet")) == wanted
    listed = [(path.relative_to(tmp_path), path.parent.name) for path in (tmp_path / "folder").rglob("*.png")]
    (tmp_path / "rows.csv").write_text("image,label\n" + "".join(f"{path},{name}\n" for path, name in listed))
    assert labels(str(tmp_path / "rows.csv")) == wanted, "paths are relative to the file"
    lines = [json.dumps({"file_name": str(path), "label": name}) for path, name in listed]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    assert labels(str(tmp_path / "metadata.jsonl")) == wanted


def test_images_of_pillow_lose_nothing() -> None:
    rows = pictures(2)
    opened = [{**row, "image": Image.open(BytesIO(row["image"]))} for row in rows]
    config = DataConfig.model_validate({"train": opened})
    assert json.loads(config.model_dump_json())["train"] == config.train, "it can be written down"
    for record, row in zip(load_records(config.train, config).records, rows, strict=True):
        assert isinstance(record, LabelledImage)
        assert np.array_equal(np.asarray(record.image.pixels()), np.asarray(decode(row["image"])))


def test_a_folder_of_splits_must_be_told_which(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folders(tmp_path / split, pictures(3))
    with pytest.raises(DataError, match=r"holds the splits test, train: name one"):
        labels(str(tmp_path))
    with pytest.raises(DataError, match="no split validation"):
        labels(f"{tmp_path}:validation")


def test_the_same_image_has_the_same_hash_wherever_it_lies(tmp_path: Path) -> None:
    rows = pictures(4)
    config = DataConfig(train="-")
    here, there = (load_records(str(folders(tmp_path / name, rows)), config) for name in ("here", "there"))
    assert here.sha256 == there.sha256
    next((tmp_path / "there").rglob("*.png")).write_bytes(rows[1]["image"] + b" ")
    assert load_records(str(tmp_path / "there"), config).sha256 != here.sha256


def test_what_stands_in_the_column_is_named() -> None:
    with pytest.raises(DataError, match=r"rows\[1\]: image must be a path, or the bytes of an image, not int"):
        load_records([*pictures(1), {"image": 3, "label": "a"}], DataConfig(train="-"))


def test_options_for_texts_are_refused() -> None:
    for option in ({"max_length": 9}, {"overlength": "drop"}, {"special_tokens": ["<a>"]}):
        with pytest.raises(DataError, match="has no effect on image rows"):
            load_records(pictures(2), DataConfig.model_validate({"train": "-", **option}))
    with pytest.raises(DataError, match=r"data\.augment has no effect on classification rows"):
        load_records([{"text": "a", "label": "b"}], DataConfig.model_validate({"train": "-", "augment": {}}))


@pytest.mark.parametrize("address", ["https://example.com/a.jpg", "http://x/y.png", "s3://bucket/x.png"])
def test_an_address_is_not_taken_for_a_file(address: str, tmp_path: Path) -> None:
    """Nothing is fetched, and its name stays as it was given."""
    (tmp_path / "rows.csv").write_text(f"image,label\n{address},a\n")
    picture = load_records(str(tmp_path / "rows.csv"), DataConfig(train="-")).records[0].image
    for found in (picture, as_picture(address, tmp_path)):
        assert str(found) == address and len(found.sha256) == 64
        with pytest.raises(DataError, match=f"{address} is an address, .* download it"):
            found.pixels()
    with pytest.raises(DataError, match=f"{address} is an address, .* download it"):
        load_records(address, DataConfig(train="-"))


def test_only_formats_that_run_nothing_are_read() -> None:
    """PostScript in a file called a.jpg would be run by Ghostscript, where that is installed."""
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    with pytest.raises(DataError, match="no image that can be read"):
        decode(file.getvalue())
