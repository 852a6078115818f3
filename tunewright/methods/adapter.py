"""`adapter`: small bottleneck layers between frozen ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright.errors import MethodError
from tunewright.methods._saved import refuse_loss
from tunewright.methods.base import Method, train_only, trained_count
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"


class Adapter(Method):
    """Bottleneck adapters: y + up(gelu(down(y))) behind a sub-layer's output projection, before its residual is added.

    `houlsby` puts one behind attention and one behind the feed-forward layer of every block (Houlsby et al.,
    arXiv 1902.00751); `pfeiffer` only the latter (Pfeiffer et al., arXiv 2005.00247). `up` begins at zero, so that the
    model begins as the base, exactly. A classifier's head and pooler
    train along.
    """

    learning_rate: ClassVar[float] = 5e-4
    saved_as: ClassVar[str] = "adapter"
    type: Literal["adapter"] = "adapter"
    variant: Literal["houlsby", "pfeiffer"] = Field("houlsby", description="Two adapters a block, or one.")
    width: int = Field(32, ge=1, description="Units in the bottleneck.")

    def attach(self, model: Model, seed: int = 0) -> None:
        import torch

        places = list(self.places(model))
        begun = [place for place in model.module.modules() if hasattr(place, "bottleneck")]
        if begun:  # the base is a run with these adapters: they go on training
            self._check_same(begun, places)
            places = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for place, size in places:
                place.bottleneck = bottleneck(size, self.width).to(next(model.module.parameters()).device)
                place.register_forward_hook(_through)
        self._select(model)

    def _check_same(self, begun: Sequence[nn.Module], places: Sequence[tuple[nn.Module, int]]) -> None:
        widths = {place.bottleneck.down.out_features for place in begun}  # type: ignore[union-attr]
        if widths != {self.width} or {id(place) for place in begun} != {id(place) for place, _ in places}:
            raise MethodError(
                f"The base has {len(begun)} adapters of width {max(widths)}, which go on training as they are. "  # type: ignore[type-var]
                "Give the same variant and width."
            )

    def _select(self, model: Model) -> None:
        along = tuple(f"{name}." for name in model.along)
        names = [name for name, _ in model.module.named_parameters()]
        train_only(model.module, {n for n in names if ".bottleneck." in n or n.startswith(along)})

    def places(self, model: Model) -> Iterator[tuple[nn.Module, int]]:
        """The modules whose output is adapted, each with its size. Raises MethodError for an unknown kind of block."""
        from torch import nn

        blocks = model.task.blocks(model.module)
        if not blocks:
            raise MethodError("This model has no list of blocks, so there is no place for adapters. Use method: lora.")
        convolving = [block for _, block in blocks if any(isinstance(m, nn.Conv2d) for m in block.modules())]
        if convolving:
            sizes = model.task.channels(model, convolving)  # type: ignore[attr-defined]
            yield from zip(map(_last_of, convolving), sizes, strict=True)
            return
        size = model.task.width(model.module)
        for name, block in blocks:
            named = (m for n, m in block.named_children() if "att" in n)  # a norm and a dropout may be called so too
            attention = next((m for m in named if any(p.ndim > 1 for p in m.parameters())), None)
            if attention is None:
                raise MethodError(f"Block {name} has no attention sub-module that is recognised. Use method: lora.")
            inside = {id(m) for m in attention.modules()}
            if self.variant == "houlsby":
                yield _output_of(attention, size, skip=set()), size
            yield _output_of(block, size, skip=inside), size

    def save(self, model: Model, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        along = tuple(f"{name}." for name in model.along)
        state = {n: p for n, p in model.module.state_dict().items() if ".bottleneck." in n or n.startswith(along)}
        save_file({n: p.contiguous().cpu() for n, p in state.items()}, folder / WEIGHTS)
        refuse_loss(folder, trained_count(model.module))
        described = {**self.model_dump(), "base": model.base, "task": model.task.name}
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        model.processor.save_pretrained(folder)

    def restore(self, model: Model, folder: Path) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.attach(model)
        try:
            state = load_file(folder / WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise MethodError(f"{folder / WEIGHTS} cannot be read: {error}") from error
        here = {n: p.shape for n, p in model.module.named_parameters() if p.requires_grad}
        apart = sorted(n for n in here.keys() | state.keys() if n not in state or here.get(n) != state[n].shape)
        if apart:
            raise MethodError(f"{folder / WEIGHTS} does not fit this base: {', '.join(apart[:3])} differ.")
        model.module.load_state_dict(state, strict=False)
        model.module.requires_grad_(False)

    def merge(self, model: Model) -> None:
        raise MethodError(
            "Bottleneck adapters are not linear and cannot be merged into the weights. Keep them as an adapter."
        )

    def scale(self, model: Model, alpha: float) -> None:
        import torch

        with torch.no_grad():
            for module in model.module.modules():
                if hasattr(module, "bottleneck"):
                    for parameter in module.bottleneck.up.parameters():
                        parameter.mul_(alpha)

    @contextmanager
    def off(self, model: Model) -> Iterator[None]:
        if model.along:
            raise MethodError("The task head trained along: switching the adapters off does not give back the start.")
        adapted = [m for m in model.module.modules() if hasattr(m, "bottleneck")]
        for module in adapted:
            module.bottleneck.off = True
        try:
            yield
        finally:
            for module in adapted:
                module.bottleneck.off = False


def bottleneck(size: int, width: int) -> Any:
    """down [size → width], GELU, up [width → size], with up = 0."""
    from torch import nn

    stack: Any = nn.Sequential()
    stack.down = nn.Linear(size, width)
    stack.act = nn.GELU()
    stack.up = nn.Linear(width, size)
    nn.init.normal_(stack.down.weight, std=size**-0.5)
    for parameter in (stack.down.bias, stack.up.weight, stack.up.bias):
        nn.init.zeros_(parameter)
    stack.off = False
    return stack


def _through(module: Any, _: object, output: object) -> object:
    if module.bottleneck.off:
        return output
    if isinstance(output, tuple):
        return (_adapted(module, output[0]), *output[1:])
    return _adapted(module, output)


def _adapted(module: Any, output: Any) -> Any:
    """Of a convolution [B, C, H, W] the channels at each place are adapted, as by convolutions of 1 × 1."""
    if output.ndim == 4:
        return output + module.bottleneck(output.movedim(1, -1).contiguous()).movedim(-1, 1).contiguous()
    return output + module.bottleneck(output)


def _last_of(block: nn.Module) -> nn.Module:
    """What gives a block's output: of a `Sequential` its last module, since it would run a further child as well."""
    from torch import nn

    while isinstance(block, nn.Sequential):
        block = block[-1]
    return block


def _output_of(parent: nn.Module, size: int, skip: set[int]) -> nn.Module:
    """The sub-layer's output projection: its last linear layer of the hidden size, else its last child.

    The last child serves mixtures of experts, whose expert weights are no linear layers.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    own = {id(m) for p in parent.modules() if hasattr(p, "bottleneck") for m in p.bottleneck.modules()}  # type: ignore[union-attr, operator]
    modules = [m for m in parent.modules() if id(m) not in skip | own and m is not parent]
    linear: list[nn.Module] = [m for m in modules if isinstance(m, nn.Linear) and m.out_features == size]
    linear += [m for m in modules if isinstance(m, Conv1D) and m.nf == size]
    if linear:
        return linear[-1]
    named = {n: m for n, m in parent.named_children() if id(m) not in skip}
    found = next((m for n, m in named.items() if "mlp" in n or "moe" in n or "ffn" in n or "feed" in n), None)
    if found is None:
        raise MethodError(f"No feed-forward sub-layer is recognised among {', '.join(named)}. Use method: lora.")
    return found


METHOD = Adapter
