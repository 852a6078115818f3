"""Exports that diffusers loads: a whole pipeline, a LoRA on one, a word that it learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Reader, Row, prompt_tokens


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
