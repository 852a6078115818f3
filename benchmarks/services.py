"""Services that answer on this machine: `tunewright serve` and `transformers serve`, and what their processes take."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import psutil

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENGINE = "tunewright.service.inference"
PATIENCE = 120
"""Seconds in which a service has to be there."""


@dataclass(frozen=True)
class Service:
    """A service that runs.

    Attributes:
        port: of 127.0.0.1.
        key: what opens it; empty where none is needed.
    """

    process: psutil.Process
    port: int
    key: str = ""

    def cpu(self, only: str = "") -> float:
        """CPU seconds so far of its processes, or of those whose command holds a word."""
        return sum(_cpu(one) for one in self._processes() if not only or only in _command(one))

    def resident(self) -> int:
        """Bytes of memory that the process which listens has."""
        return int(self.process.memory_info().rss)

    def _processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


@contextmanager
def tunewright(home: Path, models: Path, *options: str) -> Iterator[Service]:
    """Inside, `tunewright serve` runs on a free port. Its key is kept beside its home, as it is told only once."""
    command = [sys.executable, "-m", "tunewright", "serve", "--port", "0", "--home", str(home), "--models", str(models)]
    kept = home.parent / f"{home.name}.key"
    with _running([*command, *options], subprocess.PIPE) as (process, log):
        said = ""
        assert process.stdout is not None
        while "chat.completions" not in said:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"tunewright serve has ended:\n{Path(log.name).read_text()[-3000:]}")
            said += line
        address, key = re.search(r"http://[\d.]+:(\d+)", said), re.search(r"tw-[\w-]{43}", said)
        assert address
        if key:
            kept.write_text(key[0], encoding="utf-8")
        yield Service(psutil.Process(process.pid), int(address[1]), kept.read_text(encoding="utf-8"))


@contextmanager
def transformers_serve(model: Path, *options: str) -> Iterator[Service]:
    """Inside, `transformers serve` runs with one model."""
    port = _free_port()
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(model), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", *options]
    with _running(command, subprocess.DEVNULL) as (process, log):
        end = time.monotonic() + PATIENCE
        while not _is_well(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"transformers serve does not answer:\n{Path(log.name).read_text()[-3000:]}")
            time.sleep(0.2)
        yield Service(psutil.Process(process.pid), port)


@contextmanager
def _running(command: Sequence[str], out: int) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    environment = {**os.environ, **ENVIRONMENT}
    with (
        tempfile.NamedTemporaryFile("w", suffix=".log") as log,
        subprocess.Popen(command, stdout=out, stderr=log, text=True, env=environment) as process,
    ):
        try:
            yield process, log
        except OSError:
            print(Path(log.name).read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_well(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Watch:
    """Looks now and then at the memory of a service. Used as `with Watch(service) as watch`."""

    EVERY = 0.02

    def __init__(self, service: Service) -> None:
        self._service, self._over = service, threading.Event()
        self.before, self.most = service.resident(), 0
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self.EVERY):
            self.most = max(self.most, self._service.resident())
