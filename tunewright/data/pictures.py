"""Images: where they lie, and how they become upright RGB pixels."""

from __future__ import annotations

import base64
import hashlib
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.data.texts import is_address
from tunewright.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".gif", ".tif", ".tiff", ".bmp", ".dib"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".tga", ".qoi", ".ico", ".psd", ".pcx", ".sgi"),
    *(".heic", ".heif"),
)
"""Of files that are images. HEIC cannot be read, but a phone's photos must not be left out silently."""
MOVING = (b"GIF8", b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*")
"""How files begin that may hold several images of equal rank."""
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
COLUMNS = ("image", "file_name")
"""Columns that hold an image: itself, or the path of its file."""
BASE64 = "base64"
ADVICE = "mend it, or remove the row"


@dataclass(frozen=True)
class Picture:
    """An image: the path of a file, or the bytes of one; or an address, which cannot be read."""

    place: Path | None = None
    content: bytes | None = None
    address: str = ""

    def read(self) -> bytes:
        """The bytes of its file. Raises DataError where there is none."""
        if self.content is not None:
            return self.content
        if self.address:
            raise DataError(f"{self.address} is an address, and only files are read: download it, and give its path")
        assert self.place is not None
        if self.place.is_dir():
            raise DataError(f"{self.place} is a folder: name the images in it")
        try:
            return self.place.read_bytes()
        except OSError as error:
            raise DataError(f"{self.place} cannot be read ({error.strerror or error})") from error

    def __str__(self) -> str:
        return self.address or str(self.place) if self.content is None else f"an image of {len(self.content):,} bytes"

    @cached_property
    def sha256(self) -> str:
        """Of its bytes, so that the same image is the same wherever it lies; of its path where there are none."""
        try:
            return hashlib.sha256(self.read()).hexdigest()
        except DataError:
            return hashlib.sha256(str(self).encode()).hexdigest()

    def frames(self) -> int:
        """How many images its file holds: 1 for what cannot be read, too."""
        from PIL import Image

        try:
            with BytesIO(self.content) if self.content is not None else open(str(self.place), "rb") as file:
                if not file.read(4).startswith(MOVING):
                    return 1
                file.seek(0)
                return int(getattr(Image.open(file), "n_frames", 1))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return 1

    def pixels(self) -> Image:
        """Upright RGB pixels; what is transparent becomes white, 16 bits become 8.

        Raises:
            DataError: it is no image, is cut short, is a decompression bomb, or has pixels of another kind.
        """
        return decode(self.read())


@cache
def _formats() -> list[str]:
    """Pillow's names of the formats that are read: those of `EXTENSIONS`. Others may run programs, as EPS does."""
    from PIL import Image

    known = Image.registered_extensions()
    return sorted({known[extension] for extension in EXTENSIONS if extension in known})


def decode(content: bytes) -> Image:
    """The pixels of an image file's bytes: see `Picture.pixels`."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(BytesIO(content), formats=_formats())
            image.load()
            return _in_rgb(ImageOps.exif_transpose(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            limit = Image.MAX_IMAGE_PIXELS
            raise DataError(
                f"the image has more than {limit:,} pixels (a decompression bomb?): make it smaller"
            ) from error
        except DataError:
            raise
        except UnidentifiedImageError as error:
            if content[8:12] in HEIC:
                raise DataError("HEIC cannot be read: save the image as JPEG or PNG") from error
            raise DataError(f"this is no image that can be read: {ADVICE}") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow raises for broken files
            raise DataError(f"the image is broken ({error}): {ADVICE}") from error


def _in_rgb(image: Image) -> Image:
    from PIL import Image

    if image.mode == "F":
        raise DataError("the image has floating-point pixels, of no known range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _in_8_bits(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _in_8_bits(image: Image) -> Image:
    """Pillow itself would clip 16 bits to 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError("the image has more than 16 bits a pixel: save it with 8 or 16")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def thumbnail(picture: Picture, side: int = 144) -> str:
    """An image of at most so many pixels a side as a data: URL; a smaller one as it is, without loss."""
    image, file = picture.pixels(), BytesIO()
    small = max(image.size) <= side
    image.thumbnail((side, side))
    image.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    return data_url(file.getvalue(), "png" if small else "jpeg")


def data_url(content: bytes, form: str) -> str:
    """An image's file within a page; `form` is its format by its MIME name: png, jpeg, svg+xml."""
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def located(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A row with a `Picture` in place of each image: a path (relative to `folder`), bytes, or what libraries make."""
    found = {column: as_picture(values[column], folder) for column in COLUMNS if column in values}
    return {**values, **found} if found else values


def as_picture(value: Any, folder: Path = Path()) -> Any:
    """The picture that a value means; the value itself where it means none."""
    content = _content(value)
    if content is not None:
        return Picture(content=content)
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        value = value["path"]
    if is_address(value):
        return Picture(address=value)
    if isinstance(value, str | Path) and str(value).strip():
        return Picture(place=folder / Path(value).expanduser())
    return value


def _content(value: Any) -> bytes | None:
    """The bytes of an image that is given as such."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):  # a column of images in Parquet
        return bytes(value["bytes"])
    if isinstance(value, dict) and isinstance(value.get(BASE64), str):
        return base64.b64decode(value[BASE64])
    if hasattr(value, "save") and hasattr(value, "mode"):  # an image of Pillow's
        file = BytesIO()
        value.save(file, "TIFF" if value.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F") else "PNG")
        return file.getvalue()
    return None


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    """A row that Python gave, as a recipe can be written down: bytes and Pillow's images as {"base64": …}."""
    given = {name: _content(value) for name, value in row.items() if not _is_written(value)}
    images = {name: {BASE64: base64.b64encode(content).decode()} for name, content in given.items() if content}
    return {**row, **images} if images else row


def _is_written(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and BASE64 in value)
