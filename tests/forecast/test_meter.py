"""Seconds and bytes of a piece of work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tunewright.forecast import meter
from tunewright.forecast.meter import available, measured

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only there the peak can be made to begin anew")
def test_the_peak_is_that_of_the_work_alone() -> None:
    def fill(mebibytes: int) -> int:
        return len(torch.ones(mebibytes * MIB, dtype=torch.uint8))

    resting = measured(lambda: None, CPU)[1].peak
    large, small = (measured(lambda n=n: fill(n), CPU)[1].peak - resting for n in (300, 100))  # type: ignore[misc]
    assert 295 * MIB < large < 330 * MIB and 95 * MIB < small < 130 * MIB


def test_seconds_on_the_clock_and_of_the_processor() -> None:
    import time

    result, cost = measured(lambda: time.sleep(0.05) or 7, CPU)
    assert result == 7 and cost.seconds >= 0.05 > cost.cpu_seconds


def container(folder: Path, monkeypatch: pytest.MonkeyPatch, version: int, most: str, now: int, cached: int) -> None:
    most_file, now_file = (folder / name for name in meter.LIMITS[version - 1])
    most_file.parent.mkdir(exist_ok=True)
    most_file.write_text(f"{most}\n")
    now_file.write_text(f"{now}\n")
    now_file.with_name("memory.stat").write_text(f"anon 5\nactive_file 7\ninactive_file {cached}\n")
    monkeypatch.setattr(meter, "CGROUP", folder)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_less_than_its_machine(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    own = psutil.Process().memory_info().rss
    container(tmp_path, monkeypatch, version, str(100 * MIB), 90 * MIB, 20 * MIB)
    assert available(CPU) - own == pytest.approx(30 * MIB, abs=10 * MIB), "cached files give way"
    container(tmp_path, monkeypatch, version, "max", 0, 0)
    assert available(CPU) > own + 100 * MIB
