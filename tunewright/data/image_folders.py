"""Folders of images: one for each class, or with a caption beside each image; in both forms also one for each split.

What is hidden, and what other systems leave in archives, is no part of a folder. All else is accounted for: read, at
fault, or named in a doubt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.data.pictures import EXTENSIONS
from tunewright.data.row import Fault, Row, Rows
from tunewright.errors import DataError, counted

CAPTIONS = (".txt", ".caption")
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SPLIT = re.compile(r"(training|train|validation|valid|val|dev|eval|test)(?![a-z])")
REPEATS = re.compile(r"([1-9]\d{0,2})_.+")
"""A folder of captioned images as kohya's scripts name it: how often an epoch passes them, and what they show."""
FOREIGN = ("__macosx", "thumbs.db", "desktop.ini")
SHOWN = 3


@dataclass
class Tree:
    """The visible files of a folder, at any depth and sorted, and why folders in it cannot be read."""

    root: Path
    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def top(self, path: Path) -> str:
        """The name of the folder in the root that a file lies in, at any depth; "" for one in the root itself."""
        within = path.relative_to(self.root).parts
        return within[0] if len(within) > 1 else ""

    @property
    def folders(self) -> list[str]:
        """Those in the root that hold images."""
        return list(dict.fromkeys(name for path in self.images if (name := self.top(path))))

    def captions(self) -> dict[Path, Path | None]:
        """Each image with the text file of its name, if there is one."""
        there = set(self.others)
        beside = {path: [path.with_suffix(end) for end in CAPTIONS] for path in self.images}
        return {path: next((text for text in texts if text in there), None) for path, texts in beside.items()}


def split_folder(tree: Tree, split: str | None) -> Path | None:
    """The folder of a split; None where the folder's images are no splits.

    Raises DataError where it holds splits and none is named, or not this one.
    """
    splits = _splits(tree)
    if split is None and splits:
        raise DataError(f"{tree.root} holds the splits {', '.join(splits)}: name one, as {tree.root}:{splits[0]}.")
    if split is None or not tree.folders:
        return None
    if split not in splits:
        raise DataError(f"{tree.root} has no split {split}: it holds {', '.join(tree.folders)}.")
    return tree.root / split


def read_images(tree: Tree, captioned: bool | None = None) -> Rows | None:
    """The images of a folder as rows; None where it holds none, or a table beside them says what they show.

    Args:
        captioned: whether captions are wanted, or classes; None: captions where at least half of the images have one.

    Raises DataError where captions or classes are wanted and there are none.
    """
    captions = tree.captions()
    found = sum(text is not None for text in captions.values())
    if not tree.images or (not found and len(tree.folders) < 2 and _has_table(tree)):
        return None
    if captioned is None:
        captioned = found > 0 and (not tree.folders or 2 * found >= len(captions))
    return _captioned(tree, captions) if captioned else _classes(tree)


def loose_images(folder: Path) -> list[Row]:
    """The images of a folder in which nothing says what they show; none where something does."""
    tree = walk(folder)
    told = tree.folders or any(tree.captions().values()) or _has_table(tree)
    return [] if told else [_row(path, {}) for path in tree.images]


def walk(folder: Path) -> Tree:
    """All that a folder holds. Links are followed, each folder once."""
    found, seen = Tree(folder), set()

    def fail(error: OSError) -> None:
        found.faults.append(Fault(str(error.filename), f"this folder cannot be read ({error.strerror})", None))

    for name, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(name)
        folders[:] = [] if real in seen else sorted(filter(_visible, folders))
        for file in sorted(filter(_visible, files)) if real not in seen else ():
            path = Path(name, file)
            (found.images if path.suffix.lower() in EXTENSIONS else found.others).append(path)
        seen.add(real)
    found.images.sort()
    return found


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in FOREIGN


def _splits(tree: Tree) -> list[str]:
    """The folders that are splits. A single one among others is a class of that name, unless it has folders itself."""
    named = [name for name in tree.folders if SPLIT.fullmatch(name.lower())]
    if len(named) != 1 or tree.folders == named:
        return named
    return named if any(len(p.relative_to(tree.root).parts) > 2 for p in tree.images if tree.top(p) in named) else []


def _has_table(tree: Tree) -> bool:
    return any(path.parent == tree.root and path.suffix.lower() in TABLES for path in tree.others)


def _classes(tree: Tree) -> Rows:
    """The folders in the root are classes, whatever is in them."""
    loose = [path for path in tree.images if not tree.top(path)]
    if len(loose) == len(tree.images):
        raise DataError(
            f"{tree.root} holds {counted(len(loose), 'image')} and no class: put each into a folder that is named "
            "after its class, or list them in a file with the columns image and label."
        )
    doubts = _left_out(tree.others, "no image")
    if loose:
        doubts += _left_out(loose, "in no class's folder")
    rows = [_row(path, {"label": name}) for path in tree.images if (name := tree.top(path))]
    return Rows(rows, tree.faults, doubts)


def _captioned(tree: Tree, captions: dict[Path, Path | None]) -> Rows:
    """Images with a text file of the same name beside each. One without such a file is a fault."""
    if not any(captions.values()):
        raise DataError(
            f"{tree.root} holds {counted(len(captions), 'image')} and no caption: write what each shows into a text "
            "file of its name beside it (a.png, a.txt), or list them in metadata.jsonl as file_name and text."
        )
    read = Rows([], list(tree.faults), _left_out(set(tree.others) - set(captions.values()), "no image or caption"))
    repeats = {name: int(match[1]) for name in tree.folders if (match := REPEATS.fullmatch(name))}
    for image, caption in captions.items():
        try:
            row = _row(image, {"text": _text(caption, image)})
            read.rows.extend([row] * repeats.get(tree.top(image), 1))
        except DataError as error:
            read.faults.append(Fault(str(image), str(error), None))
    if repeats:
        named = f"{tree.root}: {', '.join(repeats)}"
        return read._replace(doubts=[*read.doubts, f"{named}: the number is how often an epoch passes each image."])
    return read


def _row(path: Path, values: dict[str, str]) -> Row:
    return Row({"image": str(path.absolute()), **values}, str(path))


def _text(caption: Path | None, image: Path) -> str:
    if caption is None:
        raise DataError(f"no caption: write it into {image.with_suffix('.txt').name}")
    try:
        return caption.read_bytes().removeprefix(b"\xef\xbb\xbf").decode().strip()
    except OSError as error:
        raise DataError(f"its caption {caption.name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"its caption {caption.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from error


def _left_out(paths: Iterable[Path], why: str) -> list[str]:
    """One line for files that are no rows."""
    found = sorted(paths)
    if not found:
        return []
    named = ", ".join(map(str, found[:SHOWN])) + (", …" if len(found) > SHOWN else "")
    return [f"{counted(len(found), f'file is {why}', f'files are {why}')}, and left out: {named}"]
