"""What `tunewright serve` and `tunewright worker` are told: where everything lies, and how much there may be of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from tunewright.errors import RecipeError, nearest

MEBI, GIBI = 1 << 20, 1 << 30


class Limits(BaseModel):
    """How much a client may ask for. What is above it is refused with what to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_minute: int = Field(3000, ge=1, description="Of one key; above it 429 with Retry-After.")
    body_bytes: ByteSize = Field(ByteSize(4 * MEBI), ge=1, description="Of a request in JSON.")
    image_body_bytes: ByteSize = Field(ByteSize(32 * MEBI), ge=1, description="Of one for a chat or predictions.")
    file_bytes: ByteSize = Field(ByteSize(512 * MEBI), ge=1, description="Of one file.")
    part_bytes: ByteSize = Field(ByteSize(64 * MEBI), ge=1, description="Of one part of an upload.")
    upload_bytes: ByteSize = Field(ByteSize(8 * GIBI), ge=1, description="Of a file that comes in parts.")
    stored_bytes: ByteSize = Field(ByteSize(100 * GIBI), ge=1, description="Of all files of a tenant.")
    open_jobs: int = Field(1000, ge=1, description="Jobs of a tenant that have not ended.")


def read_limits(given: Sequence[str]) -> Limits:
    """Limits from `name=value`, the last of each name; bytes may have a unit. Raises RecipeError that says which."""
    chosen: dict[str, str] = {}
    for one in given:
        name, found, value = one.partition("=")
        if not found:
            raise RecipeError(f"--limit {one}: give name=value, such as open_jobs=100 or file_bytes=2GiB.")
        if name not in Limits.model_fields:
            raise RecipeError(f"--limit {one}: there is no limit {name}. {nearest(name, list(Limits.model_fields))}")
        chosen[name] = value.strip()
    try:
        return Limits.model_validate(chosen)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        kind = "bytes, such as 2GiB" if name.endswith("_bytes") else "a whole number"
        raise RecipeError(f"--limit {name}={chosen[name]}: give {kind}, 1 or more.") from error


class Settings(BaseModel):
    """Where everything lies. Processes of one service are given the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(Path("~/.tunewright"), description="Folder of what the service keeps on this machine.")
    database: str | None = Field(None, description="sqlite:///FILE or postgresql://…; none: a file in home.")
    storage: str | None = Field(None, description="Address of the storage (fsspec); none: a folder in home.")
    models: tuple[Path, ...] = Field((), description="Folders of bases, or folders in which bases lie.")
    lease: float = Field(30.0, gt=0, description="Seconds after which a silent worker's job is another's.")
    device: str = Field("auto", description="On which models answer: auto, cpu, cuda, cuda:1 or mps.")
    limits: Limits = Limits()
    wandb: bool = Field(False, description="Whether jobs whose clients ask for it send their curves to W&B.")

    @property
    def place(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.place / 'service.db'}"

    @property
    def storage_url(self) -> str:
        return self.storage or f"file://{self.place / 'storage'}"

    @property
    def scratch(self) -> Path:
        """What is being worked on. It may be lost."""
        return self.place / "scratch"

    @property
    def curves(self) -> Path | None:
        """Where W&B keeps what it sends; None where nothing is to be sent."""
        return self.place if self.wandb else None

    @property
    def cache(self) -> Path:
        """Models of the storage that were used here. It may be lost."""
        return self.place / "cache"
