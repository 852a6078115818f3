"""Exports that llama.cpp runs; where it is not installed, transformers reads the file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Reader, Row, greedy
from .graphs import THREADS
from .in_torch import Torch

GGUF = "model.gguf"


def read_gguf(folder: Path, questions: Mapping[str, Any]) -> Reader:
    return LlamaCpp(folder, questions) if find_spec("llama_cpp") else gguf_in_transformers(folder, questions)


class LlamaCpp:
    """llama.cpp itself, with the tokenizer and the chat template that lie in the file."""

    labels: list[str] = []  # noqa: RUF012  it generates
    processor = None

    def __init__(self, folder: Path, questions: Mapping[str, Any]) -> None:
        import llama_cpp

        longest = max(len(row["input_ids"]) for row in questions["rows"])
        longest = max([longest, *(len(tokens) + questions["new_tokens"] for tokens in questions["prompts"])])
        self.llama = llama_cpp.Llama(
            str(folder / GGUF),
            n_ctx=longest + 8,
            n_threads=THREADS or None,
            n_threads_batch=THREADS or None,
            n_gpu_layers=0,
            logits_all=True,
            verbose=False,
        )
        self.stop = questions["stop"]
        self.by = [f"llama-cpp-python {llama_cpp.__version__}"]

    def logits(self, row: Row) -> np.ndarray:
        self.llama.reset()
        self.llama.eval(row["input_ids"])
        return np.array(self.llama.scores[: len(row["input_ids"])], dtype=np.float32)

    def greedy(self, tokens: list[int], length: int) -> list[int]:
        self.llama.reset()
        return greedy(self._next, tokens, length, self.stop)

    def _next(self, tokens: list[int]) -> np.ndarray:
        self.llama.eval(tokens[self.llama.n_tokens :])
        return self.llama.scores[len(tokens) - 1]

    def prompt(self, asked: Mapping[str, Any]) -> list[int]:
        if "text" in asked:
            return self.llama.tokenize(asked["text"].encode(), add_bos=True, special=True)
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        told = self.llama.metadata
        bos, eos = (
            self.llama._model.token_get_text(token) if token >= 0 else ""
            for token in (self.llama.token_bos(), self.llama.token_eos())
        )
        formatter = Jinja2ChatFormatter(template=told["tokenizer.chat_template"], bos_token=bos, eos_token=eos)
        text = formatter(messages=asked["messages"], tools=asked["tools"]).prompt
        return self.llama.tokenize(text.encode(), add_bos=False, special=True)


def gguf_in_transformers(folder: Path, questions: Mapping[str, Any]) -> Reader:
    """The file's weights, tokenizer and template as transformers reads them, which leaves out a few of its keys."""
    import torch
    import transformers
    from gguf import GGUFReader

    reader = GGUFReader(folder / GGUF)
    architecture = reader.fields["general.architecture"].contents()
    module = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=GGUF,
        dtype="float32",
        head_dim=int(reader.fields[f"{architecture}.attention.key_length"].contents()),
    )
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            module.model.rotary_emb.inv_freq /= torch.tensor(np.array(tensor.data))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    prefix = reader.fields.get("tokenizer.ggml.add_space_prefix")
    if prefix is not None:
        _spaced_by_llama_cpp(tokenizer.backend_tokenizer, prefix.contents())
    made = Torch(module, tokenizer, questions["stop"], by=["gguf"])
    made.by[-1] += " in place of llama.cpp, which is not installed"
    return made


def _spaced_by_llama_cpp(tokenizer: Any, prefix: bool) -> None:
    """llama.cpp puts a space in front of every piece between special tokens; transformers of the first one alone."""
    from tokenizers import normalizers

    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    tokenizer.pre_tokenizer = None
