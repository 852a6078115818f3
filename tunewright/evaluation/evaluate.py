"""Measuring a model on a set of rows: scores with intervals, and a few rows to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.batches import Example
from tunewright.data.kinds import Classified, Completion, Conversation, Labelled, LabelledImage, Prompt, Ranking, Rated
from tunewright.data.messages import dialogue, text_of
from tunewright.data.records import asked_of
from tunewright.data.rows import canonical_json
from tunewright.errors import RecipeError, counted
from tunewright.evaluation import judged, metrics
from tunewright.evaluation.config import EvaluationConfig
from tunewright.evaluation.scores import Scores
from tunewright.tasks.base import Predictions

if TYPE_CHECKING:
    from tunewright.tasks.base import Answer, Model


def evaluate(
    model: Model, examples: Sequence[Example], records: Sequence[Any], config: EvaluationConfig
) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores of a model on a set, and sample rows: {"source", "input", "reference", "output"}.

    Args:
        examples: the encoded rows, in the order of `records` but for those that were dropped or split.
        records: the rows as they were read; samples are taken from them.
    """
    return described(model.task.predict(model, examples), model, examples, records, config)


def described(
    predictions: Predictions,
    model: Model,
    examples: Sequence[Example],
    records: Sequence[Any],
    config: EvaluationConfig,
) -> tuple[Scores, list[dict[str, Any]]]:
    """What `evaluate` gives, of a model that has answered already."""
    scores = score(by_prompt(predictions, records), getattr(model.task, "labels", []))
    if predictions.kind == "reward":
        return scores, _drawn(predictions, records, config.samples)
    asked = list(rows_to_ask(model, examples, records, config.generate))
    generate = getattr(model.task, "generate", None)
    if not (asked and generate):
        if predictions.kind in ("preference", "rated"):
            return scores, _judged(predictions, records, config.samples)
        return scores, _classified(predictions, records, model, config.samples)
    scores, samples = _with_generation(scores, partial(generate, model), asked, config)
    if len(asked) < len(records):
        note = f"Generated answers are measured on {len(asked):,} of {counted(len(records), 'row')}."
        scores = replace(scores, notes=(*scores.notes, note))
    return scores, samples[: config.samples]


def by_prompt(predictions: Predictions, records: Sequence[Any]) -> Predictions:
    """With the number of each row's prompt, where rows with one prompt are not independent of each other."""
    if predictions.kind not in ("preference", "rated", "reward"):
        return predictions
    prompts = {record.source: canonical_json(asked_of(record)) for record in records}
    numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts.values()))}
    return replace(predictions, group_N=np.array([numbers[prompts[source]] for source in predictions.sources]))


def refuse_idle_evaluation(config: EvaluationConfig, model: Model) -> None:
    """Raise RecipeError for a pattern where nothing is generated, and for prompts where no images are made."""
    if config.prompts and not hasattr(model.task, "images"):
        raise RecipeError(f"evaluation.prompts is for text-to-image, and this is {model.task.name}. Leave it out.")
    if config.pattern is not None and not (hasattr(model.task, "generate") and config.generate):
        raise RecipeError(
            "evaluation.pattern is for answers that are generated, evaluation.generate of them. Leave it out."
        )


def refuse_idle_on_prompts(config: EvaluationConfig) -> None:
    """Raise RecipeError for what says how rows with answers are measured, where the rows are prompts."""
    for option in ("pattern", "max_new_tokens"):
        if getattr(config, option) != EvaluationConfig.model_fields[option].default:
            raise RecipeError(
                f"evaluation.{option} is for rows with answers; prompts are answered and rewarded as objective says. "
                "Leave it out."
            )


def refuse_idle_pattern(
    model: Model, examples: Sequence[Example], records: Sequence[Any], config: EvaluationConfig
) -> None:
    """Raise RecipeError where `config.pattern` finds nothing in any answer of the rows that will be asked."""
    if config.pattern is not None:
        asked = rows_to_ask(model, examples, records, config.generate)
        metrics.wanted_finds([question_of(record)[1] for record in asked], config.pattern)


def score(predictions: Predictions, labels: Sequence[str]) -> Scores:
    """The scores that fit the kind of predictions."""
    if predictions.kind == "rated":
        assert predictions.score_S is not None and predictions.good_S is not None and predictions.length_S is not None
        return judged.rated(
            predictions.score_S, predictions.good_S, predictions.length_S, predictions.start_S, predictions.group_N
        )
    if predictions.kind == "preference":
        assert predictions.score_S is not None and predictions.element_S is not None
        assert predictions.length_S is not None
        return judged.preference(
            predictions.score_S, predictions.element_S, predictions.length_S, predictions.start_S,
            per_length=not labels, group_N=predictions.group_N,
        )  # fmt: skip
    if predictions.told is not None:
        return judged.rewards(predictions.told, predictions.group_N)
    if predictions.kind == "likelihood":
        assert predictions.nll_N is not None and predictions.count_N is not None
        if predictions.correct_N is None:
            return metrics.errors(predictions.nll_N)
        return metrics.likelihood(predictions.nll_N, predictions.count_N, predictions.correct_N)
    assert predictions.output_NC is not None and predictions.gold is not None
    if predictions.kind == "regression":
        return metrics.regression(predictions.output_NC[:, 0], predictions.gold.reshape(-1))
    if predictions.kind == "multi_label":
        return metrics.multi_label(predictions.output_NC, predictions.gold, labels)
    return metrics.classification(predictions.output_NC, predictions.gold, labels)


def answer(predictions: Predictions, row: int, labels: Sequence[str]) -> str:
    """What was predicted for a row, in words."""
    assert predictions.output_NC is not None
    output_C = predictions.output_NC[row]
    if predictions.kind == "regression":
        return f"{output_C[0]:.4g}"
    if predictions.kind == "multi_label":
        return ", ".join(label for label, p in zip(labels, output_C, strict=True) if p > 0.5) or "(none)"
    return labels[int(output_C.argmax())]


def _with_generation(
    scores: Scores, generate: Callable[..., list[Answer]], asked: Sequence[Any], config: EvaluationConfig
) -> tuple[Scores, list[dict[str, Any]]]:
    pairs = [question_of(record) for record in asked]
    answers = generate([q for q, _ in pairs], max_new_tokens=config.max_new_tokens)
    outputs, ended = [answer.text for answer in answers], [answer.ended for answer in answers]
    generated = metrics.generation(outputs, [reference for _, reference in pairs], ended, config.pattern)
    endless = len(ended) - sum(ended)
    note = (
        f"{endless:,} of {counted(len(ended), 'answer')} did not end within {config.max_new_tokens} tokens: "
        "if they should, raise evaluation.max_new_tokens, or train longer."
    )
    merged = Scores(
        {**scores.metrics, **generated.metrics},
        scores.primary,
        scores.higher_is_better,
        notes=(*scores.notes, *generated.notes, *([note] if endless else [])),
    )
    samples = [
        {"source": record.source, "input": _shown(question), "reference": reference, "output": output}
        for record, (question, reference), output in zip(asked, pairs, outputs, strict=True)
    ]
    return merged, samples


def rows_to_ask(model: Model, examples: Sequence[Example], records: Sequence[Any], count: int) -> Iterator[Any]:
    """The first rows that were not dropped and whose prompt leaves room for an answer."""
    room = getattr(model.task, "room", None)
    fitting = {e.source for e in examples}
    answered = (r for r in records if isinstance(r, Completion | Conversation) and r.source in fitting)
    return islice((r for r in answered if room and room(model, question_of(r)[0]) > 0), count)


def question_of(record: Any) -> tuple[Any, str]:
    """What is asked, and the answer of the row: for a conversation its last assistant turn."""
    if isinstance(record, Completion):
        return record.prompt, record.completion
    last = max(i for i, m in enumerate(record.messages) if m["role"] == "assistant")
    return Conversation(list(record.messages[:last]), record.tools, record.source), text_of(record.messages[last])


def _shown(question: Any) -> str:
    if isinstance(question, str):
        return question
    return dialogue(question.messages)


def in_words(record: Any) -> tuple[str, str | None]:
    """What a row asks, and its right answer; a plain text has none."""
    if isinstance(record, Labelled):
        return record.text, _label(record.label)
    if isinstance(record, LabelledImage):
        return str(record.image), _label(record.label)
    if isinstance(record, Ranking | Rated):
        return in_words(best_of(record))
    if isinstance(record, Completion | Conversation):
        question, reference = question_of(record)
        return _shown(question), reference
    if isinstance(record, Prompt):
        return in_plain_words(record.prompt), None
    return record.text, None


def best_of(record: Ranking | Rated) -> Completion | Conversation:
    return record.answers[0] if isinstance(record, Ranking) else record.answer


def _classified(predictions: Predictions, records: Sequence[Any], model: Model, count: int) -> list[dict[str, Any]]:
    """The first rows of a set, with what was predicted."""
    by_source = {record.source: record for record in records if isinstance(record, Classified)}
    labels = getattr(model.task, "labels", [])
    found = [(i, by_source[source]) for i, source in enumerate(predictions.sources) if source in by_source]
    return [
        {"source": r.source, "input": asked, "reference": reference, "output": answer(predictions, i, labels)}
        for i, r in found[:count]
        for asked, reference in [in_words(r)]
    ]


def rewarded(objective: Any, learner: Any, examples: Sequence[Example]) -> Predictions:
    """What a policy answers to prompts, once each, and what its answers get.

    Args:
        objective: what the policy learns by; its `measure` draws answers and scores them.
    """
    values, texts = objective.measure(learner, examples)
    return Predictions("reward", [e.source for e in examples], told=values, answers=tuple(texts))


def _drawn(predictions: Predictions, records: Sequence[Any], count: int) -> list[dict[str, Any]]:
    """The first prompts, each with its answer and what that got."""
    assert predictions.told is not None
    asked = {record.source: in_words(record)[0] for record in records}
    got_N = predictions.told["reward"]
    return [
        {"source": source, "input": asked[source], "reference": None, "output": text, "reward": float(got)}
        for source, text, got in list(zip(predictions.sources, predictions.answers, got_N, strict=True))[:count]
    ]


def in_plain_words(prompt: str | list[dict[str, Any]]) -> str:
    return prompt if isinstance(prompt, str) else dialogue(prompt)


def _judged(predictions: Predictions, records: Sequence[Any], count: int) -> list[dict[str, Any]]:
    """The first rows of a set: the best answer, and the one with the highest score; of a rated one the score."""
    assert predictions.score_S is not None and predictions.element_S is not None
    by_source = {record.source: record for record in records if isinstance(record, Ranking | Rated)}
    samples = []
    for number, source in list(enumerate(predictions.sources))[:count]:
        record, score_K = by_source[source], predictions.score_S[predictions.element_S == number]
        asked, best = in_words(record)
        if isinstance(record, Ranking):
            chosen = question_of(record.answers[int(score_K.argmax())])[1]
            samples.append({"source": source, "input": asked, "reference": best, "output": chosen})
        else:
            said = f"{asked}\n{best}"
            rating = "good" if record.good else "bad"
            samples.append({"source": source, "input": said, "reference": rating, "output": f"{score_K[0]:.4g}"})
    return samples


def _label(label: Any) -> str:
    if isinstance(label, dict):
        return max(label, key=lambda name: label[name])
    return ", ".join(map(str, label)) if isinstance(label, list) else str(label)
