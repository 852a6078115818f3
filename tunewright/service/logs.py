"""The log: a JSON object a line on stderr, or lines for people where that is a terminal."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import structlog

from tunewright.service.news import News

SECRET = re.compile(r"tw-[\w-]{40,}")
MOST_LINES = 100
"""Lines that are remembered as said."""


class Seldom(logging.Filter):
    """Lets a line through once a minute: whoever is outside can make libraries say the same again and again."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._said = News(MOST_LINES, now)

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return self._said.is_new((record.name, record.getMessage().partition("\n")[0][:200], repr(error)[:200]))


SELDOM = Seldom()


def set_up() -> None:
    """Let this process log."""
    plain = structlog.dev.plain_traceback  # the usual one shows local variables, and keys are among them
    lines = structlog.dev.ConsoleRenderer(exception_formatter=plain)
    shown = lines if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(SELDOM)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if not sys.stderr.isatty() else _as_it_is,
            shown,
            _without_keys,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def _as_it_is(logger: object, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event


def _without_keys(logger: object, name: str, line: Any) -> str:
    """The whole line, as it is written: a key may be part of a path, an error or a traceback."""
    return SECRET.sub("tw-…", line)
