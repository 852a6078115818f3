"""Loading what was saved: a run, an adapter's folder, a model's folder, a name on the hub.

A folder with weights and nothing else is enough; a run is its `model/`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from tunewright.artifacts.card import CARD, Card, read_card
from tunewright.artifacts.fingerprint import refuse_lost, refuse_other_weights
from tunewright.artifacts.save import save
from tunewright.errors import BaseModelError, MethodError
from tunewright.methods import Full, LoRA, Method
from tunewright.methods._diffusers_file import refuse_file
from tunewright.methods._lora_file import CONFIG as PEFT_CONFIG
from tunewright.methods._lora_file import WEIGHTS, stackable
from tunewright.methods._peft import attach_folder, merge_adapter
from tunewright.methods.adapter import CONFIG as ADAPTER_CONFIG
from tunewright.methods.textual_inversion import EMBEDS, join_rows
from tunewright.tasks import task_class
from tunewright.tasks._factories import allow, give, is_factory
from tunewright.tasks._modules import FILE, is_module_folder
from tunewright.tasks._pipeline import is_pipeline
from tunewright.tasks._pretrained import load_config, load_tokenizer, task_with_head
from tunewright.tasks._vocabulary import grow_vocabulary
from tunewright.tasks.base import Model, Task
from tunewright.tiny_base import in_package

TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForSequenceClassification": "text-classification",
    "ForImageClassification": "image-classification",
}
"""By how the names of architectures end."""
HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
"""How architectures call the last layer of a classifier."""


def load(where: str | PathLike[str], device: str = "cpu", task: str | None = None) -> Model:
    """A model as it was trained, ready to predict: `.module` is the torch module, in eval mode.

    Args:
        where: a run, an adapter's folder, a model's folder, a name on the hub, or "tiny".
        device: a torch device.
        task: needed only where a model's folder does not tell.

    Raises:
        BaseModelError, MethodError: there is no model, or its parts do not fit together.
    """
    where = in_package(str(where))
    folder = weights_folder(where)
    whole = str(folder if folder.exists() else where)
    model = load_adapter(folder) if is_adapter(folder) else load_whole(whole, task)
    model.module.to(device).eval()
    return model


def load_whole(base: str, task: str | None = None, dtype: str | None = None) -> Model:
    """The model in a folder with all of its weights, or of the hub; fed as it was trained, where a card says how.

    Args:
        task: needed only where the folder does not tell.
        dtype: the name of what its weights become; None: float32.
    """
    card = read_card(Path(base))
    chosen = card.make_task() if card else task_class(task or infer_task(base))()
    model = chosen.load(base, dtype=dtype)
    if card:
        model.chats, model.max_length, model.pairs = card.chats, card.max_length, card.pairs
    return model


def load_start(base: str, task: Task, method: Method, folder: Path, seed: int = 0, dtype: str | None = None) -> Model:
    """The model that a run begins with. An earlier run's or an adapter's is merged into its base, in memory.

    A new LoRA on an old one will be saved stacked over the original base, which is exact. In all other cases the merged
    start is written to `folder`, and the new run's adapter refers to it.
    """
    weights = weights_folder(base)
    if not is_adapter(weights):
        return task.load(str(weights if weights.exists() else base), seed=seed, dtype=dtype)
    inner = load_adapter(weights)
    if (weights / ADAPTER_CONFIG).is_file():
        return _adapter_goes_on(inner, task, method, base, weights)
    if (weights / EMBEDS).is_file():
        return _joined(inner, task, folder, seed, dtype)
    merge_adapter(inner)
    config = json.loads((weights / PEFT_CONFIG).read_text(encoding="utf-8"))
    same_head = getattr(inner.task, "labels", None) == getattr(task, "labels", None)
    if isinstance(method, LoRA) and method.stacks and stackable(config) and same_head:
        inner.adapters = (weights,)
        inner.task = _as_begun(task, inner.task)
        return inner
    if not folder.exists():  # a run that is resumed, or shared by several processes, has it already
        save(inner, Full(), folder)
    return task.load(str(folder), seed=seed, dtype=dtype)


def _as_begun(task: Any, earlier: Any) -> Task:
    """A task for a model that goes on: its head is still the one that began with these prompts, if with any."""
    if hasattr(task, "templates"):
        task.templates = earlier.templates
    return task  # type: ignore[no-any-return]


def _joined(inner: Model, task: Task, folder: Path, seed: int, dtype: str | None) -> Model:
    """The base with the words that an earlier run taught it, written to `folder`."""
    join_rows(inner)
    if not folder.exists():
        save(inner, Full(), folder)
    return task.load(str(folder), seed=seed, dtype=dtype)


def weights_folder(where: str | PathLike[str]) -> Path:
    """Where the weights lie: a run's `model/`, or the folder itself, absolute. A hub name comes back as it is.

    Raises BaseModelError for a file, and for a run that has no model.
    """
    folder = Path(where).expanduser()
    refuse_file(folder)
    folder = folder.absolute() if folder.exists() else folder
    if (folder / "run.json").is_file():
        if not (folder / "model").is_dir():
            info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            if info.get("seeds"):
                raise BaseModelError(f"{folder} has a run for each seed: name one of them, such as {folder}/seed-*.")
            status = info.get("status", "unknown")
            if status == "finished":
                raise BaseModelError(
                    f"The model/ of the finished run {folder} is gone. To write it again from the run's last "
                    f"checkpoint: tunewright resume {folder}"
                )
            raise BaseModelError(
                f"The run {folder} has no model yet (it is {status}). Finish it: tunewright resume {folder}"
            )
        allow_code(folder)
        return folder / "model"
    return folder


def allow_code(run: Path) -> None:
    """Who names a run names the code that makes its module, where it has some."""
    found = json.loads((run / "run.json").read_text(encoding="utf-8")).get("factory")
    if found:
        allow(found["name"], found["code"])


def use_module(where: str | PathLike[str], module: Any) -> None:
    """Let a run, or a model's or adapter's folder, be made of this module, or of what this factory or its name makes.

    Raises BaseModelError where it is made of none.
    """
    folder = Path(where).expanduser()
    places = [folder / FILE, folder / "model" / FILE, folder / "start" / "base" / FILE]
    if is_adapter(folder):
        places.append(Path(card_of_adapter(folder).base) / FILE)
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise BaseModelError(
            f"base=…: {where} is not made of a torch module. Leave it out; if its base has moved, say so "
            f"once: tunewright relocate {where} --base FOLDER, or tw.relocate(RUN, base=FOLDER)."
        )
    give(json.loads(found.read_text(encoding="utf-8"))["factory"], module)


def shape_of(base: str) -> str:
    """The folder or name whose configuration has the base's shapes: for an adapter, the one below it."""
    folder = weights_folder(base)
    if is_adapter(folder):
        below = card_of_adapter(folder).base
        refuse_lost(below, run_of_weights(folder))
        return below
    return str(folder) if folder.exists() else base


def run_of_weights(folder: Path) -> Path:
    """The run whose `model/` a folder is, else the folder itself."""
    return folder.parent if (folder.parent / "run.json").is_file() else folder


def is_adapter(folder: Path) -> bool:
    named = (PEFT_CONFIG, ADAPTER_CONFIG, EMBEDS)
    return any((folder / name).is_file() for name in named)


def task_of_head(architectures: Sequence[str]) -> str | None:
    """The task of the head that a model's config names; None for a trunk, and for a head of other tasks."""
    return next((task for end, task in TASKS.items() for name in architectures if name.endswith(end)), None)


def infer_task(base: str, by_kind: bool = False, advice: str = "Give the task.") -> str:
    """The task that a model says it was made for. Raises BaseModelError where that is none of ours.

    Args:
        by_kind: for a trunk that was made for none, the task that transformers has a head for on models of its kind.
        advice: what to do where it does not say.
    """
    folder = weights_folder(base)
    if is_adapter(folder):
        return card_of_adapter(folder).task
    card = read_card(folder)
    if card:
        return card.task
    if is_factory(base) or is_module_folder(str(folder)):
        return "image-classification"
    if is_pipeline(str(folder)):
        return "text-to-image"
    config = load_config(str(folder) if folder.exists() else base)
    architectures = config.architectures or []
    if found := task_of_head(architectures):
        return found
    if by_kind and (found := task_with_head(config)):
        return found
    raise BaseModelError(
        f"{base} does not tell what it is for ({', '.join(architectures) or 'no architecture'}). {advice}"
    )


def load_adapter(folder: Path) -> Model:
    """An adapter on its base."""
    model = below_adapter(folder)
    put_on(model, folder)
    return model


def below_adapter(folder: Path) -> Model:
    """The base of an adapter, fed as the adapter's run was, with a head that is not the adapter's yet."""
    card = card_of_adapter(folder)
    refuse_lost(card.base, run_of_weights(folder))
    refuse_other_weights(card.base, card.base_sha256, folder / CARD)
    model = card.make_task().load(card.base)
    model.chats, model.max_length, model.pairs = card.chats, card.max_length, card.pairs
    if (folder / "tokenizer_config.json").is_file():
        model.processor = load_tokenizer(str(folder))
    if hasattr(model.processor, "as_in"):
        model.processor = model.processor.as_in(folder)
    if card.task == "text-generation":
        grow_vocabulary(model)
    card.make_method().extend(model)
    return model


def put_on(model: Model, folder: Path) -> None:
    """Put the adapter in `folder` onto its base, in place, with all that trained along."""
    if (folder / PEFT_CONFIG).is_file():
        attach_folder(model, folder)
    else:
        card_of_adapter(folder).make_method().restore(model, folder)
    model.notices.clear()  # the head that was new on the base has just been restored


def card_of_adapter(folder: Path) -> Card:
    """The card beside an adapter; for one that others made, what PEFT's own configuration tells."""
    card = read_card(folder)
    if card:
        beside = folder.parent / "start" / "base"  # of a run that was moved
        return replace(card, base=str(beside)) if beside.is_dir() and not Path(card.base).exists() else card
    if not (folder / PEFT_CONFIG).is_file():
        raise BaseModelError(f"{folder} has no {CARD}, which says what its weights belong to. Name its run.")
    config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    tasks = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification"}
    if not base or config.get("task_type") not in tasks:
        raise BaseModelError(f"{folder / PEFT_CONFIG} names no base, or a task_type other than CAUSAL_LM and SEQ_CLS.")
    method = {"type": "peft", "config": {"peft_type": config["peft_type"]}}
    labels = _head_rows(folder) if config["task_type"] == "SEQ_CLS" else None
    return Card(tasks[config["task_type"]], base, method, labels=labels, kind="single_label" if labels else None)


def _head_rows(folder: Path) -> list[str] | None:
    """Numbers for the classes of a head that came along without their names; None where no head came along."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="pt") as file:
        heads = [name for name in file.keys() if name.endswith(HEADS)]  # noqa: SIM118 - it is no mapping
        rows = file.get_slice(heads[-1]).get_shape()[0] if heads else 0
    return [str(i) for i in range(rows)] or None


def _adapter_goes_on(inner: Model, task: Task, method: Method, base: str, weights: Path) -> Model:
    """A bottleneck adapter cannot be merged, but the same method can go on training it."""
    if method.type != "adapter":
        raise MethodError(
            f"{base} is a run with bottleneck adapters, which cannot be merged into the weights. Go on with "
            f"method: adapter, or begin from {inner.base}."
        )
    if getattr(inner.task, "labels", None) != getattr(task, "labels", None):
        raise MethodError(f"{base} was trained for other classes; its adapters can only go on with the same ones.")
    inner.adapters = (weights,)
    return inner
