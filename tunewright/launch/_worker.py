"""One of the processes that torchrun starts: `_worker RECIPE FOLDER start|resume`."""

from __future__ import annotations

import sys
from pathlib import Path

from tunewright.errors import Interrupted, TunewrightError
from tunewright.recipe import read_recipe
from tunewright.run import execute

if __name__ == "__main__":
    recipe, folder, how = sys.argv[1:]
    try:
        execute(read_recipe(recipe), Path(folder), resume=how == "resume")
    except TunewrightError as error:
        sys.exit(str(error))
    except Interrupted:
        sys.exit(130)
