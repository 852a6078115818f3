"""Tenants take turns at the models, however many requests one of them sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.service.hosted import Echo, hosted
from tests.service.inference import with_engine
from tunewright.service.errors import Refused
from tunewright.service.inference.lane import Limits
from tunewright.service.inference.line import Line
from tunewright.service.inference.local import LocalEngine
from tunewright.service.inference.protocol import Generate, ModelRef, Piece, Sampling, Usage


@dataclass(eq=False)
class Asked:
    tenant: str
    gone: bool = False


def line_of(tenants: str) -> tuple[Line[Asked], list[Asked]]:
    line, all_of_them = Line[Asked](), [Asked(tenant) for tenant in tenants]
    for one in all_of_them:
        line.append(one)
    return line, all_of_them


def take(line: Line[Asked], in_use: dict[str, int]) -> Asked:
    one = line.first(in_use)
    assert one is not None
    line.remove(one)
    return one


def test_tenants_take_turns_and_their_own_keep_their_order() -> None:
    line, asked = line_of("aaabbc")
    taken = [take(line, {}) for _ in asked]
    assert "".join(one.tenant for one in taken) == "abcaba" and not line and line.first({}) is None
    for tenant in "abc":
        assert [one for one in taken if one.tenant == tenant] == [one for one in asked if one.tenant == tenant]


def test_who_has_the_fewest_rows_comes_first() -> None:
    line, _ = line_of("aabb")
    assert [take(line, in_use).tenant for in_use in ({"a": 2, "b": 1}, {"a": 2, "b": 2}, {"a": 3, "b": 2})] == [
        "b", "a", "b"]  # fmt: skip


def test_who_comes_anew_is_served_before_those_who_were() -> None:
    line, _ = line_of("aaa")
    take(line, {})
    line.append(Asked("b"))
    assert take(line, {}).tenant == "b"


def test_who_is_gone_leaves_the_line() -> None:
    line, asked = line_of("aab")
    asked[0].gone = asked[2].gone = True
    assert line.first({}) is asked[1] and len(line) == line.of("a") == 1 and line.of("b") == 0


async def said(engine: LocalEngine, model: ModelRef, tenant: str, ended: list[str], **how: Any) -> None:
    asked = Generate(model, prompt=(5, 6, 7), sampling=Sampling(temperature=0, **how), tenant=tenant)
    async for one in engine.generate(asked):
        if isinstance(one, Usage):
            ended.append(tenant)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_tenant_with_many_requests_does_not_delay_another(tiny_base: Callable[..., str], rows: int) -> None:
    model, ended = ModelRef("base", tiny_base("llama")), list[str]()

    async def ask(engine: LocalEngine) -> None:
        many = [asyncio.create_task(said(engine, model, "a", ended, max_tokens=20)) for _ in range(40)]
        while not ended:
            await asyncio.sleep(0.001)
        before = len(ended)
        few = [asyncio.create_task(said(engine, model, "b", ended, max_tokens=20)) for _ in range(3)]
        await asyncio.gather(*many, *few)
        last_b = len(ended) - 1 - ended[::-1].index("b")
        assert ended[before : last_b + 1].count("a") <= 4 * rows + 3, ended

    with_engine(ask, limits=Limits(rows=rows))


def test_one_tenant_does_not_fill_the_line_of_another(tiny_base: Callable[..., str]) -> None:
    model, ended = ModelRef("base", tiny_base("llama")), list[str]()

    async def ask(engine: LocalEngine) -> None:
        many = [asyncio.create_task(said(engine, model, "a", ended, max_tokens=200)) for _ in range(10)]
        refused, _ = await asyncio.wait(many, return_when=asyncio.FIRST_EXCEPTION)
        assert all(isinstance(one.exception(), Refused) for one in refused) and not ended, "the line is full"
        await said(engine, model, "b", ended, max_tokens=2)
        found = await asyncio.gather(*many, return_exceptions=True)
        assert "b" in ended[:3] and len([one for one in found if isinstance(one, Refused)]) >= 10 - 1 - 3

    with_engine(ask, limits=Limits(rows=1, waiting=3))


def test_requests_carry_their_tenant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, seen = hosted(tmp_path), list[str]()
    answer = Echo.generate

    async def generate(self: Echo, asked: Generate) -> AsyncIterator[Piece | Usage]:
        seen.append(asked.tenant)
        async for one in answer(self, asked):
            yield one

    monkeypatch.setattr(Echo, "generate", generate)
    messages = [{"role": "user", "content": "a"}]
    judge = {"type": "score_model", "name": "a", "model": "tiny", "input": messages}
    requests = {
        "/v1/chat/completions": {"model": "tiny", "messages": messages},
        "/v1/completions": {"model": "tiny", "prompt": ["a", "b"]},
        "/v1beta1/tiny:generateContent": {"contents": [{"role": "user", "parts": [{"text": "a"}]}]},
        "/v1/fine_tuning/alpha/graders/run": {"model_sample": "a", "item": {}, "grader": judge},
    }
    for path, body in requests.items():
        before = len(seen)
        service.ask("POST", path, "other", json=body)
        assert len(seen) > before and set(seen) == {"other"}, path
