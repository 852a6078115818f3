"""Every error that Tunewright raises on purpose. Each message says what is wrong and what to do about it.

TunewrightError                  (a ValueError: something the user can mend)
├── RecipeError                  a recipe that cannot mean anything: unknown key, wrong type, ignored option
├── DataError                    rows that cannot be used; carries all faults at once, with file and line
├── BaseModelError               a base that is missing, unsafe, or does not fit the task
├── MethodError                  a method that cannot be applied to this model
├── MissingExtra                 an optional dependency is not installed; gives the pip command
├── OutputError                  the output folder is in use, not writable, or full; or a model was not written whole
├── CheckpointError              no usable checkpoint, or one of another run
├── VerificationError            an export does not behave like the model that was trained
└── TrainingDiverged             the loss is not finite; names the step and the rows
Interrupted                      (a KeyboardInterrupt: stopped by the user, state saved, can be resumed)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any


class TunewrightError(ValueError):
    """Something the user can mend. The command line prints it without a traceback and exits with 2."""


class RecipeError(TunewrightError):
    """A recipe that cannot mean anything."""


class DataError(TunewrightError):
    """Rows that cannot be used.

    Args:
        message: one sentence on what to do.
        faults: one line each, "file:line: what is wrong". All of them, not the first.
    """

    SHOWN = 20

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        self.faults = list(faults)
        lines = [message, *(f"  {fault}" for fault in self.faults[: self.SHOWN])]
        if len(self.faults) > self.SHOWN:
            lines.append(f"  … and {len(self.faults) - self.SHOWN} more")
        super().__init__("\n".join(lines))


class BaseModelError(TunewrightError):
    """A base that is missing, unsafe to load, or does not fit the task."""


class MethodError(TunewrightError):
    """A method that cannot be applied to this model."""


class MissingExtra(TunewrightError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional dependency: pip install 'tunewright[{extra}]'")


class OutputError(TunewrightError):
    """The output folder is in use, not writable, or full; or a model was not written whole."""


class CheckpointError(TunewrightError):
    """No usable checkpoint, or one that belongs to another run."""


class VerificationError(TunewrightError):
    """An export does not behave like the model that was trained. The command line exits with 1: no input mends it.

    Args:
        message: what differs, and where the export was left.
        verification: what its verification.json says.
    """

    def __init__(self, message: str, verification: Mapping[str, Any]) -> None:
        self.verification = dict(verification)
        super().__init__(message)


class TrainingDiverged(TunewrightError):
    """The loss is not finite. The last good checkpoint is kept."""


class Interrupted(KeyboardInterrupt):
    """Stopped by the user after a checkpoint was written."""


# Words that messages share

DAMAGED = (
    "The model answers with numbers that are not finite (NaN): its weights are damaged, or its training diverged. Get "
    "its files again, or train it again with a lower training.learning_rate."
)


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line of at most 300 characters."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def counted(count: int, one: str, many: str = "") -> str:
    """`1 row`, `1,200 rows`; `many` where the plural is not the singular with an s."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def them(count: int) -> str:
    return "it" if count == 1 else "them"


def nearest(name: str, known: Sequence[str]) -> str:
    """What somebody may have meant by an unknown name, as a sentence."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]}?" if close else f"Known: {', '.join(known)}."
