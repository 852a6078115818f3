"""`tunewright serve`: the application, and the processes beside it that train and answer."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tunewright.errors import OutputError, RecipeError
from tunewright.service.bases import find_bases
from tunewright.service.bringing import Bringing
from tunewright.service.children import Child, at_signals
from tunewright.service.settings import Settings
from tunewright.service.storage import Storage
from tunewright.service.store import Store

SETTINGS = "TUNEWRIGHT_SETTINGS"
"""The environment variable by which processes of the service are told their settings."""
TENANT = "default"


def open_parts(settings: Settings) -> Bringing:
    """The database, the storage and the bases. Raises TunewrightError where one of them cannot be had."""
    try:
        settings.place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutputError(f"--home {settings.place} cannot be made: {error}. Name another folder.") from error
    bases = find_bases(settings.models)
    store = Store(settings.database_url)
    return Bringing(store, Storage(settings.storage_url), bases, settings.cache)


def refuse_absent(device: str) -> None:
    """Raises RecipeError for a device that is not there. That torch is imported for it is spared where it can be."""
    if device in ("auto", "cpu"):
        return
    from tunewright.engine.device import pick_device

    try:
        pick_device(device)
    except RecipeError as error:
        raise RecipeError(str(error).replace("training.device:", "--device:").replace("device: cpu", "cpu")) from error


def first_key(store: Store) -> str | None:
    """The secret of a key for the default tenant, where there is no key yet."""
    if store.keys.list():
        return None
    return store.keys.create(TENANT, "first key")[1]


def inherited_settings() -> Settings:
    """What the process that started this one was told."""
    return Settings.model_validate_json(os.environ[SETTINGS])


def listening(host: str, port: int) -> socket.socket:
    """A socket that clients reach. Raises OSError where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with its protocol named: asyncio else leaves Nagle's algorithm on, and every answer waits 40 ms for the client
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # who reads the address may come at once, and waits until there is somebody to answer
    except OSError:
        listener.close()
        raise
    return listener


def address_of(host: str, port: int) -> str:
    """Where clients on this machine reach it."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{here}]' if ':' in here else here}:{port}"


@contextlib.contextmanager
def beside(
    settings: Settings, workers: int, engine: str | None, memory: float, bases: Mapping[str, Path]
) -> Iterator[Any]:
    """Inside, workers and the process that answers run.

    Gives the engine, what waits until it is there, and the names of the bases for which it answers.

    Args:
        engine: None, or `vllm=URL`: models answer there.
        memory: bytes that loaded models may take.
    """
    environment = {SETTINGS: settings.model_dump_json()}
    with tempfile.TemporaryDirectory(prefix="tunewright-") as place:
        children = [Child("tunewright.service.worker", (), environment) for _ in range(workers)]
        answer = tuple(bases)
        if engine is None:
            from tunewright.service.inference.client import Client

            path = str(Path(place) / "engine")
            options = ["--socket", path, "--memory", str(memory), "--device", settings.device]
            children.append(Child("tunewright.service.inference", options))
            answering: Any = Client(socket=path)
        else:
            from tunewright.service.inference.vllm import VLLM
            from tunewright.service.inference.vllm_base import ours, served_at

            url = engine.removeprefix("vllm=")
            served = served_at(url)
            answer = ours(served, bases)
            answering = VLLM(url, served, answer)
        for child in children:
            child.start()
        try:
            yield answering, partial(_wait_for, path) if engine is None else lambda: None, answer
        finally:
            for child in children:
                child.leave()


def _wait_for(path: str) -> None:
    """Until a process listens at this socket, or five minutes are over."""
    end = time.monotonic() + 300
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                probe.connect(path)
                return
            time.sleep(0.1)


def config_of(app: Any, connections: int) -> Any:
    """How uvicorn serves the application to so many connections at a time."""
    import uvicorn

    from tunewright.service.connections import Patient

    return uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=10, server_header=False, date_header=True,
        ws="none", http=type("Protocol", (Patient,), {"most": connections}),
        # as many are accepted at once: each takes an open file before it is counted
        backlog=min(2048, max(16, connections // 4)),
    )  # fmt: skip


def run(app: Any, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, and let requests that are under way end."""
    import uvicorn

    from tunewright.service.connections import allow_many

    server = uvicorn.Server(config_of(app, allow_many()))
    # uvicorn raises what ended it once more when it is done: then there is still something to do here
    at_signals(lambda: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
