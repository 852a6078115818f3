"""The Python face: everything that the command line does, in one call each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from tunewright.artifacts.export import export as write_export
from tunewright.artifacts.interpolate import load
from tunewright.artifacts.load import use_module
from tunewright.artifacts.questions import HeldOut
from tunewright.artifacts.start import parse_point
from tunewright.chain import Chain
from tunewright.composing import composed
from tunewright.data.config import DataConfig, Location
from tunewright.data.given import as_location
from tunewright.data.kinds import Conversation
from tunewright.data.messages import check_prompt
from tunewright.data.records import load_records
from tunewright.data.texts import HALF, is_whole
from tunewright.drawing import Drawing, draw, points, texts
from tunewright.engine.device import pick_device
from tunewright.engine.job import Watcher
from tunewright.errors import DAMAGED, BaseModelError, DataError, TunewrightError, counted
from tunewright.evaluation.config import EvaluationConfig
from tunewright.evaluation.evaluate import described, refuse_idle_evaluation, refuse_idle_on_prompts
from tunewright.evaluation.paired import is_finite
from tunewright.folder import Run, new_folder, open_run, refuse_lost
from tunewright.launch import launch
from tunewright.launch.stages import execute, is_chain, read_chain
from tunewright.policies import Asking, kinds_of, run_of
from tunewright.reading import read_rows
from tunewright.recipe import Recipe, checked
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from PIL.Image import Image


class Sampling(BaseModel):
    """How an answer is drawn. `temperature` 0 takes the likeliest token."""

    max_new_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0, allow_inf_nan=False)
    seed: int = Field(ge=0)


def train(
    recipe: Recipe | dict[str, Any] | str | Path | None = None, *, watchers: Sequence[Watcher] = (), **fields: Any
) -> Run:
    """Fine-tune a model: `tw.train(base=…, data=…, method=tw.LoRA(rank=16))`.

    Args:
        recipe: a whole recipe or the file of one; its keys may be given as arguments too (base, task, data, method,
            objective, training, output). Or recipes by name, `stages`, of which a later one may begin from an earlier.
        watchers: called first with {"started": what run.json says}, then with each line of metrics. Where images of
            the class are drawn before, with {"drawn": 3, "of": 200} for each; where a chain has changed in its folder,
            first with {"notice": what is kept and what is put aside}.

    Returns:
        The finished run: `run.model`, `run.report`, `run.info`. With `training.seeds` the folder of all: `run.runs` are
        the seeds' own, each with its model, `run.info["over_seeds"]` and `run.report` are over all of them. With
        `stages`, or `data.labeling.then_clean`, the run of the last stage, beside which the others lie.

    Raises:
        TunewrightError: bad input; says what to do.
        Interrupted: Ctrl-C; a checkpoint is written.
    """
    chosen = composed(recipe, fields)
    if isinstance(chosen, Chain):
        return execute(chosen, Path(chosen.output or new_folder(chosen.last)).expanduser().absolute(), watchers)
    return launch(chosen, Path(chosen.output).expanduser() if chosen.output else new_folder(chosen), watchers)


def resume(where: str | PathLike[str], *, watchers: Sequence[Watcher] = (), base: Any = None) -> Run:
    """Go on with a run from its last checkpoint; it ends as it would have without the interruption.

    Args:
        base: the torch module that the run began with, or its factory, where it was given as an object; its weights
            are those of the run.

    A run without a checkpoint begins again; a finished one is given back as it is, and its model, where that is gone,
    is written again from the last checkpoint.

    Raises CheckpointError where a finished run has neither model nor checkpoints.
    """
    if is_chain(Path(where).expanduser()):
        folder = Path(where).expanduser().absolute()
        return execute(read_chain(folder), folder, watchers)
    run = open_run(where)
    if base is not None:
        use_module(where, base)
    if run.done:
        return run
    refuse_lost(run)
    return launch(run.recipe, run.folder, watchers, resume=True)


def predict(where: str | PathLike[str] | Model, inputs: Any, device: str = "auto") -> list[dict[str, Any]]:
    """Classify texts, pairs of texts or images with a run, an adapter, a model, or `RUN@0.5`: the point at α = 0.5.

    Args:
        inputs: one or several. An image is the path of its file, its bytes, or an image of Pillow's. A reward model
            also reads a list of pairs: a prompt (a text, or messages) and an answer to it.

    Returns, for each one: {"text" or "image", "label", "probabilities"}, with "labels" for several labels and "value"
    for a regression in place of "label"; with "truncated": True where a text did not fit.

    Raises BaseModelError where the model is no classifier or answers NaN, DataError that names each input that cannot
    be read.
    """
    several = isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes)
    inputs = list(inputs) if several else [inputs]
    model = loaded(where, device)
    if not inputs:
        return []
    other = "generate, to have images drawn" if hasattr(model.task, "images") else "chat, to ask a language model"
    classify = capability(model, "classify", f"predict classifies. Use tunewright {other}.")
    predictions, cut = classify(model, inputs)
    if not is_finite(predictions):
        raise BaseModelError(DAMAGED)
    labels, shown = getattr(model.task, "labels", []), map(getattr(model.task, "shown"), inputs)  # noqa: B009  a capability
    return [
        {**one, **_answered(predictions.kind, labels, output_C), **({"truncated": True} if i in cut else {})}
        for i, (one, output_C) in enumerate(zip(shown, predictions.output_NC, strict=True))
    ]


def chat(
    where: str | PathLike[str] | Model,
    prompt: str | list[dict[str, Any]],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    tools: list[dict[str, Any]] | None = None,
    seed: int = 0,
    streamer: Any = None,
    device: str = "auto",
) -> str:
    """The answer to a conversation (a list of messages), or the continuation of a text.

    A text is one user message to a model that was trained on conversations, and is continued as it stands by a model
    that was trained on prompts and completions: the prompt is what the model saw in training.

    Args:
        tools: JSON schemas of functions, given to the chat template.

    Raises:
        RecipeError: an option is out of its range.
        BaseModelError: the model does not generate, or answers NaN.
        DataError: the prompt is none that it could be given.
    """
    sampling = checked(Sampling, {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed})
    model = loaded(where, device)
    generate = capability(model, "generate", "chat is for language models. To classify use: tunewright predict")
    asked = question(prompt, tools, model.chats)
    with _finite(model):
        return generate(model, [asked], **sampling.model_dump(), streamer=streamer)[0].text


def generate(
    where: str | PathLike[str] | Model,
    prompts: str | Sequence[str],
    *,
    alphas: float | Sequence[float] | None = None,
    seed: int = 0,
    steps: int = 30,
    guidance: float = 7.5,
    size: tuple[int, int] | None = None,
    negative: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
) -> dict[float, list[Image]]:
    """Images from texts: for each α those of the prompts, in their order, as Pillow's.

    Args:
        where: a run, an adapter, a pipeline's folder or hub name, or a loaded model, whose images stand under α = 1.
        alphas: points on the path from the run's start (0) to its end (1); by default the one that `RUN@0.5` names,
            or the end.
        seed: of the noise that each image begins with.
        steps: how often the U-Net is asked.
        guidance: how strongly the prompt counts (classifier-free guidance); 1: no guidance.
        size: width and height in pixels; by default a square of the resolution that was trained with.
        negative: what the image is led away from.
        precision: fp32, bf16 or fp16: what the U-Net and the text encoders compute in.

    Raises:
        RecipeError: an option is out of its range or has no effect, or a size that the model cannot draw.
        BaseModelError: the model makes no images, or it is no run and so has no path; or an image is not finite.
    """
    asked, wanted = texts(prompts), points(where, alphas)
    options = {"seed": seed, "steps": steps, "guidance": guidance, "size": size, "negative": negative}
    found: dict[float, list[Image]] = {alpha: [] for alpha in wanted}
    for alpha, _, image in draw(where, asked, wanted, device, checked(Drawing, {**options, "precision": precision})):
        found[alpha].append(image)
    return found


@contextmanager
def _finite(model: Model) -> Iterator[None]:
    """Inside, logits that are not finite raise BaseModelError: the likeliest token would be one without a meaning."""

    def refuse(_: Any, __: Any, logits_BTV: Any) -> None:
        if not logits_BTV.isfinite().all():
            raise BaseModelError(DAMAGED)

    handle = model.module.get_output_embeddings().register_forward_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


def evaluate(
    where: str | PathLike[str] | Model,
    data: Location,
    *,
    evaluation: dict[str, Any] | None = None,
    columns: dict[str, str] | None = None,
    format: str = "auto",
    overlength: str = "auto",
    max_length: int | None = None,
    on_bad_rows: str = "fail",
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a run or a model on labelled rows: {"scores", "samples", "rows", "notices"}.

    A run of objective rl on prompts: it answers them, and its own rewards score the answers. A run of objective
    preference on comparisons: also by what it became likelier than at its start.

    Args:
        where: a run, an adapter, a model, or `RUN@0.5`: the point at α = 0.5 between a run's start and end.
        data: prompts too, for a run with objective: rl, whose rewards then score its answers.
        max_length: the longest row in tokens; by default that of the run's recipe, else the model's context.
        on_bad_rows: `fail` where some cannot be used, or `skip` them; a notice then says how many they are.
    """
    data = as_location(data, "data")
    model = replace(loaded(where, device))  # a copy: what these rows decide is not to stay with the caller's model
    reading = {"format": format, "overlength": overlength, "max_length": max_length, "on_bad_rows": on_bad_rows}
    config = checked(DataConfig, {"train": data, "columns": columns or {}, **reading})
    asked = checked(EvaluationConfig, evaluation or {})
    records = load_records(data, config, kinds=kinds_of(run_of(where), model.task))
    if records.kind not in model.task.data_kinds:
        raise DataError(
            f"{records.location} holds {records.kind} rows; this model needs {' or '.join(model.task.data_kinds)} rows."
        )
    if hasattr(model.task, "prepare"):
        model.task.prepare(model, config, records.in_turns)
    refuse_idle_evaluation(asked, model)
    ask = Asking(where, records.records, device)
    model.reserve = ask.reserve
    if ask.prompts:
        refuse_idle_on_prompts(asked)
    encoded = model.task.encode(model, records.records, config)
    scores, samples = described(ask(model, encoded.examples), model, encoded.examples, records.records, asked)
    skipped = [*records.bad_rows, *encoded.faults]
    notices = [*records.doubts, *model.notices, *ask.notices, *encoded.overlength.notices()]
    if skipped:
        unused = counted(len(skipped), "row cannot be used and is skipped", "rows cannot be used and are skipped")
        notices.append(f"{unused}: {'; '.join(skipped[:3])}{' …' if len(skipped) > 3 else ''}")
    used = len(records.records) - len(encoded.faults)
    return {"scores": scores.to_dict(), "samples": samples, "rows": used, "notices": notices}


def export(
    where: str | PathLike[str],
    target: str,
    folder: str | Path,
    *,
    precision: str | None = None,
    rows: Location | None = None,
    base: str | Path | None = None,
) -> Path:
    """Write a run in another form, and verify that it answers like the trained model: see `verification.json` in it.

    Args:
        where: a run, an adapter, a model, or `RUN@0.5`: the point at α = 0.5 between a run's start and end.
        target: `peft`, `merged`, `quantized`, `onnx` or `gguf`; of a pipeline `diffusers`, `kohya` or `merged`.
        precision: fp32, bf16, fp16 (merged), int8, int4 (quantized), f16, q8_0 (gguf); by default the first of these.
        rows: what both models are asked; by default the run's test rows, else its validation rows.
        base: where `where` is a LoRA file for a pipeline that others made (diffusers', PEFT's or kohya's): its base.

    Raises:
        VerificationError: it does not answer alike; it is left as FOLDER.unverified.
        TunewrightError: the model cannot be exported so; says what to do.
    """
    return write_export(
        where, target, Path(folder), precision, _held_out(where, rows), None if base is None else str(base)
    )


def _held_out(where: str | PathLike[str], rows: Location | None) -> HeldOut | None:
    """The rows given, or the run's own; none where they are not there any more, or where there is no run."""
    try:
        recipe = open_run(parse_point(str(where))[0]).recipe
    except (TunewrightError, OSError):
        recipe = None
    if rows is not None:
        config = recipe.data if recipe else DataConfig(train="-")
        found = load_records(as_location(rows, "rows"), config, require_label=False)
        return HeldOut(found.records, found.location)
    if recipe is None:
        return None
    try:
        read = read_rows(recipe)
    except TunewrightError:
        return None
    name, records = next(iter([*read.tests.items(), ("validation", read.validation)]))
    return HeldOut(records.records, f"the run's {name} rows") if records else None


def capability(model: Model, name: str, otherwise: str) -> Any:
    """A named capability of the model's task. Raises BaseModelError, saying what to do otherwise."""
    found = getattr(model.task, name, None)
    if found is None:
        raise BaseModelError(f"{model.base} is for {model.task.name}: {otherwise}")
    return found


def loaded(where: str | PathLike[str] | Model, device: str) -> Model:
    """A model as it is, or one by its name; `RUN@0.5` is the point at α = 0.5 between the ends of a run."""
    if isinstance(where, Model):
        return where
    name, alpha = parse_point(str(where))
    return load(name, str(pick_device(device)), alpha=alpha)


def question(prompt: Any, tools: Any, chats: bool) -> str | Conversation:
    """The prompt as the model saw prompts in training. Raises DataError where that cannot be."""
    if not isinstance(prompt, str | list):
        raise DataError(f"the prompt is {prompt!r:.80}: give a text, or a list of messages.")
    if not is_whole([prompt if isinstance(prompt, str) else None, tools]):  # of messages it is said in which it is
        raise DataError(f"the prompt {HALF}: mend it.")
    if isinstance(prompt, str) and not chats:
        return prompt
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return Conversation(check_prompt(messages), tools, "prompt")


def _answered(kind: str, labels: Sequence[str], output_C: Any) -> dict[str, Any]:
    if kind == "regression":
        return {"value": float(output_C[0])}
    probabilities = {label: float(p) for label, p in zip(labels, output_C, strict=True)}
    if kind == "multi_label":
        return {"labels": [label for label, p in probabilities.items() if p > 0.5], "probabilities": probabilities}
    return {"label": max(probabilities, key=probabilities.__getitem__), "probabilities": probabilities}
