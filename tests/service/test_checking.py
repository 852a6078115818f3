"""Files that are checked while a client waits: a few at a time, in processes that end when nobody waits any more."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.service.hosted import ROWS, Hosted, hosted
from tunewright.service import checking
from tunewright.service.checking import AT_ONCE, WAITING, Checks
from tunewright.service.errors import Refused

CHECK = "/v1/fine_tuning/alpha/check"
NEVER = (sys.executable, "-c", "import sys, time; sys.stdin.read(); time.sleep(600)")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Hosted:
    return hosted(tmp_path_factory.mktemp("checking"))


@pytest.fixture(scope="module")
def address(service: Hosted) -> Iterator[str]:
    with service.served() as url:
        yield url


def upload(service: Hosted, content: bytes, tenant: str = "acme") -> dict[str, str]:
    sent = service.ask("POST", "/v1/files", tenant, files={"file": content}, data={"purpose": "fine-tune"})
    return {"model": "tiny", "training_file": sent.json()["id"]}


def processes() -> list[psutil.Process]:
    """Those that check."""
    return [one for one in psutil.Process().children() if "sys.stdin.read" in " ".join(one.cmdline())]


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_small_file_is_read_and_a_large_one_is_not(service: Hosted, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = upload(service, ROWS), upload(service, ROWS + b'{"messages": 1}\n')
    assert service.ask("POST", CHECK, json=good).json() == {"object": "fine_tuning.check", "read": True, "faults": []}
    said = service.ask("POST", CHECK, json={**good, "validation_file": bad["training_file"]}).json()
    (fault,) = said["faults"]
    assert said["read"] and fault["param"] == "validation_file" and "line 11" in fault["message"]
    monkeypatch.setattr(checking, "COMMAND", ("no-such-program",))
    large = upload(service, ROWS * (1 + checking.LARGEST // len(ROWS)))
    assert service.ask("POST", CHECK, json=large).json()["read"] is False


@pytest.mark.parametrize("command", [NEVER, (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")])
def test_what_takes_too_long_or_dies_was_not_read(
    service: Hosted, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(checking, "COMMAND", command)
    monkeypatch.setattr(checking, "SECONDS", 0.5 if command == NEVER else 60.0)
    assert service.ask("POST", CHECK, json=upload(service, ROWS)).json()["read"] is False
    assert not processes()


def test_a_check_ends_when_its_client_leaves(service: Hosted, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many that left keep nobody waiting: neither in the process that answers, nor by what they left going."""
    monkeypatch.setattr(checking, "COMMAND", NEVER)
    asked, most, over = upload(service, ROWS), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.02):
            most = max(most, len(processes()))

    def leave(_: int) -> int:
        try:
            return httpx.post(address + CHECK, json=asked, headers=service.headers(), timeout=3).status_code
        except httpx.TimeoutException:
            return 0

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(20) as pool:
        found = pool.map(leave, range(20))
        until(processes)
        begun = time.monotonic()
        assert httpx.get(f"{address}/v1/files", headers=service.headers()).is_success
        assert time.monotonic() - begun < 3
        statuses = list(found)
    monkeypatch.undo()
    # who left is found to be gone within a second: until then it has its place
    until(lambda: service.ask("POST", CHECK, json=asked).json().get("read"))
    over.set(), watcher.join()
    assert not processes(), "it is another's turn"
    assert most == 1 and statuses.count(429) >= 20 - WAITING - 1 and set(statuses) == {0, 429}


def test_tenants_take_turns() -> None:
    async def take() -> tuple[list[str], int, list[Refused]]:
        turns, order, going, most = Checks(), [], [], 0

        async def one(tenant: str) -> None:
            nonlocal most
            async with turns.turn(tenant):
                order.append(tenant)
                going.append(tenant)
                most = max(most, len(going))
                assert going.count(tenant) == 1
                await asyncio.sleep(0.3)
                going.remove(tenant)

        asked = [one(tenant) for tenant in ["a"] * (WAITING + 2) + ["b", "c"]]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return order, most, [error for error in found if isinstance(error, Refused)]

    order, most, refused = asyncio.run(take())
    assert most == AT_ONCE and order[:2] == ["a", "b"] and "c" in order[:4] and order.count("a") == WAITING + 1
    assert [error.status for error in refused] == [429] and int(refused[0].headers["Retry-After"]) <= 120


def test_who_waits_too_long_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def take() -> None:
        turns = Checks()
        async with turns.turn("a"):
            with pytest.raises(Refused, match="Wait a little"):
                async with turns.turn("a"):
                    pass
        async with turns.turn("a"):
            pass

    monkeypatch.setattr(checking, "PATIENCE", 0.2)
    asyncio.run(take())


def test_the_process_leaves_nothing_behind(service: Hosted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert service.ask("POST", CHECK, json=upload(service, ROWS)).json()["read"]
    assert not os.listdir(tmp_path)
