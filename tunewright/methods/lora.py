"""`lora`: low-rank updates beside frozen weights, and its family: rsLoRA, DoRA, PiSSA, LoRA+."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from tunewright.errors import MethodError
from tunewright.methods._diffusers_file import as_diffusers
from tunewright.methods._lora_file import read_adapter, stack_loras, stackable, write_adapter
from tunewright.methods._peft import PEFT_TASKS, PeftMethod, linear_layers, linear_names
from tunewright.tasks.base import Model

if TYPE_CHECKING:
    from torch import nn


class LoRA(PeftMethod):
    """W + s·B·A with W frozen, A [rank × in], B [out × rank] = 0 at the start (Hu et al., arXiv 2106.09685).

    The defaults are those of "LoRA Without Regret": all linear layers, about ten times the learning rate of full
    fine-tuning. A classifier's head and pooler train along.
    """

    learning_rate: ClassVar[float] = 2e-4
    trains_new_tokens: ClassVar[bool] = True
    type: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, description="Rank of the update.")
    alpha: float = Field(32, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")
    targets: str | list[str] = Field(
        "auto",
        description="all-linear (convolutions too), names of layers, or one regular expression; auto: all-linear, in "
        "text-to-image the U-Net's attention.",
    )
    rslora: bool = Field(False, description="Scale by alpha / √rank (rsLoRA, arXiv 2312.03732).")
    dora: bool = Field(False, description="Learn magnitude and direction apart (DoRA, arXiv 2402.09353).")
    init: Literal["zero", "pissa"] = Field(
        "zero", description="pissa: begin with the principal singular vectors (arXiv 2404.02948)."
    )
    plus_ratio: float = Field(
        1.0, ge=1, description="Learning rate of B over that of A (LoRA+, arXiv 2402.12354, uses 16)."
    )
    experts: bool = Field(
        False,
        description="Adapt the fused expert weights of a mixture of experts too.",
        json_schema_extra={"tasks": ["text-generation"]},
    )
    train_along: list[str] = Field(
        [],
        description="Modules that train in full beside the adapter, by name.",
        json_schema_extra={"tasks": ["text-generation", "text-classification", "image-classification"]},
    )

    @model_validator(mode="after")
    def _what_goes_together(self) -> LoRA:
        if self.init == "pissa" and (self.dora or self.experts):
            raise ValueError("init: pissa cannot be combined with dora or experts")
        if self.dora and self.experts:
            raise ValueError("dora cannot be combined with experts")
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise ValueError(f"targets is no regular expression: {error}") from error
        return self

    @field_validator("targets")
    @classmethod
    def _names(cls, value: str | list[str]) -> str | list[str]:
        """`q_proj,v_proj` is a list of names; a text with more in it than names is a regular expression."""
        plain = (
            isinstance(value, str)
            and value not in ("auto", "all-linear")
            and re.fullmatch(r"\w+(\.\w+)*(,\w+(\.\w+)*)*", value)
        )
        return value.split(",") if plain and isinstance(value, str) else value

    def attach(self, model: Model, seed: int = 0) -> None:
        self._check_targets(model)
        super().attach(model, seed)
        self._check_experts(model.module)
        if self.rank > (highest := highest_rank(model.module, self.rank)):
            model.notices.append(
                f"method.rank: {self.rank:,} is above {highest:,}, the highest rank that a change of any of these "
                "layers can have: what is beyond costs memory and adds nothing. Lower it."
            )
        if self.init == "pissa":
            from peft import get_peft_model_state_dict

            state = get_peft_model_state_dict(model.module, save_embedding_layers=False)
            model.start_adapter = {name: tensor.clone() for name, tensor in state.items() if ".lora_" in name}

    def peft_config(self, model: Model) -> Any:
        from peft import LoraConfig

        along = list(dict.fromkeys([*model.along, *self.train_along]))
        return LoraConfig(
            task_type=PEFT_TASKS.get(model.task.name),
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=self._targets(model, along),
            exclude_modules=rf"(.*\.)?({'|'.join(map(re.escape, along))})(\..*)?" if along else None,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights="pissa" if self.init == "pissa" else True,
            target_parameters=expert_parameters(model.module) if self.experts else None,
            modules_to_save=along or None,
            trainable_token_indices=token_rows(model) or None,
        )

    def _targets(self, model: Model, along: Sequence[str]) -> str | list[str]:
        """all-linear by name: PEFT's own includes the experts and routers of some models."""
        targets = self._chosen(model)
        if targets != "all-linear":
            return targets
        skipped, trunk = [*model.task.head(model.module), *along], model.task.trunk
        names = [*linear_layers(model.module), *convolutions(model)]
        return [name for name in names if _holds(trunk, name) and not any(_holds(s, name) for s in skipped)]

    def _chosen(self, model: Model) -> str | list[str]:
        return model.task.adapted if self.targets == "auto" else self.targets

    def _check_experts(self, module: nn.Module) -> None:
        """PEFT takes the names of layers that experts once had (w1, gate_proj) for their fused weights."""
        adapted = [n for n, p in module.named_parameters() if p.requires_grad and ".experts." in n and "lora_" in n]
        if adapted and not self.experts:
            raise MethodError(
                f"These targets adapt the weights of experts ({adapted[0]}). Set experts: true, or name other targets."
            )

    def _check_targets(self, model: Model) -> None:
        module, targets = model.module, self._chosen(model)
        if self.train_along and model.task.diffuses:
            raise MethodError("train_along: a LoRA file of diffusers' holds LoRAs alone. Leave it out.")
        names = [name for name, _ in module.named_modules()]
        if targets != "all-linear":
            wanted = [targets] if isinstance(targets, str) else targets
            matches = re.fullmatch if isinstance(targets, str) else _is_end_of
            idle = [t for t in wanted if not any(matches(t, name) for name in names)]
            if idle:
                there = ", ".join(linear_names(module))
                raise MethodError(f"LoRA target {', '.join(idle)} matches no layer. Linear layers here: {there}.")
            skipped = [*model.along, *self.train_along]
            found = [
                n for n in names if n and any(matches(t, n) for t in wanted) and not any(_holds(s, n) for s in skipped)
            ]
            refuse_other_layers(module, targets, found)
        idle = [t for t in self.train_along if not any(_is_end_of(t, name) for name in names)]
        if idle:
            raise MethodError(f"train_along: {', '.join(idle)} matches no module.")

    def save(self, model: Model, folder: Path) -> None:
        super().save(model, folder)
        terms = [(*read_adapter(path), 1.0) for path in model.adapters]
        state, config = read_adapter(folder)
        terms.append((state, config, 1.0))
        if model.start_adapter:  # PiSSA: the base is the original again, so what was taken out of it is subtracted
            terms.insert(-1, (model.start_adapter, config, -1.0))
        if len(terms) > 1:
            write_adapter(folder, *stack_loras(terms))
        if model.task.diffuses:
            as_diffusers(folder)

    @property
    def stacks(self) -> bool:
        """Whether this LoRA can be saved in one file together with those that were merged before it."""
        return stackable({"peft_type": "LORA", "use_dora": self.dora, "target_parameters": self.experts})

    def rate_factor(self, name: str) -> float:
        return self.plus_ratio if ".lora_B." in name else 1.0


def highest_rank(module: nn.Module, rank: int) -> int:
    """The smaller side of the layer where it is largest, of those with a LoRA; `rank` where that cannot be said."""
    sides = {n: p.numel() // rank for n, p in module.named_parameters() if ".lora_" in n and "experts" not in n}
    pairs = [(side, sides[n.replace(".lora_A.", ".lora_B.")]) for n, side in sides.items() if ".lora_A." in n]
    return max(map(min, pairs), default=rank)


def refuse_other_layers(module: nn.Module, targets: str | list[str], names: list[str]) -> None:
    """Raise MethodError where targets match more than layers that PEFT can put a LoRA on."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    layers = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    other = [name for name in names if not isinstance(module.get_submodule(name), layers)]
    if other:
        shown = ", ".join(f"{name} ({type(module.get_submodule(name)).__name__})" for name in other[:3])
        raise MethodError(
            f"targets: {targets if isinstance(targets, str) else ', '.join(targets)} matches {len(other):,} modules "
            f"that are no linear layers, convolutions or embeddings: {shown}{' …' if len(other) > 3 else ''}. Linear "
            f"layers here: {', '.join(linear_names(module))}."
        )


def convolutions(model: Model) -> list[str]:
    """The names of the convolutions that are or lie in the trunk's blocks, but for those that see a channel alone."""
    from torch import nn

    blocks = [f"{name}." for name, _ in model.task.blocks(model.module)]
    layers = ((n, m) for n, m in model.module.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1)
    return [name for name, _ in layers if f"{name}.".startswith(tuple(blocks))]


def expert_parameters(module: nn.Module) -> list[str]:
    """The fused weights of experts, [experts, out, in], by the end of their name."""
    found = [n for n, p in module.named_parameters() if p.ndim == 3 and "experts" in n]
    if not found:
        raise MethodError("experts: true, but this model has no fused expert weights. Leave it out.")
    return list(dict.fromkeys(re.sub(r"^.*\.\d+\.", "", name) for name in found))


def token_rows(model: Model) -> dict[str, list[int]]:
    """The rows of new tokens in the embeddings, and in the head where it has its own weight."""
    if not model.new_tokens:
        return {}
    tables = [model.module.get_input_embeddings(), model.module.get_output_embeddings()]
    tied = tables[0].weight is tables[1].weight
    names = {id(m): name for name, m in model.module.named_modules()}
    return {names[id(table)]: list(model.new_tokens) for table in (tables[:1] if tied else tables)}


def _is_end_of(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _holds(place: str, name: str) -> bool:
    """Whether the module `name` lies in one that is called `place`, or whose name ends so; all lie in the nameless."""
    return not place or f".{place}." in f".{name}."


METHOD = LoRA
