"""`train` and `resume`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunewright.cli._app import AsJson, Stopped, app
from tunewright.cli._console import out, say, show
from tunewright.cli._progress import progress, say_trained
from tunewright.cli._scores import how_to_resume, of_stages, show_result
from tunewright.errors import Interrupted, RecipeError, counted

if TYPE_CHECKING:
    from tunewright.chain import Chain
    from tunewright.folder import Run
    from tunewright.recipe import Recipe

Document = dict[str, Any]
RecipeArguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE.yaml|KEY.PATH=VALUE", help="A recipe, and keys to set in it: training.epochs=2."),
]

Base = Annotated[
    str | None,
    typer.Option(help="Model folder, hub name, earlier run, adapter, or a torch module: PACKAGE.MODULE:FACTORY."),
]
Weights = Annotated[str | None, typer.Option(help="Weights of a torch module: a safetensors file.")]


@app.command()
def train(
    arguments: RecipeArguments = None,
    base: Base = None,
    weights: Weights = None,
    data: Annotated[str | None, typer.Option(help="Training rows: file, folder or hub name.")] = None,
    method: Annotated[str | None, typer.Option(help="Which parameters train; `tunewright methods` lists them.")] = None,
    objective: Annotated[
        str | None, typer.Option(help="What the loss says; `tunewright objectives` lists them.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the run; else a new one under runs/.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would train, and stop: loads no weights.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    as_json: AsJson = False,
) -> Document:
    """Fine-tune a model, by a recipe or by --base and --data."""
    what = {"base": base, "weights": weights, "data.train": data, "method": method, "objective": objective}
    document = compose(arguments or [], {**what, "output": output})
    if resume:
        return _finish(_go_on(document), as_json)
    if dry_run:
        return _rehearse(document, as_json)
    from tunewright.chain import Chain
    from tunewright.composing import composed
    from tunewright.folder import new_folder

    chosen = composed(document, {})
    if isinstance(chosen, Chain):
        return _finish_chain(chosen, Path(chosen.output or new_folder(chosen.last)), as_json)
    return _finish(_start(chosen), as_json)


@app.command("resume")
def resume_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of the run.")], as_json: AsJson = False
) -> Document:
    """Go on with a run from its last checkpoint; it ends as if nothing had happened. Or with a chain of stages."""
    from tunewright.launch.stages import is_chain, read_chain

    if is_chain(Path(run)):
        return _finish_chain(read_chain(Path(run)), Path(run), as_json)
    return _finish(_resume(Path(run)), as_json)


def compose(arguments: list[str], shorthands: Mapping[str, str | None]) -> Document:
    """The recipe document: the file, then the options, then key.path=value in their order."""
    from tunewright.recipe import apply_overrides, read_document

    files = [argument for argument in arguments if "=" not in argument or Path(argument).is_file()]
    if len(files) > 1:
        raise RecipeError(f"There is one recipe a run, and these are {len(files)}: {', '.join(files)}.")
    document = read_document(files[0]) if files else {}
    for path, value in shorthands.items():
        if value is not None:
            _set(document, path, value)
    apply_overrides(document, [argument for argument in arguments if argument not in files])
    if not document:
        raise RecipeError("There is nothing to train. Give a recipe (RECIPE.yaml), or --base and --data.")
    return document


def _set(document: Document, path: str, value: str) -> None:
    """Set a key; the options of a recipe's method stay where the same method is named again."""
    from tunewright.recipe import set_key

    before = document.get(path)
    if not (isinstance(before, dict) and before.get("type") == value):
        set_key(document, path, value)


def _rehearse(document: Document, as_json: bool) -> Document:
    from tunewright.rehearsal import dry_run

    found = dry_run(document)
    if not as_json:
        each_stage(found, _show_rehearsed)
    return found


def each_stage(found: Document, display: Callable[[Document], None]) -> None:
    """Show what was found of a recipe; of a chain what was found of each stage, under its name."""
    for i, (name, one) in enumerate(found["stages"].items() if "stages" in found else [("", found)]):
        if name:
            show(f"{chr(10) if i else ''}Stage {name}", style="bold")
        display(one)


def _show_rehearsed(found: Document) -> None:
    say_trained(found, f"{found['task']} with {found['method']} on {found['base']}", out())
    for notice in found["notices"]:
        say(f"Note: {notice}")


def _start(recipe: Recipe) -> Run:
    from tunewright import api
    from tunewright.folder import new_folder

    folder = Path(recipe.output or new_folder(recipe))
    placed = recipe.model_copy(update={"output": str(folder)})
    return watched(folder, lambda watcher: api.train(placed, watchers=[watcher]))


def _finish_chain(chain: Chain, folder: Path, as_json: bool) -> Document:
    """Run the stages, and show each with what it came to."""
    from tunewright.launch.stages import execute, stage_runs

    def work(watcher: Callable[[Mapping[str, Any]], None]) -> Run:
        return execute(chain, folder.absolute(), [watcher])

    run = watched(folder, work)
    stages = stage_runs(folder)
    if not as_json:
        out().print(of_stages({name: one.info for name, one in stages.items()}))
        show_result(run)
    return {**summary(run), "stages": {name: summary(one) for name, one in stages.items()}}


def _resume(folder: Path) -> Run:
    from tunewright import api

    return watched(folder, lambda watcher: api.resume(folder, watchers=[watcher]))


def _go_on(document: Document) -> Run:
    """Resume the run in the output folder. Raises RecipeError where the recipe differs from the one it began with."""
    from tunewright.folder import open_run

    output = document.pop("output", None)
    if not output:
        raise RecipeError("--resume needs the run's folder: give --output, or output in the recipe.")
    run = open_run(output)
    _refuse_changes(run, document)
    return _resume(run.folder)


def _refuse_changes(run: Run, document: Document) -> None:
    from tunewright.recipe import differences, goes_on_as_it_began, leaves, located, make_recipe

    before = located(run.recipe).model_dump(mode="json")
    wanted = located(make_recipe({**before, **document})).model_dump(mode="json", exclude_unset=True)
    given = {path: v for path, v in leaves({key: wanted[key] for key in document}).items() if v != "auto"}
    known = leaves(before)
    if changed := differences({path: known.get(path) for path in given}, given):
        raise goes_on_as_it_began("Leave these out", run.folder, changed)


def watched(folder: Path, work: Callable[[Callable[[Mapping[str, Any]], None]], Run]) -> Run:
    """Do the work of a run under a progress display; an interruption says how to go on."""
    with _interruptible(folder), progress() as watcher:
        return work(watcher)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    try:
        yield
    except Interrupted as error:
        message = f"Interrupted at step {error}; a checkpoint is written. To continue: {how_to_resume(folder)}"
        raise Stopped(message, run=str(folder)) from error
    except KeyboardInterrupt as error:
        if any((folder / "checkpoints").glob("step-*")):
            message = f"Interrupted. To continue from the last checkpoint: {how_to_resume(folder)}"
        elif (folder / "run.json").exists():
            message = f"Interrupted before the first checkpoint. To begin again: {how_to_resume(folder)}"
        elif drawn := len(list(folder.glob("start/prior/*.png"))):
            kept = counted(drawn, "image of the class is kept", "images of the class are kept")
            again = f"output={shlex.quote(str(folder))}"
            message = f"Interrupted: {kept}. To go on, give the same command with {again}"
        else:
            message = "Interrupted before anything was trained: nothing is left behind. Start the training again."
        raise Stopped(message, run=str(folder)) from error


def _finish(run: Run, as_json: bool) -> Document:
    if not as_json:
        show_result(run)
    return summary(run)


def summary(run: Run) -> Document:
    """What a finished run comes to, as `--json` prints it."""
    info = run.info
    keys = ["status", "task", "steps", "weights", "best", "parameters", "notices", "timings", "evaluation"]
    keys += ["seeds", "over_seeds"] if info.get("seeds") else []
    return {"run": str(run.folder), "report": str(run.report), **{key: info.get(key) for key in keys}}
