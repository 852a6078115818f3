"""Work that is done one piece at a time: tenants take turns, and who goes away gives up its turn."""

from __future__ import annotations

import asyncio
import time

import pytest

from tunewright.service.inference.turns import Turns


def test_tenants_take_turns_one_at_a_time() -> None:
    done, at_once = list[str](), 0

    async def work(turns: Turns, tenant: str) -> None:
        nonlocal at_once
        async with turns.turn(tenant):
            at_once += 1
            assert at_once == 1
            await asyncio.sleep(0.001)
            at_once -= 1
            done.append(tenant)

    async def all_of_them() -> None:
        turns = Turns()
        await asyncio.gather(*(work(turns, tenant) for tenant in "aaaaab"))
        turns.close()

    asyncio.run(all_of_them())
    assert "".join(done).index("b") <= 2 and len(done) == 6


@pytest.mark.parametrize("when", ["waiting", "working"])
def test_who_goes_away_does_not_hold_up_others(when: str) -> None:
    async def go() -> None:
        turns = Turns()
        first = asyncio.create_task(turns.do("a", lambda: time.sleep(0.2)))
        second = asyncio.create_task(turns.do("a", lambda: time.sleep(0.2)))
        third = asyncio.create_task(turns.do("b", lambda: "done"))
        await asyncio.sleep(0.01)
        (first if when == "working" else second).cancel()
        assert await asyncio.wait_for(third, 5) == "done"
        assert await asyncio.wait_for(turns.do("a", lambda: "again"), 5) == "again"
        turns.close()

    asyncio.run(go())


def test_an_error_is_raised_and_the_next_comes() -> None:
    async def go() -> None:
        turns = Turns()
        with pytest.raises(ZeroDivisionError):
            await turns.do("a", lambda: 1 // 0)
        assert await asyncio.wait_for(turns.do("a", lambda: 1), 5) == 1
        turns.close()

    asyncio.run(go())
