"""PEFT's own configurations: what they cannot be is said in their words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tunewright.errors import MethodError
from tunewright.methods.peft import Peft


@pytest.mark.parametrize(
    "config, said",
    [
        ({}, r"peft_type \(missing\) is unknown\. Known: ADALORA, "),
        ({"peft_type": "lorra"}, r"peft_type LORRA is unknown\. Did you mean LORA\?"),
        ({"peft_type": "ia3", "target_module": "x"}, r"IA3Config has no option target_module\. .*target_modules\?"),
        ({"peft_type": "vera", "zz": 1}, r"VeraConfig has no option zz\. Known: .*, vera_dropout"),
        ({"peft_type": "lora", "layers_pattern": "h"}, r"^LoraConfig: .*layers_to_transform"),
    ],
)
def test_a_faulty_configuration_is_named(config: dict[str, Any], said: str) -> None:
    model: Any = SimpleNamespace(along=(), task=SimpleNamespace(name="text-generation"))
    with pytest.raises(MethodError, match=said):
        Peft(config=config).peft_config(model)
