"""The formats of a row: the columns that tell them apart, and how each becomes a record.

A new format is one entry in `FORMATS`: its name in the recipe, the columns it needs and may have, and the function that
builds the record. The function raises DataError with the reason; the caller adds the row's source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.data.kinds import CaptionedImage, Conversation, Document, Labelled, LabelledImage, Record
from tunewright.data.labels import check_label
from tunewright.data.messages import check_messages, check_weight
from tunewright.data.pictures import COLUMNS, Picture
from tunewright.data.preferences import openai_preference, preference, prompt, prompt_of_messages, ranking, rated
from tunewright.data.prompted import Values, from_json, prompted, text_of_row, tools_of_row
from tunewright.errors import DataError


@dataclass(frozen=True)
class Format:
    """How rows of one format look, and the record that a row becomes.

    `only_for` names the kind of record where the columns tell the format only to somebody who wants that kind.
    """

    needs: tuple[str, ...]
    may_have: tuple[str, ...]
    build: Callable[[Values, str], Record]
    only_for: str | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return self.needs + self.may_have


def detect(columns: Iterable[str], kinds: Sequence[str] = ()) -> str | None:
    """The first format of `FORMATS` whose needed columns are all there.

    Before others those only for these kinds; behind them, where the same columns are wanted as what they are to
    everybody else.
    """
    present = set(columns)
    fitting = [name for name, format in FORMATS.items() if present.issuperset(format.needs)]
    plain = {"chat", "prompt_completion", "text"}.intersection(kinds)
    asked = [name for name in fitting if FORMATS[name].only_for in kinds]
    others = [name for name in fitting if FORMATS[name].only_for is None]
    return next(iter([*others, *asked] if plain else [*asked, *others]), None)


def _chat(values: Values, source: str) -> Conversation:
    return Conversation(check_messages(values["messages"]), tools_of_row(values), source)


SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


def _sharegpt(values: Values, source: str) -> Conversation:
    turns = values["conversations"]
    if not isinstance(turns, list):
        raise DataError("conversations must be a list of turns")
    messages = [_sharegpt_message(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
    return Conversation(check_messages(_system(values) + messages), tools_of_row(values), source)


def _sharegpt_message(turn: Any, where: str) -> dict[str, Any]:
    if not isinstance(turn, dict) or not {"from", "value"} <= turn.keys():
        raise DataError(f"{where} must be an object with from and value")
    message = {"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "weight": turn.get("weight")}
    if turn["from"] == "function_call":
        calls = from_json(text_of_row(turn, "value"), f"{where}.value")
        calls = calls if isinstance(calls, list) else [calls]
        return message | {"tool_calls": [{"type": "function", "function": call} for call in calls]}
    return message | {"content": turn["value"]}


def _alpaca(values: Values, source: str) -> Conversation:
    question = text_of_row(values, "instruction")
    if values.get("input"):
        question += "\n\n" + text_of_row(values, "input")
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": text_of_row(values, "output")}]
    return Conversation(check_messages(_system(values) + messages), None, source)


def _system(values: Values) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text_of_row(values, "system")}] if values.get("system") else []


def _classification(values: Values, source: str) -> Labelled:
    pair = None if values.get("text_pair") is None else text_of_row(values, "text_pair")
    return Labelled(text_of_row(values, "text"), _label(values), source, pair, row_weight(values))


VIOLATED = {**dict.fromkeys(("true", "yes", "1", "1.0"), "yes"), **dict.fromkeys(("false", "no", "0", "0.0"), "no")}


def _violation(values: Values, source: str) -> Labelled:
    """A text beside a rule, and whether it breaks the rule, in the words that the reward `rules` asks for."""
    given, rule = values.get("violated"), text_of_row(values, "rule")
    label = None if given in (None, "") else VIOLATED.get(str(given).strip().lower())
    if label is None and given not in (None, ""):
        raise DataError(f"violated must be true or false, not {given!r:.80}")
    if not rule.strip():
        raise DataError("rule is empty: write the rule that the text breaks or keeps")
    return Labelled(text_of_row(values, "text"), label, source, rule, row_weight(values))


def _image(values: Values, source: str) -> LabelledImage:
    return LabelledImage(_picture(values), _label(values), source, row_weight(values))


def _captioned(values: Values, source: str) -> CaptionedImage:
    if not text_of_row(values, "text").strip():
        raise DataError("text is empty: write what the image shows, or remove the row")
    return CaptionedImage(_picture(values), values["text"], source, row_weight(values))


def _picture(values: Values) -> Picture:
    column = next(name for name in COLUMNS if name in values)
    if not isinstance(values[column], Picture):
        raise DataError(f"{column} must be a path, or the bytes of an image, not {type(values[column]).__name__}")
    return values[column]


def _label(values: Values) -> Any:
    label = values.get("label")
    return None if label in (None, "") else check_label(label)


def row_weight(values: Values) -> float:
    """How much a row counts in the loss, 1 where it does not say. Raises DataError for what is no weight."""
    weight = values.get("weight")
    return 1.0 if weight is None else check_weight(_number(weight), "weight")


def _number(value: Any) -> Any:
    """A CSV file holds numbers as text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _document(values: Values, source: str) -> Document:
    text = text_of_row(values, "text")
    if not text.strip():
        raise DataError("text is empty: there is nothing to learn")
    return Document(text, source)


FORMATS: dict[str, Format] = {
    "chat": Format(("messages",), ("tools", "functions"), _chat),
    "sharegpt": Format(("conversations",), ("system", "tools", "functions"), _sharegpt),
    "preference": Format(("chosen", "rejected"), ("prompt", "tools", "functions", "margin"), preference),
    "ranking": Format(("prompt", "answers"), ("tools", "functions", "margin"), ranking),
    "openai_preference": Format(("input", "preferred_output", "non_preferred_output"), (), openai_preference),
    "rated": Format(("prompt", "completion", "label"), ("tools", "functions"), rated, only_for="rated"),
    "prompt": Format(("prompt",), ("tools", "functions"), prompt, only_for="prompt"),
    "prompt_messages": Format(("messages",), ("tools", "functions"), prompt_of_messages, only_for="prompt"),
    "alpaca": Format(("instruction", "output"), ("input", "system"), _alpaca),
    "prompt_completion": Format(("prompt", "completion"), ("tools", "functions"), prompted),
    "classification": Format(("text", "label"), ("text_pair", "weight"), _classification),
    "violation": Format(("text", "rule", "violated"), ("weight",), _violation),
    "captioned_image": Format(("image", "text"), ("weight",), _captioned),
    "captioned_file": Format(("file_name", "text"), ("weight",), _captioned),
    "text": Format(("text",), (), _document),
    "image": Format(("image", "label"), ("weight",), _image),
    "image_file": Format(("file_name", "label"), ("weight",), _image),
}
