"""The application in this process: over SQLite, a folder, and an engine that answers without a model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from tunewright.service.app import make_app
from tunewright.service.bringing import Bringing
from tunewright.service.entities import JobSpec, Status
from tunewright.service.inference.protocol import (
    Classify,
    Draw,
    Embed,
    Embedded,
    Generate,
    Loaded,
    Piece,
    Usage,
    write,
)
from tunewright.service.serve import config_of, listening
from tunewright.service.settings import Limits, Settings
from tunewright.service.storage import Storage
from tunewright.service.store import Result, Store

ROWS = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n' * 10


class Echo:
    """An engine that says `fox` to whatever it is asked, once that has been written as for the process that answers."""

    async def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        write(asked)
        for index in range(asked.sampling.n):
            yield Piece(index, "fox", finish="stop")
        yield Usage(1, asked.sampling.n)

    async def count(self, asked: Generate) -> int:
        write(asked)
        return sum(len(message["content"]) for message in asked.messages or [])

    async def embed(self, asked: Embed) -> Embedded:
        write(asked)
        return Embedded(((0.5, 0.25),) * len(asked.inputs), len(asked.inputs))

    async def classify(self, asked: Classify) -> list[dict[str, Any]]:
        write(asked)
        return [{"label": "fox"} for _ in asked.inputs]

    async def images(self, asked: Draw) -> list[bytes]:
        write(asked)
        return [b"png"] * asked.n

    async def loaded(self) -> list[Loaded]:
        return []

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...


@dataclass
class Hosted:
    """A service, and the things that a tenant has in it."""

    root: Path
    app: FastAPI
    bringing: Bringing
    secrets: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Store:
        return self.bringing.store

    def key(self, tenant: str = "acme") -> str:
        if tenant not in self.secrets:
            self.secrets[tenant] = self.store.keys.create(tenant, "a key")[1]
        return self.secrets[tenant]

    def headers(self, tenant: str = "acme") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key(tenant)}"}

    @contextmanager
    def served(self, connections: int = 1000) -> Iterator[str]:
        """Inside, it listens; gives its address."""
        listener = listening("127.0.0.1", 0)
        server = uvicorn.Server(config_of(self.app, connections))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()

    def ask(self, method: str, path: str, tenant: str | None = "acme", **options: Any) -> httpx.Response:
        """Send a request straight to the application; an error that it does not expect is its 500."""
        headers = {**(self.headers(tenant) if tenant else {}), **options.pop("headers", {})}

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(send())

    def stored(self, kind: str = "") -> list[Path]:
        """All files in the storage, or those of a kind."""
        return [path for path in (self.root / "storage" / kind).rglob("*") if path.is_file()]

    def belongings(self, tenant: str) -> dict[str, str]:
        """One thing of each kind, by its kind: what has an id that another tenant could try."""
        store, storage = self.store, self.bringing.storage
        place = store.places.reserve("files")
        size, digest = storage.put(place, [ROWS])
        file = store.files.add(tenant, "rows.jsonl", "fine-tune", size, digest, place)
        spare = store.files.add(tenant, "x", "fine-tune", 1, digest, store.places.reserve("files"))
        upload = store.uploads.create(tenant, "rows.jsonl", "fine-tune", 4, "text/plain")
        part_place = store.places.reserve("parts")
        storage.put(part_place, [b"rows"])
        part = store.uploads.add_part(tenant, upload.id, 4, part_place)
        begun = store.uploads.create(tenant, "rows.jsonl", "fine-tune", 4, "text/plain")
        waiting = store.jobs.create(tenant, JobSpec(model="tiny", training_file=spare.id))
        paused = store.jobs.create(tenant, JobSpec(model="tiny", training_file=spare.id))
        job = store.jobs.create(tenant, JobSpec(model="tiny", training_file=file.id))
        for one in (waiting, paused, job):
            store.jobs.move(one.id, Status.QUEUED)
        store.jobs.pause(tenant, paused.id)
        done, model, checkpoint = self._finish(tenant, waiting.id)
        permission = store.models.permit(tenant, checkpoint, ["a-third"])[0]
        key = store.keys.create(tenant, "another key")[0]
        return {
            "file": file.id, "upload": upload.id, "begun": begun.id, "part": part.id, "job": job.id,
            "paused": paused.id, "done": done, "model": model, "checkpoint": checkpoint,
            "permission": permission.id, "key": key.id,
        }  # fmt: skip

    def _finish(self, tenant: str, id: str) -> tuple[str, str, str]:
        """Let a queued job succeed: its id, its model's and a checkpoint's."""
        store, storage = self.store, self.bringing.storage
        while (job := store.jobs.claim("worker", 600)) and job.id != id:
            pass
        assert job is not None
        folder = self.root / "run"
        folder.mkdir(exist_ok=True)
        (folder / "report.html").write_text("<html></html>")
        (folder / "places.json").write_text(json.dumps({"bases": {}, "cache": str(self.bringing.cache)}))
        places = [store.places.reserve("models") for _ in range(2)]
        for place in places:
            storage.put_folder(folder, place)
        made = store.jobs.add_checkpoint(job.id, job.fence, step=1, base="tiny", task="text-generation",
                                         place=places[0], metrics={})  # fmt: skip
        table = store.places.reserve("files")
        storage.put(table, [b"step\n"])
        result = Result(table, 5, "")
        done = store.jobs.finish(job.id, job.fence, base="tiny", task="text-generation", run=places[1], result=result)
        return job.id, str(done.fine_tuned_model), made.model


def hosted(root: Path, storage_url: str | None = None, **limits: Any) -> Hosted:
    """A new service below a folder, its storage too unless it has an address."""
    (root / "models" / "tiny").mkdir(parents=True)
    (root / "models" / "tiny" / "config.json").write_text("{}")
    limits = {"requests_per_minute": 10**6, **limits}
    settings = Settings(home=root, storage=storage_url, models=(root / "models",), limits=Limits(**limits))
    store, storage = Store(settings.database_url), Storage(settings.storage_url)
    bringing = Bringing(store, storage, {"tiny": root / "models" / "tiny"}, settings.cache)
    return Hosted(root, make_app(bringing, Echo(), settings), bringing)
