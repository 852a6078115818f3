"""What has a language model forgotten? Its loss on general text, and on what the base itself would answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tunewright.data.config import DataConfig
from tunewright.data.kinds import Completion, Conversation
from tunewright.data.records import Records
from tunewright.errors import BaseModelError, DataError
from tunewright.evaluation.contrast import change, measured
from tunewright.evaluation.evaluate import question_of, rows_to_ask
from tunewright.evaluation.paired import primary
from tunewright.sides import Side, aligned, answer, refuse_different

MOST_ASKED, LONGEST_ANSWER = 64, 64
"""Rows that the base answers, and tokens of an answer: for a loss per token that is plenty."""


def refuse_idle(sides: tuple[Side, Side], answers: bool) -> None:
    """Raise BaseModelError where nothing can be asked: of classifiers, or of the `answers` of a base that is unknown.

    It needs no weights.
    """
    for side in sides:
        if not hasattr(side.task, "generate"):
            raise BaseModelError(
                f"{side.name} is for {side.task.name}: only language models can be asked what they have forgotten."
            )
    if answers and not any(side.run for side in sides):
        raise BaseModelError("Neither of the two is a run: there is no base whose answers they could have forgotten.")


def on_general_text(sides: tuple[Side, Side], records: Records) -> dict[str, Any]:
    """The loss of both, B's minus A's, and whether B is worse."""
    both, _ = answer("the general text", sides, records, DataConfig(train="-"), {})
    return _changed(measured(both.a, both.b))


def on_own_answers(sides: tuple[Side, Side], name: str, records: Records, config: DataConfig) -> dict[str, Any]:
    """The same on what the base answers, greedily, to the prompts of a set; `base` is its own loss on that.

    The base is where B's run began (α = 0), or A's where B is no run.

    Raises:
        DataError: the rows have no prompts, or the base answers nothing.
    """
    base = _base_of(sides)
    told = _answers_of(base, name, records, config)
    reading = config.model_copy(update={"loss_on": "last", "overlength": "truncate"})
    both, _ = answer(f"{name}, as the base answers it", sides, told, reading, {})
    own, _ = aligned(name, (base, sides[0]), [base.predict(base.encode(told, reading)), both.a])
    return {**_changed(measured(both.a, both.b)), "base": primary(own).to_dict()}


def _changed(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "change": change(found, found["p"]).value.lower()}


def _base_of(sides: tuple[Side, Side]) -> Side:
    """The start of B's run, or of A's."""
    run = next(side for side in reversed(sides) if side.run)
    base = Side(f"{run.where}@0", run.device)
    refuse_different(base, run)
    return base


def _answers_of(base: Side, name: str, records: Records, config: DataConfig) -> Records:
    """The rows with the base's answers in place of their own."""
    asked = list(rows_to_ask(base.model, base.encode(records, config), records.records, MOST_ASKED))
    if not asked:
        raise DataError(f"--forgetting: no row of {name} has a prompt that the base could answer. Use --general.")
    questions = [question_of(record)[0] for record in asked]
    answers = base.generate(questions, LONGEST_ANSWER)
    told = [_told(record, question, said) for record, question, said in zip(asked, questions, answers, strict=True)]
    if not any(said.strip() for said in answers):
        raise DataError(f"--forgetting: the base answers nothing to any row of {name}. Use --general.")
    return replace(records, records=[record for record, said in zip(told, answers, strict=True) if said.strip()])


def _told(record: Any, question: Any, said: str) -> Completion | Conversation:
    if isinstance(record, Completion):
        return replace(record, completion=said)
    return replace(record, messages=[*question.messages, {"role": "assistant", "content": said}])
