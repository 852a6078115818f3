"""What the tests of inference share: runs on tiny bases, and how an engine is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tunewright as tw
from tests.runs import recipe
from tests.tiny import rows_for
from tunewright.service.inference.lane import Limits
from tunewright.service.inference.local import LocalEngine
from tunewright.service.inference.models import Models
from tunewright.service.inference.protocol import Engine, Generate, ModelRef, Piece, Sampling, Usage

Found = TypeVar("Found")

METHODS: dict[str, Any] = {
    "lora": {"type": "lora", "rank": 4},
    "rslora": {"type": "lora", "rank": 6, "rslora": True, "targets": ["q_proj", "down_proj"]},
    "lora+": {"type": "lora", "rank": 3, "plus_ratio": 4},
    "table": {"type": "peft", "config": {"peft_type": "LORA", "r": 4, "target_modules": ["embed_tokens", "k_proj"]}},
    "gpt2": {"type": "lora", "rank": 5},
    "full": "full",
    "freeze": {"type": "freeze", "last": 1},
    "dora": {"type": "lora", "rank": 4, "dora": True},
    "along": {"type": "lora", "rank": 4, "train_along": ["lm_head"]},
    "adapter": "adapter",
    "ia3": {"type": "peft", "config": {"peft_type": "IA3"}},
    "prompt": {"type": "peft", "config": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}},
}


def train(base: str, folder: Path, method: str, **changes: Any) -> Path:
    """A short run that has gone far from its start."""
    training = {"max_steps": 4, "batch": 4, "learning_rate": 0.05 if method != "full" else 0.01}
    made = recipe(base, folder, method=METHODS[method], training={**training, **changes.pop("training", {})}, **changes)
    return tw.train(made).folder


def chats(count: int = 12) -> dict[str, Any]:
    rows = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]}
        for row in rows_for("text-generation", count + 4)
    ]
    return {"train": rows[:count], "validation": rows[count:]}


def tuned(base: str, run: Path, alpha: float = 1.0) -> ModelRef:
    return ModelRef("base", base, f"ft:base:{run.parent.name}/{run.name}", str(run), alpha)


def with_engine(
    use: Callable[[LocalEngine], Awaitable[Found]], memory: int = 10**9, limits: Limits | None = None
) -> Found:
    async def run() -> Found:
        engine = LocalEngine(Models(memory, "cpu"), limits)
        try:
            return await use(engine)
        finally:
            await engine.close()

    return asyncio.run(run())


async def pieces(engine: Engine, model: ModelRef, given: Any, stream: bool = True, **sampling: Any) -> list[Any]:
    """All that is said to a prompt (a text or ids) or to messages."""
    tools = sampling.pop("tools", None)
    what = {"messages": given} if isinstance(given, list) else {"prompt": given}
    asked = Generate(model, **what, tools=tools, sampling=Sampling(**sampling), stream=stream)
    return [said async for said in engine.generate(asked)]


def texts(said: Sequence[Any]) -> list[str]:
    """The answers."""
    found: dict[int, str] = {}
    for piece in said:
        if isinstance(piece, Piece):
            found[piece.index] = found.get(piece.index, "") + piece.text
    assert isinstance(said[-1], Usage)
    return [found[index] for index in sorted(found)]
