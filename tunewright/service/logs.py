"""The log: a JSON object a line on stderr, or lines for people where that is a terminal."""

from __future__ import annotations

import logging
import sys

import structlog


def set_up() -> None:
    """Let this process log."""
    plain = structlog.dev.plain_traceback  # the usual one shows local variables, and keys are among them
    lines = structlog.dev.ConsoleRenderer(exception_formatter=plain)
    shown = lines if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if not sys.stderr.isatty() else _as_it_is,
            shown,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def _as_it_is(logger: object, name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event
