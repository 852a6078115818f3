"""A comparison as a page of its own, in the report's design: self-contained, without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.errors import OutputError
from tunewright.evaluation.charts import Chart, reliability_chart
from tunewright.evaluation.contrast import calibration_figures, figures
from tunewright.evaluation.formats import row_name
from tunewright.evaluation.report import fill, write_page
from tunewright.evaluation.sections import Sample, shortened

TONES = {"cannot tell": "unclear", "not measured": "unmeasured"}


@dataclass(frozen=True)
class Table:
    """Each row is (name, its figures, the tone of its last one)."""

    title: str
    rows: tuple[tuple[str, tuple[str, ...], str], ...]


def write_comparison(
    found: Mapping[str, Any], path: Path, pictures: Mapping[str, Mapping[str, str]] | None = None
) -> Path:
    """Write what `tunewright.compare` found. Raises OutputError where the page cannot be written.

    Args:
        pictures: by set and source those of the rows that flipped, where they are images, as data: URLs.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}.")
    first = next(iter(found["sets"].values()))
    context = {
        "name": f"{found['a']} and {found['b']}",
        "found": found,
        "tone": _tone(first),
        "tables": list(_tables(found["sets"], found["forgetting"])),
        "reliability": [_reliability(name, one) for name, one in found["sets"].items() if one["calibration"]],
        "flipped": [
            _flipped(name, way, one, (pictures or {}).get(name, {}))
            for name, one in found["sets"].items()
            for way in ("worse", "better")
        ],
    }
    return write_page(fill("compare.html.jinja", context), path)


def _tone(found: Mapping[str, Any]) -> str:
    return TONES.get(found["change"], found["change"])


def _tables(sets: Mapping[str, Any], forgetting: Mapping[str, Any]) -> Iterator[Table]:
    yield Table("All rows", tuple(_line(name, one) for name, one in sets.items()))
    for name, one in sets.items():
        for title in ("classes", "slices"):
            if one[title]:
                yield Table(f"{title.capitalize()} of {name}", tuple(_line(*part) for part in one[title].items()))
    if forgetting:
        yield Table("Forgetting: loss elsewhere", tuple(_line(*each) for each in forgetting.items()))


def _line(name: str, found: Mapping[str, Any]) -> tuple[str, tuple[str, ...], str]:
    return name, figures(found), _tone(found)


def _reliability(name: str, found: Mapping[str, Any]) -> Chart:
    """The summaries name the calibration error of each line."""
    a, b, changed = calibration_figures(found["calibration"])
    points = {side: [(each["sure"], each["right"]) for each in found["calibration"]["bins"][side]] for side in "ab"}
    said = {"a": f"A: calibration error {a}", "b": f"B: calibration error {b}; B − A {changed}"}
    return reliability_chart(f"How often right on {name}", {side.upper(): (points[side], said[side]) for side in "ab"})


def _flipped(
    name: str, way: str, found: Mapping[str, Any], pictures: Mapping[str, str]
) -> tuple[str, int, list[Sample]]:
    flipped = found["flipped"][way]
    shown = [_sample(row, pictures.get(row["source"], "")) for row in flipped["shown"]]
    return f"{name}: {way} with B", flipped["rows"], shown


def _sample(row: Mapping[str, Any], picture: str) -> Sample:
    """A picture takes the place of its own name."""
    asked = () if picture else (("input", "Input"),)
    headings = (*asked, ("reference", "Reference"), ("a", "A"), ("b", "B"))
    parts = tuple(
        (heading, shortened(row[key]), key in ("a", "b") and row[key] == row["reference"])
        for key, heading in headings
        if row[key] is not None
    )
    return Sample(row_name(row["source"]), parts, picture)
