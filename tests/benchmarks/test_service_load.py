"""The page of the service's load: its own section alone is replaced, and its figures are those of the lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.clients import quantile
from benchmarks.sections import TITLE, write_section
from benchmarks.service_load import BASE, LARGER, section


def test_other_sections_stay(tmp_path: Path) -> None:
    page = tmp_path / "service.md"
    write_section(page, "Load", "first")
    write_section(page, "Faults", "none ## not a section")
    write_section(page, "Load", "second\n")
    assert page.read_text() == f"{TITLE}\n## Load\n\nsecond\n\n## Faults\n\nnone ## not a section\n"


def test_ratios_are_those_of_cpu_seconds() -> None:
    lines: list[dict[str, Any]] = [
        {"what": "jobs", "database": "sqlite", "per_second": 1.0, "cpu_ms_each": 1.0,
         "latency_ms": {"all": {"p50": 1.0, "p99": 2.0}}},
        {"what": "upload", "bytes": 2e8, "seconds": 1.0, "cpu_seconds": 1.0, "resident_before": 1e8,
         "resident_most": 1.05e8},
    ]  # fmt: skip
    rates = {"tunewright": 600.0, "transformers serve": 200.0, "transformers serve --continuous-batching": 400.0}
    for base, adapted in ((BASE, 540.0), (LARGER, 570.0)):
        for clients in (1, 8, 32):
            for system, rate in {**rates, "tunewright ": adapted}.items():
                over = "8 adapters" if system.endswith(" ") else "one base"
                lines.append({"what": "chat", "base": base, "system": system.strip(), "over": over,
                              "clients": clients, "per_second": 1.0, "per_cpu_second": rate,
                              "first_ms": {"p50": 1.0, "p99": 2.0}})  # fmt: skip
    text = section(lines, 1)
    assert "| 32 | 3.00 | 1.50 | 0.90 |" in text and "| 32 | 3.00 | 1.50 | 0.95 |" in text
    assert "at most 5 MB over 100" in text


def test_quantiles() -> None:
    values = [float(i) for i in range(100, 0, -1)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile([3.0], 0.99)) == (50.0, 99.0, 3.0)
