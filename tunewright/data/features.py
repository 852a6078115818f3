"""What `datasets` says of its columns: the names that classes have, and which of them hold images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def dataset_rows(dataset: Any) -> Iterable[dict[str, Any]]:
    """The rows of a `Dataset` or an `IterableDataset`, with the names of classes, and images as the bytes of files."""
    plain = _undecoded(dataset.with_format(None))
    return with_class_names(plain, plain.features.to_dict() if plain.features else {})


def with_class_names(rows: Iterable[dict[str, Any]], features: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """Rows that `datasets` wrote, with the names of classes in place of their numbers.

    Args:
        features: what `datasets` says of each column, as JSON.
    """
    names = {column: found for column, feature in features.items() if (found := _class_names(feature))}
    for row in rows:
        yield {column: _class_name(value, names[column]) if column in names else value for column, value in row.items()}


def _class_names(feature: Any) -> list[str]:
    """The names of the classes that a column holds, one a row or a list of them."""
    one = feature[0] if isinstance(feature, list) else feature.get("feature", feature)
    return one["names"] if isinstance(one, dict) and one.get("_type") == "ClassLabel" else []


def _class_name(value: Any, names: list[str]) -> Any:
    """The names of a class or of several; nothing for -1, which stands for an unknown class."""
    if isinstance(value, list):
        return [_class_name(one, names) for one in value]
    return names[value] if value in range(len(names)) else None


def _undecoded(dataset: Any) -> Any:
    """Images as the bytes of their files: they are decoded, and checked, as those of any other source."""
    from datasets import Image

    for name in [name for name, feature in (dataset.features or {}).items() if isinstance(feature, Image)]:
        dataset = dataset.cast_column(name, Image(decode=False))
    return dataset
