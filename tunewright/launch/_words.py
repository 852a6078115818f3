"""What the processes of a run tell the one that started them: a file with a JSON object a line."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright import errors
from tunewright.engine.job import Watcher


def tell(path: Path, kind: str, words: Mapping[str, Any]) -> None:
    """Append a line, in one write: those of several processes do not mix."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps({kind: words}, default=str).encode() + b"\n")


def describe_error(error: BaseException) -> dict[str, Any]:
    trace = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "more": vars(error), "trace": trace}


def make_error(words: Mapping[str, Any]) -> BaseException:
    """The error again: of its own class where that is one of ours, else a RuntimeError that shows where it was."""
    kinds = {"KeyboardInterrupt": KeyboardInterrupt, **vars(errors)}
    kind = kinds.get(words["type"])
    if kind is None:
        error: BaseException = RuntimeError(f"{words['type']}: {words['message']}")
        error.add_note(words["trace"])
        return error
    error = kind.__new__(kind, words["message"])  # the message is whole: it must not be made anew of its parts
    vars(error).update(words["more"])
    return error


class Listener:
    """Follows the file: lines go to the watchers, and the first error is kept, which is the cause of the others."""

    def __init__(self, path: Path, watchers: Sequence[Watcher]) -> None:
        path.touch()
        self.file, self.watchers = path.open("rb"), watchers
        self.started = False
        self.error: BaseException | None = None
        self.rest = b""

    def listen(self) -> None:
        """Take in what is new."""
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        for words in map(json.loads, lines):
            if "line" in words:
                self.started = self.started or "drawn" not in words["line"]  # which comes before
                for watcher in self.watchers:
                    watcher(words["line"])
            elif self.error is None:
                self.error = make_error(words["error"])
