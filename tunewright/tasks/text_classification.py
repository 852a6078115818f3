"""`text-classification`: an encoder or decoder with a task head: one label, several labels, or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunewright.data.batches import Example, pad
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Labelled, Ranking
from tunewright.data.rendered import Rendered, fit
from tunewright.data.templates import ensure_chat_template
from tunewright.data.texts import check_texts
from tunewright.errors import DataError
from tunewright.tasks._classification import Classification
from tunewright.tasks._judged import REWARD, encode_rankings, rankings_of, reads_as_generated
from tunewright.tasks._logits import in_full
from tunewright.tasks._pretrained import load_tokenizer, longest_row
from tunewright.tasks.base import Batch, Encoded, Model, Predictions

if TYPE_CHECKING:
    from torch import Tensor, nn


class TextClassification(Classification):
    """A label for a text (or a pair of texts).

    Args:
        labels: the class names; None keeps those of the base.
        kind: `single_label` (softmax), `multi_label` (a sigmoid a class) or `regression`.
    """

    name: ClassVar[str] = "text-classification"
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    architecture: ClassVar[str] = "ForSequenceClassification"
    data_kinds: ClassVar[tuple[str, ...]] = ("classification", "preference")

    def processor(self, base: str, config: Any) -> Any:
        tokenizer = load_tokenizer(base)
        config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id
        return tokenizer

    def unreadable(self, model: Model, record: Any) -> str | None:
        """Encoders can be fed an empty text, between its first and last token; a decoder without BOS cannot."""
        blank = not record.text.strip() and not record.text_pair
        empty = blank and not model.processor(record.text)["input_ids"]
        return "text is empty: there is nothing to classify" if empty else None

    def encode(self, model: Model, records: Sequence[Any], data: Any) -> Encoded:
        limit = longest_row(model, data.max_length)
        if records and isinstance(records[0], Ranking):
            return encode_rankings(self, model, records, data, limit)
        policy = data.overlength_for("classification")
        if policy == "split":
            raise DataError("data.overlength: split is for plain text. For a classifier choose truncate or drop.")
        records, faults = self.usable(model, records, skip=data.on_bad_rows == "skip")
        texts = [r.text for r in records]
        pairs = [r.text_pair or "" for r in records] if any(r.text_pair for r in records) else None
        encoded = model.processor(texts, pairs, truncation=False, verbose=False)
        over = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) > limit.tokens]
        if policy == "truncate" and over:  # by the tokenizer, which knows the tokens that a text must end with
            encoded = model.processor(texts, pairs, truncation=True, max_length=limit.tokens, verbose=False)
        found = [Rendered(ids, [], r.source) for ids, r in zip(encoded["input_ids"], records, strict=True)]
        fitted = fit(found, limit, policy, ["truncate", "drop"])
        kept = [i for i in range(len(found)) if policy != "drop" or len(found[i].tokens) <= limit.tokens]
        examples = [self._example({name: encoded[name][i] for name in encoded}, records[i]) for i in kept]
        truncated = [records[i].source for i in over] if policy == "truncate" else []
        return Encoded(examples, limit.tokens, replace(fitted, truncated=truncated), faults)

    def prepare(self, model: Model, data: Any, chats: bool) -> None:
        """A model that judges conversations reads them by its chat template, a decoder's, or in plain words."""
        if (
            chats
            and reads_as_generated(model)
            and (notice := ensure_chat_template(model.processor, data.chat_template))
        ):
            model.notices.append(notice)

    def _example(self, inputs: dict[str, list[int]], record: Any) -> Example:
        arrays = {name: np.asarray(value, dtype=np.int64) for name, value in inputs.items()}
        return self.example(arrays, record, len(arrays["input_ids"]))

    def scores(self, module: nn.Module, batch: Batch) -> Tensor:
        """One number for each row [S]: how good an answer is."""
        return self.logits(module, batch)[:, 0]

    def asked(self, model: Model, example: Example) -> str:
        return str(model.processor.decode(example.inputs["input_ids"]))

    def inputs(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(pad([e.inputs[name] for e in examples], 0)) for name in examples[0].inputs}

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """[B, C], in fp32. A decoder reads its answer off the last position that holds no padding token."""
        ids_BT, mask_BT = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        padded_BT = ids_BT.masked_fill(mask_BT == 0, module.config.pad_token_id)  # type: ignore[union-attr, arg-type]
        return in_full(module(**{**batch.inputs, "input_ids": padded_BT}).logits)

    def shown(self, given: Any) -> dict[str, Any]:
        return {"text": given}

    def classify(self, model: Model, given: Sequence[str | tuple[str, str]]) -> tuple[Predictions, set[int]]:
        if self.labels == REWARD and any(isinstance(one, tuple) for one in given):
            return self._rewards(model, given), set()
        check_texts(given)
        pairs = [text if isinstance(text, tuple) else (text, None) for text in given]
        records = [Labelled(a, None, f"text {i}", text_pair=b) for i, (a, b) in enumerate(pairs, 1)]
        self.refuse_unreadable(model, records, "text")
        encoded = self.encode(model, records, DataConfig(train="-", overlength="truncate"))
        return self.predict(model, encoded.examples), {int(s.split()[-1]) - 1 for s in encoded.overlength.truncated}

    def _rewards(self, model: Model, given: Sequence[Any]) -> Predictions:
        """What a reward model says of answers to prompts, [N, 1]: fed as in training. Raises DataError."""
        encoded = self.encode(model, rankings_of(given), DataConfig(train="-", overlength="truncate_prompt"))
        if len(encoded.examples) < len(given):
            fit = {e.source for e in encoded.examples}
            lost = [f"texts[{i}] has an answer that is longer than the model can read" for i in range(len(given))]
            raise DataError("These cannot be scored:", [s for s in lost if s.split()[0] not in fit])
        score_S = self.predict(model, encoded.examples).score_S
        assert score_S is not None
        return Predictions("regression", [e.source for e in encoded.examples], output_NC=score_S[:, None])


TASK = TextClassification
