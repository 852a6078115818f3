"""What run.json says of a run's rows: where they came from, how long they are, and how the model sees them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from tunewright.data.kinds import Classified
from tunewright.data.records import Records
from tunewright.errors import DataError
from tunewright.methods.base import trained_count, trained_groups
from tunewright.prepare import Prepared
from tunewright.tasks.base import Encoded


def describe_parameters(module: Any, total: int) -> dict[str, Any]:
    """How many parameters train, which share that is of the `total` before a method added any, and their names."""
    trained = trained_count(module)
    return {"total": total, "trained": trained, "share": trained / total, "names": trained_groups(module)}


def describe_data(prepared: Prepared) -> dict[str, Any]:
    """What run.json says of each set: where it came from, how long its rows are, what its labels are."""
    return {
        name: {
            "location": records.location,
            "rows": len(records.records) - len(prepared.encoded[name].faults),
            "sha256": records.sha256,
            "kind": records.kind,
            "bad_rows": len(records.bad_rows) + len(prepared.encoded[name].faults),
            **(_cut(prepared.encoded[name]) if "image" in records.kind else _lengths(prepared.encoded[name])),
            **_labels(records),
        }
        for name, records in prepared.rows.sets().items()
    }


def refuse_changed(sets: Mapping[str, Records], data: Mapping[str, Any], advice: str) -> None:
    """Raise DataError where rows are not those that run.json's `data` tells of; `advice` is what to do then."""
    for name, records in sets.items():
        if records.sha256 != data.get(name, {}).get("sha256"):
            raise DataError(
                f"The rows of {name} ({records.location}) are not those that the training began with. {advice}"
            )


def write_bad_rows(prepared: Prepared, folder: Path) -> None:
    """Put the rows that were skipped aside, each with what is wrong with it."""
    for name, records in prepared.rows.sets().items():
        by_source = {record.source: vars(record) for record in records.records}
        pairs = list(zip(records.bad_rows, records.bad_values, strict=True))
        pairs += [(fault, by_source.get(fault.split(": ")[0])) for fault in prepared.encoded[name].faults]
        if pairs:
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"fault": fault, "row": row}, ensure_ascii=False, default=str) for fault, row in pairs]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def preview(prepared: Prepared, count: int = 3) -> list[dict[str, Any]]:
    """The first rows as the model sees them: pieces of text, each with the loss weight it carries."""
    model, examples = prepared.model, prepared.examples("train")[:count]
    return [{"source": e.source, "pieces": model.task.pieces(model, e)} for e in examples]


def _lengths(encoded: Encoded) -> dict[str, Any]:
    """How many tokens there are, and in how long rows; an image has none."""
    lengths = [e.length for e in encoded.examples] or [0]
    return {
        "tokens": sum(lengths),
        "trained_tokens": sum(e.trained for e in encoded.examples),
        "longest": max(lengths),
        "median": int(median(lengths)),
        "limit": encoded.limit,
        **_cut(encoded),
    }


def _cut(encoded: Encoded) -> dict[str, Any]:
    over = encoded.overlength
    account = {"truncated": len(over.truncated), "dropped": len(over.dropped), "split": len(over.split)}
    cut = {what: count for what, count in account.items() if count}
    return {"examples": len(encoded.examples), "overlength": cut}


def _labels(records: Records) -> dict[str, Any]:
    labels = [r.label for r in records.records if isinstance(r, Classified)]
    counts = Counter(name for label in labels for name in _names(label))
    return {"label_counts": dict(sorted(counts.items()))} if counts else {}


def _names(label: Any) -> list[str]:
    if isinstance(label, dict):
        return [max(label, key=lambda name: label[name])]
    return label if isinstance(label, list) else [label] if isinstance(label, str) else []
