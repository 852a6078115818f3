"""What is done with a run or a model: `predict`, `chat`, `evaluate`, `export`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tunewright.cli._app import AsJson, Device, Where, app, named_as_options
from tunewright.cli._console import out, say, show, table
from tunewright.cli._scores import alone
from tunewright.cli._texts import read_texts
from tunewright.errors import RecipeError, counted

Document = dict[str, Any]


@app.command()
def predict(
    where: Where,
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT|IMAGE", help="Texts, or files of images, to classify.")
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(help="Texts from a file: .txt (one a line), .jsonl, .json, .csv, .tsv, .parquet; - is stdin."),
    ] = None,
    column: Annotated[str, typer.Option(help="The column of the file that holds the text.")] = "text",
    pair: Annotated[
        str | None,
        typer.Option(help="The column of a second text: the answer, where COLUMN is a prompt; or a rule."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> Document:
    """Classify texts, pairs of texts or images with a tuned model; say how good answers are with a reward model."""
    asked = read_texts(texts or [], file, column, pair)
    from tunewright import api
    from tunewright.policies import run_of

    answers = api.predict(where, asked, device=device)
    if pair is None and (run := run_of(where)) and run.recipe.objective.type == "reward":
        say(
            f"Note: {where} was trained to say how good an answer to a prompt is, and these are read without one. "
            "Give --file FILE --column PROMPT --pair ANSWER."
        )
    if not as_json:
        _show_predictions(answers)
    return {"predictions": answers}


def _show_predictions(answers: Sequence[Mapping[str, Any]]) -> None:
    given = "image" if "image" in answers[0] else "text"
    rows = [(_in_a_line(answer[given]), *_answer(answer)) for answer in answers]
    titles = (given.capitalize(), *(("Value", "") if "value" in answers[0] else ("Label", "Probability")))
    shown = [title for title in titles if title]
    out().print(table(shown, [row[: len(shown)] for row in rows], clip=("Text", "Image", "Label")))
    cut = sum(bool(answer.get("truncated")) for answer in answers)
    if cut:
        texts = counted(len(answers), "text")
        longer = counted(cut, f"of {texts} is longer", f"of {texts} are longer")
        say(f"{longer} than the model can read, and cut off there.")


def _in_a_line(given: Any) -> str:
    """A text, or a pair of which the first may be messages: of these the last."""
    if not isinstance(given, tuple | list):
        return str(given)
    first, second = given
    asked = first[-1].get("content") if isinstance(first, list) else first
    return f"{asked} → {second}"


def _answer(answer: Mapping[str, Any]) -> tuple[str, str]:
    """What was predicted, and with which probability."""
    if "value" in answer:
        return f"{answer['value']:.4g}", ""
    names = answer.get("labels", [answer.get("label")])
    chances = [f"{100 * answer['probabilities'][name]:.1f} %" for name in names]
    return ", ".join(names) or "(none)", ", ".join(chances)


@app.command()
def evaluate(
    where: Where,
    data: Annotated[str, typer.Option(help="Labelled rows: file, folder or hub name.")],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=COLUMN", help="Where the file names its columns otherwise: text=review,label=stars."
        ),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Regular expression for the part of an answer that counts.")
    ] = None,
    format: Annotated[str, typer.Option(help="What a row looks like; auto: by its columns.")] = "auto",
    overlength: Annotated[
        str, typer.Option(help="For rows that are too long: fail, truncate, drop or split.")
    ] = "auto",
    max_length: Annotated[int | None, typer.Option(min=2, help="Longest row, in tokens; none: the run's own.")] = None,
    on_bad_rows: Annotated[str, typer.Option(help="fail where rows cannot be used, or skip them.")] = "fail",
    samples: Annotated[int, typer.Option(min=0, help="Rows to show with the model's answer.")] = 3,
    generate: Annotated[int, typer.Option(min=0, help="Rows that a language model answers.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated answer, in tokens.")] = 128,
    device: Device = "auto",
    as_json: AsJson = False,
) -> Document:
    """Measure a run or a model on labelled rows (a run of objective rl on prompts), with 95 % intervals."""
    from tunewright import api

    with named_as_options("format", "overlength", "max_length", "on_bad_rows"):
        found = api.evaluate(
            where,
            data,
            evaluation={"pattern": pattern, "samples": samples, "generate": generate, "max_new_tokens": max_new_tokens},
            columns=pairs(columns or [], "--columns"),
            format=format,
            overlength=overlength,
            max_length=max_length,
            on_bad_rows=on_bad_rows,
            device=device,
        )
    if not as_json:
        _show_evaluation(found)
    return found


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """`text=review,label=stars`, in one option or in several. A comma in a file's name is followed by no NAME=."""
    each = [pair for one in given for pair in re.split(r",(?=\s*[\w.-]+=)", one)]
    split = [pair.strip().partition("=") for pair in each]
    wrong = [name for name, found, value in split if not (name and found and value)]
    if wrong:
        raise RecipeError(f"{option}: {wrong[0]!r} is no NAME=VALUE, such as text=review.")
    names = [name for name, _, _ in split]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"{option}: {twice[0]} is given twice. Give every name once.")
    return {name: value for name, _, value in split}


def _show_evaluation(found: Mapping[str, Any]) -> None:
    out().print(alone(found["scores"]))
    show("In brackets: 95 % intervals.", style="dim")
    if found["samples"]:
        show()
        out().print(_samples(found["samples"]))
    for notice in [*found["notices"], *found["scores"].get("notes", ())]:
        say(f"Note: {notice}")


def _samples(samples: Sequence[Mapping[str, Any]]) -> Table:
    """What was asked and answered, beside the right answer, or beside what the answer got."""
    from tunewright.evaluation.formats import number

    if "reward" in samples[0]:
        drawn = [(one["input"], one["output"], number(one["reward"])) for one in samples]
        return table(("Prompt", "Answer", "Reward"), drawn, clip=("Prompt", "Answer"), fixed=("Reward",))
    rows = [(one["input"], one["reference"] or "", one["output"]) for one in samples]
    return table(("Input", "Reference", "Answer"), rows, clip=("Input", "Reference", "Answer"))


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, an adapter's folder, or RUN@0.5: a point at α.")],
    folder: Annotated[str, typer.Argument(metavar="DIR", help="New folder to write to.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="TARGET", help="peft, merged, quantized (torchao), onnx or gguf; for images diffusers, kohya."
        ),
    ],
    precision: Annotated[
        str | None,
        typer.Option(
            help="merged, kohya: fp32, bf16, fp16; quantized: int8, int4; gguf: f16, q8_0. Default: the first."
        ),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="FILE", help="Held-out rows to verify on; by default the run's own.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Where RUN is a LoRA file for images that others made: the pipeline it is for.")
    ] = None,
    as_json: AsJson = False,
) -> Document:
    """Write a tuned model in another form, and verify that it answers like the trained one."""
    from tunewright import api
    from tunewright.artifacts.export import read_verification

    written = api.export(run, to, Path(folder), precision=precision, rows=rows, base=base)
    found = read_verification(written)
    if not as_json:
        _show_verification(found)
        show(f"Written to {written}")
    return {"folder": str(written), **found}


FIGURES = {
    "top1_agreement": ("Same likeliest answer", "{:.1%}", ""),
    "top1_where_decided": ("  where it is no near tie", "{:.1%}", "at least {}"),
    "max_logit_difference": ("Largest difference of a logit", "{:.2g}", "at most {}"),
    "effect": ("Share of what tuning changed", "{:.1%}", "100% ± {}"),
    "kl": ("Divergence of the answers, nats", "{:.2g}", "at most {}"),
    "same_text": ("Same text, decoded greedily", "{:.0%}", "all"),
    "same_prompt": ("Same tokens for a prompt", "{:.0%}", "all"),
}
"""How the figures of a verification are shown: their name, their form, and their limit."""


def _show_verification(found: Mapping[str, Any]) -> None:
    figures, limits, unit = found["figures"], found["limits"], found.get("unit")  # which only pipelines have
    rows = [
        (
            title.replace("a logit", "a prediction") if unit else title,
            form.format(figures[name]),
            limit.format(form.format(limits[name])) if name in limits else "",
        )
        for name, (title, form, limit) in FIGURES.items()
        if name in figures
    ]
    out().print(table(("Exported against trained", "Measured", "Required"), rows))
    say(f"Verified in {found['precision']} by {', '.join(found['run_by'])}.")
    say(f"Both were asked {found['rows']}{f' {unit}' if unit else ''} of {found['rows_from']}.")


@app.command()
def chat(
    where: Where,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Ask once; without it, a conversation.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> Document:
    """Talk to a language model. /reset begins a new conversation, Ctrl-D ends."""
    if as_json and prompt is None:
        raise RecipeError("chat --json answers one question: give it as PROMPT.")
    from tunewright.cli._chat import Chat

    talk = Chat(where, device, {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed})
    if prompt is not None:
        return {"prompt": prompt, "answer": talk.ask(prompt, streaming=not as_json)}
    talk.converse(sys.stdin)
    return {}
