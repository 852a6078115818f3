"""How others run an export: with transformers, PEFT, diffusers, onnxruntime or llama.cpp, and not a line of Tunewright.

This file is run by its path in a process of its own and imports nothing of the package, so that whatever makes the
export behave well is in the export. It answers the questions of `questions.py`: logits on token ids, greedy
decoding, and the token ids of prompts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Row = Mapping[str, Any]
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""The base's own settings for generation may ask for sampling or penalties, which no other runtime knows of."""
THREADS = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: as many as the library thinks right
GGUF = "model.gguf"
ONNX = "model.onnx"


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Attributes:
        logits: [T, V] for the last positions of each row of a language model; [C] for each row of a classifier; for
            a noisy latent all that a U-Net predicts, [C·H·W].
        texts: what greedy decoding gave behind each prompt, with the token that ended it.
        prompts: the token ids of each prompt.
        by: what ran the model.
    """

    logits: list[np.ndarray]
    texts: list[list[int]]
    prompts: list[list[int]]
    by: list[str] = field(default_factory=list)


class Reader(Protocol):
    """A loaded export. `logits` are [T, V] or [C]; `greedy` gives the tokens behind the prompt."""

    by: list[str]

    def logits(self, row: Row) -> np.ndarray: ...

    def greedy(self, tokens: list[int], length: int) -> list[int]: ...

    def prompt(self, asked: Mapping[str, Any]) -> list[int]: ...


def answers(reader: Reader, questions: Mapping[str, Any], prompts: list[list[int]] | None = None) -> Answers:
    """Ask a model everything; `prompts` where their tokens are known."""
    return Answers(
        logits_of(reader, questions),
        [reader.greedy(tokens, questions["new_tokens"]) for tokens in questions["prompts"] if questions["new_tokens"]],
        [reader.prompt(asked) for asked in questions["asked"]] if prompts is None else prompts,
        reader.by,
    )


def logits_of(reader: Reader, questions: Mapping[str, Any]) -> list[np.ndarray]:
    return [reader.logits(row)[-questions["positions"] :] for row in questions["rows"]]


class Torch:
    """A model in torch with a tokenizer of transformers.

    Args:
        stop: the tokens that end an answer; none: those that the export itself says.
    """

    def __init__(self, module: Any, tokenizer: Any, stop: Sequence[int] = (), by: Sequence[str] = ()) -> None:
        self.module, self.tokenizer = module.eval(), tokenizer
        self.ends = {"eos_token_id": list(stop)} if stop else {}
        self.by = [f"{name} {version(name)}" for name in ("transformers", *by)]

    def logits(self, row: Row) -> np.ndarray:
        import torch

        inputs = {name: torch.tensor([ids], device=self.module.device) for name, ids in row.items()}
        with torch.inference_mode():
            found = self.module(**inputs).logits[0]
        return found.float().cpu().numpy()

    def greedy(self, tokens: list[int], length: int) -> list[int]:
        import torch

        ids = torch.tensor([tokens], device=self.module.device)
        options = {**GREEDY, **self.ends, "max_new_tokens": length, "pad_token_id": self.tokenizer.pad_token_id or 0}
        with torch.inference_mode():
            output = self.module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        return output[0, len(tokens) :].tolist()

    def prompt(self, asked: Mapping[str, Any]) -> list[int]:
        return prompt_tokens(self.tokenizer, asked)


def prompt_tokens(tokenizer: Any, asked: Mapping[str, Any]) -> list[int]:
    """A conversation by the tokenizer's chat template; a text, or a pair of texts, as it stands."""
    if "messages" in asked:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return list(tokenizer.apply_chat_template(asked["messages"], tools=asked["tools"], **options))
    cut = {"truncation": True, "max_length": asked["max_length"]} if asked.get("max_length") else {}
    return list(tokenizer(asked["text"], asked.get("text_pair"), **cut)["input_ids"])


class Diffusers:
    """A pipeline of diffusers': what its U-Net predicts of a noisy latent, told by its own text encoders."""

    def __init__(self, pipeline: Any, by: Sequence[str] = ()) -> None:
        self.pipeline = pipeline
        self.by = [f"{name} {version(name)}" for name in ("diffusers", *by)]

    def logits(self, row: Row) -> np.ndarray:
        import torch

        added = None
        with torch.inference_mode():
            said = self.pipeline.encode_prompt(
                row["text"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
            )
            if len(said) == 4:  # SDXL, which is told the projection of the whole text and sizes too
                added = {"text_embeds": said[2], "time_ids": torch.tensor([row["sizes"]])}
            noisy, told = torch.tensor([row["noisy"]]), torch.tensor([row["told"]])
            found = self.pipeline.unet(noisy, told, encoder_hidden_states=said[0], added_cond_kwargs=added).sample
        return found.flatten().numpy()

    def greedy(self, tokens: list[int], length: int) -> list[int]:
        raise NotImplementedError("a pipeline makes no text")

    def prompt(self, asked: Mapping[str, Any]) -> list[int]:
        return prompt_tokens(self.pipeline.tokenizer, asked)


def read_pipeline(folder: Path, questions: Mapping[str, Any]) -> Reader:
    """A folder of diffusers', or a LoRA on its base, in fp32."""
    import torch
    from diffusers import DiffusionPipeline

    whole = (folder / "model_index.json").is_file()
    base = folder if whole else questions["base"]
    pipeline = DiffusionPipeline.from_pretrained(base, torch_dtype=torch.float32, safety_checker=None)
    if (folder / "learned_embeds.safetensors").is_file():
        _teach_word(pipeline, folder / "learned_embeds.safetensors", questions["token"])
    elif not whole:
        pipeline.load_lora_weights(folder, weight_name=next(folder.glob("*.safetensors")).name)
    return Diffusers(pipeline, by=["transformers", *([] if whole else ["peft"])])


def _teach_word(pipeline: Any, file: Path, token: str) -> None:
    """A textual inversion; that of SDXL has a part for each of its text encoders."""
    from safetensors.torch import load_file

    state = load_file(file)
    if len(state) == 1:
        pipeline.load_textual_inversion(str(file.parent), weight_name=file.name)
        return
    for name, end in {"clip_l": "", "clip_g": "_2"}.items():
        parts = {
            "text_encoder": getattr(pipeline, f"text_encoder{end}"),
            "tokenizer": getattr(pipeline, f"tokenizer{end}"),
        }
        pipeline.load_textual_inversion(state[name], token=token, **parts)


def read_transformers(folder: Path, questions: Mapping[str, Any]) -> Reader:
    if (folder / "model_index.json").is_file():
        return read_pipeline(folder, questions)
    import transformers

    by = ["torchao"] if "quantization_config" in json.loads((folder / "config.json").read_text()) else []
    module = getattr(transformers, questions["auto"]).from_pretrained(folder, device_map=questions["device"])
    return Torch(module, transformers.AutoTokenizer.from_pretrained(folder), by=by)


def read_peft(folder: Path, questions: Mapping[str, Any]) -> Reader:
    """An adapter does not say how large a new head is, which token pads, and what ends an answer: it is told here."""
    import transformers
    from peft import PeftModel

    config = json.loads((folder / "adapter_config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    head = {"num_labels": questions["labels"]} if questions["labels"] else {}
    base = getattr(transformers, questions["auto"]).from_pretrained(
        config["base_model_name_or_path"], dtype="float32", **head
    )
    base.config.get_text_config().pad_token_id = base.config.pad_token_id = questions["pad"]
    if len(tokenizer) > base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(len(tokenizer))
    return Torch(PeftModel.from_pretrained(base, folder), tokenizer, questions["stop"], by=["peft"])


class Onnx:
    """A graph without a cache: each new token costs a pass over all before it."""

    def __init__(self, folder: Path, questions: Mapping[str, Any]) -> None:
        import onnxruntime
        from transformers import AutoTokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(folder / ONNX, options, providers=["CPUExecutionProvider"])
        self.names = [one.name for one in self.session.get_inputs()]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.stop = questions["stop"]
        self.by = [f"onnxruntime {onnxruntime.__version__}"]

    def logits(self, row: Row) -> np.ndarray:
        given = {"attention_mask": [1] * len(row["input_ids"]), **row}
        inputs = {name: np.array([given[name]], dtype=np.int64) for name in self.names}
        return self.session.run(["logits"], inputs)[0][0]

    def greedy(self, tokens: list[int], length: int) -> list[int]:
        return greedy(lambda ids: self.logits({"input_ids": ids})[-1], tokens, length, self.stop)

    def prompt(self, asked: Mapping[str, Any]) -> list[int]:
        return prompt_tokens(self.tokenizer, asked)


def greedy(next_logits: Any, tokens: list[int], length: int, stop: Sequence[int]) -> list[int]:
    """The likeliest token, again and again, up to the first that ends the answer."""
    found: list[int] = []
    while len(found) < length and not (found and found[-1] in stop):
        found.append(int(next_logits([*tokens, *found]).argmax()))
    return found


def read_gguf(folder: Path, questions: Mapping[str, Any]) -> Reader:
    return LlamaCpp(folder, questions) if find_spec("llama_cpp") else gguf_in_transformers(folder, questions)


class LlamaCpp:
    """llama.cpp itself, with the tokenizer and the chat template that lie in the file."""

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


READERS = {
    "peft": read_peft,
    "merged": read_transformers,
    "quantized": read_transformers,
    "onnx": Onnx,
    "gguf": read_gguf,
    "diffusers": read_pipeline,
    "kohya": read_pipeline,
}


def ask(target: str, folder: Path, questions: Mapping[str, Any]) -> Answers:
    """Load an export as its users do, and ask it everything."""
    return answers(READERS[target](folder, questions), questions)


def main(target: str, folder: Path, work: Path) -> None:
    """Read questions.json in the folder `work`, and leave answers.json and logits.safetensors there."""
    from safetensors.numpy import save_file

    found = ask(target, folder, json.loads((work / "questions.json").read_text(encoding="utf-8")))
    save_file({str(i): np.ascontiguousarray(row) for i, row in enumerate(found.logits)}, work / "logits.safetensors")
    rest = {"texts": found.texts, "prompts": found.prompts, "by": found.by}
    (work / "answers.json").write_text(json.dumps(rest), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
