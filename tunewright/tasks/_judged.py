"""Answers as a reward model reads them: each with its prompt, as one text that gets one number.

A decoder reads the tokens that a language model would be fed and should answer. An encoder reads a pair of texts, the
prompt (of a conversation all that was said before, in plain words) and the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tunewright.data.batches import Example
from tunewright.data.groups import element
from tunewright.data.kinds import Completion, Conversation, Ranking
from tunewright.data.messages import check_prompt, dialogue, text_of, untrained
from tunewright.data.render import Renderer
from tunewright.data.rendered import Limit, Rendered
from tunewright.data.texts import HALF, is_whole
from tunewright.errors import DataError
from tunewright.tasks._answers import answer_tokens, answers_of, fit_answers, judged
from tunewright.tasks.base import Encoded, Model

REWARD = ["reward"]
"""The labels of a model that says one number, how good an answer is."""


def rankings_of(given: Sequence[Any]) -> list[Ranking]:
    """Pairs of a prompt (a text or messages) and an answer as rows. Raises DataError that names each that is none."""
    faults = [f"texts[{i}] {fault}" for i, pair in enumerate(given) if (fault := _fault(pair))]
    if faults:
        raise DataError("Of answers to prompts a reward model says how good they are:", faults)
    answers: list[Any] = [answered(prompt, answer, f"texts[{i}]") for i, (prompt, answer) in enumerate(given)]
    return [Ranking((answer,), answer.source) for answer in answers]


def _fault(pair: Any) -> str:
    if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[1], str)):
        return f"is {pair!r:.80}: give (prompt, answer) for each, or a text for each"
    if not pair[1].strip():
        return "has an empty answer"
    if not isinstance(pair[0], str):
        try:
            check_prompt(pair[0])
        except DataError as error:
            return str(error)
    return "" if is_whole(pair) else HALF


def answered(
    prompt: str | list[dict[str, Any]], answer: str, source: str, tools: Any = None
) -> Completion | Conversation:
    """A prompt with its answer, as a row."""
    if isinstance(prompt, str):
        return Completion(prompt, answer, source)
    before = [untrained(message) for message in prompt]
    return Conversation([*before, {"role": "assistant", "content": answer}], tools, source)


def reads_as_generated(model: Model) -> bool:
    """Whether the base is a decoder: its tokenizer has nothing that parts a pair of texts."""
    return model.processor.sep_token is None


def encode_rankings(task: Any, model: Model, records: Sequence[Ranking], data: Any, limit: Limit) -> Encoded:
    """Each row as an element of its answers. Raises DataError that names the rows which cannot be read."""
    tokens, faults = _tokens(model, records, data)
    rows = [(record, tokens[record.source]) for record in records if record.source in tokens]
    fitted, cut = fit_answers([answers for _, answers in rows], limit, data.overlength_for("preference"))
    examples = []
    for i, answers in fitted:
        record = rows[i][0]
        parts = [_example(task, model, one) for one in answers]
        lengths = [np.array(sum(weight > 0 for weight in one.weights), dtype=np.float32) for one in answers]
        known = zip(parts, judged(record), lengths, strict=True)
        made = [replace(part, fixed={**fixed, "length": length}) for part, fixed, length in known]
        examples.append(element(made, record.source))
    return Encoded(examples, limit.tokens, cut, faults)


def _tokens(model: Model, records: Sequence[Ranking], data: Any) -> tuple[dict[str, list[Rendered]], list[str]]:
    if reads_as_generated(model):
        return answer_tokens(Renderer(model.processor), records, data.on_bad_rows == "skip")
    texts = [in_words(answer) for record in records for answer in answers_of(record)]
    pairs = iter(_pairs(model.processor, texts))
    return {r.source: [replace(next(pairs), source=r.source) for _ in r.answers] for r in records}, []


def _pairs(tokenizer: Any, texts: Sequence[tuple[str, str]]) -> list[Rendered]:
    """Pairs as tokens; the weights are 0 up to the second text, so that the first is cut where that is wanted."""
    encoded = tokenizer([a for a, _ in texts], [b for _, b in texts], truncation=False, verbose=False)
    found = []
    for i, ids in enumerate(encoded["input_ids"]):
        start = [*encoded.sequence_ids(i), 1].index(1)  # the second text may be empty
        found.append(Rendered(ids, [0.0] * start + [1.0] * (len(ids) - start), ""))
    return found


def in_words(answer: Completion | Conversation) -> tuple[str, str]:
    """The prompt and the answer as plain texts."""
    if isinstance(answer, Completion):
        return answer.prompt, answer.completion
    last = next(i for i, m in enumerate(answer.messages) if m["role"] == "assistant" and m.get("weight", 1))
    before, after = answer.messages[:last], answer.messages[last:]
    return dialogue(before), "\n".join(text_of(m) for m in after)


def _example(task: Any, model: Model, one: Rendered) -> Example:
    ids = np.asarray(one.tokens, dtype=np.int64)
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if "token_type_ids" in model.processor.model_input_names and not reads_as_generated(model):
        inputs["token_type_ids"] = (np.asarray(one.weights) > 0).astype(np.int64)
    return Example(inputs, np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32), one.source, len(ids))
