"""A job's curves at Weights & Biases, where its client asks for them and the owner of the service allows it.

They are sent with the account that this machine is logged in with, or kept in a folder where it has none. Nothing is
told of the machine: neither what is printed here nor its code, its packages or its load.
"""

from __future__ import annotations

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
"""Over which W&B is waited for when a job begins."""


class Curves:
    """What becomes of the integrations of a job. A job never fails for them.

    Args:
        folder: where W&B keeps what it sends, and what it could not; None where nothing is to be sent.
        tell: is told, once, why there are no curves.
    """

    def __init__(self, job: Job, folder: Path | None, tell: Callable[[str], None]) -> None:
        self._job, self._folder, self._tell = job, folder, tell
        self._runs: list[Any] = []

    def begin(self, resolved: Mapping[str, Any]) -> None:
        """Args: resolved: the hyperparameters of the training."""
        asked = [one["wandb"] for one in self._job.spec.integrations]
        if asked and self._folder is None:
            self._tell(FORBIDDEN)
        elif asked and not self._runs:
            config = {"model": self._job.spec.model, "method": self._job.spec.method.type, **resolved}
            self._try(lambda: self._runs.extend(self._run(place, one, config) for place, one in enumerate(asked)))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        for run in list(self._runs):
            self._try(lambda: run.log({name: value for name, value in values.items() if name != "step"}, step=step))  # noqa: B023

    def end(self) -> None:
        for run in list(self._runs):
            self._try(run.finish)

    def _run(self, place: int, asked: Mapping[str, Any], config: dict[str, Any]) -> Any:
        import wandb

        assert self._folder
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

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # of a library that speaks with a server elsewhere, anything
            log.warning("no curves", job=self._job.id, error=f"{type(error).__name__}: {error}")
            self._runs = []
            self._tell(LOST.format(type(error).__name__))
