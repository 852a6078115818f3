"""A job's curves at Weights & Biases, where its client asks for them and the owner of the service allows it.

They are sent with the account that this machine is logged in with, or kept in a folder where it has none. Nothing is
told of the machine: neither what is printed here nor its code, its packages or its load.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from structlog import get_logger

from tunewright.engine.track import wandb_mode
from tunewright.service.entities import Job

log = get_logger()

FORBIDDEN = "W&B was not told of it: the owner of this service has not allowed it (serve --wandb)."
LOST = "W&B has no more of its curves: {}"
SECONDS = 30
"""Over which W&B is waited for when a job begins, and when it has ended."""


class Curves:
    """A job's integrations, in a thread of their own. A job neither fails nor waits for them.

    Args:
        folder: where W&B keeps what it sends, and what it could not.
        tell: is told, once, why there are no curves.
    """

    def __init__(self, job: Job, folder: Path, tell: Callable[[str], None]) -> None:
        self._job, self._folder, self._tell = job, folder, tell
        self._runs: list[Any] = []
        self._thread: threading.Thread | None = None
        self._to_do: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def begin(self, resolved: Mapping[str, Any]) -> None:
        """Args: resolved: the hyperparameters of the training."""
        if self._thread is None:
            asked = [one["wandb"] for one in self._job.spec.integrations]
            config = {"model": self._job.spec.model, "method": self._job.spec.method.type, **resolved}
            self._to_do.put(lambda: self._runs.extend(self._run(place, one, config) for place, one in enumerate(asked)))
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        told = {name: value for name, value in values.items() if name != "step"}
        self._to_do.put(lambda: [run.log(told, step=step) for run in self._runs])

    def end(self) -> None:
        """What has not arrived then is given up."""
        self._to_do.put(lambda: [run.finish() for run in self._runs])
        self._to_do.put(None)
        if self._thread:
            self._thread.join(SECONDS)

    def _work(self) -> None:
        try:
            while act := self._to_do.get():
                act()
        except Exception as error:  # of a library that speaks with a server elsewhere, anything
            log.warning("no curves", job=self._job.id, error=f"{type(error).__name__}: {error}")
            self._tell(LOST.format(type(error).__name__))

    def _run(self, place: int, asked: Mapping[str, Any], config: dict[str, Any]) -> Any:
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        alone = wandb.Settings(
            console="off", silent=True, disable_code=True, disable_git=True, x_disable_stats=True, x_disable_meta=True,
            x_disable_machine_info=True, x_save_requirements=False, init_timeout=SECONDS,
        )  # fmt: skip
        return wandb.init(
            project=asked["project"],
            name=asked["name"] or self._job.spec.suffix or self._job.id,
            entity=asked["entity"],
            tags=asked["tags"],
            config=config,
            id=f"{self._job.id}-{place}" if place else self._job.id,
            resume="allow",  # another worker goes on with it
            dir=str(self._folder),
            mode=wandb_mode(),
            reinit="create_new",
            settings=alone,
        )
