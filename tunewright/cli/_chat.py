"""A conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TextIO

import tunewright as tw
from tunewright.api import loaded
from tunewright.cli._console import complain, out, printable, say
from tunewright.errors import TunewrightError

RESET = "/reset"


class Chat:
    """A model, and what was said so far. A model that was not trained on conversations is only given the last text."""

    def __init__(self, where: str, device: str, options: dict[str, Any]) -> None:
        self.model = loaded(where, device)
        self.options = options
        self.messages: list[dict[str, str]] = []

    def ask(self, text: str, streaming: bool) -> str:
        """The answer, printed as it comes where it streams. It is remembered once it is whole."""
        question = {"role": "user", "content": text}
        asked: Any = [*self.messages, question] if self.model.chats else text
        answer = tw.chat(self.model, asked, streamer=_printer(self.model) if streaming else None, **self.options)
        if self.model.chats:
            self.messages += [question, {"role": "assistant", "content": answer}]
        return answer

    def converse(self, source: TextIO) -> None:
        """Answer line by line until the input ends. A question that cannot be answered does not end it."""
        say(
            f"{RESET} begins anew, Ctrl-D ends."
            if self.model.chats
            else "Each text is continued as it stands. Ctrl-D ends."
        )
        for text in _typed(source):
            if text == RESET:
                self.messages.clear()
                say("A new conversation.")
                continue
            try:
                self.ask(text, streaming=True)
            except TunewrightError as error:
                complain(f"{error} {RESET} begins a new conversation." if self.messages else str(error))
            except KeyboardInterrupt:
                say("\nStopped.")


def _typed(source: TextIO) -> Iterator[str]:
    """Lines with something on them. At a terminal there is a prompt, and the line can be edited."""
    if not source.isatty():
        yield from (line.strip() for line in source if line.strip())
        return
    import readline  # noqa: F401  (gives `input` its line editing)

    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            say("")
            return
        if text:
            yield text


def _printer(model: Any) -> Any:
    """Prints an answer word by word, as the model makes it."""
    from transformers import TextStreamer

    class Printer(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            out().print(printable(text), end="\n" if stream_end else "", soft_wrap=True)
            sys.stdout.flush()

    return Printer(model.processor, skip_prompt=True, skip_special_tokens=True)
