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
from typing import Any

from structlog import get_logger

from tunewright.artifacts.snapshots import FOLDER as SNAPSHOTS
from tunewright.engine import checkpoint
from tunewright.errors import DataError, OutputError, TunewrightError
from tunewright.folder import INFO, Run
from tunewright.launch import apart
from tunewright.launch._supervise import Killed
from tunewright.recipe import Recipe
from tunewright.service.bringing import Bringing
from tunewright.service.curves import FORBIDDEN, Curves
from tunewright.service.effect import look_apart
from tunewright.service.entities import Job, Note, Status
from tunewright.service.errors import Refused, Swept, Unavailable
from tunewright.service.inference.protocol import Effect, ModelRef
from tunewright.service.lease import Lease
from tunewright.service.patience import LONGEST_WAIT, LOST, Patience, Waited, lost_as
from tunewright.service.recipes import decided, make_recipe_for
from tunewright.service.run_copies import copy_finished, copy_state, without_places
from tunewright.service.store import Result
from tunewright.service.unpacking import Role, placed
from tunewright.service.wire.metrics import checkpoint_metrics, event_data, event_message, results_file

log = get_logger()

CRASHES = 3
"""So often a run is killed by something else than its worker before its job has failed."""
MOST_LOST = 20
"""So often a job loses its worker before it is thought to be the cause."""
CLAIMS = 5
"""So often a job is claimed, its validation included, before what is waited for in vain fails it; until then others
may try."""
PATIENCE = 3600.0
"""Seconds over which a full disk is waited for."""
UNCHANGED = (
    "The tuned model answers exactly as {} does: the training changed nothing. "
    "Is the learning rate too small, or was every answer worth the same?"
)
SECONDS_BETWEEN_WRITES = 1.0


class Attempt:
    """A claimed job, and the folder in which it is worked on.

    Args:
        device: where its model will answer.
        leaving: says that this worker shuts down: the job is then saved and given back.
        wandb: a folder for what goes to W&B; None where nothing may.
    """

    def __init__(
        self,
        job: Job,
        bringing: Bringing,
        folder: Path,
        lease: Lease,
        device: str,
        leaving: Callable[[], bool],
        wandb: Path | None = None,
    ) -> None:
        self.job, self.bringing, self.folder, self.lease, self.device = job, bringing, folder, lease, device
        self.store, self.storage, self.leaving = bringing.store, bringing.storage, leaving
        self._patiently = Patience(lease, bringing.storage, self._tell, leaving)
        self.run = Run(folder / f"{job.spec.suffix or Path(job.spec.model).name.replace(':', '-')}-{job.id[6:14]}")
        self.saved = 0
        self.published: set[int] = set()
        self.notes: list[Note] = []
        self.columns: dict[str, Any] = {}
        self.written = self.waited = 0.0
        self.curves = Curves(job, wandb, self._warn) if wandb and job.spec.integrations else None

    def work(self) -> None:
        """Run the job to its end, or to where it is paused or given back. Raises Lost."""
        try:
            self._work()
        except Waited as error:
            self._let_go(str(error))
        except LOST as error:
            log.exception("lost", job=self.job.id)
            self._fail("server_error", f"The service has lost what the job needs: {type(error).__name__}.")
        finally:
            if self.curves:
                self.curves.end()

    def _work(self) -> None:
        job = self.job
        if job.lost > MOST_LOST:
            self._fail("server_error", f"Its worker fell silent {job.lost} times: is there too little memory?")
            return
        if self.lease.check() is Status.PAUSING:
            self.store.jobs.move(job.id, Status.PAUSED, by=job.fence)
            return
        try:
            self._bring()
            self._train()
        except KeyboardInterrupt:  # the run's; Interrupted, where it had begun
            self._save()
            self._give_back()
        except TunewrightError as error:
            self._fail(*_reason(error))
        except RuntimeError as error:  # what the run did not expect
            log.exception("run broke", job=job.id)
            self._fail("server_error", f"The training ended unexpectedly: {error}")
        else:
            self._publish()

    # the run

    def _bring(self) -> None:
        """Bring here what the run begins from, or goes on from."""
        spec = self.job.spec
        with lost_as("model", spec.model):
            self.base, self.start = self._patiently(lambda: self.bringing.below(self.job))
        if self.job.saved:
            self._bring_state(self.job.saved)
        self.files = {"train": self._rows("training", spec.training_file)}
        if spec.validation_file:
            self.files["validation"] = self._rows("validation", spec.validation_file)

    def _bring_state(self, place: str) -> None:
        try:
            self._patiently(lambda: self.bringing.state(place, self.run.folder))
            self.saved = checkpoint.steps(self.run.folder / "checkpoints")[-1]
        except (*LOST, OutputError) as error:
            log.error("state lost", job=self.job.id, error=str(error))
            said = "The state that was saved is lost from the storage: the training begins again from the beginning."
            self._warn(said)

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
        def bring() -> str:
            shutil.rmtree(self.folder / role, ignore_errors=True)
            path = self.bringing.file(self.job, id, self.folder / role / "file")
            return placed(path, self.folder / role / "rows", role)

        with lost_as("file", id, f"{role}_file"):
            return self._patiently(bring)

    def _train(self) -> None:
        crashes = 0
        while not (self._begun and self.run.done):
            try:
                with lost_as("model", "that the recipe names"):
                    recipe = self._patiently(self._recipe)
                apart.execute(recipe, self.run.folder, [self._hear], self._begun, self._look)
            except Killed as error:
                crashes += 1
                if crashes == CRASHES:
                    raise
                self._warn(f"{self._told(error)} It is started again.")
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
            recipe = self.run.recipe.model_dump(mode="json")
            self.columns["resolved"] = {**decided(self.job.spec, recipe), "task": info["task"]}
            if not self.job.saved:
                self.notes += [Note("The training has begun."), *map(Note, notices)]
                if self.job.spec.integrations and not self.curves:
                    self._warn(FORBIDDEN)
            if self.curves:
                self.curves.begin(self.columns["resolved"])
        elif "step" in line:
            data = event_data(line, line["total"])
            self.notes.append(Note(event_message(line, line["total"]), "info", "metrics", data))
            if self.curves:
                self.curves.add(line["step"], data)
            if "eta" in line:
                self.columns["estimated_finish"] = int(time.time() + line["eta"])

    def _look(self) -> bool:
        """Called all the time: what is new is written. Whether the run is to stop. Raises Lost."""
        status = self.lease.check()
        if time.monotonic() - self.written > SECONDS_BETWEEN_WRITES:
            self._write()
        steps = checkpoint.steps(self.run.folder / "checkpoints")
        if steps and steps[-1] > self.saved:
            self._save()
        self._publish_snapshots()
        return status is Status.PAUSING or self.leaving()

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
            self._record(lambda: {"saved": self._put(state, "states")}, self.store.jobs.progress)
            shutil.rmtree(state)
            self.saved = step

    def _publish_snapshots(self) -> None:
        """Let each snapshot that is new answer as a model."""
        for step in sorted(set(checkpoint.steps(self.run.folder / SNAPSHOTS)) - self.published):
            self._write()  # what led to it comes first
            self._publish_snapshot(step)
            self.published.add(step)

    def _publish_snapshot(self, step: int) -> None:
        model, metrics = self._finished(self.run.folder / SNAPSHOTS / f"step-{step}"), self.run.metrics
        named: dict[str, Any] = {"step": step, "base": self.base, "task": self._task}
        add = partial(self.store.jobs.add_checkpoint, **named, metrics=checkpoint_metrics(metrics, step))
        self._record(lambda: {"place": self._put(model, "models")}, add)
        shutil.rmtree(model)

    def _publish(self) -> None:
        """The run has ended: its model answers, its results can be fetched, and its job has succeeded."""
        self._publish_snapshots()
        if fault := self._without_effect():
            self._fail("server_error", fault)
            return
        self._patiently(self._write_all)
        model, lines = self._finished(self.run.folder / "model"), self.run.metrics
        tokens = sum(line.get("tokens", 0) for line in lines)
        finish = partial(self.store.jobs.finish, base=self.base, task=self._task, trained_tokens=tokens)
        self._record(lambda: {"run": self._put(model, "models"), "result": self._put_table(lines)}, finish)

    def _without_effect(self) -> str | None:
        """Why the tuned model would answer as if it had not been tuned, although it was."""
        base = self.bringing.bases[self.base]
        model = ModelRef(self.base, str(base), self.job.id, str(self.run.folder))

        def enough() -> bool:
            self.lease.check()
            return self.leaving()  # a worker that leaves has seconds, and what was trained is to be kept

        found = look_apart(model, self._task, self.device, enough)
        if found.effect is Effect.UNKNOWN:
            log.warning("effect not known", job=self.job.id, why=found.why)
        if found.effect is Effect.NONE:
            self._warn(UNCHANGED.format(self.job.spec.model))
        if found.effect is Effect.LOST:
            return "The model was trained, but its weights have no effect where it answers: a fault of the service."
        return f"The tuned model cannot be loaded: {found.why}" if found.effect is Effect.BROKEN else None

    def _finished(self, model: Path) -> Path:
        folder = self.folder / "finished"
        copy_finished(self.run.folder, model, folder, self.bringing.bases, self.bringing.cache)
        return folder

    def _record(self, put: Callable[[], dict[str, Any]], write: Callable[..., object]) -> None:
        """Write what lies in the storage where `put` says; where that was swept away meanwhile, it is put once more."""
        while True:
            places = put()
            try:
                self._patiently(lambda: write(self.job.id, self.job.fence, **places))  # noqa: B023
                return
            except Swept as error:
                log.warning("put once more", job=self.job.id, place=error.place)

    def _put(self, folder: Path, kind: str) -> str:
        place = self._patiently(lambda: self.store.places.reserve(kind))
        self._patiently(lambda: self.storage.put_folder(folder, place))
        return place

    def _put_table(self, lines: list[dict[str, Any]]) -> Result:
        place = self._patiently(lambda: self.store.places.reserve("files"))
        size, digest = self._patiently(lambda: self.storage.put(place, [results_file(lines)]))
        return Result(place, size, digest)

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

    def _warn(self, message: str) -> None:
        self.notes.append(Note(message, "warn"))

    def _tell(self, message: str) -> None:
        self._warn(self._told(message))
        self._write()

    def _give_back(self) -> None:
        """It is paused if that was asked for, and otherwise goes on elsewhere."""
        self._patiently(self._write_all)
        to = Status.PAUSED if self.lease.check() is Status.PAUSING else Status.QUEUED
        self._patiently(lambda: self.store.jobs.move(self.job.id, to, by=self.job.fence))

    def _let_go(self, message: str) -> None:
        """It was waited for too long: others have their turn, and another worker may be better off."""
        if self.job.fence < CLAIMS or self.leaving():
            self._warn(f"{self._told(message)} The job was given back, to be tried again.")
            self._give_back()
        else:
            said = f"{message} It was waited for again and again, in vain."
            self._fail("server_error", f"{said} Create the job again when the service is in order.")

    def _wait_for_room(self, error: OutputError) -> None:
        """The run's folder could not be written to: go on from its last checkpoint after a while. Raises the error."""
        self.waited += LONGEST_WAIT
        if self.waited > PATIENCE:
            raise error
        self._warn(f"{self._told(error)} It goes on when there is room.")
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
