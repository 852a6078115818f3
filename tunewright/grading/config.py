"""The graders of a recipe: what makes the reward of a policy's answers. Each config makes its own reward.

`string_check`, `text_similarity`, `score_model` and `multi` are written as in OpenAI's API. Those that ask a model get
it from above: `models` holds, by their type, what makes a reward of their config, and as `embed` what embeds texts.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from keyword import iskeyword
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, FiniteFloat, TypeAdapter, field_validator, model_validator
from pydantic.functional_validators import AfterValidator

from tunewright.data.config import LOCAL
from tunewright.errors import DataError, RecipeError
from tunewright.grading import formula, functions, similarity, templates
from tunewright.grading.base import Reward, Sample, checked, place
from tunewright.options import Options

Models = Mapping[str, Callable[..., Any]]
"""{"embed": texts → vectors, "score_model": its config → Reward, …}: only those that the graders need."""
Template = Annotated[str, AfterValidator(templates.check)]
Text = Annotated[str, Field(min_length=1)]
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
NAMED = "what it is called in figures and curves"


class GraderBase(Options):
    """One component of a reward. Frozen."""

    type: str
    name: str = Field(min_length=1)
    weight: FiniteFloat = Field(1.0, description="what its number is multiplied by in the sum of all rewards")

    @model_validator(mode="before")
    @classmethod
    def _without_threshold(cls, value: Any) -> Any:
        if isinstance(value, dict) and "pass_threshold" in value:
            raise ValueError("pass_threshold tells pass from fail in evals; a reward is the score itself: take it out")
        return value

    @abstractmethod
    def reward(self, models: Models) -> Reward:
        """The reward. Raises RecipeError where `models` lacks what it asks, DataError where its code cannot be had."""

    def templates(self) -> list[str]:
        """The templates that it fills in."""
        return []


class Comparing(GraderBase):
    """A grader that compares a text to a reference."""

    input: Template = Field(description="the text, often {{ sample.output_text }}")
    reference: Template = Field(description="what it is compared to, e.g. {{ item.answer }}")

    def templates(self) -> list[str]:
        return [self.input, self.reference]


class StringCheck(Comparing):
    """1 where a text and its reference agree, else 0. White space counts."""

    type: Literal["string_check"] = "string_check"
    name: Text = Field("string_check", description=NAMED)
    operation: Literal["eq", "ne", "like", "ilike"] = Field(
        description="equal; not equal; contains the reference; contains it in either case"
    )

    def reward(self, models: Models) -> Reward:
        return lambda samples: [float(self._holds(*texts)) for texts in _pairs(self, samples)]

    def _holds(self, text: str, reference: str) -> bool:
        if self.operation in ("eq", "ne"):
            return (text == reference) == (self.operation == "eq")
        return reference in text if self.operation == "like" else reference.casefold() in text.casefold()


class TextSimilarity(Comparing):
    """How alike a text and its reference are, from 0 to 1; see `similarity.py`."""

    type: Literal["text_similarity"] = "text_similarity"
    name: Text = Field("text_similarity", description=NAMED)
    evaluation_metric: similarity.Metric = Field(description="by what they are compared; cosine needs an embedder")

    @field_validator("evaluation_metric", mode="before")
    @classmethod
    def _not_meteor(cls, value: Any) -> Any:
        if value == "meteor":
            others = ", ".join(similarity.METRICS)
            raise ValueError(f"meteor needs a word net, which Tunewright does not bring; choose one of {others}")
        return value

    def reward(self, models: Models) -> Reward:
        embed = _model(self, "embed", models) if self.evaluation_metric == "cosine" else None
        return lambda samples: self._alike(_pairs(self, samples), embed)

    def _alike(self, pairs: Sequence[tuple[str, str]], embed: similarity.Embed | None) -> list[float]:
        texts, references = [text for text, _ in pairs], [reference for _, reference in pairs]
        if embed is not None:
            return similarity.cosines(embed, texts, references) if pairs else []
        return similarity.similarities(self.evaluation_metric, texts, references)


class Length(GraderBase):
    """1 where an answer has `min` to `max` tokens; beyond, it falls to 0 in a straight line over `slack` tokens."""

    type: Literal["length"] = "length"
    name: Text = Field("length", description=NAMED)
    min: int = Field(0, ge=0, description="fewest tokens of a full reward")
    max: int | None = Field(None, ge=0, description="most tokens of a full reward; none: as many as there are")
    slack: int = Field(0, ge=0, description="tokens too many or too few at which the reward is 0; 0: at the first")

    @model_validator(mode="after")
    def _some_length(self) -> Length:
        if self.min == 0 and self.max is None:
            raise ValueError("every length has a full reward: give min, max, or both (the same twice for one length)")
        if self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self

    def reward(self, models: Models) -> Reward:
        return lambda samples: [self._of(sample.tokens) for sample in samples]

    def _of(self, tokens: int) -> float:
        over = tokens - self.max if self.max is not None else 0
        wrong = max(self.min - tokens, over, 0)
        return max(0.0, 1 - wrong / self.slack) if self.slack else float(wrong == 0)


class Pattern(GraderBase):
    """1 where a regular expression, as Python's `re` reads it, matches the answer, else 0; or the other way round."""

    type: Literal["pattern"] = "pattern"
    name: Text = Field("pattern", description=NAMED)
    pattern: Text = Field(description="a regular expression; with (?s) the dot matches line breaks too")
    match: Literal["full", "search"] = Field("search", description="the whole answer matches, or some part of it")
    forbidden: bool = Field(False, description="the reward is 1 where the answer does not match")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{value!r:.80} is not a regular expression: {error}") from error
        return value

    def reward(self, models: Models) -> Reward:
        compiled = re.compile(self.pattern)
        find = compiled.fullmatch if self.match == "full" else compiled.search
        return lambda samples: [float((find(sample.text) is None) == self.forbidden) for sample in samples]


class Python(GraderBase):
    """A function of the user: it is given a list of samples, and returns a list with a number for each."""

    type: Literal["python"] = "python"
    name: Text = Field("python", description=NAMED)
    function: str = Field(description="path/to/file.py:name or package.module:name; it is run", json_schema_extra=LOCAL)

    @model_validator(mode="before")
    @classmethod
    def _no_source(cls, value: Any) -> Any:
        if isinstance(value, dict) and "source" in value:
            raise ValueError("source is not run: put the code in a file, and name it by function: path/to/file.py:name")
        return value

    @field_validator("function")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not functions.NAME.fullmatch(value):
            raise ValueError(f"{value!r:.80} is neither path/to/file.py:name nor package.module:name")
        return value

    def reward(self, models: Models) -> Reward:
        return functions.function_named(self.function)


class Asking(GraderBase):
    """A grader that asks a model, which is loaded above."""

    def reward(self, models: Models) -> Reward:
        reward: Reward = _model(self, self.type, models)(self)
        return reward


class Part(Options):
    """A text of a message."""

    type: Literal["input_text", "output_text"]
    text: Template


class Message(Options):
    """A message to the model that grades. Text only."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Template | Part | Annotated[list[Template | Part], Field(min_length=1)]

    def templates(self) -> list[str]:
        """Its texts, which are joined without anything between them."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return [part if isinstance(part, str) else part.text for part in parts]


class Sampling(Options):
    """How the model that grades is sampled, in OpenAI's names. None: as the model's own settings say."""

    temperature: float | None = Field(None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    max_completions_tokens: int | None = Field(None, ge=1)
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None


class ScoreModel(Asking):
    """A language model answers messages about the sample with a number."""

    type: Literal["score_model"] = "score_model"
    name: Text = Field("score_model", description=NAMED)
    input: list[Message] = Field(min_length=1, description="what the model is asked")
    model: Text = Field(description="the model that grades")
    range: tuple[FiniteFloat, FiniteFloat] = Field((0.0, 1.0), description="smallest and largest score")
    sampling_params: Sampling | None = Field(None, description="how the model is sampled")

    @field_validator("range")
    @classmethod
    def _ascends(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError(f"{list(value)} is no range: the smallest score comes first, then a larger one")
        return value

    def score(self, text: str) -> float | None:
        """The first number in what the model said, cut to the range; None where it said none."""
        found = NUMBER.search(text)
        return min(self.range[1], max(self.range[0], float(found[0]))) if found else None

    def messages(self, index: int, sample: Sample) -> list[dict[str, str]]:
        """What the model is asked about a sample, the `index`th of its batch: [{"role": …, "content": …}]."""
        return [
            {
                "role": message.role,
                "content": "".join(templates.filled(text, index, sample) for text in message.templates()),
            }
            for message in self.input
        ]

    def templates(self) -> list[str]:
        return [text for message in self.input for text in message.templates()]


class RewardModel(Asking):
    """The number that a trained reward model gives."""

    type: Literal["reward_model"] = "reward_model"
    name: Text = Field("reward_model", description=NAMED)
    run: Text = Field(description="a run or a model's folder", json_schema_extra=LOCAL)


class Classifier(Asking):
    """How probable a class is, as a classifier says."""

    type: Literal["classifier"] = "classifier"
    name: Text = Field("classifier", description=NAMED)
    run: Text = Field(description="a run or a model's folder", json_schema_extra=LOCAL)
    label: Text = Field(description="the class whose probability is the reward")
    input: Literal["answer", "both"] = Field("answer", description="what it reads: the answer, or prompt and answer")


class Rules(Asking):
    """How probable it is that an answer breaks each rule (Sparrow, Glaese et al. 2022, https://arxiv.org/abs/2209.14375).

    `weight` is how much each violation costs.
    """

    type: Literal["rules"] = "rules"
    name: Text = Field("rules", description=NAMED)
    run: Text = Field(description="a classifier that is told the rule", json_schema_extra=LOCAL)
    rules: Annotated[list[Text] | dict[Text, FiniteFloat], Field(min_length=1)] = Field(
        description="the rules, each a plain sentence; or {sentence: what a violation of it costs}"
    )
    input: Literal["answer", "both"] = Field("answer", description="what it reads: the answer, or prompt and answer")
    violated: Text = Field("yes", description="the class that says that the rule is broken")

    def cost(self, rule: str) -> float:
        """What a violation costs, before `weight`."""
        return self.rules[rule] if isinstance(self.rules, dict) else 1.0


Single = Annotated[
    StringCheck | TextSimilarity | ScoreModel | Length | Pattern | Python | RewardModel | Classifier | Rules,
    Field(discriminator="type"),
]


class Multi(GraderBase):
    """A formula over the numbers that other graders give."""

    type: Literal["multi"] = "multi"
    name: Text = Field("multi", description=NAMED)
    graders: dict[str, Single] = Field(min_length=1, description="graders by the names that the formula uses, or one")
    calculate_output: str = Field(description="the formula, e.g. 0.7 * exact + 0.3 * similar; see formula.py")

    @field_validator("graders", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """OpenAI's API takes one grader as well; the formula calls it by its name."""
        if isinstance(value, dict) and isinstance(value.get("type"), str):
            return {value.get("name", value["type"]): value}
        return value

    @field_validator("graders")
    @classmethod
    def _usable(cls, value: dict[str, Single]) -> dict[str, Single]:
        if bad := [name for name in value if not name.isidentifier() or iskeyword(name)]:
            raise ValueError(
                f"{', '.join(map(repr, bad))}: a formula can name what has letters, digits and _ only: write graders "
                "as {NAME: GRADER} with such names"
            )
        if weighed := [name for name, grader in value.items() if grader.weight != 1]:
            raise ValueError(f"{', '.join(weighed)}: a weight has no effect here: write it into calculate_output")
        return value

    @model_validator(mode="after")
    def _formula_fits(self) -> Multi:
        if unused := [name for name in self.graders if name not in self.formula.names]:
            raise ValueError(f"calculate_output does not use {', '.join(unused)}: use or remove what has no effect")
        return self

    @cached_property
    def formula(self) -> formula.Formula:
        """`calculate_output`, parsed."""
        return formula.parse(self.calculate_output, self.graders)

    def reward(self, models: Models) -> Reward:
        rewards = {name: grader.reward(models) for name, grader in self.graders.items()}
        return lambda samples: self._of(rewards, samples)

    def _of(self, rewards: Mapping[str, Reward], samples: Sequence[Sample]) -> list[float]:
        found = {name: checked(f"{self.name}.{name}", reward, samples) for name, reward in rewards.items()}
        values, faults = [], []
        for index, sample in enumerate(samples):
            try:
                values.append(self.formula({name: numbers[index] for name, numbers in found.items()}))
            except formula.Undefined as error:
                faults.append(f"{place(index, sample)}: {error}")
        if faults:
            raise DataError(f"The formula of {self.name}, {self.calculate_output!r:.80}, has no value for:", faults)
        return values

    def templates(self) -> list[str]:
        return [text for grader in self.graders.values() for text in grader.templates()]


Grader = Annotated[Single | Multi, Field(discriminator="type")]
GRADER: TypeAdapter[Grader] = TypeAdapter(Grader)
GRADERS: dict[str, type[GraderBase]] = {
    each.model_fields["type"].default: each for each in (*get_args(get_args(Single)[0]), Multi)
}
"""By their types."""


def check_items(graders: Iterable[GraderBase], items: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Raises DataError that names every row which lacks a column that the templates of these graders name.

    Args:
        items: the name of each row, and its columns.
    """
    templates.check_items([text for grader in graders for text in grader.templates()], items)


def _pairs(grader: Comparing, samples: Sequence[Sample]) -> list[tuple[str, str]]:
    """The text and the reference of each sample."""
    return [
        (templates.filled(grader.input, index, sample), templates.filled(grader.reference, index, sample))
        for index, sample in enumerate(samples)
    ]


def _model(grader: GraderBase, name: str, models: Models) -> Callable[..., Any]:
    if name not in models:
        what = "a model that embeds texts" if name == "embed" else "a model"
        raise RecipeError(f"The reward {grader.name} ({grader.type}) needs {what}, and none was given as {name!r}.")
    return models[name]
