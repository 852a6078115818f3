"""A PostgreSQL server of this process, on a socket in a temporary folder, that is thrown away."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def binaries() -> Path | None:
    """The folder of its programs, if it is installed."""
    found = shutil.which("pg_ctl")
    places = [Path(found).parent] if found else []
    return next(iter(places + sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@dataclass
class Server:
    """A server that runs in a folder."""

    folder: Path
    programs: Path
    user: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"postgresql://tunewright@/postgres?host={self.folder}"

    def call(self, program: str, *arguments: str) -> None:
        command = [self.programs / program, "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self.user)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self, fsync: str = "off") -> None:
        options = f"-k {self.folder} -c listen_addresses= -c fsync={fsync} -c max_connections=200"
        self.call("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Immediate: as if its machine had lost power."""
        self.call("pg_ctl", "-w", "-m", mode, "stop")


@contextmanager
def server(fsync: str = "off") -> Iterator[Server]:
    """Inside, a new server runs. Raises AssertionError where PostgreSQL is not installed."""
    programs = binaries()
    assert programs is not None, "PostgreSQL is not installed (pg_ctl is not on the PATH)"
    # a socket's path may have about a hundred characters: not in pytest's folder
    folder = Path(tempfile.mkdtemp(prefix="tw-pg-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to be root
        shutil.chown(folder, "nobody")
        user = {"user": "nobody", "group": os.stat(folder).st_gid, "extra_groups": []}
    running = Server(folder, programs, user)
    try:
        running.call("initdb", "-A", "trust", "-U", "tunewright", "-E", "UTF8", "--locale=C", "--no-sync")
        running.start(fsync)
        yield running
        running.stop()
    finally:
        shutil.rmtree(folder)
