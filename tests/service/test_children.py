"""Processes of the service leave when the one that started them is gone, and only then."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

WAITING = """
import threading
from tunewright.service.children import when_told_to_leave
over = threading.Event()
when_told_to_leave(over.set)
print("ready", flush=True)
over.wait(60)
"""


def test_one_without_a_parent_that_holds_it_stays() -> None:
    """As under systemd or in a container, whose input is empty."""
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize("module", ["any", "inference"])
def test_a_child_leaves_when_its_parent_is_killed(tmp_path: Path, module: str) -> None:
    socket = tmp_path / "socket"
    arguments = {"any": ["-c", WAITING], "inference": ["-m", "tunewright.service.inference", "--socket", str(socket)]}
    starting = (
        f"import subprocess, sys; child = subprocess.Popen([sys.executable, *{arguments[module]!r}], stdin=-1)\n"
        "print('pid', child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", starting], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        said = [parent.stdout.readline()]
        if module == "any":
            said.append(parent.stdout.readline())
        while module == "inference" and not socket.exists():
            time.sleep(0.1)
        child = psutil.Process(int(next(line for line in said if line.startswith("pid")).split()[1]))
        parent.kill()
    child.wait(60)
