"""How `tunewright serve` listens."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tunewright.service.serve import listening


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_clients_may_come_at_once_and_do_not_wait_for_their_own_acknowledgement(host: str) -> None:
    async def first() -> int:
        listener = listening(host, 0)
        with socket.create_connection(listener.getsockname()[:2], timeout=5):
            found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

            async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                accepted = writer.get_extra_info("socket")
                found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()

            async with await asyncio.start_server(accept, sock=listener):
                return await asyncio.wait_for(found, 5)

    try:
        assert asyncio.run(first())
    except OSError as error:
        if host == "::1":
            pytest.skip(f"no IPv6 here: {error}")
        raise
