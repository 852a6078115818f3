"""Any torch module as a classifier of images: a folder that says what transformers' configuration says of its models.

    module.json               the factory, the head, the blocks, the classes; what it answers to one fixed image
    model.safetensors         its weights, by the module's own names
    preprocessor_config.json  how images are prepared for it

The module itself stays as it is; what the folder says of it hangs on it as a `Layout`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tunewright.errors import BaseModelError, first_line
from tunewright.tasks._batch_norms import refuse_no_statistics
from tunewright.tasks._blocks import named_blocks, nested_blocks
from tunewright.tasks._factories import allow, make
from tunewright.tasks._module_config import ModuleConfig
from tunewright.tasks._module_head import (
    find_head,
    layer_of,
    logits,
    refuse_other_training,
    refuse_probabilities,
    replace_head,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

FILE, WEIGHTS = "module.json", "model.safetensors"
NEAR = 0.01
"""Answers to the same image differ by rounding between machines, as a share of the largest logit, by no more."""


class Layout(BaseModel):
    """What module.json says.

    Attributes:
        factory: who makes the module, `package.module:factory`.
        head: the name of the layer that gives the logits.
        blocks: the names of the trunk's blocks.
        labels: the classes, in the order of the outputs; empty where the base has none of its own.
        kind: what the outputs are: single_label, multi_label or regression.
        answer: the logits for one fixed image; empty where they are not the same twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: str
    head: str
    blocks: list[str]
    labels: list[str] = []
    kind: str = "single_label"
    answer: list[float] = []


def layout_of(module: nn.Module) -> Layout | None:
    """What its folder says of a torch module, wrapped by a method or not; None for a model of transformers."""
    return getattr(module, "tunewright_layout", None)


def is_module_folder(base: str) -> bool:
    return (Path(base) / FILE).is_file()


def begin(factory: str, config: ModuleConfig, weights: str | None, folder: Path, seed: int = 0) -> None:
    """Write the folder of a base: the module that a factory makes, with the weights of a file if there is one.

    Raises BaseModelError where module, weights and `config` do not fit each other.
    """
    module = laid_out(factory, config, seed)
    if weights is not None:
        _load(module, Path(weights), without_head=config.labels is None)
    processor = config.image.processor()
    save(module, config.labels or [], "single_label", processor, folder)


def laid_out(factory: str, config: ModuleConfig, seed: int = 0) -> nn.Module:
    """A factory's module with its layout. Raises BaseModelError where it is no classifier of such images."""
    allow(factory)
    module = make(factory, seed).float().eval()
    refuse_no_statistics(module, factory)
    shape = (config.image.channels, config.image.crop, config.image.crop)
    head, outputs = find_head(module, factory, shape, config.head)
    refuse_probabilities(module, factory, shape)
    refuse_other_training(module, factory, shape, outputs)
    if config.labels is not None and len(config.labels) != outputs:
        raise BaseModelError(f"module.labels names {len(config.labels)} classes, and {factory} has {outputs} outputs.")
    blocks = named_blocks(module, config.blocks) if config.blocks else nested_blocks(module, head)
    _hang(module, Layout(factory=factory, head=head, blocks=blocks))
    return module


def load(folder: Path) -> tuple[nn.Module, Layout]:
    """The module of a folder, in fp32 and eval mode. Raises BaseModelError where its code is not the same any more."""
    try:
        layout = Layout.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise BaseModelError(f"{folder / FILE} cannot be read: {error}") from error
    module = make(layout.factory).float().eval()
    if layer_of(module, layout.head) is None:
        raise BaseModelError(f"{layout.factory} has no layer {layout.head} any more: {folder} was made by other code.")
    if layout.labels:
        replace_head(module, layout.head, len(layout.labels), seed=0)
    _load(module, folder / WEIGHTS)
    _hang(module, layout)
    return module, layout


def refuse_other_code(module: nn.Module, processor: Any, folder: Path) -> None:
    """Raise BaseModelError where a folder's module does not answer as it did when the folder was written."""
    known = layout_of(module)
    assert known is not None
    answer = _answer(module, processor) if known.answer else []
    largest = max(map(abs, known.answer), default=0.0)
    if any(abs(a - b) > NEAR * max(largest, 1e-3) for a, b in zip(answer, known.answer, strict=True)):
        raise BaseModelError(
            f"With the weights in {folder}, {known.factory} does not answer as it did when they were saved: its code "
            "has changed. Put it back, or give the module as it was (from Python: base=module)."
        )


def save(module: nn.Module, labels: Sequence[str], kind: str, processor: Any, folder: Path) -> None:
    """Write the folder of a module, tied weights under each of their names, as `load_state_dict` takes them."""
    from safetensors.torch import save_file

    layout = layout_of(module)
    assert layout is not None
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().cpu().clone(memory_format=_contiguous()) for name, t in module.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    answer = _answer(module, processor)
    said = layout.model_copy(update={"labels": list(labels), "kind": kind, "answer": answer})
    (folder / FILE).write_text(said.model_dump_json(indent=2) + "\n", encoding="utf-8")
    processor.save_pretrained(folder)


def refuse_fixed_outputs(module: nn.Module, processor: Any, outputs: int) -> None:
    """Raise BaseModelError where a module does not answer with what its new head gives: it counts on its old one."""
    layout = layout_of(module)
    assert layout is not None
    try:
        found: object = len(_answer(module, processor)) or outputs
    except (RuntimeError, BaseModelError) as error:
        found = first_line(error)
    if found != outputs:
        raise BaseModelError(
            f"With a head of {outputs} outputs, {layout.factory} does not answer with {outputs} logits ({found}). Let "
            f"the factory make a module of {outputs} classes."
        )


def image_shape(processor: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a module's processor makes."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    return len(processor.image_mean), int(size["height"]), int(size["width"])


def _hang(module: Any, layout: Layout) -> None:
    module.tunewright_layout = layout


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format


def _answer(module: nn.Module, processor: Any) -> list[float]:
    """The logits for an image of noise that is always the same; nothing where a second answer differs."""
    import torch

    was, like = module.training, next(module.parameters())
    noise = torch.randn(1, *image_shape(processor), generator=torch.Generator().manual_seed(0)).to(like.device)
    if like.dtype != torch.float32:  # as `load` will make it
        module = copy.deepcopy(module).float()
    with torch.no_grad():
        module.eval()
        one, again = (logits(module, noise)[0].float().tolist() for _ in range(2))
    module.train(was)
    return one if one == again else []


def _load(module: nn.Module, path: Path, without_head: bool = False) -> None:
    """Put the weights of a file into a module, in place.

    Args:
        without_head: whether the head's may be missing or of other shapes, since it will be replaced.

    Raises BaseModelError that names every tensor that does not fit.
    """
    layout = layout_of(module)
    state, here = _read(path), module.state_dict()
    faults = [f"{name}: [{_shape(t)}] is not in the file" for name, t in here.items() if _is_lost(name, state)]
    faults += [f"{name}: [{_shape(t)}] is not in the module" for name, t in state.items() if name not in here]
    fitting = {name: t for name, t in state.items() if name in here and t.shape == here[name].shape}
    faults += [
        f"{name}: [{_shape(state[name])}] in the file, [{_shape(here[name])}] in the module"
        for name in state.keys() & here.keys() - fitting.keys()
    ]
    if without_head and layout:
        faults = [fault for fault in faults if not fault.startswith(f"{layout.head}.")]
    if faults:
        shown = "\n".join(f"  {fault}" for fault in [*sorted(faults)[:20], *(["…"] if len(faults) > 20 else [])])
        raise BaseModelError(f"{path} does not fit the module, in {len(faults)} tensors:\n{shown}")
    module.load_state_dict(fitting, strict=False)


def _is_lost(name: str, state: dict[str, Tensor]) -> bool:
    return name not in state and not name.endswith("num_batches_tracked")  # a count, that older files do not have


def _shape(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape))


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise BaseModelError(f"There is no file of weights {path}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BaseModelError(
            f"{path} is no safetensors file ({first_line(error)}). A pickle (.pt, .pth, .bin), which can run code "
            "when it is loaded, is not opened: convert it on a machine you can lose."
        ) from error
