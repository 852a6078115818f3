"""The classes that Python gives in place of a document's sections: called by a user, and made of documents."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

import tunewright as tw
from tunewright.errors import RecipeError
from tunewright.methods import METHODS
from tunewright.objectives import OBJECTIVES
from tunewright.options import Options
from tunewright.recipe import Recipe, make_recipe


def each_kind(kind: type[Options] = Options) -> list[type[Options]]:
    """Those that can be called."""
    found = [inner for inner in kind.__subclasses__() if not inspect.isabstract(inner)]
    return found + [further for inner in kind.__subclasses__() for further in each_kind(inner)]


@pytest.mark.parametrize("kind", each_kind(), ids=lambda kind: kind.__name__)
def test_a_wrong_call_is_told_in_the_words_of_recipes(kind: type[Options]) -> None:
    wrong: dict[str, Any] = {"nonsense": 1}
    with pytest.raises(RecipeError, match=r"cannot be used:\n(.*\n)*  nonsense: unknown key nonsense") as raised:
        kind(**wrong)
    assert "pydantic.dev" not in str(raised.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: tw.LoRA(rnk=3), "rnk: unknown key rnk. Did you mean rank?"),
        (lambda: tw.LoRA(rank="x"), "rank: Input should be a valid integer (given: 'x')"),
        (lambda: tw.Training(epochs=-1), "epochs: Input should be greater than 0 (given: -1)"),
        (lambda: tw.Recipe(base="b", data="x", method={"rnk": 3}), "method.rnk: unknown key rnk. Did you mean rank?"),
    ],
)
def test_what_is_said_of_a_wrong_call(call: Any, said: str) -> None:
    with pytest.raises(tw.TunewrightError) as raised:
        call()
    assert str(raised.value).splitlines()[1:] == [f"  {said}"]


def test_parts_of_a_document_are_made_without_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their faults have the path from the top, and pydantic's own error stays what pydantic's users get."""
    monkeypatch.setattr(Options, "__init__", lambda self, **options: pytest.fail("called"))
    document = {"base": "b", "data": "x", "method": {"rank": 2}, "objective": "reward", "training": {"epochs": 1}}
    made = make_recipe(document)
    assert Recipe.model_validate_json(made.model_dump_json()) == made.model_copy() == copy.deepcopy(made)
    with pytest.raises(RecipeError, match=r"\n  training\.epochs: Input should be greater than 0 \(given: 0\)$"):
        make_recipe({**document, "training": {"epochs": 0}})
    with pytest.raises(ValidationError):
        TypeAdapter(list[Recipe]).validate_python([{**document, "base": ""}])


def test_a_class_shows_its_options() -> None:
    assert {"rank", "alpha", "targets"} <= inspect.signature(tw.LoRA).parameters.keys()


def test_each_choice_has_a_class_by_its_name() -> None:
    for kind in (*METHODS.values(), *OBJECTIVES.values()):
        assert getattr(tw, kind.__name__) is kind
