"""A run, or its share of one where torchrun starts it, in this process: `_worker RECIPE FOLDER start|resume WORDS`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import partial
from pathlib import Path

from tunewright.errors import Interrupted
from tunewright.launch import launch
from tunewright.launch._words import describe_error, tell
from tunewright.recipe import read_recipe
from tunewright.run import execute


def stop_with_input() -> None:
    """SIGTERM is Ctrl-C, and comes when the input ends: the process that started the run asks for it, or is gone."""

    def wait() -> None:
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=wait, daemon=True).start()


def work(recipe: str, folder: str, how: str, words: str) -> None:
    """Execute the recipe in this file, and tell in the file `words` how it goes. Ends the process."""
    path = Path(words)
    try:
        stop_with_input()
        start = execute if "RANK" in os.environ else launch
        start(read_recipe(recipe), Path(folder), [partial(tell, path, "line")], how == "resume")
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the end of another process must not cut these words off
        tell(path, "error", describe_error(error))
        # all processes are interrupted together; at any other end the first one to leave has the rest stopped
        sys.exit(0 if isinstance(error, Interrupted) else 1)


if __name__ == "__main__":
    work(*sys.argv[1:])
