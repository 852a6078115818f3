"""Exports that transformers, PEFT or torch alone load."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Reader, Row, fed, named, prompt_tokens, read_processor
from .pipelines import read_pipeline

GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""The base's own settings for generation may ask for sampling or penalties, which no other runtime knows of."""
CARD = "tunewright.json"
MODULE = "module.json"


class Torch:
    """A model in torch with a tokenizer or image processor of transformers.

    Args:
        stop: the tokens that end an answer; none: those that the export itself says.
        labels: what the classes are called; none: what the model's configuration says.
    """

    def __init__(
        self,
        module: Any,
        processor: Any,
        stop: Sequence[int] = (),
        by: Sequence[str] = (),
        labels: Sequence[str] = (),
    ) -> None:
        self.module, self.processor = module.eval(), processor
        self.labels = list(labels) or named(module.config)
        self.ends = {"eos_token_id": list(stop)} if stop else {}
        self.by = [f"{name} {version(name)}" for name in ("transformers", *by)]

    def logits(self, row: Row) -> np.ndarray:
        import torch

        inputs = {name: self._tensor(value) for name, value in fed(self.processor, row).items()}
        with torch.inference_mode():
            found = self.module(**inputs).logits[0]
        return found.float().cpu().numpy()

    def _tensor(self, value: np.ndarray) -> Any:
        """On the model's device, pixels in its number format."""
        import torch

        found = torch.from_numpy(value).to(self.module.device)
        return found.to(self.module.dtype) if found.is_floating_point() else found

    def greedy(self, tokens: list[int], length: int) -> list[int]:
        import torch

        ids = torch.tensor([tokens], device=self.module.device)
        options = {**GREEDY, **self.ends, "max_new_tokens": length, "pad_token_id": self.processor.pad_token_id or 0}
        with torch.inference_mode():
            output = self.module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return output[0, len(tokens) :].tolist()

    def prompt(self, asked: Mapping[str, Any]) -> list[int]:
        return prompt_tokens(self.processor, asked)


class Module(Torch):
    """A torch module of the user's own, which answers with logits, also [B, C, 1, 1], or with something of theirs."""

    def __init__(self, module: Any, processor: Any, labels: Sequence[str], by: Sequence[str] = ()) -> None:
        super().__init__(module, processor, by=["torch", *by], labels=labels)

    def logits(self, row: Row) -> np.ndarray:
        import torch

        like = next(self.module.parameters())
        with torch.inference_mode():
            found = self.module(torch.from_numpy(fed(self.processor, row)["pixel_values"]).to(like))
        return getattr(found, "logits", found).flatten(1)[0].float().cpu().numpy()


def make_module(told: Mapping[str, str], folder: Path, classes: int) -> Any:
    """The user's own module with a head of so many classes, and the weights in `folder` but for another head's.

    Args:
        told: its `factory`, package.module:factory; `code`, the folder that it is found in; `layer`, its head's name.
    """
    from safetensors.torch import load_file
    from torch import nn

    sys.path.append(told["code"])
    place, _, name = told["factory"].partition(":")
    module = attrgetter(name)(import_module(place))()
    head = module.get_submodule(told["layer"])
    for part, parameter in list(head.named_parameters()):
        setattr(head, part, nn.Parameter(parameter.new_zeros(classes, *parameter.shape[1:])))
    state = load_file(folder / "model.safetensors")
    own = {key: t for key, t in state.items() if not key.startswith(f"{told['layer']}.") or len(t) == classes}
    module.load_state_dict(own, strict=len(own) == len(state))
    return module.to(own[f"{told['layer']}.weight"].dtype if len(own) == len(state) else None)


def read_transformers(folder: Path, questions: Mapping[str, Any]) -> Reader:
    if (folder / "model_index.json").is_file():
        return read_pipeline(folder, questions)
    if told := questions["module"]:
        labels = json.loads((folder / MODULE).read_text())["labels"]
        return Module(make_module(told, folder, questions["labels"]), read_processor(folder, questions), labels)
    import transformers

    by = ["torchao"] if "quantization_config" in json.loads((folder / "config.json").read_text()) else []
    module = getattr(transformers, questions["auto"]).from_pretrained(folder, device_map=questions["device"])
    labels = named(transformers.AutoConfig.from_pretrained(folder))
    if questions["head"]:
        put_head(module, folder, questions["head"])
    return Torch(module, read_processor(folder, questions), by=by, labels=labels)


def put_head(tower: Any, folder: Path, name: str) -> None:
    """Let an image tower of CLIP or SigLIP end with a linear head on features of length 1, which lies beside it."""
    import torch.nn.functional as F  # noqa: N812
    from safetensors.torch import load_file
    from transformers.modeling_outputs import ImageClassifierOutput

    saved = {key: tensor for path in folder.glob("*.safetensors") for key, tensor in load_file(path).items()}
    weight, bias = (saved[f"{name}.{part}"].to(tower.device, tower.dtype) for part in ("weight", "bias"))
    forward = tower.forward

    def classify(**inputs: Any) -> Any:
        found = forward(**inputs)
        features = found.image_embeds if hasattr(found, "image_embeds") else found.pooler_output
        return ImageClassifierOutput(logits=F.linear(F.normalize(features, dim=-1), weight, bias))

    tower.forward = classify


def read_peft(folder: Path, questions: Mapping[str, Any]) -> Reader:
    """An adapter does not say how large a new head is, which token pads, and what ends an answer: it is told here.

    What the classes are called is read from the card beside it, since PEFT's format has no place for that.
    """
    import transformers
    from peft import PeftModel

    config = json.loads((folder / "adapter_config.json").read_text())
    processor = read_processor(folder, questions)
    head = {"num_labels": questions["labels"], "ignore_mismatched_sizes": True} if questions["labels"] else {}
    labels = json.loads((folder / CARD).read_text()).get("labels", []) if questions["labels"] else []
    if told := questions["module"]:
        base = make_module(told, Path(told["base"]), questions["labels"])
        return Module(PeftModel.from_pretrained(base, folder), processor, labels, ["peft"])
    base = getattr(transformers, questions["auto"]).from_pretrained(
        config["base_model_name_or_path"], dtype="float32", **head
    )
    if questions["processor"] == "AutoTokenizer":
        base.config.get_text_config().pad_token_id = base.config.pad_token_id = questions["pad"]
        if len(processor) > base.get_input_embeddings().num_embeddings:
            base.resize_token_embeddings(len(processor))
    return Torch(PeftModel.from_pretrained(base, folder), processor, questions["stop"], ["peft"], labels)
