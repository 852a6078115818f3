"""What the tasks share that answer with labels: one class, several, or a number; by a head on a pre-trained trunk."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from tunewright.data.batches import Example
from tunewright.data.groups import ends_of
from tunewright.data.kinds import Classified
from tunewright.data.labels import name_of
from tunewright.errors import BaseModelError, DataError, counted, them
from tunewright.tasks._answers import collate_elements, fixed_numbers, preferences
from tunewright.tasks._batch_norms import refuse_no_statistics
from tunewright.tasks._blocks import unwrapped
from tunewright.tasks._pretrained import load_config, load_weights, stored_names, without_weights
from tunewright.tasks.base import Batch, Likelihood, Model, Predictions, Task, in_batches

if TYPE_CHECKING:
    from torch import Tensor, nn

PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


class Classification(Task):
    """A label for a row.

    Args:
        labels: the class names; None keeps those of the base.
        kind: `single_label` (softmax), `multi_label` (a sigmoid a class) or `regression`.

    Class attributes:
        auto_class: transformers' class that loads models with such a head, by name.
        architecture: how the names of these models end.
    """

    auto_class: ClassVar[str]
    architecture: ClassVar[str]

    def __init__(self, labels: Sequence[str] | None = None, kind: str = "single_label") -> None:
        self.labels = list(labels or [])
        self.kind = kind

    @classmethod
    def from_records(cls, records: Sequence[Any], classes: Sequence[str] | None = None) -> Self:
        """Read the kind of labels, and their names, off the training rows; or take the classes that are given.

        Raises DataError where rows have a class that is not among these, or there is one class only.
        """
        if not isinstance(records[0], Classified):  # answers, of which some are better than others
            return cls(["reward"], "regression")
        kind = label_kind(records)
        if kind == "regression":
            if classes:
                raise DataError("data.classes names classes, and the labels of the rows are numbers: remove it.")
            return cls(["value"], kind)
        names = {name for record in records for name in label_names(record.label)}
        if classes:
            if unnamed := sorted(names - set(classes)):
                raise DataError(f"data.classes does not name {', '.join(unnamed)}, which training rows have: add it.")
            return cls(list(dict.fromkeys(classes)), kind)
        if len(names) < 2 and kind == "single_label":
            raise DataError(
                f"The training rows have one class only ({next(iter(names), 'none')}): there is nothing to tell apart."
            )
        return cls(sorted(names, key=natural_order), kind)

    def load(self, base: str, *, seed: int = 0, dtype: str | None = None, weights: bool = True) -> Model:
        config = load_config(base)
        auto_class = self.model_class(base, config)
        own = [str(name) for name in config.id2label.values()] if self._has_head(config) else []
        told = next((kind for kind, name in PROBLEM_TYPES.items() if name == config.problem_type), None)
        self._settle_labels(base, own, told)
        config.num_labels = len(self.labels)
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: i for i, label in enumerate(self.labels)}
        if hasattr(config, "label_names"):  # timm's word for them, which is what transformers writes for its models
            config.label_names = self.labels
        config.problem_type = PROBLEM_TYPES[self.kind]
        if not weights:
            shape = without_weights(auto_class, config)
            return Model(shape, None, self, base, along=self.along(shape), new=self._lacking(shape, base))
        processor = self.processor(base, config)
        module, info = load_weights(auto_class, base, config, dtype=dtype or "float32", ignore_mismatched_sizes=True)
        unfit = {str(key[0]) for key in info["mismatched_keys"]}  # (name, shape there, shape here)
        new = self._new_modules(module, base, info["missing_keys"] | unfit, new_head=own != self.labels)
        begin_anew(module, new, seed)
        return self.begun(Model(module, processor, self, base, along=self.along(module), new=new), own)

    def begun(self, model: Model, own: Sequence[str]) -> Model:
        """The model, with a notice where its head is new, and the base's `own` classes are not kept.

        Raises BaseModelError where it answers to whole batches only.
        """
        refuse_no_statistics(model.module, model.base)
        if model.new:
            had = f" in place of the base's ({len(own)} classes)" if own else ""
            model.notices.append(f"A new head for {self._answers()}{had}.")
        return model

    def model_class(self, base: str, config: Any) -> Any:
        """The class that loads a base, as transformers' auto classes do."""
        import transformers

        return getattr(transformers, self.auto_class)

    @abstractmethod
    def processor(self, base: str, config: Any) -> Any:
        """Tokenizer or image processor of a base, and what of it the configuration must know."""

    @abstractmethod
    def asked(self, model: Model, example: Example) -> str:
        """What a row asks, in words."""

    @abstractmethod
    def shown(self, given: Any) -> dict[str, Any]:
        """What was given to `classify`, by the name of its kind, as JSON has it."""

    @abstractmethod
    def classify(self, model: Model, given: Sequence[Any]) -> tuple[Predictions, set[int]]:
        """Probabilities of each class (or a value) for each input, [N, C]; and which were cut to fit.

        Raises DataError that names each input that cannot be read.
        """

    @abstractmethod
    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """[B, C], in fp32."""

    def unreadable(self, model: Model, record: Any) -> str | None:
        """Why the model cannot be fed a row, if so."""
        return None

    def _has_head(self, config: Any) -> bool:
        return any(self.architecture in name for name in config.architectures or [])

    def _answers(self) -> str:
        """What the head says, in words."""
        several = {"single_label": "classes, one a row", "multi_label": "labels, any number a row"}
        return f"{len(self.labels)} {several[self.kind]}" if self.kind in several else "one number"

    def _settle_labels(self, base: str, own: list[str], told: str | None) -> None:
        """Keep the order of a base that already has just these classes, so that its head keeps its meaning.

        Without labels of its own the task takes the base's, and the kind that the base is told to have.
        """
        if not self.labels:
            if not own:
                raise BaseModelError(
                    f"{base} has no classification head yet: train one first (tunewright train --base {base})."
                )
            self.labels = own
            self.kind = told or ("regression" if len(own) == 1 else "single_label")
        elif sorted(own) == sorted(self.labels):
            self.labels = own

    def _lacking(self, shape: Any, base: str) -> tuple[str, ...]:
        """Head and poolers that the base's files have no weights of, as far as the files are here."""
        trunk, there = f"{shape.base_model_prefix}.", stored_names(base)
        bare = {name.removeprefix(trunk) for name in there}
        lost = [name for name in shape.state_dict() if there and name.removeprefix(trunk) not in bare]
        return tuple(name for name in self.along(shape) if any(each.startswith(f"{name}.") for each in lost))

    def _new_modules(self, module: nn.Module, base: str, missing: set[str], new_head: bool) -> tuple[str, ...]:
        """Head and poolers that the base lacks, or whose classes differ. Raises BaseModelError if more is missing."""
        lacking = [name for name in self.along(module) if any(key.startswith(f"{name}.") for key in missing)]
        trunk = sorted(key for key in missing if not key.startswith(tuple(f"{name}." for name in lacking)))
        if trunk:
            raise BaseModelError(f"{base} lacks weights of its trunk, or not in these shapes: {', '.join(trunk[:3])}.")
        return tuple(dict.fromkeys([*lacking, *(self.head(module) if new_head else [])]))

    def along(self, module: nn.Module) -> tuple[str, ...]:
        """The head, and the pooler in front of it, which was made for another head if the base has one at all."""
        heads = self.head(module)
        poolers = [n for n, m in module.named_modules() if n.endswith("pooler") and any(True for _ in m.parameters())]
        return (*(name for name in poolers if not name.startswith(tuple(f"{head}." for head in heads))), *heads)

    def usable(self, model: Model, records: Sequence[Any], skip: bool) -> tuple[list[Any], list[str]]:
        """The rows that the model can be fed and have the labels of; and what is wrong with the others, if skipped."""
        classes = set(self.labels)
        misfits = [self._misfit(r.label, classes) for r in records]
        reasons = [misfit or self.unreadable(model, r) for misfit, r in zip(misfits, records, strict=True)]
        faults = [_named(r.source, reason) for r, reason in zip(records, reasons, strict=True) if reason]
        fitting = [record for record, reason in zip(records, reasons, strict=True) if not reason]
        if faults and not (skip and fitting):
            own = "numbers" if self.kind == "regression" else ", ".join(self.labels[:20])
            otherwise = ", or set data.on_bad_rows: skip" if fitting else ""
            bad = f"{len(faults):,} of {counted(len(records), 'row')} cannot be used"
            fit = f" by a model whose labels are {own}" if any(misfits) else ""
            raise DataError(f"{bad}{fit}: mend {them(len(faults))}{otherwise}.", faults)
        return fitting, faults

    def refuse_unreadable(self, model: Model, records: Sequence[Any], what: str) -> None:
        """Raises DataError that names each input that the model cannot be fed."""
        faults = [_named(r.source, reason) for r in records if (reason := self.unreadable(model, r))]
        if faults:
            cannot = f"{len(faults):,} of {counted(len(records), what)} cannot be read"
            raise DataError(f"{cannot}: mend {them(len(faults))}, or leave {them(len(faults))} out.", faults)

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

    def example(self, inputs: dict[str, Any], record: Any, length: int) -> Example:
        """An encoded row with its target; one without a label has no weight."""
        target = self.target(record.label)
        width = len(target) if self.kind == "multi_label" else 1
        weight = np.full(width, record.weight if record.label is not None else 0.0, dtype=np.float32)
        return Example(inputs, target, weight, record.source, length)

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

        if examples[0].parts:
            return collate_elements(self.collate([part for e in examples for part in e.parts]), examples)
        if _mixed(examples):  # hard and soft labels in one batch
            examples = [self.softened(e) for e in examples]
        weight = torch.from_numpy(np.stack([e.weight for e in examples]))
        return Batch(
            self.inputs(examples),
            target=torch.from_numpy(np.stack([e.target for e in examples])),
            weight=weight,
            mask=torch.ones_like(weight, dtype=torch.bool),
            sequence=torch.arange(len(examples))[:, None].expand_as(weight),
            sources=tuple(e.source for e in examples),
            fixed=fixed_numbers(examples),
        )

    def pieces(self, model: Model, example: Example) -> list[tuple[str, float]]:
        if example.parts:
            return [(f"{self.asked(model, part)}\n", float(i == 0)) for i, part in enumerate(example.parts)]
        return [(self.asked(model, example), 0.0), (f" → {self._answer(example)}", float(example.weight.max()))]

    def _answer(self, example: Example) -> str:
        """What should be answered, in words."""
        target = example.target
        if target.dtype.kind != "f":
            return self.labels[int(target[0])]
        if self.kind == "regression":
            return f"{target[0]:g}"
        likely = [name for name, share in zip(self.labels, target, strict=True) if share > 0.5]
        return ", ".join(likely) or self.labels[int(target.argmax())]

    @abstractmethod
    def inputs(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The model's arguments for these rows, on the CPU."""

    def softened(self, example: Example) -> Example:
        """The row with a distribution over classes in place of one class."""
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

    def predict(self, model: Model, examples: Sequence[Example]) -> Predictions:
        if examples and examples[0].parts:
            parts = [part for e in examples for part in e.parts]
            score_S = self._outputs(model, parts, len(self.labels), self._probabilities)[:, 0]
            return preferences(examples, np.split(score_S, ends_of(examples)))
        output_NC = self._outputs(model, examples, len(self.labels), self._probabilities)
        gold = [self.softened(e).target for e in examples] if _mixed(examples) else [e.target for e in examples]
        stacked = np.stack(gold) if gold else np.zeros((0, 1), dtype=np.int64)
        if stacked.dtype == np.int64:
            stacked = stacked[:, 0]
        return Predictions(self.kind, [e.source for e in examples], output_NC=output_NC, gold=stacked)

    def last_layer(self, module: nn.Module) -> nn.Linear | None:
        """The linear layer whose outputs are the logits; None where a head ends otherwise."""
        from torch import nn

        layer = self.final_layer(module)
        return layer if isinstance(layer, nn.Linear) else None

    def final_layer(self, module: nn.Module) -> Any:
        """The last linear layer or convolution of the head, wrapped by a method or not; None where there is neither."""
        from torch import nn

        bare = unwrapped(module)
        inside = [layer for name in self.head(bare) for layer in bare.get_submodule(name).modules()]
        return next((layer for layer in reversed(inside) if isinstance(layer, nn.Linear | nn.Conv2d)), None)

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

    def head(self, module: nn.Module) -> list[str]:
        """All beside the trunk, or the last part where no part is called the trunk (CLIP, SigLIP)."""
        trunk = str(module.base_model_prefix)
        parts = [name for name, part in module.named_children() if any(True for _ in part.parameters())]
        return [name for name in parts if name != trunk] if trunk in parts else parts[-1:]


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


def _mixed(examples: Sequence[Example]) -> bool:
    return len({e.target.shape for e in examples}) > 1


def _named(source: str, reason: str) -> str:
    """What is wrong with a row, with its source; an image's own file may be named already."""
    return reason if reason.startswith(f"{source} ") else f"{source}: {reason}"
