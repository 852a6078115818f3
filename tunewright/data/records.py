"""Rows become records, checked before anything trains; every row that cannot be used is named, all in one report."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tunewright.data.columns import columns_of, unfit_columns, with_standard_columns
from tunewright.data.config import DataConfig, Location, Reading
from tunewright.data.formats import FORMATS, detect
from tunewright.data.kinds import (
    KINDS,
    CaptionedImage,
    Classified,
    Completion,
    Conversation,
    Document,
    Label,
    Labelled,
    LabelledImage,
    Prompt,
    Ranking,
    Rated,
    Record,
    in_turns,
)
from tunewright.data.labels import check_number, form_of, settle
from tunewright.data.messages import weight_of
from tunewright.data.pictures import located
from tunewright.data.row import Fault, Row, Rows
from tunewright.data.rows import canonical_json, content_hash, folder_of, read_rows
from tunewright.errors import DataError, counted, them

__all__ = [
    "Completion",
    "Conversation",
    "Document",
    "Label",
    "Labelled",
    "Record",
    "Records",
    "load_records",
    "split_validation",
]

MAX_VALIDATION_ROWS = 1000


@dataclass(frozen=True)
class Records:
    """The usable rows of one location: all of one kind, one of `KINDS`."""

    records: list[Record]
    kind: str
    location: str
    sha256: str
    faults: list[Fault] = field(default_factory=list)
    doubts: Sequence[str] = ()
    format: str = ""
    """One of `FORMATS`."""

    @property
    def in_turns(self) -> bool:
        """Whether the rows are conversations."""
        return in_turns(self.records[0])

    @property
    def bad_rows(self) -> list[str]:
        """What is wrong with each row that was skipped: "file:line: reason"."""
        return [str(fault) for fault in self.faults]

    @property
    def bad_values(self) -> list[Any]:
        """The rows that were skipped as they were read, in the order of `bad_rows`."""
        return [fault.raw for fault in self.faults]


def load_records(
    location: Location, config: DataConfig, *, require_label: bool = True, kinds: Sequence[str] = ()
) -> Records:
    """Read a location and check every row.

    Args:
        require_label: whether a row without a label is a fault; if not, plain texts are unlabelled examples.
        kinds: those that are wanted, where that is known: a folder of images may be read for its captions or classes.

    Raises:
        DataError: the location cannot be read, its columns fit no format, no row can be used, or some cannot and
            `config.on_bad_rows` is "fail". It names all of them. Or an option is set that is for other kinds of rows.
    """
    return make_records(read_rows(location, captions_wanted(config, kinds)), location, config, require_label, kinds)


def make_records(
    read: Rows, location: Location, config: DataConfig, require_label: bool = True, kinds: Sequence[str] = ()
) -> Records:
    """The records of rows that were read at a location. Raises DataError, see `load_records`."""
    name = location if isinstance(location, str) else "rows"
    rows = _with_pictures(with_standard_columns(read.rows, config.columns), location)
    format = _format_of(rows, config, require_label, kinds)
    records, faults = _build_all(rows, format, config, require_label, kinds)
    faults = read.faults + faults
    if faults and (config.on_bad_rows == "fail" or not records):
        raise DataError(_verdict(len(faults), len(faults) + len(records), name), [str(fault) for fault in faults])
    kind = KINDS[type(records[0])]
    _refuse_idle(records[0], config)
    doubts = [*read.doubts, *_moving(records)]
    return Records(records, kind, name, content_hash(rows), faults, doubts, format)


def captions_wanted(config: DataConfig, kinds: Sequence[str]) -> bool | None:
    """Whether images are wanted with captions, or with classes; None: whichever they have."""
    wanted = [config.format] if config.format != "auto" else kinds
    return any(kind.startswith("caption") for kind in wanted) if wanted else None


def _moving(records: Sequence[Record]) -> list[str]:
    """What is said of images whose files hold more than is used."""
    images = [r for r in records if isinstance(r, LabelledImage | CaptionedImage)]
    found = list(dict.fromkeys(r.source for r in images if r.image.frames() > 1))
    several = counted(len(found), "image has several frames", "images have several frames")
    named = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
    return [f"{several}, of which the first is used: {named}"] if found else []


def _refuse_idle(first: Record, config: DataConfig) -> None:
    """An option that rows of this kind have no use for is an error, not an option without effect."""
    kind = KINDS[type(first)]
    labelled = kind in ("classification", "image")
    idle = ["special_tokens"] if config.special_tokens and (labelled or kind == "captioned_image") else []
    idle += ["labels"] if config.labels != "auto" and not labelled else []
    idle += ["classes"] if config.classes and not labelled else []
    if kind not in ("image", "captioned_image"):
        idle += ["augment"] if config.augment is not None else []
    else:
        idle += ["max_length"] if config.max_length is not None else []
        idle += ["overlength"] if config.overlength != "auto" else []
    if kind != "captioned_image":
        idle += ["resolution"] if config.resolution is not None else []
        idle += ["caption_dropout"] if config.caption_dropout else []
        idle += [name for name in ("cache_latents", "cache_captions") if getattr(config, name)]
    if not in_turns(first):
        idle += ["chat_template"] if config.chat_template is not None else []
    if kind != "chat":
        idle += ["loss_on"] if config.loss_on != "all" else []
    if idle:
        raise DataError(f"data.{', data.'.join(idle)} has no effect on {kind} rows: remove it.")


def _verdict(bad: int, total: int, name: str) -> str:
    otherwise = "" if bad == total else ", or set data.on_bad_rows: skip"
    return f"{bad:,} of {counted(total, 'row')} of {name} cannot be used: mend {them(bad)}{otherwise}."


# Columns and format


def _with_pictures(rows: list[Row], location: Location) -> list[Row]:
    """Rows with their images; a path is relative to the folder of the file that names it."""
    folder = folder_of(location)
    return [Row(located(row.values, folder), row.source) for row in rows]


def _format_of(rows: list[Row], config: DataConfig, require_label: bool, kinds: Sequence[str]) -> str:
    """The format that the recipe names, or that of the first row that has one."""
    format = config.format if config.format != "auto" else _first_format(rows, kinds)
    if format == "text" and config.format == "auto" and not require_label:
        format = "classification"
    if rows and (format is None or not any(_has_columns(row, format) for row in rows)):
        raise DataError(unfit_columns(columns_of(rows), config.format))
    unused = [name for name in config.columns if name not in FORMATS[format].columns] if format else []
    if unused:
        raise DataError(f"data.columns gives {', '.join(unused)}, which the format {format} does not read: remove it.")
    return format or "text"


def _first_format(rows: list[Row], kinds: Sequence[str]) -> str | None:
    return next((format for row in rows if (format := detect(row.values, kinds))), None)


def _has_columns(row: Row, format: str) -> bool:
    return not _missing(row, format)


def _missing(row: Row, format: str) -> list[str]:
    """The columns that the row lacks; whether a label may be lacking is decided later, row by row."""
    return [column for column in FORMATS[format].needs if column not in row.values and column != "label"]


# Records


def _build_all(
    rows: list[Row], format: str, config: DataConfig, require_label: bool, kinds: Sequence[str]
) -> tuple[list[Record], list[Fault]]:
    records: list[Record] = []
    faults: list[Fault] = []
    for row in rows:
        try:
            record = _build(row, format, config, require_label, kinds)
            _check_same_kind(record, records[0] if records else record)
            records.append(record)
        except DataError as error:
            faults.append(Fault(row.source, str(error), row.values))
    return _with_settled_labels(records, config.labels), faults


def _build(row: Row, format: str, config: DataConfig, require_label: bool, kinds: Sequence[str]) -> Record:
    own = detect(row.values, kinds) if config.format == "auto" else format
    if own and own != format and (own, format) != ("text", "classification"):
        raise DataError(f"this row is {own}, the file's first is {format}")
    if missing := _missing(row, format):
        raise DataError(f"no column {', '.join(missing)}")
    record = FORMATS[format].build(row.values, row.source)
    if require_label and isinstance(record, Classified) and record.label is None:
        raise DataError("no label")
    if isinstance(record, Classified) and config.labels == "numbers":
        check_number(record.label)
    return record


def _check_same_kind(record: Record, first: Record) -> None:
    if type(record) is not type(first) or in_turns(record) != in_turns(first):
        raise DataError(f"this row is {_named(record)}, the file's first is {_named(first)}")
    if isinstance(record, Classified) and isinstance(first, Classified):
        _check_same_label_form(record.label, first.label)


def _named(record: Record) -> str:
    kind = KINDS[type(record)]
    return f"{kind} of messages" if in_turns(record) and kind != "chat" else kind


def _check_same_label_form(label: Any, first: Any) -> None:
    if label is not None and first is not None and form_of(label) != form_of(first):
        raise DataError(f"this label is {form_of(label)}, the file's first is {form_of(first)}")


def _with_settled_labels(records: list[Record], reading: Reading) -> list[Record]:
    labelled: list[Any] = [record for record in records if isinstance(record, Classified)]
    labels = settle([record.label for record in labelled], reading)
    return [replace(record, label=label) for record, label in zip(labelled, labels, strict=True)] or records


# Validation


def split_validation(records: Records, fraction: float, seed: int) -> tuple[Records, Records]:
    """Hold out a fraction of the records: (train, validation), each with at least one record.

    A record's side follows from its content and the seed alone. So exact duplicates are never on both sides, and rows
    that are added later move none of the old ones, as long as the fraction gives at most `MAX_VALIDATION_ROWS` rows;
    beyond that the ones with the smallest hashes are held out.

    Of rows that judge answers the prompt alone counts: rows with one prompt are never on both sides.

    A single document is cut in two, and its end is held out.

    Raises:
        DataError: fewer than two different records.
    """
    if len(records.records) == 1 and isinstance(records.records[0], Document):
        first, last = _cut(records.records[0], fraction)
        return replace(records, records=[first]), replace(records, records=[last], faults=[])
    held_out = _held_out(_by_hash(records.records, seed), fraction)
    train = [record for index, record in enumerate(records.records) if index not in held_out]
    validation = [records.records[index] for index in sorted(held_out)]
    return replace(records, records=train), replace(records, records=validation, faults=[])


def _cut(document: Document, fraction: float) -> tuple[Document, Document]:
    """A single document in two, at the line break (or else the character) nearest before its last `fraction`."""
    text = document.text
    near = round(len(text) * (1 - fraction))
    place = text.rfind("\n", 1, near) + 1 or near
    if not text[:place].strip() or not text[place:].strip():
        raise DataError("too little text to hold some out: add more, give data.validation, or set it to 0.")
    return replace(document, text=text[:place]), replace(document, text=text[place:])


def _by_hash(records: list[Record], seed: int) -> list[tuple[float, list[int]]]:
    """(position in [0, 1), indices of the records with this content), by position."""
    groups: dict[float, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        groups[_position(record, seed)].append(index)
    return sorted(groups.items())


def _position(record: Record, seed: int) -> float:
    content = asked_of(record) or {key: value for key, value in vars(record).items() if key != "source"}
    digest = hashlib.sha256(canonical_json([seed, content])).digest()
    return int.from_bytes(digest[:8]) / 2**64


def asked_of(record: Record) -> dict[str, Any] | None:
    """The prompt alone where several answers to it are judged: all rows with that prompt fall on one side."""
    if isinstance(record, Prompt):
        return {"prompt": record.prompt}
    if not isinstance(record, Ranking | Rated):
        return None
    answer = record.answers[0] if isinstance(record, Ranking) else record.answer
    if isinstance(answer, Completion):
        return {"prompt": answer.prompt}
    return {"prompt": [message for message in answer.messages if not weight_of(message)]}


def _held_out(groups: list[tuple[float, list[int]]], fraction: float) -> set[int]:
    if len(groups) < 2:
        raise DataError("too few different rows to hold some out: add rows, give data.validation, or set it to 0.")
    chosen = [indices for position, indices in groups[:-1] if position < fraction] or [groups[0][1]]
    held_out: set[int] = set(chosen[0])
    for indices in chosen[1:]:
        if len(held_out) + len(indices) > MAX_VALIDATION_ROWS:
            break
        held_out.update(indices)
    return held_out
