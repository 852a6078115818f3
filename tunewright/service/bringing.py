"""What lies in the storage, brought to this machine: rows to learn from, and models to go on from or to answer with."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from tunewright.service.entities import Job, TunedModel
from tunewright.service.errors import missing
from tunewright.service.ids import random_text
from tunewright.service.relocation import relocate
from tunewright.service.storage import CHUNK, Storage
from tunewright.service.store import Store

HELD = re.compile("[0-9a-f]{24}")
"""The name of a model's folder in the cache; what is being brought has a longer one."""


class Bringing:
    """Knows where everything is.

    Args:
        bases: the bases of this machine, by their names.
        cache: a folder in which models of the storage are kept, for all processes of this machine.
    """

    def __init__(self, store: Store, storage: Storage, bases: Mapping[str, Path], cache: Path) -> None:
        self.store, self.storage, self.bases, self.cache = store, storage, bases, cache

    def file(self, job: Job, id: str, target: Path) -> Path:
        """The bytes of a file that a job uses."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.storage.open(self.store.files.used(job.id, id).place) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
        return target

    def base_of(self, tenant: str, name: str) -> str:
        """The name of the base below a base, or below a tuned model. Raises Refused (404)."""
        return name if name in self.bases else self.tuned(tenant, name).base

    def tuned(self, tenant: str, name: str) -> TunedModel:
        """One of the tenant's models, whose base is here. Raises Refused (404)."""
        if not name.startswith("ft:"):
            raise missing("model", name, "model_not_found", "model")
        model = self.store.models.get(tenant, name)
        if model.base not in self.bases:
            raise missing("base", f"{model.base} here any more, on which {name} lies", "model_not_found", "model")
        return model

    def below(self, job: Job) -> tuple[str, Path]:
        """What a job begins from: the name of its base, and the folder of that or of a run on it, deleted or not.

        Raises Refused (404) where this machine lacks the base.
        """
        model = self.start(job)
        return (job.spec.model, self.bases[job.spec.model]) if model is None else (model.base, self.run(model))

    def start(self, job: Job) -> TunedModel | None:
        """The tuned model that a job begins from, deleted or not; None where that is a base. Raises as `below`."""
        name = job.spec.model
        model = None if name in self.bases else self.store.models.stored(name)
        if name not in self.bases and (model is None or model.base not in self.bases):
            raise missing("base here for", name, "model_not_found", "model")
        return model

    def model(self, tenant: str, name: str) -> Path:
        """The folder of a base, or of the run of one of the tenant's models. Raises Refused (404)."""
        return self.bases[name] if name in self.bases else self.run(self.tuned(tenant, name))

    def run(self, model: TunedModel) -> Path:
        """The run of a tuned model, which names the bases and models of this machine."""
        if model.base not in self.bases:
            raise missing("base", model.base, "model_not_found", "model")
        folder = self._folder(model)
        if not folder.is_dir():
            if model.tuned_from and (earlier := self.store.models.stored(model.tuned_from)):
                self.run(earlier)
            self.state(model.place, folder)
        return folder

    def forget(self, model: TunedModel) -> None:
        """Remove what this machine holds of a model that nobody needs any more."""
        shutil.rmtree(self._folder(model), ignore_errors=True)

    def forget_deleted(self) -> None:
        """Remove what this machine holds of models that nobody needs any more, wherever they were deleted."""
        if here := [folder for folder in self.cache.glob("*") if HELD.fullmatch(folder.name)]:
            stored = set(map(self._folder_at, self.store.models.places()))  # asked after: none that is new is missed
            for folder in here:
                if folder not in stored:
                    shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, model: TunedModel) -> Path:
        return self._folder_at(model.place)

    def _folder_at(self, place: str) -> Path:
        return self.cache / hashlib.sha256(place.encode()).hexdigest()[:24]

    def state(self, place: str, folder: Path) -> None:
        """A run as it lies in the storage. Another process may bring the same one at the same time."""
        draft = folder.with_name(f"{folder.name}-{random_text(8)}")
        draft.parent.mkdir(parents=True, exist_ok=True)
        self.storage.get_folder(place, draft)
        relocate(draft, self.bases, self.cache)
        try:
            draft.rename(folder)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            if not folder.is_dir():
                raise
