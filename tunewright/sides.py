"""The two models that are compared, and their answers to the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tunewright.api import capability
from tunewright.artifacts.interpolate import check_alpha, load
from tunewright.artifacts.load import infer_task
from tunewright.artifacts.start import parse_point
from tunewright.data.config import DataConfig
from tunewright.data.records import Records
from tunewright.engine.device import pick_device
from tunewright.errors import BaseModelError, DataError, counted
from tunewright.evaluation.contrast import Both
from tunewright.evaluation.evaluate import by_prompt, in_words
from tunewright.evaluation.paired import subset
from tunewright.folder import INFO, Run
from tunewright.policies import Asking
from tunewright.tasks import task_class
from tunewright.tasks._pretrained import longest_row
from tunewright.tasks.base import Model, Predictions, Task

SAME = ("rewards", "max_new_tokens", "temperature", "missing_end")
"""What two policies must share, so that what their answers get can be compared."""

HEADLESS = (
    "Without a head for a task it answers nothing, and cannot be compared: name a model that was trained for the task. "
    "A run is compared with its start as RUN@0 (a new head needs training.head_first for that)."
)


class Side:
    """One of the two: its run if it has one, and its model, which is on the device only while it answers.

    `task` is known before `model` is loaded, so that whatever cannot be compared is refused first.
    """

    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, str(pick_device(device))
        self.where, self.alpha = parse_point(name)
        folder = Path(self.where).expanduser()
        check_alpha(self.alpha)
        self.run = Run(folder) if (folder / INFO).is_file() else None
        self.task: type[Task] = task_class(infer_task(self.where, advice=HEADLESS))

    @cached_property
    def model(self) -> Model:
        return load(self.where, alpha=self.alpha)

    def encode(self, records: Records, config: DataConfig, reserve: int = 0) -> list[Any]:
        """Rows as the model reads them, by its own chat template where it has one."""
        task, processor = self.model.task, self.model.processor
        if hasattr(task, "prepare"):
            own = {"chat_template": None} if processor.chat_template else {}
            task.prepare(self.model, config.model_copy(update=own), records.in_turns)
        self.model.reserve = reserve
        return task.encode(self.model, records.records, config).examples

    def predict(self, examples: Sequence[Any], ask: Asking | None = None) -> Predictions:
        self.model.module.to(self.device)
        predictions = ask(self.model, examples) if ask else self.model.task.predict(self.model, examples)
        self.model.module.to("cpu")
        return predictions

    def generate(self, prompts: Sequence[Any], longest: int) -> list[str]:
        """The likeliest answers of a language model."""
        generate = capability(self.model, "generate", "it generates no answers.")
        self.model.module.to(self.device)
        answers = generate(self.model, prompts, max_new_tokens=longest)
        self.model.module.to("cpu")
        return [answer.text for answer in answers]


def refuse_other_rows(sides: Sequence[Side], records: Records) -> None:
    """Raise DataError where the rows are none that the sides' task reads."""
    for side in sides:
        if records.kind not in side.task.data_kinds:
            kinds = " or ".join(side.task.data_kinds)
            raise DataError(f"{records.location} holds {records.kind} rows; {side.name} needs {kinds} rows.")


def asking(sides: tuple[Side, Side], records: Records) -> Asking:
    """How both are measured: prompts by the rewards of the run that has some.

    Raises BaseModelError where both have, and they differ.
    """
    able = [side for side in sides[::-1] if side.run and "prompt" in side.run.recipe.objective.reads]
    if records.kind != "prompt" or not able:
        return Asking(sides[1].name, records.records, sides[1].device, likelihoods=True)
    if len(able) > 1:
        b, a = ({name: getattr(side.run.recipe.objective, name) for name in SAME} for side in able)  # type: ignore[union-attr]
        if changed := [name for name in SAME if a[name] != b[name]]:
            raise BaseModelError(
                f"{able[1].name} and {able[0].name} were trained by other {', '.join(changed)}: what one answer gets "
                "is not comparable with what the other gets. Compare each with its base."
            )
    return Asking(able[0].name, records.records, able[0].device, likelihoods=True)


def refuse_other_tasks(a: Side, b: Side) -> None:
    """Raise BaseModelError where the two are for different tasks, which is known before they are loaded."""
    _refuse_unequal(a, b, "task", a.task.name, b.task.name)


def refuse_different(a: Side, b: Side) -> None:
    """Raise BaseModelError where two models of one task do not answer the same question."""
    for what, word in (("kind", "kind of answer"), ("labels", "classes")):
        _refuse_unequal(a, b, word, *(getattr(side.model.task, what, None) for side in (a, b)))


def _refuse_unequal(a: Side, b: Side, word: str, one: Any, other: Any) -> None:
    """Lists in another order are equal."""
    both_lists = isinstance(one, list) and isinstance(other, list)
    if (sorted(one) != sorted(other)) if both_lists else one != other:
        raise BaseModelError(
            f"{a.name} and {b.name} cannot be compared: the {word} of the first: {_said(one)}; of the second: "
            f"{_said(other)}."
        )


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def answer(
    name: str, sides: tuple[Side, Side], records: Records, config: DataConfig, slices: Mapping[str, set[str]]
) -> tuple[Both, list[str]]:
    """The predictions of both on one set, on the rows that neither had to drop; and a note where some were dropped."""
    if all(hasattr(side.task, "generate") for side in sides):  # windows of one length: both read the same tokens
        limit = min(longest_row(side.model, config.max_length).tokens for side in sides)
        config = config.model_copy(update={"max_length": limit})
    ask = asking(sides, records)
    predicted = [side.predict(side.encode(records, config, ask.reserve), ask) for side in sides]
    a, b = (by_prompt(one, records.records) for one in aligned(name, sides, predicted))
    rows = {label: np.flatnonzero([source in each for source in a.sources]) for label, each in slices.items()}
    words = {record.source: in_words(record) for record in records.records}
    both = Both(name, a, b, getattr(sides[0].model.task, "labels", []), words, rows)
    return both, _left_out(name, records, predicted)


def _left_out(name: str, records: Records, predicted: Sequence[Predictions]) -> list[str]:
    """A note where rows were dropped, since a model could not read them whole."""
    a, b = ({record.source for record in records.records} - set(one.sources) for one in predicted)
    rows = counted(len(a | b), "row is", "rows are")
    whom = "both" if a == b else "one of the two"
    return [f"{name}: {rows} too long for {whom}, and left out."] if a | b else []


def aligned(name: str, sides: tuple[Side, Side], found: Sequence[Predictions]) -> tuple[Predictions, Predictions]:
    """Both with the same rows, and classes in A's order. Raises BaseModelError where their tokens differ."""
    a, b = (_only(one, set(other.sources)) for one, other in (found, found[::-1]))
    tokens = [list(one.count_N) if one.count_N is not None else None for one in (a, b)]
    if a.sources != b.sources or tokens[0] != tokens[1]:
        raise BaseModelError(
            f"{sides[0].name} and {sides[1].name} read the rows of {name} as different tokens, by their tokenizers or "
            "chat templates: losses per token cannot be compared between them."
        )
    if b.output_NC is None or b.kind == "regression":
        return a, b
    order, own = (getattr(side.model.task, "labels", []) for side in sides)
    return a, replace(b, output_NC=b.output_NC[:, [own.index(label) for label in order]], gold=a.gold)


def _only(predictions: Predictions, sources: set[str]) -> Predictions:
    return subset(predictions, np.flatnonzero([source in sources for source in predictions.sources]))
