"""The application: its options, and how a command's end becomes an exit code."""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tunewright import __version__
from tunewright.cli._console import complain, say, write_json
from tunewright.errors import TunewrightError, VerificationError

UNEXPECTED, MENDABLE, UNMET, INTERRUPTED = 1, 2, 3, 130

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout, and nothing else.")]
Where = Annotated[
    str,
    typer.Argument(metavar="RUN|MODEL", help="A run, adapter or model folder, hub name, or RUN@0.5: a point at α."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]


@contextmanager
def named_as_options(*names: str) -> Iterator[None]:
    """Errors about how rows are read name this command's options where a recipe's keys would be."""
    try:
        yield
    except TunewrightError as error:
        keys = re.compile(rf"(?<![\w./-])data\.({'|'.join(names)})\b(?!\.)")
        error.args = (keys.sub(lambda key: f"--{key[1].replace('_', '-')}", str(error)),)
        raise


class Stopped(KeyboardInterrupt):
    """A command was interrupted. The message says how to continue; `details` go into the JSON object."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class Commands(TyperGroup):
    """Runs a command, which returns its answer as a document, and turns every kind of end into an exit code."""

    as_json = False

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        self.as_json = "--json" in given[: given.index("--") if "--" in given else None]
        if not self.as_json:
            return super().main(given, *more, **options)
        try:
            code = super().main(given, *more, **{**options, "standalone_mode": False})
        except Exception as error:
            if not hasattr(error, "format_message"):  # what typer raises where the options are wrong
                raise
            write_json({"error": {"type": "UsageError", "message": error.format_message()}})
            code = MENDABLE
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Run the command. With --json, whatever a library prints goes to stderr."""
        for library in ("bitsandbytes", "torchao", "torch.utils._pytree"):  # warn of kernels that nothing here uses
            logging.getLogger(library).setLevel(logging.CRITICAL)
        try:
            with redirect_stdout(sys.stderr) if self.as_json else nullcontext():
                answer = super().invoke(ctx)
        except VerificationError as error:
            self._fail(error, UNEXPECTED, verification=error.verification)
        except TunewrightError as error:
            self._fail(error, MENDABLE)
        except Stopped as error:
            self._fail(error, INTERRUPTED, type="Interrupted", **error.details)
        except KeyboardInterrupt as error:
            self._fail(error, INTERRUPTED, type="Interrupted", message="Interrupted.")
        except Exception as error:
            _point_to_key(error)
            if isinstance(error, (typer.Exit, typer.Abort, BrokenPipeError)) or hasattr(error, "format_message"):
                raise
            traceback.print_exc()
            self._fail(error, UNEXPECTED, message=f"Unexpected {type(error).__name__}: {error}")
        if self.as_json:
            write_json(answer)
        if isinstance(answer, dict) and answer.get("met") is False:  # the answer to `--require`
            raise typer.Exit(UNMET)

    def _fail(self, error: BaseException, code: int, **given: Any) -> None:
        found = {"type": type(error).__name__, "message": str(error), **given}
        if self.as_json:
            write_json({"error": found})
        elif code == INTERRUPTED:
            say(found["message"])
        else:
            complain(found["message"])
        raise typer.Exit(code)


def _point_to_key(error: Any) -> None:
    """Of an unknown option of a command that takes a recipe, say in place which key of the recipe it is."""
    name, context = getattr(error, "option_name", ""), getattr(error, "ctx", None)
    if not name or context is None or all(parameter.name != "arguments" for parameter in context.command.params):
        return
    from tunewright.faults import known_elsewhere, option_paths
    from tunewright.recipe import Recipe

    key = name.lstrip("-").replace("-", "_").rpartition(".")[2]
    if said := known_elsewhere(key, option_paths(Recipe)):
        error.message = f"No such option: {name}. {said} Keys of a recipe have no dashes: KEY.PATH=VALUE."
        error.possibilities = None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune pre-trained models on your own hardware, and know what it did to them.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tunewright {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Holds the options of the application itself."""
