"""What would fail a job, looked at while its client waits: in a process of its own, which ends when the client leaves.

The process reads `{"spec": …, "files": {role: path}}` and prints a list of faults.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tunewright.service.entities import JobSpec
from tunewright.service.errors import Refused
from tunewright.service.settings import MEBI
from tunewright.service.unpacking import Role
from tunewright.service.validation import faults

LARGEST = 4 * MEBI
"""Bytes of a job's files that are read while a client waits: a few seconds' worth."""
SECONDS = 60.0
"""After which a check ends without an answer."""
AT_ONCE = 2
"""Checks that go on at the same time; of one tenant one."""
WAITING = 8
"""Checks of one tenant that wait for their turn."""
PATIENCE = 60.0
"""Seconds over which one waits."""
SECONDS_BETWEEN_LOOKS = 0.1
COMMAND = (sys.executable, "-m", "tunewright.service.checking")


class Checks:
    """Whose check goes on: who comes first, as long as none of the same tenant does."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, object]] = []
        self._going: list[str] = []

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Inside, it is this one's turn. Raises Refused (429) where too many wait, or too long."""
        if [waiting for waiting, _ in self._waiting].count(tenant) >= WAITING:
            raise _busy()
        mine, end = (tenant, object()), time.monotonic() + PATIENCE
        self._waiting.append(mine)
        try:
            while not self._is_next(mine):
                if time.monotonic() > end:
                    raise _busy()
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            self._waiting.remove(mine)
        self._going.append(tenant)
        try:
            yield
        finally:
            self._going.remove(tenant)

    def _is_next(self, mine: tuple[str, object]) -> bool:
        able = [one for one in self._waiting if one[0] not in self._going]
        return len(self._going) < AT_ONCE and able[:1] == [mine]


async def check_apart(spec: JobSpec, files: Mapping[Role, Path]) -> list[dict[str, Any]] | None:
    """The faults of these files; None where it took too long, or the process was killed. It ends where this does."""
    asked = json.dumps({"spec": spec.model_dump(mode="json"), "files": {role: str(p) for role, p in files.items()}})
    pipe = asyncio.subprocess.PIPE
    # in a group of its own: Ctrl-C is for the process that started it
    process = await asyncio.create_subprocess_exec(*COMMAND, stdin=pipe, stdout=pipe, start_new_session=True)
    try:
        told, _ = await asyncio.wait_for(process.communicate(asked.encode()), SECONDS)
        return json.loads(told) if process.returncode == 0 else None  # type: ignore[no-any-return]
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _busy() -> Refused:
    said = "Other files are being checked. Wait a little, or create the job: what is wrong with its files fails it."
    return Refused(429, said, "too_many_checks", headers={"Retry-After": "10"})


def main() -> None:
    """The process. Requests come before it, and one that nobody ended ends itself."""
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    asked = json.load(sys.stdin)
    spec, found = JobSpec.model_validate(asked["spec"]), []
    for role, path in asked["files"].items():
        found.append(faults(Path(path), spec, Path(path).with_name(f"{role}-rows"), role))
    with answer:
        json.dump([fault for fault in found if fault], answer)


if __name__ == "__main__":
    main()
