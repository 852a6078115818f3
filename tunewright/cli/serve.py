"""`serve`, `worker`, `keys`: the fine-tuning API that people already use, on this machine."""

from __future__ import annotations

import errno
import math
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli._app import AsJson, app
from tunewright.cli._console import out, say, show, table
from tunewright.errors import MissingExtra, RecipeError

if TYPE_CHECKING:
    from tunewright.service.settings import Settings
    from tunewright.service.store import Store

Document = dict[str, Any]

Home = Annotated[Path, typer.Option(metavar="DIR", help="Where the service keeps its things.")]
Database = Annotated[
    str | None, typer.Option(metavar="URL", help="postgresql://…, or sqlite:///FILE; default: a file in home.")
]
StorageUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="s3://…, file:///DIR, …; default: a folder in home.")
]
Models = Annotated[
    list[Path] | None, typer.Option(metavar="FOLDER", help="Bases: a model's folder, or one in which models lie.")
]


def _finite(given: float) -> float:
    """What typer's `min` lets through: inf and nan, which no number of bytes or seconds is."""
    if not math.isfinite(given * 1e9):
        raise typer.BadParameter(f"{given} is no amount: give a number, such as 30.")
    return given


Lease = Annotated[
    float, typer.Option(min=1, callback=_finite, help="Seconds after which a silent worker's job is another's.")
]


def _installed(wandb: bool) -> bool:
    if wandb and find_spec("wandb") is None:
        raise MissingExtra("--wandb", "track")
    return wandb


Wandb = Annotated[
    bool,
    typer.Option("--wandb", callback=_installed, help="Let jobs whose clients ask for it send their curves to W&B."),
]
HOME = Path("~/.tunewright")


@contextmanager
def _extra() -> Iterator[None]:
    """Inside, a library that the service needs and that is not installed is told with its pip command."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("tunewright"):
            raise
        raise MissingExtra("The service", "postgres" if error.name == "psycopg" else "service") from error


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0: everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    models: Models = None,
    home: Home = HOME,
    database: Database = None,
    storage: StorageUrl = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that train here; 0: only elsewhere.")] = 1,
    engine: Annotated[
        str | None, typer.Option(metavar="vllm=URL", help="Let a vLLM server answer in place of this machine.")
    ] = None,
    memory: Annotated[
        float, typer.Option(min=0.1, callback=_finite, help="GB that models which answer may take.")
    ] = 8.0,
    device: Annotated[str, typer.Option(help="That answers: auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    lease: Lease = 30.0,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What a client may ask for: see docs/deploy.md.")
    ] = None,
    wandb: Wandb = False,
) -> Document:
    """Serve OpenAI's, Azure's and Google's fine-tuning API, and the page, on this machine."""
    if engine is not None and not engine.startswith("vllm=http"):
        raise RecipeError(f"--engine {engine}: give vllm=URL, such as vllm=http://127.0.0.1:8001.")
    with _extra():
        from tunewright.service.app import make_app
        from tunewright.service.logs import set_up
        from tunewright.service.serve import address_of, beside, open_parts, refuse_absent, run
        from tunewright.service.settings import read_limits
    refuse_absent(device)
    limits = read_limits(limit or ())
    settings = _settings(home, database, storage, models, lease, device, wandb).model_copy(update={"limits": limits})
    set_up()
    parts = open_parts(settings)
    parts.storage.refuse_unusable()
    listener = _listener(host, port)
    if host not in ("127.0.0.1", "localhost", "::1"):
        say(f"Anybody who reaches {host} can knock: put TLS in front of it (docs/deploy.md).", style="yellow")
    address = address_of(host, listener.getsockname()[1])
    with beside(settings, workers, engine, memory * 1e9, parts.bases) as (answering, ready, bases):

        def greet() -> None:
            ready()
            _greet(address, parts, bases)

        threading.Thread(target=greet, daemon=True).start()
        run(make_app(parts, answering, settings), listener)
    return {}


def _listener(host: str, port: int) -> socket.socket:
    from tunewright.service.serve import listening

    try:
        return listening(host, port)
    except (OSError, UnicodeError) as error:  # a name of a host with an empty part is the latter
        elsewhere = getattr(error, "errno", None) in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if elsewhere or isinstance(error, (socket.gaierror, UnicodeError)):
            said = f"--host {host} is no address of this machine: {error}. Give 127.0.0.1, or 0.0.0.0 for all."
            raise RecipeError(said) from error
        raise RecipeError(f"Port {port} of {host} cannot be had: {error}. Give another --port.") from error


def _greet(address: str, parts: Any, answering: Sequence[str]) -> None:
    """What a new user needs: where, with which key, and three lines that work."""
    from tunewright.service.bases import one_that_chats
    from tunewright.service.serve import first_key

    key, base = first_key(parts.store), one_that_chats({name: parts.bases[name] for name in answering})
    show(f"Tunewright serves at {address}  (page: {address}/  API: {address}/v1  docs: {address}/docs)")
    show(f"Bases: {', '.join(parts.bases)}")
    if others := [name for name in parts.bases if name not in answering]:
        show(f"The vLLM server answers for {', '.join(answering)} alone; {', '.join(others)} can only be tuned.")
    if key:
        show(f"Your API key, shown this once: {key}")
    show("")
    show("from openai import OpenAI")
    show(f'client = OpenAI(base_url="{address}/v1", api_key="{key or "tw-…"}")')
    show(f'print(client.chat.completions.create(model="{base}", messages=[{{"role": "user", "content": "Hello"}}]))')


@app.command()
def worker(
    models: Models = None,
    home: Home = HOME,
    database: Database = None,
    storage: StorageUrl = None,
    lease: Lease = 30.0,
    wandb: Wandb = False,
) -> Document:
    """Train the jobs of a service, from this machine: several workers share its database and its storage."""
    with _extra():
        from tunewright.service.children import when_told_to_leave
        from tunewright.service.logs import set_up
        from tunewright.service.serve import open_parts
        from tunewright.service.worker import Worker
    set_up()
    settings = _settings(home, database, storage, models, lease, wandb=wandb)
    _refuse_absent_database(settings)
    parts = open_parts(settings)
    parts.storage.refuse_unusable()
    working = Worker(parts, settings.scratch, settings.lease, wandb=settings.curves)
    when_told_to_leave(working.leaving.set)
    working.work()
    return {}


keys = typer.Typer(no_args_is_help=True, help="API keys of the service: create, list, revoke.")
app.add_typer(keys, name="keys")


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What it is for.")],
    tenant: Annotated[str, typer.Option(help="Whose things it opens.")] = "default",
    scope: Annotated[list[str] | None, typer.Option(help="files, jobs, models, inference, keys; default: all.")] = None,
    home: Home = HOME,
    database: Database = None,
    as_json: AsJson = False,
) -> Document:
    """Make a key, and print its secret this once."""
    with _extra():
        from tunewright.service.entities import SCOPES
    key, secret = _store(home, database, new=True).keys.create(tenant, name, scope or SCOPES)
    if not as_json:
        say(f"Key {key.id} of tenant {tenant}: {', '.join(sorted(key.scopes))}. Its secret is shown this once:")
        show(secret)
    return {"id": key.id, "tenant": tenant, "scopes": sorted(key.scopes), "secret": secret}


@keys.command("list")
def list_keys(home: Home = HOME, database: Database = None, as_json: AsJson = False) -> Document:
    """List the keys of all tenants, by how their secrets begin and end."""
    found = _store(home, database).keys.list()
    rows = [[k.id, k.tenant, k.name, k.hint, "revoked" if k.revoked_at else ", ".join(sorted(k.scopes))] for k in found]
    if not as_json:
        out().print(table(["id", "tenant", "name", "secret", "scopes"], rows, fixed=["id"]))
    return {"keys": [{**vars(key), "scopes": sorted(key.scopes)} for key in found]}


@keys.command("revoke")
def revoke(
    id: Annotated[str, typer.Argument(help="As `keys list` prints it.")],
    home: Home = HOME,
    database: Database = None,
    as_json: AsJson = False,
) -> Document:
    """Let a key open nothing any more, from its next request on."""
    key = _store(home, database).keys.revoke(None, id)
    if not as_json:
        say(f"Revoked: {key.name} ({key.hint}).")
    return {"id": key.id, "revoked_at": key.revoked_at}


def _store(home: Path, database: str | None, new: bool = False) -> Store:
    """The store; made where there is none, if it may be `new`."""
    with _extra():
        from tunewright.service.logs import set_up
        from tunewright.service.store import Store
    set_up()  # to stderr: the output may be read by a program
    settings = _settings(home, database)
    if new:
        settings.place.mkdir(parents=True, exist_ok=True, mode=0o700)
    else:
        _refuse_absent_database(settings)
    return Store(settings.database_url)


def _refuse_absent_database(settings: Settings) -> None:
    from tunewright.service.store.database import file_of

    if (file := file_of(settings.database_url)) and not file.is_file():
        said = "--database" if settings.database else "--home"
        raise RecipeError(f"There is no service: {file} is not there. Give the {said} that `serve` was started with.")


def _settings(
    home: Path,
    database: str | None,
    storage: str | None = None,
    models: list[Path] | None = None,
    lease: float = 30.0,
    device: str = "auto",
    wandb: bool = False,
) -> Settings:
    from tunewright.service.settings import Settings

    return Settings(
        home=home,
        database=database,
        storage=storage,
        models=tuple(models or ()),
        lease=lease,
        device=device,
        wandb=wandb,
    )
