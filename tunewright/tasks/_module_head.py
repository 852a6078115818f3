"""The layer of a torch module that gives its logits: found, and replaced for other classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunewright.errors import BaseModelError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn


def find_head(module: nn.Module, factory: str, shape: tuple[int, int, int], wanted: str | None) -> tuple[str, int]:
    """The last linear layer or convolution that runs, within the module `wanted` if that is named; and its outputs.

    Args:
        shape: channels, height and width of its images.

    Raises BaseModelError where there is none, or where its outputs are not the module's.
    """
    import torch
    from torch import nn

    inside = [n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and _within(n, wanted)]
    if not inside:
        where = f"module.head: {wanted} names no" if wanted else f"{factory} has no"
        raise BaseModelError(f"{where} linear layer or convolution that could be its head.")
    ran: list[str] = []
    handles = [
        module.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in inside
    ]
    try:
        with torch.no_grad():
            outputs = logits(module, torch.zeros(1, *shape)).shape[1]
    except BaseModelError as error:
        raise BaseModelError(f"{factory}: {error}") from error
    except Exception as error:
        raise BaseModelError(
            f"{factory} cannot be fed images of [B, {', '.join(map(str, shape))}] ({first_line(error)}). Say in "
            "module.image how it wants them: channels, resize, crop."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    name = ran[-1] if ran else inside[-1]
    layer = layer_of(module, name)
    if layer is None or _outputs(layer) != outputs or not ran:
        raise BaseModelError(
            f"{factory} answers with {outputs} numbers, and its last layer, {name}, does not give them. Name the layer "
            "that gives the logits, a linear one or a convolution: module.head."
        )
    return name, outputs


def refuse_probabilities(module: nn.Module, factory: str, shape: tuple[int, int, int]) -> None:
    """Raise BaseModelError where a softmax or a sigmoid is behind the head: the loss has its own."""
    import torch
    from torch import nn

    squeezed: list[Tensor] = []
    sigmoids = [m for m in module.modules() if isinstance(m, nn.Sigmoid)]
    handles = [m.register_forward_hook(lambda _m, _given, output: squeezed.append(output)) for m in sigmoids]
    with torch.no_grad():
        output_BC = logits(module, _noise(4, shape))
    for handle in handles:
        handle.remove()
    found = None
    if output_BC.shape[1] > 1 and bool((output_BC >= 0).all()) and torch.allclose(output_BC.sum(1), torch.ones(4)):
        found = "not negative, and of the sum 1", "softmax"
    elif any(x.shape[0] == 4 and torch.equal(x.flatten(1), output_BC) for x in squeezed):  # not of a gate within
        found = "from its nn.Sigmoid", "sigmoid"
    if found:
        raise BaseModelError(
            f"{factory} answers with probabilities ({found[0]}), and has to answer with logits, of which the loss "
            f"takes the softmax or sigmoid itself. Let it end without its {found[1]}."
        )


def refuse_other_training(module: nn.Module, factory: str, shape: tuple[int, int, int], outputs: int) -> None:
    """Raise BaseModelError where a module in eval mode does not answer with the same kind of logits in training mode.

    Its statistics stay as they were.
    """
    import torch

    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found: object = f"{logits(module.train(), _noise(2, shape)).shape[1]} numbers"
    except BaseModelError as error:
        found = error
    except Exception as error:
        found = f"{type(error).__name__}: {first_line(error)}"
    finally:
        module.eval()
        for name, buffer in kept.items():
            module.get_buffer(name).copy_(buffer)
    if found != f"{outputs} numbers":
        raise BaseModelError(
            f"{factory} answers with logits in eval mode, and in training mode it does not ({found}). Let the factory "
            "make it without what it adds in training: switch its auxiliary outputs off."
        )


def _noise(rows: int, shape: tuple[int, int, int]) -> Tensor:
    import torch

    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))


def _within(name: str, wanted: str | None) -> bool:
    return wanted is None or f"{name}.".startswith(f"{wanted}.")


def layer_of(module: nn.Module, name: str) -> nn.Linear | nn.Conv2d | None:
    """The layer of a name; None where it is not there, or where something else is that has a forward of its own."""
    from torch import nn

    layer = dict(module.named_modules()).get(name)
    plain = (nn.Linear.forward, nn.Conv2d.forward)
    return layer if isinstance(layer, nn.Linear | nn.Conv2d) and type(layer).forward in plain else None


def _outputs(layer: Any) -> int:
    return int(getattr(layer, "out_features", 0) or layer.out_channels)


def replace_head(module: nn.Module, head: str, outputs: int, seed: int) -> None:
    """Put a new layer in the place of the head, in place, drawn from the seed."""
    import torch
    from torch import nn

    layer: Any = layer_of(module, head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(layer, nn.Linear):
            new: nn.Module = nn.Linear(layer.in_features, outputs, layer.bias is not None)
        else:
            new = nn.Conv2d(
                layer.in_channels, outputs, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                bias=layer.bias is not None, padding_mode=layer.padding_mode,
            )  # fmt: skip
    module.set_submodule(head, new)


def logits(module: nn.Module, pixels_BCHW: Tensor) -> Tensor:
    """[B, C], however a module gives them: as a tensor, also [B, C, 1, 1], or as `.logits`.

    Raises BaseModelError for another answer.
    """
    from torch import Tensor

    output = module(pixels_BCHW)
    found = getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.ndim < 2:
        shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise BaseModelError(f"The module answers with {shape}, and has to answer with logits, [B, C].")
    return found.flatten(1)
