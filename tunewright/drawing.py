"""`generate`: images from texts, at points on the path from a run's start to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from tunewright.artifacts.interpolate import check_alpha, load
from tunewright.artifacts.start import named_point
from tunewright.data.texts import is_whole
from tunewright.engine.device import computing, pick_device, pick_precision
from tunewright.errors import BaseModelError, DataError, RecipeError
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from PIL.Image import Image


class Drawing(BaseModel):
    """How an image is drawn from noise: see `api.generate`."""

    seed: int = Field(ge=0)
    steps: int = Field(ge=1)
    guidance: float = Field(ge=0, allow_inf_nan=False)
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None
    negative: str | None
    precision: Literal["fp32", "bf16", "fp16"]

    @model_validator(mode="after")
    def _leads_away(self) -> Drawing:
        if self.negative and self.guidance <= 1:
            raise ValueError("negative has no effect without guidance: leave it out, or let guidance be above 1")
        return self


def texts(prompts: Any) -> list[str]:
    """Prompts as a list. Raises DataError for what are no texts."""
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if not asked or not all(isinstance(prompt, str) and is_whole([prompt]) for prompt in asked):
        raise DataError(f"prompts: {asked!r:.80} are no texts. Give a text, or a list of them.")
    return asked


def points(where: str | PathLike[str] | Model, alphas: float | Sequence[float] | None) -> list[float]:
    """The α that are asked for, each once: those given, or the one in `RUN@0.5`, or 1.

    Raises RecipeError where both are given, or one is not on the path of a run.
    """
    named = None if isinstance(where, Model) else named_point(str(where))[1]
    if alphas is None:
        check_alpha(1.0 if named is None else named)
        return [1.0 if named is None else named]
    wanted = [alphas] if isinstance(alphas, int | float) else list(alphas)
    if isinstance(where, Model) or not wanted:
        raise RecipeError("alphas are points on the path of a run: name the run, and one point at least.")
    if named is not None:
        raise RecipeError(f"{where} is a point already, α = {named:g}. Leave out that, or the other α.")
    for alpha in wanted:
        check_alpha(alpha)
    return list(dict.fromkeys(map(float, wanted)))


def draw(
    where: str | PathLike[str] | Model,
    prompts: Sequence[str],
    alphas: Sequence[float],
    device: str,
    drawing: Drawing,
    between: Callable[[], None] | None = None,
) -> Iterator[tuple[float, int, Image]]:
    """Each image as soon as it is made: its α, the number of its prompt, and itself. The first model is loaded at once.

    Args:
        between: called after each step; what it raises ends the drawing.

    Raises BaseModelError where the model makes no images, or is no run and so has no path.
    """
    place = pick_device(device)
    first = _loaded(where, place, alphas[0])
    return _images(where, first, prompts, alphas, place, drawing, between)


def _loaded(where: str | PathLike[str] | Model, place: Any, alpha: float) -> Model:
    model = where if isinstance(where, Model) else load(named_point(str(where))[0], str(place), alpha=alpha)
    if not hasattr(model.task, "images"):
        asked = model.base if isinstance(where, Model) else where
        instead = "tunewright chat" if hasattr(model.task, "generate") else "tunewright predict"
        raise BaseModelError(f"{asked} is for {model.task.name}, and generate makes images. Use {instead}.")
    return model


def _images(
    where: str | PathLike[str] | Model,
    first: Model,
    prompts: Sequence[str],
    alphas: Sequence[float],
    place: Any,
    drawing: Drawing,
    between: Callable[[], None] | None,
) -> Iterator[tuple[float, int, Image]]:
    precision = pick_precision(drawing.precision, place)
    options = drawing.model_dump(exclude={"precision"})
    model = first
    for alpha in alphas:
        model = model if alpha == alphas[0] else _loaded(where, place, alpha)
        for number, prompt in enumerate(prompts):
            with computing(precision, place):
                (image,) = model.task.images(model, [prompt], **options, between=between)  # type: ignore[attr-defined]
            yield alpha, number, image
