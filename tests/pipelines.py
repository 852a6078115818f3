"""Tiny random pipelines of diffusers' real classes, as folders that look like what people download.

About 450 KB each (SDXL: 680). Weights are wide enough that captions and images differ visibly in what comes out, and
biases and norms are not 0 and 1.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from tests.conftest import SHARED
from tests.tiny import PIPELINES, captioned

diffusers = pytest.importorskip("diffusers")

__all__ = ["PIPELINES", "captioned", "make_pipeline"]

MERGES = 200
SIDE = 16
"""Pixels of an image's side; a latent has a half of that."""


def make_pipeline(folder: Path, kind: str) -> Path:
    """Write a tiny pipeline of this kind. Weights are random but always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        pipeline = _sdxl() if kind == "sdxl" else _sd(kind)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                _enliven(part)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@cache
def clip_merges() -> tuple[str, ...]:
    """The first merges of CLIP's own byte-pair encoding; none where it is absent, so that every byte is a token."""
    path = SHARED / "models" / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        return ()
    return tuple(gzip.decompress(path.read_bytes()).decode().split("\n")[1 : MERGES + 1])


def clip_tokenizer(pad: str = "<|endoftext|>") -> hf.CLIPTokenizer:
    """CLIP's tokenizer with the first of its merges, and rows of 77 tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges = [tuple(merge.split()) for merge in clip_merges()]
    words = [
        *alphabet,
        *(f"{byte}</w>" for byte in alphabet),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    words += [] if pad in words else [pad]
    vocab = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return hf.CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def _sd(kind: str) -> Any:
    tokenizer = clip_tokenizer("!" if kind == "sd2" else "<|endoftext|>")
    return diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=hf.CLIPTextModel(_text_config(tokenizer, "gelu" if kind == "sd2" else "quick_gelu")),
        tokenizer=tokenizer,
        unet=diffusers.UNet2DConditionModel(**UNET, attention_head_dim=4),
        scheduler=_scheduler(kind),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> Any:
    one, two = clip_tokenizer(), clip_tokenizer("!")
    return diffusers.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=hf.CLIPTextModel(_text_config(one, "quick_gelu")),
        text_encoder_2=hf.CLIPTextModelWithProjection(_text_config(two, "gelu", projection_dim=12)),
        tokenizer=one,
        tokenizer_2=two,
        unet=diffusers.UNet2DConditionModel(
            **{**UNET, "cross_attention_dim": 32},
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12 + 6 * 4,
        ),
        scheduler=_scheduler("sdxl"),
    )


UNET: dict[str, Any] = {
    "sample_size": SIDE // 2,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "norm_num_groups": 4,
}


def _vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=SIDE,
    )


def _text_config(tokenizer: Any, activation: str, **options: Any) -> Any:
    return hf.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _scheduler(kind: str) -> Any:
    if kind == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction" if kind == "sd2" else "epsilon",
    )


def _enliven(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif isinstance(module, hf.PreTrainedModel):
                parameter.normal_(0, 0.15)
