"""What a run started from: its base, and what `start/` in its folder says of where it differed from that.

RUN/start/
  base/               the merged start, where a run went on from another one that could not be stacked
  adapter/            the earlier adapter, where a new LoRA was stacked on it, or it went on training itself
  head.safetensors    the new head after it was trained alone (`training.head_first`), by the model's parameter names
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.artifacts.card import read_card
from tunewright.artifacts.fingerprint import files_of, refuse_lost, refuse_other_weights
from tunewright.artifacts.load import below_adapter, card_of_adapter, is_adapter, load_adapter, weights_folder
from tunewright.errors import BaseModelError, MethodError
from tunewright.methods.base import plain_name
from tunewright.tasks._modules import layout_of
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import Tensor, nn

HEAD = "head.safetensors"


@dataclass(frozen=True)
class Start:
    """Where a run began. `folder` need not exist: then it began with its base.

    Attributes:
        weights: the folder of the tuned weights.
        base: the folder or hub name of the base.
        new: the modules that the base did not have, which are no part of a path unless `head_first` trained them.
        head_first: whether it did, and the head at the start is to be found.
        stacked: whether the run's adapter was stacked on an earlier one, or is that one, which is to be found.
    """

    folder: Path
    weights: Path
    base: str
    new: tuple[str, ...]
    head_first: bool = False
    stacked: bool = False

    @property
    def head(self) -> dict[str, Tensor]:
        """The head at the start, by parameter name; empty where it was the base's own."""
        from safetensors.torch import load_file

        return load_file(self.folder / HEAD) if (self.folder / HEAD).is_file() else {}

    @property
    def adapter(self) -> Path | None:
        """The earlier adapter that the run's was stacked on, or began as. Raises BaseModelError where it is gone."""
        found = self.folder / "adapter"
        if self.stacked and not found.is_dir():
            raise BaseModelError(f"{found} is missing, where this run began: put it back. Without it there is no path.")
        return found if found.is_dir() else None

    def model(self) -> Model:
        """The run's start as a model: end point 0 of its path.

        Raises:
            MethodError: its head began at random, and was not trained alone first.
        """
        if is_adapter(self.weights):
            found = load_adapter(self.adapter) if self.adapter else below_adapter(self.weights)
        else:
            card = read_card(self.weights)
            assert card is not None, "a run's model has a card"
            refuse_lost(self.base, self.folder.parent)
            found = card.make_task().load(self.base)
            found.chats, found.max_length, found.pairs = card.chats, card.max_length, card.pairs
        self.overlay(found)
        found.notices.clear()
        return found

    def overlay(self, model: Model) -> None:
        """Put the start's own head into the base, in place. Raises MethodError where it had to have one."""
        import torch

        head = self.head
        new = () if self.adapter else (*self.new, *model.new)
        missing = [name for name in new if not any(key.startswith(f"{name}.") for key in head)]
        if missing and self.head_first:
            raise MethodError(
                f"{self.folder / HEAD} is missing: the head as it was when the run began. Put it back from a copy of "
                "the run; without it there is no path from its start to its end."
            )
        if missing:
            raise MethodError(
                f"This run's head ({missing[0]}) began at random, so there is no path from the base to it. Train again "
                "with training.head_first=1: the head then learns alone first, and the path begins there."
            )
        parameters = {plain_name(name): p for name, p in model.module.named_parameters()}
        with torch.no_grad():
            for name, tensor in head.items():
                parameters[name].copy_(tensor)

    def tensors(self, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The start's parameters and floating-point buffers under the names that `module` has, one after the other.

        They are read from the base's files where these hold them all under names that can be told, and else from the
        base loaded as a whole.
        """
        wanted = {name: tensor for name, tensor in state_of(module) if tensor.is_floating_point()}
        head = {name: tensor for name, tensor in self.head.items() if name in wanted}
        rest = {name: tensor for name, tensor in wanted.items() if name not in head}
        unknown = [name for name in self.new if not any(key.startswith(f"{name}.") for key in head)]
        places = {} if unknown else find_tensors(self.base, rest, module)
        if places:
            yield from head.items()
            yield from read_tensors(places)
        else:
            yield from state_of(self.model().module)


def start_of(run: str | PathLike[str]) -> Start:
    """Where a run, or an adapter that somebody else trained, began.

    Raises BaseModelError for a whole model, and where the base has other weights now.
    """
    folder, weights = Path(run).expanduser(), weights_folder(run)
    record = folder / "run.json"
    info = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if not info and not is_adapter(weights):
        raise BaseModelError(
            f"{run} is no run and no adapter's folder, so nothing says where its weights began. Check the path."
        )
    base = info.get("base") or card_of_adapter(weights).base
    merged = folder / "start" / "base"
    base = str(merged) if merged.is_dir() else base
    refuse_other_weights(base, info.get("base_sha256"), record)
    head_first = bool(info.get("recipe", {}).get("training.head_first"))
    stacked = bool(info.get("stacked"))
    return Start(folder / "start", weights, base, tuple(info.get("new", ())), head_first, stacked)


def parse_point(name: str) -> tuple[str, float]:
    """`RUN@0.5` as a run and α; any other name, and any path that there is, as itself and 1."""
    where, alpha = named_point(name)
    return where, 1.0 if alpha is None else alpha


def named_point(name: str) -> tuple[str, float | None]:
    """As `parse_point`, with None for a name without α."""
    where, found, alpha = name.rpartition("@")
    if not found or Path(name).expanduser().exists():
        return name, None
    try:
        return where, float(alpha)
    except ValueError:
        return name, None


def keep_adapter(model: Model, folder: Path) -> None:
    """Copy the adapter that a new one is stacked on, since its own folder may go."""
    for earlier in model.adapters if not (folder / "adapter").exists() else ():
        draft = folder / ".adapter.draft"
        shutil.copytree(earlier, draft, dirs_exist_ok=True)
        draft.rename(folder / "adapter")


def keep_head(model: Model, folder: Path) -> None:
    """Write the new head as it is now: whole or not at all."""
    from safetensors.torch import save_file

    state = {plain_name(n): p.detach().cpu().contiguous() for n, p in new_parameters(model)}
    draft = folder / f".{HEAD}.draft"
    save_file(state, draft)
    draft.replace(folder / HEAD)


def new_parameters(model: Model) -> list[tuple[str, nn.Parameter]]:
    """The trained parameters of the modules that the base did not have."""
    new = tuple(f"{name}." for name in model.new)
    return [(n, p) for n, p in model.module.named_parameters() if p.requires_grad and plain_name(n).startswith(new)]


def state_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, tied ones once, and the buffers that are saved."""
    saved = module.state_dict().keys()
    yield from module.named_parameters()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if name in saved)


def find_tensors(base: str, wanted: Mapping[str, Tensor], module: Any) -> dict[str, tuple[Path, str]]:
    """Where each wanted tensor of a base lies: its file and its key there. Empty unless all are found, in their shapes.

    A file's key is the parameter's name, with or without the name of the trunk in front of it. Where an architecture
    renames or fuses weights as it loads them (experts, often), no file is read.
    """
    from safetensors import safe_open
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    own_names = layout_of(module) is not None
    named = own_names or hasattr(module, "base_model_prefix")
    if not named or (not own_names and get_checkpoint_conversion_mapping(module.config.model_type)):
        return {}
    prefix = "" if own_names else f"{module.base_model_prefix}."
    places: dict[str, tuple[Path, str]] = {}
    for path in files_of(base):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no mapping
                for name in (key, f"{prefix}{key}", key.removeprefix(prefix)):
                    if name in wanted and file.get_slice(key).get_shape() == list(wanted[name].shape):
                        places.setdefault(name, (path, key))
    return places if places.keys() == wanted.keys() else {}


def read_tensors(places: Mapping[str, tuple[Path, str]]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in dict.fromkeys(path for path, _ in places.values()):
        with safe_open(path, framework="pt") as file:
            yield from ((name, file.get_tensor(key)) for name, (where, key) in places.items() if where == path)
