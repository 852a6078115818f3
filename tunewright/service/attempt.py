"""One worker's go at a job: from its files to its model.

SCRATCH/ftjob-…-3/     the third claim of a job
  training/            what it learns from
  SUFFIX-…/            the run
  state/               what of it is being saved
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from structlog import get_logger

from tunewright.artifacts.snapshots import FOLDER as SNAPSHOTS
from tunewright.engine import checkpoint
from tunewright.errors import DataError, OutputError, TunewrightError
from tunewright.folder import INFO, Run
from tunewright.launch import apart
from tunewright.launch._supervise import Killed
from tunewright.recipe import Recipe
from tunewright.service.bringing import Bringing
from tunewright.service.effect import Effect, look_apart
from tunewright.service.entities import Job, Note, Status
from tunewright.service.errors import Refused, Unavailable
from tunewright.service.inference.protocol import ModelRef
from tunewright.service.lease import Lease
from tunewright.service.recipes import decided, make_recipe_for
from tunewright.service.run_copies import copy_finished, copy_state, without_places
from tunewright.service.store import Result
from tunewright.service.unpacking import Role, placed
from tunewright.service.wire.metrics import checkpoint_metrics, event_data, event_message, results_file

log = get_logger()

CRASHES = 3
"""So often a run is killed by something else than its worker before its job has failed."""
LOST = 20
"""So often a job loses its worker before it is thought to be the cause."""
PATIENCE = 3600.0
"""Seconds over which a full disk is waited for."""
UNCHANGED = (
    "The tuned model answers exactly as {} does: the training changed nothing. "
    "Is the learning rate too small, or was every answer worth the same?"
)
LONGEST_WAIT = 20.0
SECONDS_BETWEEN_WRITES = 1.0

T = TypeVar("T")


class Attempt:
    """A claimed job, and the folder in which it is worked on; `device`: where its model will answer."""

    def __init__(self, job: Job, bringing: Bringing, folder: Path, lease: Lease, device: str) -> None:
        self.job, self.bringing, self.folder, self.lease, self.device = job, bringing, folder, lease, device
        self.store, self.storage = bringing.store, bringing.storage
        self.run = Run(folder / f"{job.spec.suffix or Path(job.spec.model).name.replace(':', '-')}-{job.id[6:14]}")
        self.saved = 0
        self.published: set[int] = set()
        self.notes: list[Note] = []
        self.columns: dict[str, Any] = {}
        self.written = self.waited = 0.0

    def work(self, leaving: Callable[[], bool]) -> None:
        """Run the job to its end, or to where it is paused or given back. Raises Lost.

        Args:
            leaving: says that this worker shuts down: the job is then saved and given back.
        """
        job = self.job
        if job.lost > LOST:
            self._fail("server_error", f"Its worker fell silent {job.lost} times: is there too little memory?")
            return
        if self.lease.check() is Status.PAUSING:
            self.store.jobs.move(job.id, Status.PAUSED, by=job.fence)
            return
        try:
            self._patiently(self._bring)
            self._train(leaving)
        except KeyboardInterrupt:  # the run's; Interrupted, where it had begun
            self._save()
            self._patiently(self._write_all)
            to = Status.PAUSED if self.lease.check() is Status.PAUSING else Status.QUEUED
            self._patiently(lambda: self.store.jobs.move(job.id, to, by=job.fence))
        except TunewrightError as error:
            self._fail(*_reason(error))
        except RuntimeError as error:  # what the run did not expect
            log.exception("run broke", job=job.id)
            self._fail("server_error", f"The training ended unexpectedly: {error}")
        else:
            self._publish(leaving)

    # the run

    def _bring(self) -> None:
        """Bring here what the run begins from, or goes on from."""
        job, spec, bringing = self.job, self.job.spec, self.bringing
        self.base, self.start = bringing.below(job)
        if job.saved and not self._begun:
            bringing.state(job.saved, self.run.folder)
            self.saved = checkpoint.steps(self.run.folder / "checkpoints")[-1]
        self.files = {"train": self._rows("training", spec.training_file)}
        if spec.validation_file:
            self.files["validation"] = self._rows("validation", spec.validation_file)

    def _recipe(self) -> Recipe:
        """What the client asked for; of a run that has begun, what was decided then, with the files that lie here."""
        if self._begun:
            begun = self.run.recipe
            data = begun.data.model_copy(update=self.files)
            return begun.model_copy(update={"data": data, "output": str(self.run.folder)})

        def lies(name: str) -> str:
            return str(self.bringing.model(self.job.tenant, name))

        return make_recipe_for(self.job.spec, self.start, self.files, lies, self.run.folder)

    def _rows(self, role: Role, id: str) -> str:
        shutil.rmtree(self.folder / role, ignore_errors=True)
        return placed(self.bringing.file(self.job, id, self.folder / role / "file"), self.folder / role / "rows", role)

    def _train(self, leaving: Callable[[], bool]) -> None:
        crashes = 0
        while not (self._begun and self.run.done):
            try:
                recipe = self._patiently(self._recipe)
                apart.execute(recipe, self.run.folder, [self._hear], self._begun, lambda: self._look(leaving))
            except Killed as error:
                crashes += 1
                if crashes == CRASHES:
                    raise
                self.notes.append(Note(f"{self._told(error)} It is started again.", "warn"))
            except OutputError as error:
                self._wait_for_room(error)

    @property
    def _begun(self) -> bool:
        return (self.run.folder / INFO).is_file()

    def _hear(self, line: Mapping[str, Any]) -> None:
        """A line of what the run tells."""
        if "started" in line:
            info = line["started"]
            notices = list(map(self._told, info["notices"]))
            if self.job.spec.integrations:
                notices.append("Integrations are kept with the job, and drive nothing here.")
            recipe = self.run.recipe.model_dump(mode="json")
            self.columns["resolved"] = {**decided(self.job.spec, recipe), "task": info["task"]}
            if not self.job.saved:
                self.notes += [Note("The training has begun."), *map(Note, notices)]
        elif "step" in line:
            self.notes.append(
                Note(event_message(line, line["total"]), "info", "metrics", event_data(line, line["total"]))
            )
            if "eta" in line:
                self.columns["estimated_finish"] = int(time.time() + line["eta"])

    def _look(self, leaving: Callable[[], bool]) -> bool:
        """Called all the time: what is new is written. Whether the run is to stop. Raises Lost."""
        status = self.lease.check()
        if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self._write()
        steps = checkpoint.steps(self.run.folder / "checkpoints")
        if steps and steps[-1] > self.saved:
            self._save()
        self._publish_snapshots()
        return status is Status.PAUSING or leaving()

    def _write(self) -> None:
        """Tell the store what is new. What it does not take now, it is told the next time."""
        if not (self.notes or self.columns):
            return
        try:
            self._write_all()
        except Unavailable as error:
            log.warning("nothing written", job=self.job.id, error=str(error))

    # what is kept

    def _save(self) -> None:
        """Put the run, with its newest checkpoint, into the storage: from there any worker can go on."""
        state = self.folder / "state"
        step = copy_state(self.run.folder, state, self.bringing.bases, self.bringing.cache)
        if step > self.saved:
            place = self._put(state, "states")
            self._patiently(lambda: self.store.jobs.progress(self.job.id, self.job.fence, saved=place))
            self.saved = step

    def _publish_snapshots(self) -> None:
        """Let each snapshot that is new answer as a model."""
        for step in sorted(set(checkpoint.steps(self.run.folder / SNAPSHOTS)) - self.published):
            self._write()  # what led to it comes first
            place = self._put_finished(self.run.folder / SNAPSHOTS / f"step-{step}")
            named: dict[str, Any] = {"step": step, "base": self.base, "task": self._task, "place": place}
            named["metrics"] = checkpoint_metrics(self.run.metrics, step)
            self._patiently(partial(self.store.jobs.add_checkpoint, self.job.id, self.job.fence, **named))
            self.published.add(step)

    def _publish(self, leaving: Callable[[], bool]) -> None:
        """The run has ended: its model answers, its results can be fetched, and its job has succeeded."""
        self._publish_snapshots()
        if fault := self._without_effect(leaving):
            self._fail("server_error", fault)
            return
        self._patiently(self._write_all)
        place = self._put_finished(self.run.folder / "model")
        lines = self.run.metrics
        csv = self._patiently(lambda: self.store.places.reserve("files"))
        size, digest = self._patiently(lambda: self.storage.put(csv, [results_file(lines)]))
        tokens = sum(line.get("tokens", 0) for line in lines)
        self._patiently(
            lambda: self.store.jobs.finish(
                self.job.id, self.job.fence, base=self.base, task=self._task, run=place,
                result=Result(csv, size, digest), trained_tokens=tokens,
            )
        )  # fmt: skip

    def _without_effect(self, leaving: Callable[[], bool]) -> str | None:
        """Why the tuned model would answer as if it had not been tuned, although it was."""
        base = self.bringing.bases[self.base]
        model = ModelRef(self.base, str(base), self.job.id, str(self.run.folder))

        def enough() -> bool:
            self.lease.check()
            return leaving()  # a worker that leaves has seconds, and what was trained is to be kept

        found = look_apart(model, self._task, self.device, enough)
        if found.effect is Effect.UNKNOWN:
            log.warning("effect not known", job=self.job.id, why=found.why)
        if found.effect is Effect.NONE:
            self.notes.append(Note(UNCHANGED.format(self.job.spec.model), "warn"))
        if found.effect is Effect.LOST:
            return "The model was trained, but its weights have no effect where it answers: a fault of the service."
        return f"The tuned model cannot be loaded: {found.why}" if found.effect is Effect.BROKEN else None

    def _put_finished(self, model: Path) -> str:
        folder = self.folder / "finished"
        copy_finished(self.run.folder, model, folder, self.bringing.bases, self.bringing.cache)
        return self._put(folder, "models")

    def _put(self, folder: Path, kind: str) -> str:
        place: str = self._patiently(lambda: self.store.places.reserve(kind))
        self._patiently(lambda: self.storage.put_folder(folder, place))
        shutil.rmtree(folder)
        return place

    @property
    def _task(self) -> str:
        return str(self.run.info["task"])

    # what goes wrong

    def _fail(self, code: str, message: str, param: str | None = None) -> None:
        log.info("job failed", job=self.job.id, code=code, error=message)
        told = self._told(message)
        self._patiently(self._write_all)
        self._patiently(lambda: self.store.jobs.fail(self.job.id, self.job.fence, code, told, param))

    def _told(self, message: object) -> str:
        """A message as clients are told it."""
        return without_places(str(message), self.bringing.bases, self.folder, self.bringing.cache)

    def _write_all(self) -> None:
        self.store.jobs.progress(self.job.id, self.job.fence, events=self.notes, **self.columns)
        self.notes, self.columns, self.written = [], {}, time.monotonic()

    def _patiently(self, do: Callable[[], T]) -> T:
        """Do it, again and again while the database or the storage is away or full, as long as the job is held."""
        wait = 0.5
        while True:
            try:
                return do()
            except (Refused, OSError) as error:
                if isinstance(error, Refused) and error.status < 500:
                    raise
                log.warning("trying again", job=self.job.id, error=str(error), seconds=wait)
            self.lease.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def _wait_for_room(self, error: OutputError) -> None:
        """The run's folder could not be written to: go on from its last checkpoint after a while. Raises the error."""
        self.waited += LONGEST_WAIT
        if self.waited > PATIENCE:
            raise error
        self.notes.append(Note(f"{self._told(error)} It goes on when there is room.", "warn"))
        self._write()
        self.lease.wait(LONGEST_WAIT)


def _reason(error: TunewrightError) -> tuple[str, str, str | None]:
    """Why a job failed, in the API's words."""
    if isinstance(error, Refused):
        return error.code or "invalid_request", str(error), error.param
    if isinstance(error, DataError):
        return "invalid_training_file", str(error), "training_file"
    if isinstance(error, Killed):
        return "server_error", str(error), None
    return "training_failed", str(error), None
