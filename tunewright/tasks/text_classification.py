"""`text-classification`: an encoder or decoder with a task head: one label, several labels, or a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tunewright.data.batches import Example, pad
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Labelled
from tunewright.data.labels import name_of
from tunewright.data.rendered import Rendered, fit
from tunewright.errors import BaseModelError, DataError, counted, them
from tunewright.tasks._pretrained import load_config, load_tokenizer, load_weights, max_length, without_weights
from tunewright.tasks.base import Batch, Encoded, Likelihood, Model, Predictions, Task, in_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class TextClassification(Task):
    """A label for a text (or a pair of texts).

    Args:
        labels: the class names; None keeps those of the base.
        kind: `single_label` (softmax), `multi_label` (a sigmoid a class) or `regression`.
    """

    name: ClassVar[str] = "text-classification"
    data_kinds: ClassVar[tuple[str, ...]] = ("classification",)

    def __init__(self, labels: Sequence[str] | None = None, kind: str = "single_label") -> None:
        self.labels = list(labels or [])
        self.kind = kind

    @classmethod
    def from_records(cls, records: Sequence[Any]) -> TextClassification:
        """Read the kind of labels, and their names, off the training rows."""
        kind = label_kind(records)
        if kind == "regression":
            return cls(["value"], kind)
        names = {name for record in records for name in label_names(record.label)}
        if len(names) < 2 and kind == "single_label":
            raise DataError(
                f"The training rows have one class only ({next(iter(names), 'none')}): there is nothing to tell apart."
            )
        return cls(sorted(names, key=natural_order), kind)

    def load(self, base: str, *, seed: int = 0, dtype: Any = None, weights: bool = True) -> Model:
        from transformers import AutoModelForSequenceClassification

        config = load_config(base)
        own = [str(name) for name in config.id2label.values()] if _has_head(config) else []
        self._settle_labels(base, own, config)
        config.num_labels = len(self.labels)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: i for i, label in enumerate(self.labels)}
        config.problem_type = PROBLEM_TYPES[self.kind]
        if not weights:
            shape = without_weights(AutoModelForSequenceClassification, config)
            return Model(shape, None, self, base, along=self.along(shape))
        tokenizer = load_tokenizer(base)
        config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id
        module, info = load_weights(
            AutoModelForSequenceClassification, base, config, dtype=dtype or "float32", ignore_mismatched_sizes=True
        )
        unfit = {str(key[0]) for key in info["mismatched_keys"]}  # (name, shape there, shape here)
        new = self._new_modules(module, base, info["missing_keys"] | unfit, new_head=own != self.labels)
        begin_anew(module, new, seed)
        model = Model(module, tokenizer, self, base, along=self.along(module), new=new)
        if new:
            had = f" in place of the base's ({len(own)} classes)" if own else ""
            model.notices.append(f"A new head for {self._answers()}{had}.")
        return model

    def _answers(self) -> str:
        """What the head says, in words."""
        several = {"single_label": "classes, one a row", "multi_label": "labels, any number a row"}
        return f"{len(self.labels)} {several[self.kind]}" if self.kind in several else "one number"

    def _settle_labels(self, base: str, own: list[str], config: Any) -> None:
        """Keep the order of a base that already has just these classes, so that its head keeps its meaning."""
        if not self.labels:
            if not own:
                raise BaseModelError(
                    f"{base} has no classification head yet: train one first (tunewright train --base {base})."
                )
            self.labels = own
            told = next((k for k, p in PROBLEM_TYPES.items() if p == config.problem_type), None)
            self.kind = told or ("regression" if len(own) == 1 else "single_label")
        elif sorted(own) == sorted(self.labels):
            self.labels = own

    def _new_modules(self, module: nn.Module, base: str, missing: set[str], new_head: bool) -> tuple[str, ...]:
        """Head and poolers that the base lacks, or whose classes differ. Raises BaseModelError if more is missing."""
        lacking = [name for name in self.along(module) if any(key.startswith(f"{name}.") for key in missing)]
        trunk = sorted(key for key in missing if not key.startswith(tuple(f"{name}." for name in lacking)))
        if trunk:
            raise BaseModelError(f"{base} lacks weights of its trunk, or not in these shapes: {', '.join(trunk[:3])}.")
        return tuple(dict.fromkeys([*lacking, *(self.head(module) if new_head else [])]))

    def along(self, module: nn.Module) -> tuple[str, ...]:
        """The head, and the pooler in front of it, which was made for another head if the base has one at all."""
        poolers = [name for name, _ in module.named_modules() if name.endswith("pooler")]
        return (*poolers, *self.head(module))

    def encode(self, model: Model, records: Sequence[Any], data: Any) -> Encoded:
        limit = max_length(model, data.max_length)
        policy = data.overlength_for("classification")
        if policy == "split":
            raise DataError("data.overlength: split is for plain text. For a classifier choose truncate or drop.")
        records, faults = self._usable(model, records, skip=data.on_bad_rows == "skip")
        texts = [r.text for r in records]
        pairs = [r.text_pair or "" for r in records] if any(r.text_pair for r in records) else None
        encoded = model.processor(texts, pairs, truncation=False, verbose=False)
        over = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) > limit]
        if policy == "truncate" and over:  # by the tokenizer, which knows the tokens that a text must end with
            encoded = model.processor(texts, pairs, truncation=True, max_length=limit, verbose=False)
        found = [Rendered(ids, [], r.source) for ids, r in zip(encoded["input_ids"], records, strict=True)]
        fitted = fit(found, limit, policy)
        kept = [i for i in range(len(found)) if policy != "drop" or len(found[i].tokens) <= limit]
        examples = [self._example({name: encoded[name][i] for name in encoded}, records[i]) for i in kept]
        truncated = [records[i].source for i in over] if policy == "truncate" else []
        return Encoded(examples, limit, replace(fitted, truncated=truncated), faults)

    def _usable(self, model: Model, records: Sequence[Any], skip: bool) -> tuple[list[Any], list[str]]:
        """The rows that the model can be fed and have the labels of; and what is wrong with the others, if skipped."""
        classes = set(self.labels)
        reasons = [self._misfit(r.label, classes) or _nothing_to_read(model, r) for r in records]
        faults = [f"{r.source}: {reason}" for r, reason in zip(records, reasons, strict=True) if reason]
        fitting = [record for record, reason in zip(records, reasons, strict=True) if not reason]
        if faults and not (skip and fitting):
            own = "numbers" if self.kind == "regression" else ", ".join(self.labels[:20])
            otherwise = ", or set data.on_bad_rows: skip" if fitting else ""
            rows = counted(len(records), "row")
            misfits = counted(len(faults), f"of {rows} does not", f"of {rows} do not")
            remedy = f"mend {them(len(faults))}{otherwise}"
            raise DataError(f"{misfits} fit the model, whose labels are {own}: {remedy}.", faults)
        return fitting, faults

    def _misfit(self, label: Any, classes: set[str]) -> str | None:
        """Why the model cannot have a label, if so."""
        if label is None:
            return None
        if not self._has_form(label):
            return f"label {label!r} is not of the model's kind, {self.kind}"
        unknown = [repr(n) for n in label_names(label) if n not in classes] if self.kind != "regression" else []
        return f"label {', '.join(unknown)} is unknown to the model" if unknown else None

    def _has_form(self, label: Any) -> bool:
        if self.kind == "regression":
            return not isinstance(label, list | dict) and natural_order(str(label))[0] == 0
        return self.kind == "multi_label" or not isinstance(label, list)

    def _example(self, inputs: dict[str, list[int]], record: Any) -> Example:
        arrays = {name: np.asarray(value, dtype=np.int64) for name, value in inputs.items()}
        target = self.target(record.label)
        width = len(target) if self.kind == "multi_label" else 1
        weight = np.full(width, record.weight if record.label is not None else 0.0, dtype=np.float32)
        return Example(arrays, target, weight, record.source, len(arrays["input_ids"]))

    def target(self, label: Any) -> np.ndarray:
        """A class index [1], a distribution or labels [C], or a value [1]; index 0 where there is no label."""
        if self.kind == "regression":
            return np.array([float(label) if label is not None else 0.0], dtype=np.float32)
        if self.kind == "single_label" and not isinstance(label, dict):
            return np.array([self.labels.index(name_of(label)) if label is not None else 0], dtype=np.int64)
        target_C = np.zeros(len(self.labels), dtype=np.float32)
        for name in label_names(label) if label is not None else ():
            target_C[self.labels.index(name)] = label[name] if isinstance(label, dict) else 1.0
        return target_C

    def collate(self, examples: Sequence[Example]) -> Batch:
        import torch

        if _mixed(examples):  # hard and soft labels in one batch
            examples = [self._softened(e) for e in examples]
        names = examples[0].inputs
        inputs = {name: torch.from_numpy(pad([e.inputs[name] for e in examples], 0)) for name in names}
        weight = torch.from_numpy(np.stack([e.weight for e in examples]))
        return Batch(
            inputs,
            target=torch.from_numpy(np.stack([e.target for e in examples])),
            weight=weight,
            mask=torch.ones_like(weight, dtype=torch.bool),
            sequence=torch.arange(len(examples))[:, None].expand_as(weight),
            sources=tuple(e.source for e in examples),
        )

    def _softened(self, example: Example) -> Example:
        if example.target.dtype != np.int64:
            return example
        one_hot_C = np.eye(len(self.labels), dtype=np.float32)[example.target[0]]
        return Example(example.inputs, one_hot_C, example.weight, example.source, example.length)

    def nll(self, module: nn.Module, batch: Batch, *, smoothing: float = 0.0, router: bool = False) -> Likelihood:
        import torch.nn.functional as F  # noqa: N812

        logits_BC = self.logits(module, batch)
        if self.kind == "regression":
            return Likelihood((logits_BC - batch.target).square())
        if self.kind == "multi_label":
            target_BC = batch.target * (1 - smoothing) + smoothing / 2
            nll_BC = F.binary_cross_entropy_with_logits(logits_BC, target_BC, reduction="none")
            return Likelihood(nll_BC, (logits_BC > 0) == (batch.target > 0.5))
        soft = batch.target.is_floating_point()
        target = batch.target if soft else batch.target[:, 0]
        nll_B = F.cross_entropy(logits_BC, target, reduction="none", label_smoothing=smoothing)
        gold_B = target.argmax(-1) if soft else target
        return Likelihood(nll_B[:, None], (logits_BC.argmax(-1) == gold_B)[:, None])

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """[B, C], in fp32. A decoder reads its answer off the last position that holds no padding token."""
        ids_BT, mask_BT = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        padded_BT = ids_BT.masked_fill(mask_BT == 0, module.config.pad_token_id)  # type: ignore[union-attr, arg-type]
        return module(**{**batch.inputs, "input_ids": padded_BT}).logits.float()

    def predict(self, model: Model, examples: Sequence[Example]) -> Predictions:
        output_NC = self._outputs(model, examples, len(self.labels), self._probabilities)
        gold = [self._softened(e).target for e in examples] if _mixed(examples) else [e.target for e in examples]
        stacked = np.stack(gold) if gold else np.zeros((0, 1), dtype=np.int64)
        if stacked.dtype == np.int64:
            stacked = stacked[:, 0]
        return Predictions(self.kind, [e.source for e in examples], output_NC=output_NC, gold=stacked)

    def last_layer(self, module: nn.Module) -> nn.Linear | None:
        """The linear layer whose outputs are the logits; None where a head ends otherwise."""
        from torch import nn

        inside = [layer for name in self.head(module) for layer in module.get_submodule(name).modules()]
        return next((layer for layer in reversed(inside) if isinstance(layer, nn.Linear)), None)

    def features(self, model: Model, examples: Sequence[Example]) -> np.ndarray:
        """What enters the last layer, [N, H]: it hands that through, so that pooling stays the model's own."""
        layer = self.last_layer(model.module)
        assert layer is not None
        handle = layer.register_forward_hook(lambda _, inputs, output: inputs[0])
        try:
            return self._outputs(model, examples, layer.in_features, lambda features_BH: features_BH)
        finally:
            handle.remove()

    def _outputs(
        self, model: Model, examples: Sequence[Example], width: int, finish: Callable[[Tensor], Tensor]
    ) -> np.ndarray:
        """What the model puts out for each row in eval mode, in double precision and finished, [N, width]."""
        import torch

        device = next(model.module.parameters()).device
        output_NC = np.zeros((len(examples), width), dtype=np.float64)
        model.module.eval()
        with torch.inference_mode():
            for rows in in_batches(examples):
                logits_BC = self.logits(model.module, self.collate([examples[i] for i in rows]).to(device)).double()
                output_NC[rows] = finish(logits_BC).cpu().numpy()
        return output_NC

    def _probabilities(self, logits_BC: Tensor) -> Tensor:
        if self.kind == "regression":
            return logits_BC
        return logits_BC.sigmoid() if self.kind == "multi_label" else logits_BC.softmax(-1)

    def classify(self, model: Model, texts: Sequence[str | tuple[str, str]]) -> tuple[Predictions, list[str]]:
        """Probabilities of each class (or a value) for each text, [N, C]; and the texts that were cut to fit."""
        pairs = [text if isinstance(text, tuple) else (text, None) for text in texts]
        records = [Labelled(a, None, f"text {i + 1}", text_pair=b) for i, (a, b) in enumerate(pairs)]
        encoded = self.encode(model, records, DataConfig(train="-", overlength="truncate"))
        return self.predict(model, encoded.examples), encoded.overlength.truncated

    def head(self, module: nn.Module) -> list[str]:
        trunk = module.base_model_prefix
        return [
            name for name, child in module.named_children() if name != trunk and any(True for _ in child.parameters())
        ]


def _nothing_to_read(model: Model, record: Any) -> str | None:
    """Encoders can be fed an empty text, between the tokens that begin and end it; a decoder without BOS cannot."""
    blank = not record.text.strip() and not record.text_pair
    empty = blank and not model.processor(record.text)["input_ids"]
    return "text is empty: there is nothing to classify" if empty else None


def label_kind(records: Sequence[Any]) -> str:
    """A list is multi-label, a number is a regression, a name (or probabilities of names) is one class a row."""
    labels = [record.label for record in records]
    if any(isinstance(label, list) for label in labels):
        return "multi_label"
    return "regression" if any(isinstance(label, float) for label in labels) else "single_label"


def label_names(label: Any) -> list[str]:
    """The class names in a label."""
    return [str(name) for name in label] if isinstance(label, (list, dict)) else [name_of(label)]


def natural_order(name: str) -> tuple[int, float, str]:
    """Numbers by value before words by spelling, among which are "nan" and "inf"."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return (0, number, name) if math.isfinite(number) else (1, 0.0, name)


def begin_anew(module: nn.Module, names: Sequence[str], seed: int) -> None:
    """Draw the weights of the named modules from the seed, as the architecture itself begins them."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            for child in module.get_submodule(name).modules():
                for parameter in child.parameters(recurse=False):
                    parameter._is_hf_initialized = False  # type: ignore[attr-defined]
                module._init_weights(child)  # type: ignore[operator]


def _has_head(config: Any) -> bool:
    return any("ForSequenceClassification" in name for name in config.architectures or [])


def _mixed(examples: Sequence[Example]) -> bool:
    return len({e.target.shape for e in examples}) > 1


TASK = TextClassification
