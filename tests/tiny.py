"""Tiny random models of the real classes, with their tokenizers, as folders that look like what people download."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.fixtures import SENTENCES, tiny_tokenizer
from tunewright.tasks._module_config import ModuleConfig, Preprocessing
from tunewright.tasks._modules import begin

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,  # wide enough that outputs differ visibly between rows
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
HEADS = {"head_dim": 8}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

DECODERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "llama": ("llama3", lambda **o: hf.LlamaConfig(**{**GROUPED, "tie_word_embeddings": False, **o})),
    "qwen3": ("qwen3", lambda **o: hf.Qwen3Config(**GROUPED, **HEADS, tie_word_embeddings=True, **o)),
    "mistral": ("mistral", lambda **o: hf.MistralConfig(**{**GROUPED, **HEADS, "sliding_window": 12, **o})),
    "mixtral": ("mistral", lambda **o: hf.MixtralConfig(**GROUPED, **HEADS, num_local_experts=4, **o)),
    "gpt2": (
        "chatml",
        lambda **o: hf.GPT2Config(
            n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.15,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **o,
        ),
    ),
    "gemma3": (
        "gemma",
        lambda **o: hf.Gemma3TextConfig(
            **GROUPED, **HEADS, sliding_window=12, final_logit_softcapping=20.0, tie_word_embeddings=True,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], **o,
        ),
    ),
    "phi3": ("mistral", lambda **o: hf.Phi3Config(**GROUPED, **o)),
}  # fmt: skip
ENCODERS: dict[str, Callable[..., Any]] = {
    "bert": lambda **o: hf.BertConfig(**{**SIZES, **NO_DROPOUT, **o}),
    "distilbert": lambda **o: hf.DistilBertConfig(
        dim=32, hidden_dim=48, n_layers=3, n_heads=4, max_position_embeddings=256, initializer_range=0.15,
        dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, **o,
    ),
    "roberta": lambda **o: hf.RobertaConfig(**{**SIZES, **NO_DROPOUT, "type_vocab_size": 1, **o}),
}  # fmt: skip
KINDS = (*DECODERS, *ENCODERS)
VISION: dict[str, Callable[..., Any]] = {
    "resnet": lambda **o: hf.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 1, 1], layer_type="basic", **o
    ),
    "vit": lambda **o: hf.ViTConfig(
        **{**{k: v for k, v in SIZES.items() if k != "max_position_embeddings"}, **NO_DROPOUT, **o}, image_size=16,
        patch_size=8,
    ),
}  # fmt: skip
"""Convolutions with batch norms, and a transformer."""
TWO_TOWERS = {"clip": hf.CLIPConfig, "siglip": hf.SiglipConfig}
"""Image and text in one space."""

PIPELINES = ("sd1", "sd2", "sdxl", "flow")
"""Diffusion: epsilon; v-prediction; two text encoders and sizes as conditions; a flow-matching schedule."""

# Decoders that are not in every table, but have something of their own.
OTHERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "qwen3_moe": (
        "qwen3",
        lambda **o: hf.Qwen3MoeConfig(
            **GROUPED, **HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, **o
        ),
    ),
    "qwen2": ("qwen3", lambda **o: hf.Qwen2Config(**GROUPED, tie_word_embeddings=True, **o)),
    "bloom": ("qwen3", lambda **o: hf.BloomConfig(hidden_size=32, n_layer=3, n_head=4, initializer_range=0.15, **o)),
    "mamba": ("qwen3", lambda **o: hf.MambaConfig(hidden_size=32, num_hidden_layers=3, initializer_range=0.15, **o)),
    "gpt_neox": ("qwen3", lambda **o: hf.GPTNeoXConfig(**SIZES, **o)),
}


def make_base(folder: Path, kind: str, **options: Any) -> Path:
    """Write a tiny base of this kind; `options` go to its configuration. Weights are random but always the same."""
    if kind == "module":
        begin("tests.networks:lived_net", ModuleConfig(image=SMALL), None, folder)
        return folder
    if kind in VISION:
        return make_vision_base(folder, kind, **options)
    if kind in TWO_TOWERS:
        return make_two_towers(folder, kind)
    if kind in PIPELINES:
        from tests.pipelines import make_pipeline

        return make_pipeline(folder, kind)
    if kind in DECODERS or kind in OTHERS:
        family, make_config = {**DECODERS, **OTHERS}[kind]
        tokenizer, auto = tiny_tokenizer(family), hf.AutoModelForCausalLM
    else:
        tokenizer, make_config, auto = encoder_tokenizer(kind), ENCODERS[kind], hf.AutoModelForMaskedLM
    special = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = make_config(vocab_size=len(tokenizer), **special, **options)
    random_weights(auto, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SMALL = Preprocessing(resize=16, crop=16)


def make_vision_base(folder: Path, kind: str, **options: Any) -> Path:
    """A backbone without a head that is fed 16 × 16 pixels."""
    module = random_weights(hf.AutoModel, VISION[kind](**options))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(8)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):  # as if it had seen images
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
                layer.num_batches_tracked.fill_(7)
    module.save_pretrained(folder)
    hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def random_weights(auto: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = auto.from_config(config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 1:  # biases of 0 and norms of 1 would hide that they are lost
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def make_two_towers(folder: Path, kind: str, tokenizer: Any = None) -> Path:
    """A model of images and texts that is fed 16 × 16 pixels and 24 tokens."""
    tokenizer = tokenizer or encoder_tokenizer("roberta")
    sizes = {k: v for k, v in SIZES.items() if k not in ("max_position_embeddings", "initializer_range")}
    ends = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, f"{token}_token"))
            for name, token in (("pad", "pad"), ("bos", "cls"), ("eos", "sep"))
            if getattr(tokenizer, f"{token}_token")}  # fmt: skip
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "projection_size": 32, **ends}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    config = TWO_TOWERS[kind](text_config=text, vision_config=vision)
    if kind == "clip":
        config.projection_dim, config.initializer_factor = 24, 3.0
    module = random_weights(hf.AutoModel, config)
    with torch.no_grad():
        module.logit_scale.fill_(2.0)
        if kind == "siglip":
            module.logit_bias.fill_(-1.5)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    hf.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(folder)
    return folder


def encoder_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Words, with [CLS] in front, [SEP] behind, and token types where the model has them."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words = trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 4, words)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if kind == "bert" else [])]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=inputs,
    )  # fmt: skip


# Rows

WORDS = ["the", "little", "fox", "lived", "in", "a", "forest", "she", "had", "four", "apples", "and", "many", "Paris"]


def words(number: int, count: int) -> str:
    """`count` words that depend on `number` alone."""
    return " ".join(WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(count))


def completions(count: int = 12) -> list[dict[str, Any]]:
    """Prompts with answers of very unequal lengths."""
    return [{"prompt": words(i, 2 + i % 5) + " ", "completion": words(i + 3, 1 + (i * 5) % 13)} for i in range(count)]


def chats(count: int = 12) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": words(i, 3 + i % 4)},
                {"role": "assistant", "content": words(i + 1, 1 + (i * 3) % 7)},
            ]
        }
        for i in range(count)
    ]


def labelled(count: int = 16, classes: int = 3) -> list[dict[str, Any]]:
    return [{"text": words(i, 2 + (i * 5) % 11), "label": f"class {i % classes}"} for i in range(count)]


def pictures(count: int = 16, classes: int = 3) -> list[dict[str, Any]]:
    """Noise of 20 × 24 pixels, brighter in one colour for each class."""
    rows = []
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 160, (20, 24, 3))
        values[..., i % classes] += 90
        file = BytesIO()
        Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": f"class {i % classes}"})
    return rows


def captioned(count: int = 6, side: int = 16) -> list[dict[str, Any]]:
    """Noise with a bright half, and a caption that names its colour."""
    rows = []
    for i in range(count):
        values = np.random.default_rng(i).integers(0, 90, (side, side, 3))
        values[:, : side // 2, i % 3] += 150
        file = BytesIO()
        Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "text": f"a {('red', 'green', 'blue')[i % 3]} wall, number {i}"})
    return rows


def preferences(count: int = 12, margins: bool = False) -> list[dict[str, Any]]:
    """Prompts with a good and a bad answer, of very unequal lengths."""
    return [
        {
            "prompt": words(i, 3 + i % 9) + " ",
            "chosen": words(i + 3, 1 + (i * 5) % 13),
            "rejected": "a " + words(i + 4, 1 + (i * 3) % 7),
            **({"margin": (i % 3) / 2} if margins else {}),
        }
        for i in range(count)
    ]


def rankings(count: int = 12) -> list[dict[str, Any]]:
    """Two to five answers to a prompt, the best first."""
    return [
        {
            "prompt": words(i, 3 + i % 4) + " ",
            "answers": [f"{n} {words(i + n, 1 + (i + n) % 6)}" for n in range(2 + i % 4)],
        }
        for i in range(count)
    ]


def rated(count: int = 12) -> list[dict[str, Any]]:
    return [{**row, "label": i % 3 != 0} for i, row in enumerate(completions(count))]


def asked(count: int = 12) -> list[dict[str, Any]]:
    """Prompts alone."""
    return [{"prompt": row["prompt"]} for row in completions(count)]


ROWS = {
    "text-generation": completions,
    "text-classification": labelled,
    "image-classification": pictures,
    "text-to-image": captioned,
}


OBJECTIVES: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "preference": preferences,
    "reward": preferences,
    "rl": asked,
}
REWARDED = {"type": "rl", "max_new_tokens": 5, "rewards": [{"type": "length", "max": 4}]}


def objective(name: str) -> Any:
    """The recipe's words for an objective, with what it cannot do without."""
    return REWARDED if name == "rl" else name


def rows_for(task: str, count: int = 12, objective: str = "supervised") -> list[dict[str, Any]]:
    return (ROWS[task] if objective == "supervised" else OBJECTIVES[objective])(count)
