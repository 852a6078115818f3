"""How others run an export: with transformers, PEFT, diffusers, onnxruntime or llama.cpp, and not a line of Tunewright.

This file is run by its path in a process of its own and imports nothing of the package, so that whatever makes the
export behave well is in the export. It answers the questions of `questions.py`: logits on token ids or on images,
greedy decoding, the token ids of prompts, the pixels of images, and what the classes are called.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Row = Mapping[str, Any]
"""Token ids by the name of the input; or `image`: an image file, in base64; or a noisy latent, see `Diffusers`."""
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
"""The base's own settings for generation may ask for sampling or penalties, which no other runtime knows of."""
THREADS = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: as many as the library thinks right
GGUF = "model.gguf"
CARD = "tunewright.json"
ONNX = "model.onnx"
MODULE = "module.json"


@dataclass(frozen=True)
class Answers:
    """What a model answered.

    Attributes:
        logits: [T, V] for the last positions of each row of a language model; [C] for each row of a classifier; for
            a noisy latent all that a U-Net predicts, [C·H·W].
        texts: what greedy decoding gave behind each prompt, with the token that ended it.
        prompts: the token ids of each prompt.
        by: what ran the model.
        pixels: the hash of what each image was made into, see `hash_of`.
        labels: what the classes are called, in the order of the logits.
    """

    logits: list[np.ndarray]
    texts: list[list[int]]
    prompts: list[list[int]]
    by: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


class Reader(Protocol):
    """A loaded export. `logits` are [T, V] or [C]; `greedy` gives the tokens behind the prompt."""

    by: list[str]
    labels: list[str]
    processor: Any

    def logits(self, row: Row) -> np.ndarray: ...

    def greedy(self, tokens: list[int], length: int) -> list[int]: ...

    def prompt(self, asked: Mapping[str, Any]) -> list[int]: ...


def answers(reader: Reader, questions: Mapping[str, Any]) -> Answers:
    """Ask a model everything."""
    return Answers(
        logits_of(reader, questions),
        [reader.greedy(tokens, questions["new_tokens"]) for tokens in questions["prompts"] if questions["new_tokens"]],
        [reader.prompt(asked) for asked in questions["asked"]],
        reader.by,
        [hash_of(fed(reader.processor, row)["pixel_values"]) for row in questions["rows"] if "image" in row],
        reader.labels if questions["labels"] else [],
    )


def logits_of(reader: Reader, questions: Mapping[str, Any]) -> list[np.ndarray]:
    return [reader.logits(row)[-questions["positions"] :] for row in questions["rows"]]


def fed(processor: Any, row: Row) -> dict[str, np.ndarray]:
    """What a model is fed of a row, [1, ...]: its token ids, or the pixels that its processor makes of the image."""
    if "image" not in row:
        return {name: np.array([ids], dtype=np.int64) for name, ids in row.items()}
    from PIL import Image

    image = Image.open(BytesIO(base64.b64decode(row["image"])))
    return {"pixel_values": np.asarray(processor(image, return_tensors="np")["pixel_values"], dtype=np.float32)}


def hash_of(pixels: np.ndarray) -> str:
    """Of the size and all values: the same libraries make the same pixels to the last bit."""
    return hashlib.sha256(str(pixels.shape[-3:]).encode() + pixels.astype(np.float32).tobytes()).hexdigest()


def read_processor(folder: Path, questions: Mapping[str, Any]) -> Any:
    """The tokenizer or image processor that lies in an export."""
    import transformers

    options = {"backend": "pil"} if questions["processor"] == "AutoImageProcessor" else {}
    return getattr(transformers, questions["processor"]).from_pretrained(folder, **options)


def named(config: Any) -> list[str]:
    """What a configuration calls the classes, in their order."""
    return [config.id2label[i] for i in sorted(config.id2label)]


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


def prompt_tokens(tokenizer: Any, asked: Mapping[str, Any]) -> list[int]:
    """A conversation by the tokenizer's chat template; a text, or a pair of texts, as it stands."""
    if "messages" in asked:
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
        return list(tokenizer.apply_chat_template(asked["messages"], tools=asked["tools"], **options))
    cut = {"truncation": True, "max_length": asked["max_length"]} if asked.get("max_length") else {}
    return list(tokenizer(asked["text"], asked.get("text_pair"), **cut)["input_ids"])


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


class Diffusers:
    """A pipeline of diffusers': what its U-Net predicts of a noisy latent, told by its own text encoders."""

    labels: list[str] = []  # noqa: RUF012  it names nothing
    processor = None

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
    rest = {name: getattr(found, name) for name in ("texts", "prompts", "by", "pixels", "labels")}
    (work / "answers.json").write_text(json.dumps(rest), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
