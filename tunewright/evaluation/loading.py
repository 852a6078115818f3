"""How to load what a run saved, as snippets to copy: with Tunewright, and with the libraries whose format it is."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AUTO_CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
}
"""The transformers class of each task that has one."""


USES = {
    "text-generation": ("chat", "'What do you do?'"),
    "text-classification": ("predict", "['A text to classify']"),
    "image-classification": ("predict", "['photo.jpg']"),
    "text-to-image": ("generate", "{prompt!r}"),
}
"""What each task's model is asked with: the function of `tunewright`, which is also the command, and a question."""


@dataclass(frozen=True)
class Snippet:
    title: str
    code: str


def snippets(run: Mapping[str, Any], run_folder: Path, prompt: str = "A photo") -> list[Snippet]:
    """The ways to load the model of a run.

    Args:
        run: run.json; `saved_as`, `task` and `base` decide which libraries can read the model.
        run_folder: written into the snippets as given.
        prompt: what a model for text-to-image is asked for.
    """
    folder, model = run_folder.as_posix(), (run_folder / "model").as_posix()
    task = str(run.get("task"))
    found = []
    if task in USES:
        verb, question = USES[task]
        drawn = task == "text-to-image"
        question = question.format(prompt=prompt) if drawn else question
        more = f" --prompt {shlex.quote(prompt)} --alpha 0 --alpha 1" if drawn else ""
        found = [
            Snippet("Python", f"import tunewright as tw\n\nmodel = tw.load({folder!r})\ntw.{verb}(model, {question})"),
            Snippet("Command line", f"tunewright {verb} {shlex.quote(folder)}{more}"),
        ]
        if drawn:
            found.append(Snippet("diffusers", _pipeline(run, model, prompt)))
    if run.get("factory") and run.get("saved_as") == "transformers":
        found.append(Snippet("torch", _state_dict(model)))
    auto_class = None if run.get("factory") or _has_prompt_head(run) else AUTO_CLASSES.get(task)
    if auto_class and run.get("saved_as") == "peft":
        found.append(Snippet("PEFT and transformers", _peft(auto_class, str(run.get("base")), model, _classes(run))))
    if auto_class and run.get("saved_as") == "transformers":
        found.append(
            Snippet("transformers", f"from transformers import {auto_class}\n\n{_from_pretrained(auto_class, model)}")
        )
    return found


def _pipeline(run: Mapping[str, Any], model: str, prompt: str) -> str:
    """Diffusers' own way: a whole pipeline, or a LoRA or a word on its base."""
    saved = run.get("saved_as")
    place = model if saved == "transformers" else str(run.get("base"))
    lines = ["from diffusers import DiffusionPipeline", "", f"pipe = DiffusionPipeline.from_pretrained({place!r})"]
    if saved == "peft":
        lines.append(f"pipe.load_lora_weights({model!r})")
    if saved == "embeddings":
        lines = _word(run, lines, model + "/learned_embeds.safetensors")
    return "\n".join([*lines, f"pipe({prompt!r}).images[0].save('image.png')"])


def _word(run: Mapping[str, Any], lines: list[str], file: str) -> list[str]:
    """A textual inversion; of SDXL a part for each of its text encoders."""
    if not any("text_encoder_2." in str(name) for name in (run.get("parameters") or {}).get("names") or []):
        return [*lines, f"pipe.load_textual_inversion({file!r})"]
    token = str((run.get("method") or {}).get("token"))
    second = "text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2"
    return [
        "from safetensors.torch import load_file",
        *lines,
        f"word = load_file({file!r})",
        f"pipe.load_textual_inversion(word['clip_l'], token={token!r})",
        f"pipe.load_textual_inversion(word['clip_g'], token={token!r}, {second})",
    ]


def _has_prompt_head(run: Mapping[str, Any]) -> bool:
    """Whether the head began as one of prompts, which is of no class of transformers'."""
    return any("prompt_head" in str(name) for name in (run.get("parameters") or {}).get("names") or [])


def _state_dict(model: str) -> str:
    return (
        "from safetensors.torch import load_file\n\n"
        "# its head has as many outputs as there are classes\n"
        f"module.load_state_dict(load_file({model + '/model.safetensors'!r}))"
    )


def _peft(auto_class: str, base: str, model: str, classes: int) -> str:
    """PEFT does not record the size of a new head: the base must be given it, or the saved head does not fit."""
    size = f", num_labels={classes}" if classes and auto_class != "AutoModelForCausalLM" else ""
    return (
        f"from peft import PeftModel\nfrom transformers import {auto_class}\n\n"
        f"base = {auto_class}.from_pretrained({base!r}{size})\nmodel = PeftModel.from_pretrained(base, {model!r})"
    )


def _from_pretrained(auto_class: str, model: str) -> str:
    return f"model = {auto_class}.from_pretrained({model!r})"


def _classes(run: Mapping[str, Any]) -> int:
    """How many outputs the head has; 0 where that is not recorded."""
    if run.get("kind") == "regression":
        return 1
    return len(run.get("labels") or ((run.get("data") or {}).get("train") or {}).get("label_counts") or {})
