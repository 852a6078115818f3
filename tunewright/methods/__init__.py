"""One file a method. Their modules import torch only when used, so a recipe can be read without it."""

from tunewright.methods.adapter import Adapter
from tunewright.methods.base import Method
from tunewright.methods.freeze import Freeze
from tunewright.methods.full import Full
from tunewright.methods.head import Head
from tunewright.methods.lora import LoRA
from tunewright.methods.peft import Peft
from tunewright.methods.textual_inversion import TextualInversion

METHODS: dict[str, type[Method]] = {
    m.model_fields["type"].default: m for m in (LoRA, Full, Freeze, Head, Adapter, Peft, TextualInversion)
}

__all__ = ["METHODS", "Adapter", "Freeze", "Full", "Head", "LoRA", "Method", "Peft", "TextualInversion"]
