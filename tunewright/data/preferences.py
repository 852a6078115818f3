"""Rows that say which answer is better, which is good at all, or only what is to be answered.

A pair comes with its prompt apart, or as two conversations that begin alike (the prompt is then what they share), or in
OpenAI's form. Each answer becomes a row of its own with the prompt in front, as it would be read without the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunewright.data.kinds import Completion, Conversation, Prompt, Ranking, Rated
from tunewright.data.messages import check_prompt, check_weight, untrained
from tunewright.data.pictures import Picture
from tunewright.data.prompted import Values, prompted, text_of_row, tools_of_row
from tunewright.errors import DataError


def preference(values: Values, source: str) -> Ranking:
    """`chosen` and `rejected`, with `prompt` or with it in front of both; `margin`: by how much it is better."""
    chosen, rejected, prompt = values["chosen"], values["rejected"], values.get("prompt")
    if isinstance(chosen, list) and isinstance(rejected, list) and not isinstance(prompt, list):
        prompt, chosen, rejected = _apart(prompt, chosen, rejected)
    return _ranked(values, prompt, {"chosen": chosen, "rejected": rejected}, source, _margin(values))


def openai_preference(values: Values, source: str) -> Ranking:
    """OpenAI's: `input` holds messages and tools, `preferred_output` and `non_preferred_output` messages."""
    given = values["input"]
    if not isinstance(given, dict) or not isinstance(given.get("messages"), list):
        raise DataError('input must be {"messages": […]}')
    answers = {name: values[name] for name in ("preferred_output", "non_preferred_output")}
    return _ranked(given, given["messages"], answers, source)


def ranking(values: Values, source: str) -> Ranking:
    """`answers`: a list of them, the best first."""
    answers = values["answers"]
    if not isinstance(answers, list) or len(answers) < 2:
        raise DataError("answers must be a list of two or more, the best first")
    named = {f"answers[{i}]": one for i, one in enumerate(answers)}
    return _ranked(values, values["prompt"], named, source, _margin(values))


def rated(values: Values, source: str) -> Rated:
    """`label` says whether the answer `completion` is good."""
    word = str(values["label"]).strip().lower()
    if word not in GOOD:
        raise DataError(f"label is {values['label']!r}: give true for a good answer, false for a bad one")
    return Rated(_answer(values, values["prompt"], values["completion"], source), GOOD[word], source)


GOOD = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def prompt(values: Values, source: str) -> Prompt:
    """`prompt`, a text or messages; whatever else the row has is there for rewards to look at."""
    given = values["prompt"]
    if isinstance(given, list):
        return _asked(given, values, source)
    if not text_of_row(values, "prompt").strip():
        raise DataError("prompt is empty: there is nothing to answer")
    return Prompt(given, None, _item(values), source)


def prompt_of_messages(values: Values, source: str) -> Prompt:
    """`messages` that end with what is to be answered."""
    return _asked(values["messages"], values, source)


def _asked(messages: Any, values: Values, source: str) -> Prompt:
    checked = check_prompt(messages)
    if checked[-1]["role"] == "assistant":
        raise DataError("ends with an answer: a prompt ends with what is to be answered")
    return Prompt(checked, tools_of_row(values), _item(values), source)


def _item(values: Values) -> dict[str, Any]:
    return {name: value for name, value in values.items() if not isinstance(value, Picture)}


def _margin(values: Values) -> float:
    return 0.0 if values.get("margin") is None else check_weight(values["margin"], "margin")


def _ranked(
    values: Mapping[str, Any], prompt: Any, answers: Mapping[str, Any], source: str, margin: float = 0.0
) -> Ranking:
    """Raises DataError that names the answer which cannot be used, or the two that are equal."""
    rows: list[Any] = []
    for name, given in answers.items():
        try:
            rows.append(_answer(values, prompt, given, source))
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    names = list(answers)
    if len({type(one) for one in rows}) > 1:
        raise DataError(f"of {' and '.join(names)} some are texts and some messages: give all in one form")
    for i, one in enumerate(rows):
        same = [j for j in range(i) if _bare(rows[j]) == _bare(one)]
        if same and rows[same[0]] == one:
            raise DataError(f"{names[same[0]]} and {names[i]} are equal: neither is better")
        if same:
            raise DataError(f"{names[same[0]]} and {names[i]} differ in white space alone: neither is better")
    return Ranking(tuple(rows), source, margin)


def _bare(answer: Completion | Conversation) -> Any:
    """An answer without the white space round it."""
    if isinstance(answer, Completion):
        return answer.completion.strip()
    texts = [message.get("content") for message in answer.messages]
    bare = [text.strip() if isinstance(text, str) else text for text in texts]
    return [{**message, "content": text} for message, text in zip(answer.messages, bare, strict=True)]


def _answer(values: Mapping[str, Any], prompt: Any, given: Any, source: str) -> Completion | Conversation:
    """An answer with its prompt. A text answers messages as the assistant, and messages answer a text as the user's."""
    if isinstance(prompt, list) and isinstance(given, str):
        given = [{"role": "assistant", "content": given}]
    if isinstance(given, list) and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(given, list) and not (given and isinstance(given[0], dict) and given[0].get("role") == "assistant"):
        raise DataError("must begin with an assistant message that answers the prompt")
    if not isinstance(prompt, str | list):
        raise DataError("prompt must be a text, or a list of messages")
    if not isinstance(given, str | list):
        raise DataError(f"must be a text, or a list of messages, not {type(given).__name__}")
    if not (prompt.strip() if isinstance(prompt, str) else prompt):
        raise DataError("prompt is empty: there is nothing to answer")
    if isinstance(given, str) and not given.strip():
        raise DataError("completion is empty: there is nothing to learn")
    row = {"tools": values.get("tools"), "functions": values.get("functions")}
    return prompted({**row, "prompt": prompt, "completion": given}, source)


def _apart(prompt: Any, chosen: Sequence[Any], rejected: Sequence[Any]) -> tuple[Any, list[Any], list[Any]]:
    """Two conversations as (the messages that they share, what follows in each).

    Raises DataError where they do not begin alike, or not with the prompt that is given.
    """
    firsts = [one[0].get("role") if one and isinstance(one[0], dict) else None for one in (chosen, rejected)]
    if prompt is not None and "assistant" in firsts:  # they hold the answers alone
        return prompt, list(chosen), list(rejected)
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    if shared is None and len(chosen) == len(rejected):
        raise DataError("chosen and rejected are equal: neither is better")
    shared = min(len(chosen), len(rejected)) if shared is None else shared
    if not shared:
        raise DataError("the prompts differ: chosen and rejected do not begin with the same message")
    asked = [untrained(message) for message in chosen[:shared]]
    if prompt is not None and not any(isinstance(m, dict) and m.get("content") == prompt for m in asked):
        raise DataError("the prompts differ: chosen does not begin with the prompt that the column prompt gives")
    return asked, list(chosen[shared:]), list(rejected[shared:])
