"""Work that is done one piece at a time: behind one tenant's thousand, another's comes next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from tunewright.service.inference.line import Line

Found = TypeVar("Found")


@dataclass(eq=False)
class _Waits:
    tenant: str
    turn: asyncio.Future[None]

    @property
    def gone(self) -> bool:
        return self.turn.cancelled()


class Turns:
    """To be used where an event loop runs."""

    def __init__(self) -> None:
        self._line: Line[_Waits] = Line()
        self._busy = False
        self._thread = ThreadPoolExecutor(1)

    async def do(self, tenant: str, work: Callable[[], Found]) -> Found:
        """Do something in a thread. What has begun there goes on to its end, also when nobody waits for it any more."""
        async with self.turn(tenant):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Inside, nobody else has one."""
        waits = _Waits(tenant, asyncio.get_running_loop().create_future())
        self._line.append(waits)
        self._call_next()
        try:
            await waits.turn
            yield
        finally:
            if not waits.turn.cancel() and not waits.gone:
                self._busy = False
                self._call_next()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _call_next(self) -> None:
        if not self._busy and (waits := self._line.first({})):
            self._line.remove(waits)
            self._busy = True
            waits.turn.set_result(None)
