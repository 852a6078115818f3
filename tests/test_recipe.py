"""The one document: what is read, what is refused, and what is said about it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

import tunewright as tw
from tests.contracts.steps import prepared
from tests.tiny import completions
from tunewright.chain import make_chain
from tunewright.data.augmentation import Augmentation
from tunewright.data.config import DataConfig
from tunewright.data.labeling.config import Labeling
from tunewright.engine.config import TrainingConfig
from tunewright.errors import RecipeError
from tunewright.evaluation.config import EvaluationConfig
from tunewright.faults import option_paths
from tunewright.grading.config import GRADERS, Sampling
from tunewright.methods import METHODS, LoRA
from tunewright.objectives import OBJECTIVES
from tunewright.recipe import Recipe, apply_overrides, make_recipe, read_recipe
from tunewright.synonyms import KEYS, NAMES
from tunewright.tasks._module_config import ModuleConfig, Preprocessing

MINIMAL = {"base": "some/model", "data": "rows.jsonl"}
MODELS: list[type[BaseModel]] = [
    Recipe, DataConfig, TrainingConfig, EvaluationConfig, *METHODS.values(), *OBJECTIVES.values()
]  # fmt: skip


def refusal(**changes: Any) -> str:
    with pytest.raises(RecipeError) as raised:
        make_recipe({**MINIMAL, **changes})
    return str(raised.value)


def test_two_keys_are_enough() -> None:
    recipe = make_recipe(MINIMAL)
    assert recipe.data.train == "rows.jsonl"
    assert recipe.method == LoRA()
    assert recipe.task == recipe.data.format == "auto"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_by_its_name_alone(name: str) -> None:
    if name == "peft":
        assert "method.config is missing" in refusal(method=name)
    elif name == "textual_inversion":
        assert "method.token is missing" in refusal(method=name)
    else:
        assert make_recipe({**MINIMAL, "method": name}).method == METHODS[name]()


def test_lora_is_the_method_of_a_mapping_without_a_type() -> None:
    assert make_recipe({**MINIMAL, "method": {"rank": 3}}).method == LoRA(rank=3)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"metod": "lora"}, "unknown key metod. Did you mean method?"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat: unknown key learning_rat. Did you"),
        ({"data": {"train": "x", "maxlength": 3}}, "Did you mean max_length?"),
        ({"evaluation": {"sample": 3}}, "Did you mean samples?"),
        ({"objective": {"label_smothing": 0.1}}, "label_smothing"),
        ({"method": {"rnk": 3}}, "method.rnk: unknown key rnk. Did you mean rank?"),
        ({"method": {"type": "lore"}}, "lore is unknown. Did you mean lora?"),
        ({"method": "adaptr"}, "Did you mean adapter?"),
        ({"objective": {"type": "rl", "rewards": [{"type": "lenght"}]}},
         "objective.rewards.0: lenght is unknown. Did you mean length?"),
        ({"objective": {"type": "rl", "rewards": [{"type": "length", "maxx": 10}]}},
         "objective.rewards.0.maxx: unknown key maxx. Did you mean max?"),
        ({"objective": {"type": "rl", "rewards": [{"type": "judge"}]}}, "judge is unknown. Known: string_check, "),
        ({"objective": {"type": "rl", "rewards": [{"type": "length", "max": 1, "pattern": "x"}]}},
         "reward length has no option pattern; it is one of pattern. Options: "),
        ({"objective": {"type": "rl", "rewards": [{"type": "multi", "calculate_output": "length", "graders":
          {"length": {"type": "pattern", "patern": "x"}}}]}},
         "objective.rewards.0.graders.length.patern: unknown key patern. Did you mean pattern?"),
        ({"task": "text-generatoin"}, "text-generation"),
        ({"training": {"schedule": "cosin"}}, "cosine"),
    ],
)  # fmt: skip
def test_what_is_unknown_gets_the_nearest_that_is_known(changes: Any, said: str) -> None:
    assert said in refusal(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 3}, "epochs: unknown key epochs. It is training.epochs: Passes over the training rows."),
        ({"lr": 3}, "lr: unknown key lr. It is training.learning_rate: Peak"),
        ({"training": {"lr": 1}}, "training.lr: unknown key lr. It is training.learning_rate"),
        ({"training": {"gradient_accumulation_steps": 2}}, "It is training.batch: Rows a step, over all"),
        ({"training": {"max_length": 2}}, "training.max_length: unknown key max_length. It is data.max_length"),
        ({"method": {"r": 8}}, "method.r: unknown key r. It is method.rank"),
        ({"samples": 8}, "samples: unknown key samples. It is objective.samples or evaluation.samples."),
        ({"flip": 1}, "It is data.augment.flip"),
        ({"model": "x"}, "model: unknown key model. It is base or data.labeling.model."),
        ({"epoch": 3}, "epoch: unknown key epoch. Did you mean training.epochs?"),
        ({"evaluation": {"sample": 3}}, "Did you mean samples?"),
        ({"objective": "dpo"}, "dpo is unknown. Give objective.type: preference and objective.loss: dpo."),
        ({"objective": "GRPO"}, "Give objective.type: rl and objective.algorithm: grpo."),
        ({"objective": "sft"}, "Give objective.type: supervised."),
        ({"method": "dora"}, "dora is unknown. Give method.type: lora and method.dora: true."),
        ({"method": "qlora"}, "qlora is unknown. There are no 4-bit bases yet: take method.type: lora"),
        ({"method": "prefix-tuning"}, "Give method.type: peft and method.config.peft_type: PREFIX_TUNING."),
    ],
)
def test_words_of_the_field_are_known(changes: Any, said: str) -> None:
    assert said in refusal(**changes)


def test_words_of_the_field_lead_to_what_there_is() -> None:
    paths, words = option_paths(Recipe), [word for names in KEYS.values() for word in names]
    assert not KEYS.keys() - paths.keys()
    assert len(set(words)) == len(words)
    for section, known in {"method": METHODS, "objective": OBJECTIVES}.items():
        assert {name.partition(" ")[0] for name in NAMES[section]} <= known.keys()


def test_keys_of_stages_are_told_as_those_of_a_recipe() -> None:
    with pytest.raises(RecipeError, match=r"stages\.a\.lr: unknown key lr\. It is training\.learning_rate"):
        make_chain({"stages": {"a": {**MINIMAL, "lr": 1}}})


def test_an_option_of_another_method_says_whose_it_is() -> None:
    said = refusal(method={"type": "full", "rank": 8})
    assert "method full has no option rank; it is one of lora" in said
    assert "width" in refusal(method={"type": "lora", "width": 8})


def test_all_faults_come_at_once() -> None:
    said = refusal(
        base="", method={"type": "lora", "rank": 0}, training={"epochs": -1, "nonsense": 1, "batch": 2, "keep": "all"}
    )
    for part in ("base", "method.rank", "training.epochs", "training.nonsense", "training.keep"):
        assert part in said
    assert len(said.splitlines()) >= 6


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"training": {"learning_rate": "fast"}},
         ["training.learning_rate: Input should be a valid number or 'auto' (given: 'fast')"]),
        ({"training": {"batch": -1}},
         ["training.batch: Input should be greater than or equal to 1 or 'auto' (given: -1)"]),
        ({"training": {"lr2": 1, "lr3": 2}}, ["training.lr2: unknown key lr2.", "training.lr3: unknown key lr3."]),
        ({"data": {"train": "x", "test": {"str": 3}}},
         ["data.test: str: give a file, a folder, a hub name"]),
        ({"data": {"train": ["a b"]}}, ["data.train: a row maps columns to values, and rows[0] is a str"]),
        ({"objective": {"type": "preference", "loss": [1]}}, ["objective.loss: Input should be 'dpo', 'ipo', "]),
        ({"method": None}, ["method: give a name (lora, full, freeze, head, adapter, peft, textual_inv"]),
        ({"training": None}, ["training: give a mapping of keys (given: None)"]),
        ({"method": ""}, ["method: '' is unknown. Known: lora, full, "]),
    ],
)  # fmt: skip
def test_a_fault_is_one_line(changes: Any, faults: list[str]) -> None:
    lines = refusal(**changes).splitlines()[1:]
    assert len(lines) == len(faults)
    assert all(line.strip().startswith(fault) for line, fault in zip(lines, faults, strict=True))


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_a_document_that_is_no_mapping(document: Any) -> None:
    with pytest.raises(RecipeError, match="mapping"):
        make_recipe(document)


def test_missing_keys_are_named() -> None:
    with pytest.raises(RecipeError, match="base is missing"):
        make_recipe({"data": "x"})


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"training": {"batch": 4, "batch_tokens": 100}}, "not both"),
        ({"method": {"type": "freeze", "last": 1, "until": "x"}}, "not both"),
        ({"training": {"learning_rate": 0}}, "greater than 0"),
        ({"training": {"batch": 0}}, "batch"),
        ({"training": {"ema": 1.0}}, "less than 1"),
        ({"evaluation": {"pattern": "("}}, "regular expression"),
        ({"method": {"type": "lora", "targets": "("}}, "regular expression"),
    ],
)
def test_values_that_mean_nothing(changes: Any, match: str) -> None:
    assert match in refusal(**changes)


def numbers(model: type[BaseModel]) -> list[str]:
    """The names of the options that are a number, or several."""
    words = {name: str(field.annotation) for name, field in model.model_fields.items()}
    return [name for name, said in words.items() if re.search(r"\b(int|float)\b", said) and "bool" not in said]


PARTS = [*MODELS, Augmentation, Labeling, ModuleConfig, Preprocessing, Sampling, *GRADERS.values()]


@pytest.mark.parametrize("model", PARTS, ids=lambda model: model.__name__)
@pytest.mark.parametrize("value", [True, False, [1, True], {"a": True}], ids=str)
def test_a_truth_value_is_no_number(value: Any, model: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(dict.fromkeys(model.model_fields, value))
    assert set(numbers(model)) <= {fault["loc"][0] for fault in raised.value.errors()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"max_steps": True}}, "training.max_steps: give a number or null; true, false, on and off are"),
        ({"training": {"gradient_clip": False}}, "off are none (given: False)"),
        ({"training": {"batch": True}}, "training.batch: give a number or auto; true"),
        ({"training": {"seeds": [1, True]}}, "training.seeds.1: give a number; true"),
        ({"objective": {"class_weights": {"a": True}}}, "objective.class_weights.a: give a number; true"),
        ({"data": {"train": "x", "augment": {"flip": True}}}, "data.augment.flip: give a number; true"),
        ({"module": {"image": {"mean": [True, 0, 0]}}}, "module.image.mean.0: give a number; true"),
    ],
)
def test_a_truth_value_in_place_of_a_number_is_told_in_words(changes: Any, said: str) -> None:
    assert said in refusal(**changes)


def test_truth_values_stand_where_they_may() -> None:
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    recipe = make_recipe({"base": "x", "data": {"train": rows, "validation": rows}, "training": {"packing": True}})
    assert recipe.data.validation == rows and recipe.training.packing


# Overrides and files


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    recipe = read_recipe(
        path,
        ["training.epochs=2", "training.learning_rate=1e-4", "method=freeze", "method.last=3", "output=runs/x=y",
         "data.validation=v.jsonl", "training.patience=null", "training.packing=true", "data.special_tokens=[<a>,<b>]"],
    )  # fmt: skip
    assert (recipe.training.epochs, recipe.training.learning_rate) == (2.0, 1e-4)
    assert recipe.method.model_dump() == {"type": "freeze", "last": 3, "until": None, "batch_norm": "train"}
    assert recipe.data.train == "rows.jsonl"
    assert recipe.data.validation == "v.jsonl"
    assert recipe.training.packing
    assert recipe.data.special_tokens == ["<a>", "<b>"]
    assert recipe.output == "runs/x=y"


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training.epochs={", ""])
def test_an_override_that_is_none(override: str) -> None:
    with pytest.raises(RecipeError):
        apply_overrides({}, [override])


def test_an_override_below_a_value(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(RecipeError, match="epochs"):
        read_recipe(path, ["training.epochs.more=3"])


@pytest.mark.parametrize("text", ["base: [", "- a", "\x00", "just words"])
def test_a_file_that_is_no_recipe(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.yaml"):
        read_recipe(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        read_recipe(tmp_path / "nothing.yaml")


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("base: x\ndata: y\ntraining: {learning_rate: 1e-4, weight_decay: 1e-2}\n")
    assert read_recipe(path).training.learning_rate == 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training": {"learning_rate": 1e-7, "ema": 0.999, "batch": 8}, "method": {"type": "freeze", "last": 2}},
        {"data": {"train": [{"text": "ja: nein\n- é 1e5 'x' #", "label": "no"}, {"label": None}]}},
        {"objective": {"class_weights": {"yes": 2, "1": 3}}},
        {"method": {"type": "peft", "config": {"peft_type": "LOHA", "r": 3, "target_modules": ["a"], "x": None}}},
    ],
)  # fmt: skip
def test_a_recipe_survives_yaml(changes: Any, tmp_path: Path) -> None:
    recipe = make_recipe({**MINIMAL, **changes})
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_recipe(path) == recipe
    assert read_recipe(path).to_yaml() == recipe.to_yaml()


def test_a_resolved_recipe_survives_yaml_and_resolves_to_itself(tiny_base: Any, tmp_path: Path) -> None:
    resolved = prepared(tiny_base("llama"), completions()).recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(resolved.to_yaml(), encoding="utf-8")
    again = read_recipe(path)
    assert again == resolved
    assert "auto" not in (again.task, again.training.learning_rate, again.training.batch, again.training.precision)
    rows = again.data.train
    assert (
        prepared(again.base, rows, method=again.method.model_dump(), training=again.training.model_dump()).recipe
        == resolved
    )


# Documentation


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_option_is_described(model: type[BaseModel]) -> None:
    sections = ("type", "data", "training", "evaluation")
    bare = [name for name, field in model.model_fields.items() if not field.description and name not in sections]
    assert not bare
    assert model.__doc__


def test_the_json_schema_builds() -> None:
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert set(schema["required"]) == {"base", "data"}
    assert {
        name.rsplit("/", 1)[-1] for name in schema["properties"]["method"]["discriminator"]["mapping"].values()
    } == {method.__name__ for method in METHODS.values()}


def test_paths_and_code_are_marked_for_the_service() -> None:
    """Over HTTP they are refused (decision 12)."""
    local = {
        f"{model.__name__}.{name}"
        for model in MODELS
        for name, field in model.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("local_only")
    }
    assert local == {
        "Recipe.base", "Recipe.weights", "Recipe.output",
        "DataConfig.train", "DataConfig.validation", "DataConfig.test", "DataConfig.chat_template",
        "DataConfig.prior", "DataConfig.cache_latents", "DataConfig.cache_captions", "Peft.config",
    }  # fmt: skip


@pytest.mark.parametrize("module", ["tunewright", "tunewright.recipe", "tunewright.methods", "tunewright.cli"])
def test_reading_a_recipe_needs_no_torch(module: str) -> None:
    code = (
        f"import sys, {module}; from tunewright.recipe import make_recipe; "
        "make_recipe({'base': 'x', 'data': 'y', 'method': 'dora' if 0 else 'lora'}); "
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    assert all(getattr(tw, name) is not None for name in tw.__all__)
    with pytest.raises(AttributeError, match="no nothing"):
        tw.nothing  # noqa: B018


def test_a_sharp_in_a_value_begins_no_comment(tmp_path: Path) -> None:
    """The shell has taken off the quotes that YAML would want around it."""
    document: dict[str, Any] = {}
    apply_overrides(document, ["evaluation.pattern=#### (.*)", "base=a#b", "data.columns={text: a} # a comment"])
    assert document["evaluation"]["pattern"] == "#### (.*)" and document["base"] == "a#b"
    assert document["data"]["columns"] == {"text": "a"}


EXAMPLES = sorted((Path(__file__).parents[1] / "examples/recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_recipe(path: Path) -> None:
    read_recipe(path)


def test_each_method_has_an_example() -> None:
    assert {read_recipe(path).method.type for path in EXAMPLES} == set(METHODS)


def test_each_objective_has_an_example() -> None:
    assert {read_recipe(path).objective.type for path in EXAMPLES} == set(OBJECTIVES)
