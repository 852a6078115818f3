"""torchrun without its own reports: the processes tell what is wrong. Exits with 128 + the signal that killed one.

SIGTERM does not count: with it torchrun ends the others.
"""

from __future__ import annotations

import logging
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable()
    try:
        main(sys.argv[1:])
    except ChildFailedError as error:
        killed = [-f.exitcode for f in error.failures.values() if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
        sys.exit(128 + killed[0] if killed else 1)
    except SignalException:
        sys.exit(1)
