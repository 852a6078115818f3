"""Rows that stand twice: within the training rows, or there and in a set that the model is measured on.

Equal texts are found among all rows. Nearly equal ones have a Jaccard similarity of at least `NEAR` over their pieces
of five characters, case and white space aside (Broder 1997); candidates come from MinHash LSH and are then compared
exactly. Images are equal by the bytes of their files, and nearly equal by their pattern of light and dark, mirrored or
not: see `alike`.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tunewright.data.alike import Near, near, patterns
from tunewright.data.kinds import (
    CaptionedImage,
    Classified,
    Completion,
    Conversation,
    Labelled,
    LabelledImage,
    Prompt,
    Ranking,
    Rated,
    Record,
)
from tunewright.data.messages import text_of
from tunewright.data.pictures import Picture
from tunewright.data.records import Records

NEAR = 0.8
CANDIDATES = 0.7  # the sketch's own threshold: it misses few pairs that are a little more alike than that
PIECE = 5
SKETCH = 64
MOST_ROWS = 20_000
"""So many rows of each set, drawn with a fixed seed, are compared for being nearly equal: about half a minute."""
LONGEST = 5_000
"""Characters of a row that are looked at for that."""
COMPARED = 50  # candidates of a row at most: where all rows are alike, one of the first will do
SHOWN = 5


@dataclass(frozen=True)
class Repeats:
    """A kind of repetition: how many rows of how many, and the first pairs as (row, the earlier row, similarity).

    `mirrored`: how many of them are images that are like the mirrored other one.
    """

    count: int
    rows: int
    pairs: tuple[tuple[str, str, float], ...]
    mirrored: int = 0

    def to_dict(self) -> dict[str, Any]:
        mirrored = {"mirrored": self.mirrored} if self.mirrored else {}
        return {"count": self.count, "rows": self.rows, "pairs": [list(pair) for pair in self.pairs], **mirrored}


def find_repeats(sets: Mapping[str, Records]) -> dict[str, Any]:
    """What stands twice in a recipe's sets; "train" is the one that the others are compared with.

    Returns:
        `duplicates`: training rows that stand there before, word for word or nearly; `contradictions`: training rows
        whose text stands there before with another label; `leaks`: for each other set, rows that were trained on,
        word for word (`exact`) or nearly (`near`); `sampled`: whether only a part was compared for near ones.
    """
    train = _texts(sets["train"])
    index = (_Pictures if sets["train"].kind in ("image", "captioned_image") else _Index)(train)
    others = {name: records for name, records in sets.items() if name != "train"}
    return {
        "duplicates": {
            "exact": _repeats(train, _earlier(train)).to_dict(),
            "near": _repeats(train, index.near).to_dict(),
        },
        "contradictions": _repeats(train, _contradicted(train)).to_dict(),
        "leaks": {name: _leaks(records, index) for name, records in others.items()},
        "sampled": any(len(records.records) > MOST_ROWS for records in sets.values()),
    }


def text(record: Record) -> str:
    """All that a row asks and answers, without system prompts, which many rows share, and without its label."""
    if isinstance(record, Labelled):
        return f"{record.text}\n{record.text_pair or ''}"
    if isinstance(record, Completion):
        return f"{record.prompt}\n{record.completion}"
    if isinstance(record, Conversation):
        return "\n".join(text_of(message) for message in record.messages if message["role"] != "system")
    if isinstance(record, LabelledImage | CaptionedImage):
        return record.image.sha256
    if isinstance(record, Ranking):
        return "\n".join(map(text, record.answers))
    if isinstance(record, Rated):
        return text(record.answer)
    if isinstance(record, Prompt):
        return record.prompt if isinstance(record.prompt, str) else "\n".join(map(text_of, record.prompt))
    return record.text


def _texts(records: Records) -> Texts:
    return [(record, normal(text(record))) for record in records.records]


def _leaks(records: Records, index: _Index | _Pictures) -> dict[str, Any]:
    rows = _texts(records)
    exact = [Found(i, index.exact[one]) for i, (_, one) in enumerate(rows) if one in index.exact]
    known = {found.row for found in exact}
    near = [found for found in index.like(rows) if found.row not in known]
    return {"exact": _repeats(rows, exact, index.rows).to_dict(), "near": _repeats(rows, near, index.rows).to_dict()}


def normal(content: str) -> str:
    """Lower case, runs of white space as one space."""
    return re.sub(r"\s+", " ", content.lower()).strip()


def pieces(content: str) -> frozenset[str]:
    """The pieces of five characters of a normal text; of a shorter one itself."""
    looked_at = content[:LONGEST]
    return frozenset(looked_at[i : i + PIECE] for i in range(max(1, len(looked_at) - PIECE + 1)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


Texts = Sequence[tuple[Record, str]]
"""Rows and their normal texts."""


class Found(NamedTuple):
    """A row's number, that of the row it repeats, how alike they are, and whether as mirrored images."""

    row: int
    earlier: int
    similarity: float = 1.0
    mirrored: bool = False


class _Index:
    """The training rows, to be looked up by their text, or by one that is nearly the same.

    `near`: those that are nearly, but not word for word, like an earlier one.
    """

    def __init__(self, rows: Texts) -> None:
        from datasketch import MinHashLSH

        self.rows, self.exact = rows, _first(rows)
        self.lsh = MinHashLSH(threshold=CANDIDATES, num_perm=SKETCH)
        self.near: list[Found] = []
        for i, found, sketch in _sketches(rows):
            if self.exact[rows[i][1]] == i:
                self.near += self._most_alike(i, found, sketch)
                self.lsh.insert(i, sketch)

    def like(self, rows: Texts) -> Iterator[Found]:
        """Of other rows the training row that each is most like, where it is near."""
        for i, found, sketch in _sketches(rows):
            yield from self._most_alike(i, found, sketch)

    def _most_alike(self, i: int, found: frozenset[str], sketch: Any) -> list[Found]:
        nearby = sorted(self.lsh.query(sketch))[:COMPARED]
        best, j = max(((similarity(found, pieces(self.rows[j][1])), -j) for j in nearby), default=(0.0, 0))
        return [Found(i, -j, round(best, 3))] if best >= NEAR else []


class _Pictures:
    """The same of images."""

    def __init__(self, rows: Texts) -> None:
        self.rows, self.exact = rows, _first(rows)
        self.drawn = [i for i in _drawn(rows) if self.exact[rows[i][1]] == i]
        self.patterns = patterns(_pictures(rows, self.drawn))
        self.near = self._found(self.drawn, near(self.patterns))

    def like(self, rows: Texts) -> list[Found]:
        drawn = _drawn(rows)
        return self._found(drawn, near(patterns(_pictures(rows, drawn)), self.patterns))

    def _found(self, rows: Sequence[int], each: Iterator[Near | None]) -> list[Found]:
        """Of each row the training row that it is most like, where it is near."""
        pairs = zip(rows, each, strict=True)
        return [Found(i, self.drawn[one.row], round(one.cosine, 3), one.mirrored) for i, one in pairs if one]


def _pictures(rows: Texts, drawn: Sequence[int]) -> list[Picture]:
    return [
        record.image for record, _ in (rows[i] for i in drawn) if isinstance(record, LabelledImage | CaptionedImage)
    ]


def _first(rows: Texts) -> dict[str, int]:
    """The first row of each text."""
    found: dict[str, int] = {}
    for i, (_, one) in enumerate(rows):
        found.setdefault(one, i)
    return found


def _drawn(rows: Texts) -> list[int]:
    """The numbers of the rows that are compared for being nearly equal, in order."""
    drawn = np.random.default_rng(0).permutation(len(rows))[:MOST_ROWS]
    return [int(i) for i in np.sort(drawn)]


def _sketches(rows: Texts) -> Iterator[tuple[int, frozenset[str], Any]]:
    from datasketch import MinHash

    empty = MinHash(num_perm=SKETCH, hashfunc=zlib.crc32)
    for i in _drawn(rows):
        found, sketch = pieces(rows[i][1]), empty.copy()
        sketch.update_batch([piece.encode("utf-8", "surrogatepass") for piece in found])
        yield i, found, sketch


def _earlier(rows: Texts) -> Iterator[Found]:
    """Rows that stand word for word above, with the same label if they have one; not one that is meant to repeat."""
    seen: dict[tuple[str, str], int] = {}
    for i, (record, one) in enumerate(rows):
        first = seen.setdefault((one, repr(getattr(record, "label", None))), i)
        if record.source != rows[first][0].source:
            yield Found(i, first)


def _contradicted(rows: Texts) -> Iterator[Found]:
    """Rows whose text stands above with another label."""
    first: dict[str, tuple[int, str]] = {}
    for i, (record, one) in enumerate(rows):
        if isinstance(record, Classified):
            j, label = first.setdefault(one, (i, repr(record.label)))
            if label != repr(record.label):
                yield Found(i, j)


def _repeats(rows: Texts, found: Iterator[Found] | Sequence[Found], there: Texts | None = None) -> Repeats:
    """Found repetitions with the rows' sources in place of their numbers; `there` holds the earlier rows."""
    everything = list(found)
    pairs = [(rows[i][0].source, (there or rows)[j][0].source, alike) for i, j, alike, _ in everything[:SHOWN]]
    return Repeats(len(everything), len(rows), tuple(pairs), sum(found.mirrored for found in everything))
