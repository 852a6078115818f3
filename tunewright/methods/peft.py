"""`peft`: any adapter that PEFT has, by its own configuration."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from tunewright.data.config import LOCAL
from tunewright.errors import MethodError, nearest
from tunewright.methods._peft import PEFT_TASKS, PeftMethod
from tunewright.tasks.base import Model

VIRTUAL_TOKENS = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")


class Peft(PeftMethod):
    """Any PEFT configuration as a mapping: {peft_type: LOHA, r: 8, target_modules: [q_proj, v_proj]}."""

    learning_rate: ClassVar[float] = 2e-4
    type: Literal["peft"] = "peft"
    config: dict[str, Any] = Field(
        description="PEFT's own options, with peft_type.",
        json_schema_extra=LOCAL,  # some name modules to import and tokenizers to load
    )

    def packs(self) -> bool:
        return str(self.config.get("peft_type", "")).upper() not in VIRTUAL_TOKENS

    def peft_config(self, model: Model) -> Any:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

        given = dict(self.config)
        name = str(given.pop("peft_type", "")).upper()
        known = {kind.value: kind for kind in PeftType if kind in PEFT_TYPE_TO_CONFIG_MAPPING}
        if name not in known:
            raise MethodError(f"peft_type {name or '(missing)'} is unknown. {nearest(name, sorted(known))}")
        config_class = PEFT_TYPE_TO_CONFIG_MAPPING[known[name]]
        fields = list(config_class.__dataclass_fields__)
        for key in given:
            if key not in fields:
                raise MethodError(f"{config_class.__name__} has no option {key}. {nearest(key, sorted(fields))}")
        if name in VIRTUAL_TOKENS[1:] and "score" in model.along:
            raise MethodError(
                f"{name} does not fit this classifier, which answers at the last token of a row: behind virtual tokens "
                "it cannot tell that from padding. Use PREFIX_TUNING or method: lora."
            )
        given.setdefault("task_type", PEFT_TASKS.get(model.task.name))
        if model.along and "modules_to_save" in fields:
            given["modules_to_save"] = [*(given.get("modules_to_save") or []), *model.along]
        try:
            return config_class(**given)
        except (ValueError, TypeError) as error:
            raise MethodError(f"{config_class.__name__}: {error}") from error


METHOD = Peft
