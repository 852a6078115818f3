"""What is told once a minute, however often it happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

MINUTE = 60.0


class News:
    """Args: most: so many are remembered as told; then all are forgotten."""

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self.most, self.now = most, now
        self._told: dict[Hashable, float] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._told)

    def is_new(self, what: Hashable) -> bool:
        """Whether this was not asked in the last minute."""
        with self._lock:
            now = self.now()
            if now - self._told.get(what, -MINUTE) < MINUTE:
                return False
            if len(self._told) >= self.most:
                self._told.clear()
            self._told[what] = now
            return True
