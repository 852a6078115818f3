"""Folders of images: what in them is a row, a class, a caption, a split; and that nothing else is dropped silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tunewright.data.config import DataConfig
from tunewright.data.records import load_records
from tunewright.data.repeats import find_repeats
from tunewright.errors import DataError

COLOURS = ("red", "lime", "blue", "black", "white", "gray")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of two images each."""
    for i, name in enumerate(("ants/0.png", "ants/1.png", "bees/0.png", "bees/deep/1.png")):
        image(tmp_path / "root" / name, COLOURS[i])
    return tmp_path / "root"


def image(path: Path, colour: str = "red", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), colour).save(path, **options)
    return path


def captioned(path: Path, text: str = "a wall", end: str = ".txt", colour: str = "red") -> Path:
    image(path, colour).with_suffix(end).write_text(text)
    return path


def read(location: Any, kinds: tuple[str, ...] = (), **options: Any) -> Any:
    return load_records(str(location), DataConfig(train="-", **options), kinds=kinds)


def names(found: Any, root: Path) -> list[str]:
    return [str(Path(record.source).relative_to(root)) for record in found.records]


WHOLE = ["ants/0.png", "ants/1.png", "bees/0.png", "bees/deep/1.png"]


# What is no row


def test_what_is_hidden_or_left_by_other_systems_is_no_row(root: Path) -> None:
    for name in ("ants/._0.jpg", ".hidden/a.png", "bees/.trash/a.png", "__MACOSX/ants/._0.png", "__MACOSX/b.png"):
        image(root / "a.png").rename(_made(root / name))
    for name in (".DS_Store", "ants/.DS_Store", "bees/Thumbs.db", "desktop.ini", "._metadata.jsonl"):
        (root / name).write_bytes(b"x")
    found = read(root)
    assert names(found, root) == WHOLE and not found.doubts
    assert {record.label for record in found.records} == {"ants", "bees"}


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_what_is_left_out_is_counted_and_named(root: Path) -> None:
    image(root / "loose.png")
    for name in ("ants/a.mp4", "ants/b.mp4", "ants/c.mp4", "notes.md"):
        (root / name).write_bytes(b"x")
    found = read(root)
    assert names(found, root) == WHOLE
    assert [doubt.replace(f"{root}/", "") for doubt in found.doubts] == [
        "4 files are no image, and left out: ants/a.mp4, ants/b.mp4, ants/c.mp4, …",
        "1 file is in no class's folder, and left out: loose.png",
    ]


@pytest.mark.parametrize("end", ["avif", "jfif", "tif", "jpe", "pbm", "tga"])
def test_all_that_pillow_opens_is_a_row(end: str, root: Path) -> None:
    image(root / "ants" / f"a.{end}")
    found = read(root)
    assert len(found.records) == 5 and all(record.image.pixels().size == (6, 4) for record in found.records)


def test_a_phones_photos_are_rows_that_say_what_to_do(root: Path) -> None:
    (root / "ants" / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 60)
    found = read(root)
    assert len(found.records) == 5
    with pytest.raises(DataError, match=r"^HEIC cannot be read: save the image as JPEG or PNG$"):
        next(record for record in found.records if record.source.endswith("heic")).image.pixels()


def test_further_frames_are_told(root: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in COLOURS[:3]]
    for i, end in enumerate(("gif", "png", "webp", "tiff")):
        frames[0].save(root / "ants" / f"moving{i}.{end}", save_all=True, append_images=frames[1:])
    image(root / "ants" / "still.gif")
    (doubt,) = read(root).doubts
    assert doubt.startswith("4 images have several frames, of which the first is used: ")
    assert "moving0.gif" in doubt and "still" not in doubt


def test_a_folder_that_cannot_be_read_is_at_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("ants"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"ants: this folder cannot be read \(Permission denied\)"):
        read(root)
    assert names(read(root, on_bad_rows="skip"), root) == WHOLE[2:]


def test_links_are_followed_once(root: Path) -> None:
    (root / "bees" / "self").symlink_to(root)
    (root / "wasps").symlink_to(image(root.parent / "elsewhere" / "w.png").parent)
    assert names(read(root), root) == [*WHOLE, "wasps/w.png"]


# Splits and tables


def test_a_class_called_train_is_no_split(root: Path) -> None:
    image(root / "train" / "0.png")
    assert {record.label for record in read(root).records} == {"ants", "bees", "train"}
    image(root / "train" / "ants" / "0.png")
    with pytest.raises(DataError, match=r"holds the splits train: name one"):
        read(root)


def test_a_split_has_its_own_metadata_or_captions(tmp_path: Path) -> None:
    for split in ("train", "test"):
        image(tmp_path / "a" / split / "in" / "0.png")
        (tmp_path / "a" / split / "metadata.jsonl").write_text('{"file_name": "in/0.png", "text": "a wall"}\n')
        captioned(tmp_path / "b" / split / "0.png")
    for name in ("a", "b"):
        (record,) = read(f"{tmp_path / name}:train").records
        assert record.text == "a wall" and record.image.pixels().size == (6, 4)


def test_a_table_beside_one_folder_of_images_says_what_they_show(tmp_path: Path) -> None:
    image(tmp_path / "images" / "0.png")
    (tmp_path / "rows.csv").write_text("image,label\nimages/0.png,ant\n")
    (record,) = read(tmp_path).records
    assert record.label == "ant"


# Captions in folders, as kohya's scripts have them


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    root = tmp_path / "img"
    captioned(root / "3_ant" / "0.png", "an ant", colour="red")
    captioned(root / "3_ant" / "1.png", "two ants", ".caption", colour="blue")
    captioned(root / "2_bee" / "0.png", "a bee", colour="lime")
    return root


def test_captions_in_folders_repeat_as_the_folders_say(kohya: Path) -> None:
    found = read(kohya)
    assert found.kind == "captioned_image"
    assert [record.text for record in found.records] == ["a bee"] * 2 + ["an ant"] * 3 + ["two ants"] * 3
    assert found.doubts == [f"{kohya}: 2_bee, 3_ant: the number is how often an epoch passes each image."]
    assert find_repeats({"train": found})["duplicates"]["exact"]["count"] == 0, "they are meant to repeat"


def test_what_folders_are_read_for_decides(kohya: Path) -> None:
    assert read(kohya, ("image",)).kind == read(kohya, format="image").kind == "image"
    for i in range(6):
        image(kohya / "wasps" / f"{i}.png")
    assert read(kohya).kind == "image", "few have a caption"
    for options in ({"kinds": ("captioned_image",)}, {"format": "captioned_image"}):
        with pytest.raises(DataError, match=r"6 of 14 rows .*\n.*wasps/0\.png: no caption: write it into 0\.txt"):
            read(kohya, **options)


def test_a_caption_that_cannot_be_read_is_named(kohya: Path) -> None:
    (kohya / "2_bee" / "0.txt").write_bytes(b"\xff\x00")
    with pytest.raises(DataError, match=r"2_bee/0\.png: its caption 0\.txt is not UTF-8 \(byte 0\): save it as UTF-8"):
        read(kohya)


def test_missing_captions_and_missing_classes_say_how_to_give_them(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds 4 images and no caption: write .* \(a\.png, a\.txt\), or .*metadata"):
        read(root, ("captioned_image",))
    image(tmp_path / "flat" / "0.png")
    for kinds in ((), ("image",)):
        with pytest.raises(DataError, match=r"holds 1 image and no class: put each into a folder that is named after"):
            read(tmp_path / "flat", kinds)
