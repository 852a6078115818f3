"""Exports that onnxruntime runs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Row, fed, greedy, named, prompt_tokens, read_processor

THREADS = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: as many as the library thinks right
ONNX = "model.onnx"


class Onnx:
    """A graph without a cache: each new token costs a pass over all before it."""

    def __init__(self, folder: Path, questions: Mapping[str, Any]) -> None:
        import onnxruntime
        from transformers import AutoConfig

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
        self.names = [one.name for one in self.session.get_inputs()]
        self.processor = read_processor(folder, questions)
        if questions["module"]:
            self.labels = json.loads(self.session.get_modelmeta().custom_metadata_map["labels"])
        else:
            self.labels = named(AutoConfig.from_pretrained(folder))
        self.stop = questions["stop"]
        self.by = [f"onnxruntime {onnxruntime.__version__}"]

    def logits(self, row: Row) -> np.ndarray:
        given = fed(self.processor, row)
        if "input_ids" in given:
            given = {"attention_mask": np.ones_like(given["input_ids"]), **given}
        return self.session.run(["logits"], {name: given[name] for name in self.names})[0][0]

    def greedy(self, tokens: list[int], length: int) -> list[int]:
        return greedy(lambda ids: self.logits({"input_ids": ids})[-1], tokens, length, self.stop)

    def prompt(self, asked: Mapping[str, Any]) -> list[int]:
        return prompt_tokens(self.processor, asked)
