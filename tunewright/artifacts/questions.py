"""What the trained model and its export are both asked: held-out rows as token ids and prompts, or as images."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np

from tunewright.artifacts.apart.foreign import hash_of
from tunewright.data.batches import Example
from tunewright.data.config import DataConfig
from tunewright.data.kinds import (
    KINDS,
    Completion,
    Conversation,
    Document,
    Labelled,
    LabelledImage,
    Prompt,
    Ranking,
    Rated,
    Record,
)
from tunewright.data.messages import for_template, weight_of
from tunewright.data.pictures import Picture
from tunewright.data.render import Renderer
from tunewright.errors import DataError
from tunewright.tasks._factories import code_of
from tunewright.tasks._judged import in_words as answer_in_words
from tunewright.tasks._modules import layout_of
from tunewright.tasks._pretrained import longest_row
from tunewright.tasks._zero_shot import HEAD as PROMPT_HEAD
from tunewright.tasks._zero_shot import TOWERS
from tunewright.tasks.base import Model

ROWS = {"text-generation": 16, "text-classification": 64, "image-classification": 32}
POSITIONS = 32  # of a row, the last ones: its answer. A vocabulary of 150,000 makes 300 MB of logits of them all
PROMPTS = 4
NEW_TOKENS = 24

AUTO = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
}


@dataclass(frozen=True)
class HeldOut:
    """Rows that the model was not trained on, and where they are from."""

    records: Sequence[Any]
    source: str


SENTENCES = (
    "The parcel was left with a neighbour, who is away until Monday.",
    "What would you like to know about the weather in the mountains?",
    "I ordered two of them and one came without its cable.",
    "Once upon a time there was a fox who lived at the edge of a forest.",
    "Thank you, that was quick and friendly!",
    "12 apples less 4 apples are 8 apples.",
    "My account is locked and nobody answers the phone.",
    "She opened the window, looked at the sea and laughed.",
)
BUILT_IN = "Tunewright's own sentences, as there are no held-out rows"
PATTERNS = "Tunewright's own patterns, as there are no held-out rows"


def built_in(model: Model) -> HeldOut:
    """A few sentences in the form that the model was trained on; a few images for one that is fed these."""
    records: list[Record] = []
    if "image" in model.task.data_kinds:
        return HeldOut([LabelledImage(_pattern(i), None, f"pattern {i + 1}") for i in range(len(SENTENCES))], PATTERNS)
    for i, text in enumerate(SENTENCES):
        asked, answer = {"role": "user", "content": text}, {"role": "assistant", "content": SENTENCES[i - 1]}
        if "classification" in model.task.data_kinds:
            records.append(Labelled(text, None, f"sentence {i + 1}"))
        elif model.chats:
            records.append(Conversation([asked, answer], None, f"sentence {i + 1}"))
        else:
            records.append(Completion(text[: len(text) // 2], text[len(text) // 2 :], f"sentence {i + 1}"))
    return HeldOut(records, BUILT_IN)


def _pattern(number: int) -> Picture:
    """Large patches of any colours, since the values of mere noise are all alike to a model. 240 × 320 pixels."""
    from PIL import Image

    coarse = np.random.default_rng(number).integers(0, 256, (3 + number, 4 + number, 3), dtype=np.uint8)
    return Picture(content=_png(Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC)))


def _png(image: Any) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def make_questions(model: Model, held_out: HeldOut | None) -> dict[str, Any]:
    """The questions as a document: see `apart/foreign`, which reads it.

    Raises:
        DataError: rows of a kind that the model does not read, or a prompt that is not served as it was trained.
    """
    held_out = held_out or built_in(model)
    held_out = replace(held_out, records=[_asked_alone(model, record) for record in held_out.records])
    kind = KINDS[type(held_out.records[0])]
    if kind not in model.task.data_kinds:
        raise DataError(
            f"{held_out.source} holds {kind} rows; this model needs {' or '.join(model.task.data_kinds)} rows."
        )
    records = [replace(r, label=None) if isinstance(r, Labelled | LabelledImage) else r for r in held_out.records]
    records = records[: ROWS[model.task.name]]
    config = DataConfig(train="-", overlength="truncate_prompt" if kind == "prompt" else "truncate", on_bad_rows="skip")
    examples = model.task.encode(model, records, config).examples
    if not examples:
        raise DataError(f"{held_out.source} holds no row that this model can read.")
    prompted = hasattr(model.module, PROMPT_HEAD)
    return {
        "rows_from": held_out.source,
        "auto": TOWERS[model.module.config.model_type] if prompted else AUTO[model.task.name],
        "head": PROMPT_HEAD if prompted else "",
        "labels": len(getattr(model.task, "labels", [])),
        "module": _module(model),
        **(_of_images(records, examples) if kind == "image" else _of_texts(model, records, examples)),
    }


def _asked_alone(model: Model, record: Any) -> Any:
    """Of answers that are compared or rated the best one, in the form in which the model is asked of it alone."""
    if not isinstance(record, Ranking | Rated):
        return record
    best = record.answers[0] if isinstance(record, Ranking) else record.answer
    if hasattr(model.task, "generate"):
        return best
    prompt, answer = answer_in_words(best)
    return Labelled(prompt, None, record.source, text_pair=answer)


def _module(model: Model) -> dict[str, str]:
    """How a torch module's users make it; nothing for a model of transformers."""
    layout = layout_of(model.module)
    if layout is None:
        return {}
    return {"factory": layout.factory, "code": code_of(layout.factory) or "", "layer": layout.head, "base": model.base}


def _of_images(records: Sequence[Any], examples: Sequence[Example]) -> dict[str, Any]:
    """Upright images of RGB pixels: what is made of them is for the export's own processor. And what training fed."""
    sources = {e.source for e in examples}
    files = [_png(r.image.pixels()) for r in records if r.source in sources]
    return {
        "processor": "AutoImageProcessor",
        "rows": [{"image": base64.b64encode(file).decode()} for file in files],
        "pixels": [hash_of(np.asarray(e.inputs["pixel_values"])) for e in examples],
        "positions": 0,
        "asked": [],
        "prompts": [],
        "new_tokens": 0,
        "stop": [],
        "pad": None,
    }


def _of_texts(model: Model, records: Sequence[Any], examples: Sequence[Example]) -> dict[str, Any]:
    generates = hasattr(model.task, "generate")
    asked, prompts = _prompts(model, records) if generates else _texts(model, records)
    return {
        "processor": "AutoTokenizer",
        "rows": [{name: value.tolist() for name, value in e.inputs.items()} for e in examples[: len(records)]],
        "pixels": [],
        "positions": POSITIONS if generates else 0,  # 0: all
        "asked": asked,
        "prompts": prompts,
        "new_tokens": NEW_TOKENS if generates else 0,
        "stop": Renderer(model.processor).stop_ids() if generates else [],
        "pad": model.processor.pad_token_id,
    }


def _prompts(model: Model, records: Sequence[Record]) -> tuple[list[dict[str, Any]], list[list[int]]]:
    """The first prompts that leave room for an answer, as a server is given them, and their tokens."""
    renderer = Renderer(model.processor)
    room = getattr(model.task, "room")  # noqa: B009  a capability
    questions = ((record, _question(record)) for record in records)
    fitting = list(islice(((r, q) for r, q in questions if q and room(model, q) >= NEW_TOKENS), PROMPTS))
    tokens = [
        renderer.prompt(q.messages, q.tools) if isinstance(q, Conversation) else renderer.prompt(q) for _, q in fitting
    ]
    for (record, _), prompt in zip(fitting, tokens, strict=True):
        _refuse_untrained(renderer, record, prompt)
    return [_served(model, q) for _, q in fitting], tokens


def _question(record: Record) -> Conversation | str:
    """What is asked: a conversation without its last answer, a prompt, the first words of a text."""
    if isinstance(record, Conversation):
        return Conversation(record.messages[:-1], record.tools, record.source)
    if isinstance(record, Prompt):
        asked = record.prompt
        return asked if isinstance(asked, str) else Conversation(asked, record.tools, record.source)
    return record.prompt if isinstance(record, Completion) else record.text[: len(record.text) // 2]  # type: ignore[union-attr]


def _served(model: Model, question: Conversation | str) -> dict[str, Any]:
    """Messages in the form in which servers give them to a template."""
    if isinstance(question, str):
        return {"text": question}
    knows_developer = "developer" in model.processor.get_chat_template(tools=question.tools)
    return {"messages": for_template(question.messages, knows_developer), "tools": question.tools}


def _refuse_untrained(renderer: Renderer, record: Record, prompt: list[int]) -> None:
    """The tokens that `chat` feeds must be those that the trained answer follows."""
    if isinstance(record, Document | Prompt) or (
        isinstance(record, Conversation) and not weight_of(record.messages[-1])
    ):
        return
    if not any(one.tokens[: len(prompt)] == prompt for one in renderer(record)):
        raise DataError(f"{record.source}: the prompt is served in other tokens than it was trained in.")


def _texts(model: Model, records: Sequence[Any]) -> tuple[list[dict[str, Any]], list[list[int]]]:
    limit = longest_row(model, None).tokens
    asked = [{"text": r.text, "text_pair": r.text_pair, "max_length": limit} for r in records]
    fed = [model.processor(a["text"], a["text_pair"], truncation=True, max_length=limit)["input_ids"] for a in asked]
    return asked, fed
