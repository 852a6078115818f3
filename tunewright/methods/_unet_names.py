"""The names of a U-Net's and a CLIP text encoder's layers: diffusers', Stability's original ones, and kohya's.

kohya's scripts write a layer's name with underscores in place of dots. For Stable Diffusion 1 and 2 it is diffusers'
name, for SDXL the original one: `input_blocks_4_1_proj_in` is `down_blocks.1.attentions.0.proj_in`.
"""

from __future__ import annotations

import re

RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1"}
RESNET |= {"conv_shortcut": "skip_connection"}
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
WORDS = (
    *("input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection"),
    *("time_embed", "label_emb", "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "time_embedding"),
    *("add_embedding", "linear_1", "linear_2", "time_emb_proj", "conv_in", "conv_out", "conv_shortcut", "proj_in"),
    *("proj_out", "to_q", "to_k", "to_v", "to_out"),
    *("text_model", "text_projection", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
)
"""Names of modules with an underscore of their own."""
WORD = re.compile("|".join([*(rf"{word}(?=_|$)" for word in sorted(WORDS, key=len, reverse=True)), "[a-z0-9]+"]))


def dotted(name: str) -> str:
    """`down_blocks_0_attentions_1_proj_in` as `down_blocks.0.attentions.1.proj_in`."""
    return ".".join(WORD.findall(name))


def is_original(name: str) -> bool:
    """Whether a layer of a U-Net is named as in Stability's code."""
    return name.startswith(("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out."))


def to_original(name: str, layers: int) -> str:
    """A U-Net layer's original name from diffusers' one. `layers` is the U-Net's `layers_per_block`.

    Raises KeyError for what the original has no name for.
    """
    if name in OUTSIDE:
        return OUTSIDE[name]
    block, *rest = name.split(".")
    if block == "mid_block":
        kind, number, *inner = rest
        return _joined("middle_block", MIDDLE[f"{kind}.{number}"], _inside(kind, inner, RESNET))
    at, kind, number, *inner = rest
    if block == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(int(at) + 1) * (layers + 1)}.0.op"
        place = int(at) * (layers + 1) + int(number) + 1
        return _joined("input_blocks", str(place), str(KINDS.index(kind)), _inside(kind, inner, RESNET))
    if block == "up_blocks":
        within = layers if kind == "upsamplers" else int(number)
        place = int(at) * (layers + 1) + within
        return _joined("output_blocks", str(place), str(KINDS.index(kind)), _inside(kind, inner, RESNET))
    raise KeyError(name)


def from_original(name: str, layers: int) -> str:
    """A U-Net layer's name in diffusers from the original one. Raises KeyError or ValueError for what is none."""
    if name in OUTSIDE.values():
        return _flipped(OUTSIDE)[name]
    block, place, *rest = name.split(".")
    if block == "middle_block":
        found = _flipped(MIDDLE)[place]
        return _joined("mid_block", found, _inside(found.split(".")[0], rest, _flipped(RESNET)))
    kind, inner = KINDS[int(rest[0])], rest[1:]
    if block == "input_blocks":
        at, number = divmod(int(place) - 1, layers + 1)
        if inner == ["op"]:
            return f"down_blocks.{at}.downsamplers.0.conv"
        return _joined("down_blocks", f"{at}.{kind}.{number}", _inside(kind, inner, _flipped(RESNET)))
    if block == "output_blocks":
        at, number = divmod(int(place), layers + 1)
        if inner == ["conv"]:
            return f"up_blocks.{at}.upsamplers.0.conv"
        return _joined("up_blocks", f"{at}.{kind}.{number}", _inside(kind, inner, _flipped(RESNET)))
    raise KeyError(name)


KINDS = ("resnets", "attentions", "upsamplers")
"""In the order in which they follow each other in a block of the original that has attention, as all of SDXL's do that
sample up."""


def _inside(kind: str, inner: list[str], names: dict[str, str]) -> str:
    """What follows the block: attention has the same names in both, a residual block has not."""
    return names[".".join(inner)] if kind == "resnets" else ".".join(inner)


def _flipped(names: dict[str, str]) -> dict[str, str]:
    return {value: key for key, value in names.items()}


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)
