"""What lies in memory: bases, LoRAs on them, and models of their own, under a budget in bytes.

What was used longest ago goes first, and never what is in use. A model is loaded when it is first asked for, by one
thread, while others answer. A name always means the same, so what is loaded is never loaded again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from tunewright.artifacts.fingerprint import files_of
from tunewright.artifacts.interpolate import load as load_point
from tunewright.artifacts.load import card_of_adapter, infer_task, is_adapter, load_whole, weights_folder
from tunewright.data.render import Renderer
from tunewright.engine.device import pick_device, pick_precision
from tunewright.errors import BaseModelError, MethodError, TunewrightError
from tunewright.service.errors import Refused, missing
from tunewright.service.inference.adapters import Bank, terms_of
from tunewright.service.inference.protocol import Loaded, ModelRef
from tunewright.service.inference.stacks import Lora, Terms
from tunewright.tasks._pretrained import context_length, load_config, load_tokenizer, load_weights, task_with_head
from tunewright.tasks._rows import Form, form_of
from tunewright.tasks.base import Model

log = logging.getLogger(__name__)

WAIT = 30.0
"""Seconds that a model waits for others to be done with, where there is no room."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(eq=False)
class Module:
    """A torch module that rows share, and how it is called. `bank` where it may have LoRAs."""

    module: Any
    bank: Bank | None = None
    form: Form | None = None


@dataclass(eq=False)
class _Entry:
    name: str
    kind: str
    bytes: int
    model: Model | None = None
    shared: Module | None = None
    lora: Lora | None = None
    below: _Entry | None = None
    """The base of a LoRA, which stays as long as it does."""
    used: int = 0
    last: float = 0.0


@dataclass(frozen=True, eq=False)
class Ready:
    """A model in memory, until it is given back.

    Attributes:
        model: what feeds it: its processor, whether it chats, its task.
        shared: its module, of which the rows of others may make use at the same time.
        terms: the LoRAs that its rows use.
    """

    ref: ModelRef
    model: Model
    shared: Module
    terms: Terms = ()
    entries: tuple[_Entry, ...] = field(default=(), repr=False)

    @property
    def renderer(self) -> Renderer:
        """Kept with the model, as it keeps what it learned of the tokenizer."""
        found: Renderer = vars(self.model).setdefault("_renderer", Renderer(self.model.processor))
        return found

    @property
    def limit(self) -> int:
        return context_length(self.model)


class Models:
    """The models in memory.

    Args:
        memory: the budget in bytes; what weights leave of it is for keys and values.
        device, precision: `auto`, or as in a recipe's training.
    """

    def __init__(self, memory: int, device: str = "auto", precision: str = "auto") -> None:
        self.memory = memory
        self.device = pick_device(device)
        self.dtype = DTYPES[pick_precision(precision, self.device)]
        self._entries: dict[Any, _Entry] = {}
        self._ready: dict[ModelRef, Ready] = {}
        self._change = threading.Condition()
        self._loading = threading.Lock()

    def at_hand(self, ref: ModelRef) -> Ready | None:
        """The model if it is loaded, for use until it is given back."""
        with self._change:
            ready = self._ready.get(ref)
            return self._use(ready) if ready else None

    def take(self, ref: ModelRef) -> Ready:
        """The model for use until it is given back; loaded first, if need be, which takes its time.

        Raises Refused: 404 where there is none, 400 where there is no such point or it is too large, 503 where there is
        no room now, 500 where it cannot be loaded.
        """
        with self._loading:
            if found := self.at_hand(ref):
                return found
            try:
                ready = self._load(ref)
            except Refused:
                raise
            except MethodError as error:
                raise (Refused(400, str(error), param="model") if ref.alpha < 1 else _broken(ref)) from error
            except (TunewrightError, SafetensorError, OSError, RuntimeError, ValueError) as error:
                log.exception("%s cannot be loaded", ref.shown)
                raise _broken(ref) from error
            with self._change:
                self._ready[ref] = ready
                return self._use(ready)

    def give_back(self, ready: Ready) -> None:
        with self._change:
            for entry in ready.entries:
                entry.used -= 1
            self._change.notify_all()

    def loaded(self) -> list[Loaded]:
        with self._change:
            return [Loaded(entry.name, entry.kind, entry.bytes, entry.used) for entry in self._entries.values()]

    def spare(self) -> int:
        """Bytes of the budget that weights leave."""
        with self._change:
            return self.memory - sum(entry.bytes for entry in self._entries.values())

    def _use(self, ready: Ready) -> Ready:
        for entry in ready.entries:
            entry.used, entry.last = entry.used + 1, time.monotonic()
        return ready

    # Loading, by one thread at a time

    def _load(self, ref: ModelRef) -> Ready:
        run = _run_of(ref)
        if (ref.run_folder or run.is_absolute()) and not run.is_dir():
            raise missing("model", ref.shown, "model_not_found")
        weights = weights_folder(run)
        if ref.run_folder or is_adapter(weights):
            return self._beside(ref, run) or self._apart(ref, run)
        entry = self._base(str(weights), ref.base)
        assert entry.model and entry.shared
        return Ready(ref, entry.model, entry.shared, entries=(entry,))

    def _base(self, folder: str, name: str) -> _Entry:
        key = ("base", folder)
        if key not in self._entries:
            if Path(folder).is_absolute() and not Path(folder).is_dir():
                raise missing("model", name, "model_not_found")
            with self._room(key, name, self._numbers(folder)):
                model = _load_base(folder, name, str(self.dtype).removeprefix("torch."))
                self._put(key, _entry(name, "base", model, self.device))
        return self._entries[key]

    def _beside(self, ref: ModelRef, run: Path) -> Ready | None:
        """A run that is LoRAs on a base; None where it is more than that, or the base cannot share its rows."""
        terms = terms_of(run, ref.alpha)
        if terms is None:
            return None
        weights = weights_folder(run)
        below = self._base(card_of_adapter(weights).base, ref.base)
        shared = below.shared
        assert below.model and shared
        with self._held(below):
            tokenizer = self._tokenizer(ref, weights)
            rows = shared.module.get_input_embeddings().num_embeddings
            if not shared.bank or not shared.form or not shared.form.joins or (tokenizer and len(tokenizer) > rows):
                return None
            entries = [self._lora(folder, ref, below) for folder, _ in terms]
        if not all(entries):
            return None
        card = card_of_adapter(weights)
        model = Model(
            below.model.module, tokenizer or below.model.processor, below.model.task, below.model.base,
            chats=card.chats, max_length=card.max_length,
        )  # fmt: skip
        used = tuple((entry.lora, factor) for entry, (_, factor) in zip(entries, terms, strict=True) if entry)
        kept = tuple(entry for entry in entries if entry)
        return Ready(ref, model, shared, used, (*kept, below))  # type: ignore[arg-type]

    def _tokenizer(self, ref: ModelRef, weights: Path) -> Any:
        """The run's own, of which all points of its path make use; None where it has the base's."""
        found = [ready.model.processor for other, ready in self._ready.items() if _run_of(other) == _run_of(ref)]
        own = (weights / "tokenizer_config.json").is_file()
        return (found[0] if found else load_tokenizer(str(weights))) if own else None

    def _lora(self, folder: Path, ref: ModelRef, below: _Entry) -> _Entry | None:
        key = ("lora", str(folder))
        if key not in self._entries:
            assert below.shared and below.shared.bank
            bank = below.shared.bank
            with self._room(key, ref.shown, 2 * self._numbers(str(folder))):
                lora = bank.read(folder)
                if lora is None:
                    return None
                entry = _Entry(ref.name or ref.base, "adapter", bank.bytes_of(lora), lora=lora, below=below)
                try:
                    self._grow(key, entry)
                except Refused:
                    bank.forget(lora)
                    raise
                self._put(key, entry)
        return self._entries[key]

    def _apart(self, ref: ModelRef, run: Path) -> Ready:
        key = ("own", str(run), ref.alpha)
        if key not in self._entries:
            weights = weights_folder(run)
            with self._room(key, ref.shown, self._whole(ref.base_folder) + self._numbers(str(weights))):
                model = load_point(run, alpha=ref.alpha)
                model.module.to(self.dtype)
                self._put(key, _entry(ref.shown, "own", model, self.device))
        entry = self._entries[key]
        assert entry.model and entry.shared
        return Ready(ref, entry.model, entry.shared, entries=(entry,))

    def _numbers(self, folder: str) -> int:
        """The bytes that the files of a folder take in memory."""
        from safetensors import safe_open

        count = 0
        for path in files_of(folder):
            with safe_open(path, framework="pt") as file:
                count += sum(_product(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 - no mapping
        return count * self.dtype.itemsize

    def _whole(self, base: str) -> int:
        """The bytes of a base, which may be a run, with what lies below that."""
        weights = weights_folder(base)
        below = self._whole(card_of_adapter(weights).base) if is_adapter(weights) else 0
        return below + self._numbers(str(weights))

    # The budget

    @contextmanager
    def _room(self, key: Any, name: str, size: int) -> Iterator[None]:
        """Inside, the budget holds room for what is being loaded."""
        with self._change:
            self._make_room(name, size)
            self._entries[key] = _Entry(name, "loading", size, used=1)
        try:
            yield
        finally:
            with self._change:
                if self._entries[key].kind == "loading":
                    del self._entries[key]

    @contextmanager
    def _held(self, entry: _Entry) -> Iterator[None]:
        """Inside, an entry is in use."""
        with self._change:
            entry.used += 1
        try:
            yield
        finally:
            with self._change:
                entry.used -= 1

    def _make_room(self, name: str, size: int) -> None:
        if size > self.memory:
            raise Refused(
                400, f"{name} takes {size / 1e9:.2g} GB of memory, and there are {self.memory / 1e9:.2g}.",
                "model_too_large", "model",
            )  # fmt: skip
        until = time.monotonic() + WAIT
        while sum(entry.bytes for entry in self._entries.values()) + size > self.memory:
            pinned = {id(entry.below) for entry in self._entries.values()}
            idle = [(e.last, key) for key, e in self._entries.items() if not e.used and id(e) not in pinned]
            if idle:
                self._drop(min(idle, key=lambda one: one[0])[1])
            elif not self._change.wait(until - time.monotonic()) and time.monotonic() >= until:
                raise Refused(
                    503, f"There is no room for {name} beside the models that answer now. Ask again in a moment.",
                    headers={"Retry-After": "10"},
                )  # fmt: skip

    def _grow(self, key: Any, entry: _Entry) -> None:
        """Make room for what an entry takes beyond what was thought when its loading began."""
        with self._change:
            self._make_room(entry.name, max(0, entry.bytes - self._entries[key].bytes))

    def _drop(self, key: Any) -> None:
        entry = self._entries.pop(key)
        self._ready = {ref: ready for ref, ready in self._ready.items() if entry not in ready.entries}
        if entry.lora and entry.below and entry.below.shared and entry.below.shared.bank:
            entry.below.shared.bank.forget(entry.lora)

    def _put(self, key: Any, entry: _Entry) -> None:
        with self._change:
            entry.last = time.monotonic()
            self._entries[key] = entry


def _run_of(ref: ModelRef) -> Path:
    """Where what answers lies: a run, or a base that may be one itself."""
    return Path(ref.run_folder or ref.base_folder)


def _load_base(folder: str, name: str, dtype: str) -> Model:
    """For what it was made for; a trunk of a language model that was made for nothing can embed.

    Raises Refused (400) for any other trunk.
    """
    try:
        task = infer_task(folder)
    except BaseModelError:
        return _load_trunk(folder, name, dtype)
    return load_whole(folder, task, dtype)


def _load_trunk(folder: str, name: str, dtype: str) -> Model:
    from transformers import AutoModel

    config = load_config(folder)
    if not config.is_encoder_decoder and task_with_head(config) != "image-classification":
        module = load_weights(AutoModel, folder, config, dtype=dtype)[0]
        if module.main_input_name == "input_ids":
            return Model(module, load_tokenizer(folder), None, folder)  # type: ignore[arg-type]
    raise Refused(400, f"{name} has no trained head, so there is nothing to ask it: tune it first.", param="model")


def _entry(name: str, kind: str, model: Model, device: torch.device) -> _Entry:
    module = model.module.to(device).eval()
    shared = Module(module)
    if hasattr(model.task, "generate"):
        shared.form = form_of(module)
        shared.bank = Bank(module) if kind == "base" else None
        quick = shared.form.quick
        if quick and (not shared.bank or shared.bank.reads_as_one(quick.joints)):
            quick.join(shared.bank.add if shared.bank else None)
    size = sum(part.nbytes for part in (*module.parameters(), *module.buffers()))
    return _Entry(name, kind, size, model=model, shared=shared)


def _product(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())


def _broken(ref: ModelRef) -> Refused:
    return Refused(500, f"The model {ref.shown} cannot be loaded. The server's log says why.", "model_not_loadable")
