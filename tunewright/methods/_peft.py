"""What the methods share whose adapters PEFT defines: wrapping, loading, merging."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunewright.errors import MethodError
from tunewright.methods._lora_file import WEIGHTS, leaves_base
from tunewright.methods._saved import refuse_loss
from tunewright.methods.base import Method, trained_parameters
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn

PEFT_TASKS = {"text-generation": "CAUSAL_LM", "text-classification": "SEQ_CLS"}


class PeftMethod(Method):
    """An adapter that PEFT knows, saved so that PEFT's own `from_pretrained` loads it."""

    saved_as: ClassVar[str] = "peft"

    @abstractmethod
    def peft_config(self, model: Model) -> Any:
        """PEFT's configuration for this model."""

    def attach(self, model: Model, seed: int = 0) -> None:
        import torch
        from peft import get_peft_model

        config = self.peft_config(model)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            try:
                wrapped = get_peft_model(model.module, config)
            except (ValueError, TypeError, NotImplementedError, AttributeError, KeyError) as error:
                raise MethodError(f"PEFT cannot apply {config.peft_type.value} to this model: {error}") from error
        _show_geometry(wrapped)
        _refuse_tied(wrapped)
        config.base_model_name_or_path = model.base
        model.module = wrapped

    def save(self, model: Model, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.module.save_pretrained(folder, save_embedding_layers=False)
        refuse_loss(folder, _to_be_saved(model.module))
        model.processor.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's model card is an empty form

    def restore(self, model: Model, folder: Path) -> None:
        attach_folder(model, folder)

    def merge(self, model: Model) -> None:
        merge_adapter(model)

    def scale(self, model: Model, alpha: float) -> None:
        scale_adapter(model, alpha)

    @contextmanager
    def off(self, model: Model) -> Iterator[None]:
        config = model.module.active_peft_config
        if not leaves_base({"bias": "none", "init_lora_weights": True, **vars(config)}):
            raise MethodError("This adapter changed the base's own weights: switching it off does not give the start.")
        if config.is_prompt_learning and not hasattr(model.module, "prepare_inputs_for_generation"):
            raise MethodError("PEFT cannot switch off the virtual tokens of a classifier.")  # PEFT 0.21 fails there
        with model.module.disable_adapter():
            yield


@contextmanager
def layers_off(model: Model) -> Iterator[None]:
    """Inside, adapted layers compute as the base's; what trained along (a head) stays as it was trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.module.modules() if isinstance(module, BaseTunerLayer)]
    trained = {parameter: parameter.requires_grad for parameter in model.module.parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, trains in trained.items():  # which PEFT sets as it switches
            parameter.requires_grad_(trains)


def _to_be_saved(module: Any) -> int:
    """How many numbers were trained, where of an encoder of virtual tokens those count that it computes."""
    import torch

    trained = trained_parameters(module)
    encoder = {name for name in trained if name.startswith("prompt_encoder.")}
    count = sum(p.numel() for name, p in trained.items() if name not in encoder)
    if encoder:
        with torch.no_grad():
            count += module.get_prompt_embedding_to_save(module.active_adapter).numel()
    return count


def _show_geometry(module: nn.Module) -> None:
    """Let an adapted convolution tell its size, as the layer within does: MobileNets ask theirs, to pad for it."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    for layer in module.modules():
        inner: Any = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else None
        if isinstance(inner, nn.Conv2d):
            for name in ("kernel_size", "stride", "dilation"):
                setattr(layer, name, getattr(inner, name))


def _refuse_tied(module: Any) -> None:
    """An adapter on one of two tied tables would change both when it is merged, and one of them before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    tables = [_embeddings(module, side) for side in ("input", "output")]
    weights = [getattr(table, "base_layer", table) for table in tables if table is not None]
    tied = len(weights) == 2 and weights[0].weight is weights[1].weight
    if tied and any(isinstance(table, BaseTunerLayer) for table in tables):
        raise MethodError("The head and the input embeddings are tied, so neither can have an adapter of its own.")


def _embeddings(module: Any, side: str) -> Any:
    """The table of tokens on one side; None where there is none, as in models of images."""
    try:
        return getattr(module, f"get_{side}_embeddings", lambda: None)()
    except NotImplementedError:
        return None


def attach_folder(model: Model, folder: Path) -> None:
    """Put the PEFT adapter that lies in `folder` onto a base, in place. Raises MethodError where it does not fit."""
    from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError

    if not (folder / WEIGHTS).is_file():  # PEFT would look for a pickle instead
        raise MethodError(f"{folder} has no {WEIGHTS}. A pickle (adapter_model.bin) is not opened: convert it.")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            model.module = PeftModel.from_pretrained(model.module, str(folder))
            _show_geometry(model.module)
            # Once more, for the account of what found no place, which PEFT keeps to itself.
            account: Any = set_peft_model_state_dict(model.module, load_peft_weights(str(folder)))
        except (ValueError, RuntimeError, TypeError, OSError, SafetensorError) as error:
            raise MethodError(f"The adapter in {folder} does not fit {model.base}: {error}") from error
    wrong = [str(w.message) for w in seen if "missing adapter keys" in str(w.message)]
    mark = getattr(model.module.base_model, "prefix", None)  # of the layers' own weights: "lora_"
    lost = [name for name in account.unexpected_keys if mark and mark in name]
    wrong += [f"it has no place for {', '.join(lost[:3])}"] if lost else []
    if wrong:
        raise MethodError(f"The adapter in {folder} does not fit {model.base}: {wrong[0]}")


def merge_adapter(model: Model) -> None:
    """Fold a PEFT adapter into the weights, in place; PEFT wrappers are gone afterwards."""
    if not hasattr(model.module, "merge_and_unload"):
        raise MethodError("This kind of adapter (prompt or prefix) cannot be merged into the weights.")
    _unwrap_along(model.module)
    try:
        model.module = model.module.merge_and_unload()
    except (AttributeError, ValueError, NotImplementedError) as error:
        raise MethodError(f"This kind of adapter cannot be merged into the weights: {error}") from error


def scale_adapter(model: Model, alpha: float) -> None:
    """Let a PEFT adapter count `alpha` times, in place: a LoRA's B is scaled, every other layer's output blended.

    A blend y₀ + α·(y₁ − y₀) is the interpolation of the weights wherever a layer is linear, as all of PEFT's are; to
    scale what a DoRA or an OFT learned would be something else. What trained along (a head, rows of tokens) is left to
    the caller, who knows its start.

    Raises:
        MethodError: the adapter has virtual tokens, or changed the base's own weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import TrainableTokensWrapper

    config = model.module.active_peft_config
    if config.is_prompt_learning:
        raise MethodError("Virtual tokens cannot be interpolated: only alpha 0 and 1 mean something.")
    if not leaves_base({"bias": "none", "init_lora_weights": True, **vars(config)}):
        raise MethodError("This adapter changed the base's own weights, so that its path to the start is not known.")
    layers = list(model.module.modules())
    rows = {id(layer.token_adapter) for layer in layers if isinstance(layer, TrainableTokensWrapper)}  # train along
    for layer in layers:
        if isinstance(layer, BaseTunerLayer) and id(layer) not in rows and not _scaled(layer, alpha):
            _blend(layer, alpha)


def _scaled(layer: Any, alpha: float) -> bool:
    """Scale the B of a plain LoRA layer; whether this is one."""
    import torch
    from peft.tuners.lora import LoraLayer

    plain = isinstance(layer, LoraLayer) and not getattr(layer, "lora_E", None) and not any(layer.use_dora.values())
    if plain:
        with torch.no_grad():
            for parameter in [*layer.lora_B.parameters(), *layer.lora_embedding_B.parameters()]:
                parameter.mul_(alpha)
    return plain


def _blend(layer: Any, alpha: float) -> None:
    import torch

    tuned = layer.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        return torch.lerp(layer.base_layer(*inputs, **options), tuned(*inputs, **options), alpha)

    layer.forward = forward


def is_blended(module: nn.Module) -> bool:
    """Whether `scale_adapter` blended a layer's output, which no file of PEFT's can say."""
    return any("forward" in vars(layer) for layer in module.modules())


def _unwrap_along(module: nn.Module) -> None:
    """Put modules that trained along into their places: PEFT itself only does that where they have a `weight`."""
    from peft.utils import ModulesToSaveWrapper

    wrapped = [(name, m) for name, m in module.named_modules() if isinstance(m, ModulesToSaveWrapper)]
    for name, wrapper in wrapped:
        module.set_submodule(name, wrapper.modules_to_save[wrapper.active_adapters[0]])


def linear_layers(module: nn.Module) -> list[str]:
    """The names of all linear layers."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, layer in module.named_modules() if isinstance(layer, (nn.Linear, Conv1D))]


def linear_names(module: nn.Module) -> list[str]:
    """The last parts of the names of linear layers, once each: what a user would name as targets."""
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in linear_layers(module)))
