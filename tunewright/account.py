"""What run.json says of a run before its first step: what trains, on which rows, with what and where."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tunewright.artifacts.fingerprint import fingerprint
from tunewright.data.kinds import Classified, Rated
from tunewright.data.records import Records
from tunewright.engine.device import micro_batch_tokens
from tunewright.errors import DataError
from tunewright.methods.base import parameter_count, trained_count, trained_groups
from tunewright.prepare import Prepared
from tunewright.recipe import lasting
from tunewright.tasks._factories import code_of
from tunewright.tasks._modules import layout_of
from tunewright.tasks.base import Encoded, Model

PACKAGES = ("tunewright", "torch", "transformers", "peft", "tokenizers", "numpy")


def describe(prepared: Prepared) -> dict[str, Any]:
    """What run.json says of a run before its first step."""
    recipe, model = prepared.recipe, prepared.model
    return {
        "task": recipe.task,
        "kind": getattr(model.task, "kind", None),
        "labels": getattr(model.task, "labels", None),
        "base": model.base,
        "base_sha256": fingerprint(model.base),
        "factory": _factory(model),
        "new": list(model.new),
        "stacked": bool(model.adapters),
        "method": recipe.method.model_dump(mode="json"),
        "objective": recipe.objective.model_dump(mode="json"),
        "recipe": lasting(recipe),
        **place_of(prepared),
        "parameters": describe_parameters(model.module),
        "saved_as": recipe.method.saved_as,
        "notices": prepared.notices,
        "data": describe_data(prepared),
        "preview": preview(prepared),
    }


def _factory(model: Model) -> dict[str, str | None] | None:
    """The code that makes the model's module, where it is not transformers'; and the folder in which it was found."""
    layout = layout_of(model.module)
    return {"name": layout.factory, "code": code_of(layout.factory)} if layout else None


def place_of(prepared: Prepared) -> dict[str, dict[str, Any]]:
    """With what and where a run computes: on the same, it resumes bit for bit."""
    import torch

    device, training = prepared.device, prepared.recipe.training
    machine = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        **({"accelerator": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        "precision": prepared.precision,
        "processes": training.processes,
        "micro_batch_tokens": micro_batch_tokens(training, device),
    }
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"versions": versions, "machine": machine}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_parameters(module: Any) -> dict[str, Any]:
    """How many parameters there are with what a method added, how many train, which share that is, and their names."""
    trained, total = trained_count(module), parameter_count(module)
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


def one_sided(prepared: Prepared) -> list[str]:
    """A notice where no training answer is rated other than the rest: what is good then is told from nothing."""
    ratings = {record.good for record in prepared.rows.train.records if isinstance(record, Rated)}
    if len(ratings) != 1 or getattr(prepared.recipe.objective, "loss", "") != "kto":
        return []
    rating, other = ("good", "bad") if ratings == {True} else ("bad", "good")
    return [
        f"All training answers are rated {rating}: nothing tells them from {other} ones. Give answers that are rated "
        f"{other} too."
    ]


NOTHING = "Nothing was learned from rewards"


def without_contrast(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """A notice where a policy's rewards never differed: an answer is compared with others, and all were alike.

    Args:
        lines: those of metrics.jsonl.
    """
    spread = [line["reward_std"] for line in lines if "reward_std" in line]
    if not spread or any(spread):
        return []
    return [
        f"{NOTHING}: at each step all answers that are compared got the same. Take rewards that tell them apart, more "
        "objective.samples, a higher objective.temperature, or easier prompts."
    ]


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


def write_labeling(prepared: Prepared, folder: Path) -> None:
    """Keep the account of the rules that labelled the training rows, where there are any."""
    if prepared.rows.labeling:
        text = json.dumps(prepared.rows.labeling, indent=2, ensure_ascii=False, default=str)
        (folder / "labeling.json").write_text(text + "\n", encoding="utf-8")


def preview(prepared: Prepared, count: int = 3) -> list[dict[str, Any]]:
    """The first rows as the model sees them: pieces of text, each with the loss weight it carries."""
    model, examples = prepared.model, prepared.examples("train")
    if "image" in prepared.rows.train.kind:  # an epoch may repeat an image
        examples = list({e.source: e for e in reversed(examples[: 100 * count])}.values())[::-1]
    return [{"source": e.source, "pieces": model.task.pieces(model, e)} for e in examples[:count]]


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
