"""One model out of several that began alike: the mean of their weights (model soups, arXiv 2203.05482)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.artifacts.fingerprint import fingerprint
from tunewright.artifacts.interpolate import blend
from tunewright.artifacts.load import below_adapter, card_of_adapter, is_adapter, load, put_on, weights_folder
from tunewright.artifacts.save import refuse_place, save
from tunewright.artifacts.start import find_tensors, read_tensors, start_of, state_of
from tunewright.artifacts.targets.base import merge
from tunewright.errors import BaseModelError
from tunewright.methods import Full
from tunewright.methods._lora_file import CONFIG as PEFT_CONFIG
from tunewright.methods._lora_file import read_adapter, stack_loras, stackable, write_adapter
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import Tensor


def soup(runs: Sequence[str | PathLike[str]], folder: Path) -> Path:
    """Write the uniform mean of several runs to a new folder. LoRAs stay a LoRA; anything else becomes a whole model.

    Raises:
        BaseModelError: they did not begin alike: another base, other classes, another head. Or one is named twice.
        OutputError: the folder is not empty.
    """
    refuse_place(folder)
    if len(runs) < 2:
        raise BaseModelError("A soup needs two runs or more.")
    weights = [weights_folder(run).resolve() for run in runs]
    if twice := [run for run, path in zip(runs, weights, strict=True) if weights.count(path) > 1]:
        raise BaseModelError(f"{twice[-1]} is named twice. Name each run of a soup once.")
    _refuse_other_starts(runs)
    if all((path / PEFT_CONFIG).is_file() and stackable(read_adapter(path)[1]) for path in weights):
        save(_of_loras(weights), card_of_adapter(weights[0]).make_method(), folder)
    else:
        save(_of_wholes(runs), Full(), folder)
    return folder


def _refuse_other_starts(runs: Sequence[str | PathLike[str]]) -> None:
    import torch

    starts = [start_of(run) for run in runs]
    first = starts[0]
    for run, start in zip(runs[1:], starts[1:], strict=True):
        head = start.head
        same = head.keys() == first.head.keys() and all(torch.equal(head[n], t) for n, t in first.head.items())
        other = start.base != first.base and fingerprint(start.base) != (fingerprint(first.base) or "none")
        if other or start.new != first.new or not same or (start.new and not head):
            raise BaseModelError(
                f"{run} and {runs[0]} did not begin alike, so that the mean of their weights means nothing. Runs of "
                "one soup share the base and, where the head is new, the one that training.head_first made."
            )


def _of_loras(weights: Sequence[Path]) -> Model:
    terms = [(*read_adapter(path), 1 / len(weights)) for path in weights]
    state, config = stack_loras(terms)
    for name in state.keys() - {n for n in state if ".lora_" in n}:
        state[name] = sum(term[0][name] for term in terms) / len(terms)  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as place:
        write_adapter(Path(place), state, config)
        model = below_adapter(weights[0])
        put_on(model, Path(place))
    return model


def _of_wholes(runs: Sequence[str | PathLike[str]]) -> Model:
    """A running mean: the k-th model counts 1/k against what there is."""
    model = _merged(runs[0])
    here = dict(state_of(model.module))
    for k, run in enumerate(runs[1:], 2):
        blend(here, _tensors(run, here, model), 1 - 1 / k)
    return model


def _tensors(run: str | PathLike[str], wanted: Mapping[str, Tensor], model: Model) -> Iterator[tuple[str, Tensor]]:
    floating = {name: tensor for name, tensor in wanted.items() if tensor.is_floating_point()}
    folder = weights_folder(run)
    places = {} if is_adapter(folder) else find_tensors(str(folder), floating, model.module)
    return read_tensors(places) if places else state_of(_merged(run).module)


def _merged(run: str | PathLike[str]) -> Model:
    model = load(run)
    merge(model)
    return model
