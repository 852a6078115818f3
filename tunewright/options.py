"""What all parts of a recipe have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from tunewright.faults import refusal
from tunewright.truth_values import without_truth_value


class Options(BaseModel):
    """A part of a recipe. Frozen; an unknown key is a fault, and so is true or false in place of a number.

    Raises RecipeError where the class is called. Within a document pydantic makes it without that call.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    if not TYPE_CHECKING:  # which knows the fields, as long as there is no __init__

        def __init__(self, /, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise refusal(error, type(self)) from error

        __init__.__pydantic_base_init__ = True  # else pydantic calls it for parts of a document too

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any) -> Any:
        """Pydantic would read true as 1 and false as 0; YAML reads `on` and `off` as true and false."""
        if not isinstance(value, dict):
            return value
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: without_truth_value(given, kinds.get(name)) for name, given in value.items()}
