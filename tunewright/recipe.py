"""A recipe: the one typed document that the command line, a YAML file and Python all make, with the same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from tunewright.data.config import LOCAL, DataConfig
from tunewright.data.labeling.config import Labeling
from tunewright.data.rows import absolute
from tunewright.engine.config import TrainingConfig
from tunewright.errors import RecipeError
from tunewright.evaluation.config import EvaluationConfig
from tunewright.faults import refusal
from tunewright.grading import GraderBase
from tunewright.methods import METHODS, LoRA, Method
from tunewright.objectives import OBJECTIVES, Objective, Supervised
from tunewright.options import Options
from tunewright.tasks import MODULES
from tunewright.tasks._module_config import ModuleConfig
from tunewright.tiny_base import in_package

if TYPE_CHECKING:  # the unions are made of what exists, which a type checker cannot follow
    AnyMethod = Method
    AnyObjective = Objective
    TaskName = str
else:
    AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="type")]
    AnyObjective = Annotated[Union[tuple(OBJECTIVES.values())], Field(discriminator="type")]
    TaskName = Literal[("auto", *MODULES)]


# a recipe may hold its rows; libyaml, where PyYAML was built with it, reads and writes them ten times faster
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Checked = TypeVar("Checked", bound=BaseModel)

PLACES = ("base", "weights", "data.chat_template")
ROWS = ("data.train", "data.validation", "data.test", "data.prior")
CHANGING = (
    "training.device",
    "training.precision",
    "training.processes",
    "training.micro_batch_tokens",
    "training.activation_checkpointing",
    "training.track",
    "output",
)
"""Where and how a run computes, which may change on its way."""


class Recipe(Options):
    """Four choices (task, method, objective, data), a base, and a few knobs."""

    base: str = Field(
        min_length=1,
        description="Model folder, hub name, earlier run, PEFT adapter folder, package.module:factory of a module, or "
        "tiny: the packaged language model.",
        json_schema_extra=LOCAL,
    )
    weights: str | None = Field(
        None,
        description="Weights of a torch module, a safetensors file; none: those that its factory gives it.",
        json_schema_extra=LOCAL,
    )
    module: ModuleConfig | None = Field(None, description="What a torch module does not say of itself.")
    task: TaskName = Field("auto", description="What the model is for; auto: from base and data.")
    data: DataConfig
    method: AnyMethod = Field(default_factory=LoRA, description="Which parameters train.")
    objective: AnyObjective = Field(default_factory=Supervised, description="What the loss says.")
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: str | None = Field(
        None, description="Folder of the run; none: a new one under runs/.", json_schema_extra=LOCAL
    )

    @field_validator("base")
    @classmethod
    def _packaged(cls, value: str) -> str:
        return in_package(value)

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_name(cls, value: Any) -> Any:
        """`method: lora` is short for `method: {type: lora}`, and lora is the method of a mapping without a type."""
        return _typed(value, "lora")

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_by_name(cls, value: Any) -> Any:
        return _typed(value, "supervised")

    @field_validator("data", mode="before")
    @classmethod
    def _data_by_location(cls, value: Any) -> Any:
        """`data: FILE` is short for `data: {train: FILE}`, and so are rows."""
        return value if isinstance(value, Mapping | DataConfig) else {"train": value}

    def to_yaml(self) -> str:
        return as_yaml(self.model_dump(mode="json"))


def as_yaml(document: Any) -> str:
    return str(yaml.dump(document, Dumper=DUMPER, sort_keys=False, allow_unicode=True, width=100))


def make_recipe(document: Mapping[str, Any]) -> Recipe:
    """Check a document. Raises RecipeError with every fault at once, each unknown key with the nearest right one."""
    if not isinstance(document, Mapping):
        raise RecipeError("A recipe is a mapping of keys (base, data, method, …), and this is something else.")
    return checked(Recipe, document)


def located(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths in place of relative ones, so that its run can be used from any folder."""
    data, test, template = recipe.data, recipe.data.test, recipe.data.chat_template
    found = {
        "train": absolute(data.train),
        "validation": absolute(data.validation),
        "test": {name: absolute(one) for name, one in test.items()} if isinstance(test, dict) else absolute(test),
        "prior": absolute(data.prior),
        "labeling": data.labeling and _labeling_located(data.labeling),
        "chat_template": template if template == "plain" else absolute(template),  # the word has a meaning of its own
    }
    changed = {name: place for name, place in found.items() if place != getattr(data, name)}
    places = {"weights": absolute(recipe.weights), "data": data.model_copy(update=changed)}
    return referring(recipe.model_copy(update=places), absolute)


def referring(recipe: Recipe, change: Callable[[str], str]) -> Recipe:
    """The recipe with the names of the models that it begins from and is rewarded by changed."""
    changes: dict[str, Any] = {"base": change(recipe.base)}
    if rewards := getattr(recipe.objective, "rewards", None):
        asked = [_grader_referring(grader, change) for grader in rewards]
        changes["objective"] = recipe.objective.model_copy(update={"rewards": asked})
    return recipe.model_copy(update=changes)


def _grader_referring(grader: GraderBase, change: Callable[[str], str]) -> GraderBase:
    named: dict[str, Any] = {
        field: change(getattr(grader, field)) for field in ("run", "model") if hasattr(grader, field)
    }
    if inner := getattr(grader, "graders", None):
        named["graders"] = {name: _grader_referring(one, change) for name, one in inner.items()}
    return grader.model_copy(update=named)


def _labeling_located(labeling: Labeling) -> Labeling:
    places = {"rules": absolute(labeling.rules), "then_clean": absolute(labeling.then_clean)}
    return labeling.model_copy(update=places)


def checked(kind: type[Checked], document: Mapping[str, Any]) -> Checked:
    """A document as a configuration. Raises RecipeError with every fault at once."""
    try:
        return kind.model_validate(dict(document))
    except ValidationError as error:
        raise refusal(error, kind) from error


def leaves(document: Any, path: str = "") -> dict[str, Any]:
    """The values of a document by their paths, as a user writes them: {"training.epochs": 3.0, …}."""
    if not isinstance(document, dict):
        return {path: document}
    inner = (leaves(value, f"{path}.{key}" if path else key) for key, value in document.items())
    return {name: value for found in inner for name, value in found.items()}


def lasting(recipe: Recipe) -> dict[str, Any]:
    """What a run keeps from its start to its end, by path. Its rows are known by their hashes, wherever they lie."""
    found = leaves(recipe.model_dump(mode="json"))
    rows = {path for path in found if path in ROWS or path.startswith("data.test.")}
    places = {path for path in rows if not isinstance(found[path], float)}
    return {path: value for path, value in found.items() if path not in places.union(CHANGING)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names whose value now is not the one that a run began with, in words."""
    names = [name for name in {**before, **now} if now.get(name) != before.get(name)]
    return [f"{name}: {now.get(name)}, but the run began with {before.get(name)}" for name in names]


def goes_on_as_it_began(remedy: str, folder: str | Path, changed: Sequence[str]) -> RecipeError:
    """What is raised where a run is to go on with something else than it began with, and what to do for that."""
    longer = f"To train it longer, let it end and start a new run with base: {folder}."
    return RecipeError("\n  ".join([f"A run goes on as it began. {longer} {remedy}, or start a new run:", *changed]))


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, with `key.path=value` on top; values are read as YAML."""
    document = read_document(path)
    apply_overrides(document, overrides)
    return make_recipe(document)


def read_document(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises RecipeError where there is none."""
    try:
        document = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=LOADER)
    except FileNotFoundError as error:
        raise RecipeError(f"There is no recipe {path}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"The recipe {path} is no YAML: {error}") from error
    if not isinstance(document, dict):
        raise RecipeError(f"The recipe {path} is no mapping of keys (base, data, method, …).")
    return document


def apply_overrides(document: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set `training.epochs=2` and the like, in place. `method=lora` may be followed by `method.rank=8`."""
    for override in overrides:
        path, found, value = override.partition("=")
        if not found or not path:
            raise RecipeError(f"{override!r} is no key.path=value.")
        set_key(document, path, _yaml_value(value, override))


def set_key(document: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    place = document
    for parent in parents:
        inner = place.get(parent)
        if not isinstance(inner, dict):
            inner = {} if inner is None else {"train": inner} if parent == "data" else {"type": inner}
            place[parent] = inner
        place = inner
    place[key] = value


def _yaml_value(text: str, override: str) -> Any:
    """The value of key.path=value. A `#` begins no comment here: a shell has taken off the quotes that say so."""
    if "#" in text and not text.startswith(("'", '"', "[", "{")):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is no YAML: {error}") from error
    return _number(value)


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-4 as text; people mean a number."""
    try:
        return float(value) if isinstance(value, str) and value[:1].isdigit() else value
    except ValueError:
        return value


def _typed(value: Any, default: str) -> Any:
    if isinstance(value, str):
        return {"type": value}
    return {"type": default, **value} if isinstance(value, dict) else value
