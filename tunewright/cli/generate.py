"""`generate`: images from texts, as PNG files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli._app import AsJson, Device, Stopped, Where, app
from tunewright.cli._console import say, show
from tunewright.errors import RecipeError, counted

if TYPE_CHECKING:
    from PIL.Image import Image

Document = dict[str, Any]


@app.command()
def generate(
    where: Where,
    prompt: Annotated[list[str], typer.Option(help="What the image shows; several prompts make several rows.")],
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            help="A point between the run's start (0) and its end (1); several stand side by side. Default: the end."
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What the images are led away from.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise that each image begins with.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="How often the U-Net is asked.")] = 30,
    guidance: Annotated[float, typer.Option(min=0.0, help="How strongly the prompt counts; 1: no guidance.")] = 7.5,
    size: Annotated[
        str | None, typer.Option(metavar="WIDTHxHEIGHT", help="In pixels; by default what was trained with.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR|FILE.png", help="New folder, or a file for one image; else images, images-2, …."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> Document:
    """Make images from texts, as PNG, at one point or at several between a run's start and its end."""
    from tunewright.drawing import Drawing, draw, points, texts
    from tunewright.recipe import checked

    prompts, alphas = texts(prompt), points(where, alpha or None)
    how: Document = {
        "seed": seed, "steps": steps, "guidance": guidance, "size": _size(size), "negative": negative,
        "precision": precision,
    }  # fmt: skip
    drawing = checked(Drawing, how)
    names = {
        (a, i): f"{i + 1:0{len(str(len(prompts)))}}-alpha-{a:.15g}.png" for a in alphas for i in range(len(prompts))
    }
    folder = _place(output, len(names))
    drawn: dict[tuple[float, int], Image] = {}
    written: list[str] = []

    def keep(image: Image, path: Path, told: Mapping[str, Any] | None = None) -> None:
        _write(image, path, told)
        written.append(str(path))
        if not as_json:
            show(f"Written to {path}")

    with _interruptible(written, len(names)):
        images = draw(where, prompts, alphas, device, drawing)
        say(f"Drawing {counted(len(names), 'image')} in {counted(steps, 'step')}{' each' * (len(names) > 1)}.")
        for a, i, image in images:
            drawn[a, i] = image
            path = folder if folder.suffix == ".png" else folder / names[a, i]
            keep(image, path, {"prompt": prompts[i], "alpha": a, **how, "model": where})
    if len(names) > 1:
        from tunewright.evaluation.sheet import sheet

        rows = [[drawn[a, i] for a in alphas] for i in range(len(prompts))]
        keep(sheet(prompts, [f"α = {a:.15g}" for a in alphas], rows), folder / "sheet.png")
    return {"images": written}


def _size(text: str | None) -> tuple[int, int] | None:
    found = re.fullmatch(r"(\d+)[x×](\d+)", text) if text else None
    if text and not found:
        raise RecipeError(f"--size {text} is no WIDTHxHEIGHT, such as 512x512.")
    return (int(found[1]), int(found[2])) if found else None


def _place(output: Path | None, count: int) -> Path:
    """The new folder, or the new file of one image. Raises before anything is loaded where it cannot be written."""
    from tunewright.artifacts.save import refuse_file, refuse_place
    from tunewright.folder import free_folder

    if output is None or output.suffix.lower() != ".png":
        folder = output or free_folder(Path("images"))
        refuse_place(folder)
        return folder
    if count > 1:
        raise RecipeError(f"--output {output} is a file for one image, and these are {count}. Name a folder.")
    if output.exists():
        raise RecipeError(f"--output {output} exists already. Name another file.")
    refuse_file(output)
    return output


def _write(image: Image, path: Path, told: Mapping[str, Any] | None) -> None:
    """An image as PNG, which says in itself how it was made."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if told:
        info.add_text("tunewright", json.dumps(told, ensure_ascii=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, pnginfo=info)


@contextmanager
def _interruptible(written: list[str], count: int) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(
            f"Interrupted: {len(written)} of {counted(count, 'image')} are written.", images=written
        ) from error
