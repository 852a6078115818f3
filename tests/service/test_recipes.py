"""A job becomes a recipe; a recipe from afar names neither code nor places."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import tunewright as tw
from tests.tiny import asked, chats, preferences
from tunewright.data.config import DataConfig
from tunewright.grading import GRADERS
from tunewright.methods import METHODS
from tunewright.objectives import OBJECTIVES
from tunewright.recipe import Recipe, read_document
from tunewright.service import recipes
from tunewright.service.entities import Hyperparameters, JobSpec, Teaching
from tunewright.service.errors import Refused

FILES = {"train": "/files/a.jsonl"}
EXACT = {
    "type": "string_check", "name": "exact", "operation": "eq",
    "input": "{{sample.output_text}}", "reference": "{{item.answer}}",
}  # fmt: skip
JUDGE = {"type": "score_model", "name": "judge", "model": "m", "input": [{"role": "user", "content": "x"}]}


def spec(kind: Any = "supervised", recipe: Any = None, grader: Any = None, **hyper: Any) -> JobSpec:
    grader = EXACT if kind == "reinforcement" and grader is None else grader
    teaching = Teaching(type=kind, hyperparameters=Hyperparameters(**hyper), grader=grader)
    return JobSpec(model="m", training_file="file-a", method=teaching, recipe=recipe or {})


def made(job: JobSpec, **files: str) -> Recipe:
    return recipes.make_recipe_for(job, "/bases/m", {**FILES, **files}, lambda name: f"/models/{name}", "/runs/1")


def test_what_is_left_open_is_as_in_any_recipe_but_that_each_epoch_s_model_is_kept() -> None:
    recipe = made(spec())
    assert recipe == Recipe(
        base="/bases/m",
        data={"train": "/files/a.jsonl", "validation": 0},
        training={"snapshots": True},
        output="/runs/1",  # type: ignore[arg-type]
    )
    assert recipe.method.type == "lora"
    assert made(spec(), validation="/files/b").data.validation == "/files/b"


def test_hyperparameters() -> None:
    training = made(spec(n_epochs=2, batch_size=4, learning_rate_multiplier=0.5)).training
    assert (training.epochs, training.batch, training.rate_multiplier) == (2, 4, 0.5)
    assert training.learning_rate == "auto"
    preference: Any = made(spec("dpo", beta=0.3)).objective
    assert (preference.type, preference.loss, preference.beta) == ("preference", "dpo", 0.3)
    assert getattr(made(spec("dpo")).objective, "beta") == 0.1  # noqa: B009
    seeded = spec().model_copy(update={"seed": 7})
    assert made(seeded).training.seed == 7


@pytest.mark.parametrize("multiplier, samples", [("auto", 8), (1.0, 8), (2.0, 16), (0.3, 2), (2e-5, 2)])
def test_compute_buys_answers(multiplier: Any, samples: int) -> None:
    job = spec("reinforcement", compute_multiplier=multiplier, eval_interval=5, eval_samples=3)
    recipe = made(job, validation="/b")
    objective: Any = recipe.objective
    assert (objective.samples, objective.evaluation_samples) == (samples, 3)
    assert recipe.training.evaluate_every == 5 and objective.rewards[0].name == "exact"


def test_a_client_s_recipe_goes_on_top() -> None:
    own = {
        "method": {"type": "freeze", "last": 1}, "training": {"epochs": 1, "warmup": 0}, "data": {"max_length": 9},
        "objective": {"loss": "ipo"}, "evaluation": {"generate": 0},
    }  # fmt: skip
    recipe = made(spec("dpo", own, n_epochs=3, batch_size=2, beta=0.5))
    objective: Any = recipe.objective
    assert recipe.method.type == "freeze" and (objective.loss, objective.beta) == ("ipo", 0.5)
    assert (recipe.training.epochs, recipe.training.batch, recipe.data.max_length) == (1, 2, 9)
    assert recipe.data.train == "/files/a.jsonl" and recipe.evaluation.generate == 0
    assert made(spec("dpo", {"objective": "reward"}, beta=0.5)).objective.type == "reward"
    assert made(spec(recipe={"method": "full"})).method.type == "full"


def test_models_of_graders_are_resolved() -> None:
    multi = {"type": "multi", "name": "both", "calculate_output": "a + b", "graders": {"a": EXACT, "b": JUDGE}}
    objective: Any = made(spec("reinforcement", grader=multi)).objective
    assert objective.rewards[0].graders["b"].model == "/models/m"
    objective = made(spec(recipe={"objective": {"type": "rl", "rewards": [JUDGE]}})).objective
    assert objective.rewards[0].model == "/models/m"
    named_as_the_base = {**JUDGE, "model": "/bases/m"}
    objective = made(spec("reinforcement", grader=named_as_the_base)).objective
    assert objective.rewards[0].model == "/models//bases/m"


UNTRUSTED: list[tuple[dict[str, Any], str]] = [
    ({"base": "/x"}, "recipe.base"),
    ({"weights": "/x"}, "recipe.weights"),
    ({"output": "/x"}, "recipe.output"),
    ({"data": {"train": "/x"}}, "recipe.data.train"),
    ({"data": {"validation": 0.1}}, "recipe.data.validation"),
    ({"data": {"test": {"near": "/x"}}}, "recipe.data.test"),
    ({"data": {"prior": "/x"}}, "recipe.data.prior"),
    ({"data": {"chat_template": "/x"}}, "recipe.data.chat_template"),
    ({"data": {"cache_latents": None}}, "recipe.data.cache_latents"),
    ({"data": {"labeling": {"rules": "/x.py"}}}, "recipe.data.labeling.rules"),
    ({"data": {"labeling": {"then_clean": "/x"}}}, "recipe.data.labeling.then_clean"),
    ({"method": {"type": "peft", "config": {"megatron_core": "os"}}}, "recipe.method.config"),
    ({"objective": {"rewards": [{"type": "reward_model", "run": "/x"}]}}, "recipe.objective.rewards.0.run"),
    ({"objective": {"rewards": [{"type": "python", "function": "os:system"}]}}, "recipe.objective.rewards.0.function"),
    ({"objective": {"rewards": [{"type": "multi", "graders": {"a": {"type": "rules", "run": "/x"}}}]}},
     "recipe.objective.rewards.0.graders.a.run"),
    ({"objective": {"rewards": [{"type": "multi", "graders": {"type": "python", "function": "os:system"}}]}},
     "recipe.objective.rewards.0.graders.function"),
    ({"objective": {"rewards": [{"type": "multi", "graders": {"name": {"function": "os:system"}}}]}},
     "recipe.objective.rewards.0.graders.name.function"),
    ({"training": {"device": "cuda:1"}}, "recipe.training.device"),
    ({"training": {"processes": 64}}, "recipe.training.processes"),
    ({"training": {"track": ["wandb"]}}, "recipe.training.track"),
    ({"training": {"seeds": [1, 2]}}, "recipe.training.seeds"),
    ({"data": "/x"}, "recipe.data"),
    ({"data": ["x"]}, "recipe.data"),
    ({"training": []}, "recipe.training"),
    ({"objective": []}, "recipe.objective"),
]  # fmt: skip


@pytest.mark.parametrize("recipe, param", UNTRUSTED, ids=lambda value: value if isinstance(value, str) else "")
def test_code_places_and_the_machine_are_not_for_clients(recipe: dict[str, Any], param: str) -> None:
    guards: list[Any] = [
        recipes.refuse_untrusted,
        *(lambda one, f=f: f(spec(recipe=one)) for f in (made, recipes.check)),
    ]
    for refuse in guards:
        with pytest.raises(Refused) as refused:
            refuse(recipe)
        assert (refused.value.status, refused.value.param) == (400, param)


def test_every_field_that_is_marked_is_refused_wherever_it_stands() -> None:
    """The schema says which they are, by another way than the guard goes."""
    schema = Recipe.model_json_schema()
    models = {**schema["$defs"], "Recipe": schema}
    fields = {
        (m, f) for m, told in models.items() for f, s in told.get("properties", {}).items() if s.get("local_only")
    }
    places: dict[str, Any] = {
        "Recipe": lambda f: {f: 1},
        "DataConfig": lambda f: {"data": {f: 1}},
        "Labeling": lambda f: {"data": {"labeling": {f: 1}}},
        **{m.__name__: lambda f, t=t: {"method": {"type": t, f: 1}} for t, m in METHODS.items()},
        **{o.__name__: lambda f, t=t: {"objective": {"type": t, f: 1}} for t, o in OBJECTIVES.items()},
        **{g.__name__: lambda f, t=t: {"objective": {"rewards": [{"type": t, f: 1}]}} for t, g in GRADERS.items()},
    }
    assert len(fields) > 12 and {"Python", "Labeling", "Peft"} <= {model for model, _ in fields}
    for model, field in fields:
        with pytest.raises(Refused, match=field):
            recipes.refuse_untrusted(places[model](field))
    fields_of = (Recipe, DataConfig, *GRADERS.values(), *METHODS.values(), *OBJECTIVES.values())
    assert not any(f.alias or f.validation_alias for model in fields_of for f in model.model_fields.values())


@pytest.mark.parametrize(
    "grader, said",
    [
        ({"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}, "no python graders"),
        ({"type": "multi", "calculate_output": "a", "graders": {"a": {"type": "python"}}}, "no python graders"),
        ({"type": "reward_model", "run": "/x"}, "grader.run may not be set"),
        ({"type": "multi", "calculate_output": "a", "graders": {"a": {"type": "rules", "run": "/x"}}}, r"a\.run"),
        ({"type": "string_check", "name": "x"}, "operation is missing"),
        ({"type": "label_model"}, "label_model"),
        ({"type": "text_similarity", "evaluation_metric": "meteor", "input": "a", "reference": "b"}, "meteor"),
    ],
)
def test_graders_that_are_not_run(grader: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        recipes.check(spec("reinforcement", grader=grader))


@pytest.mark.parametrize(
    "recipe, said",
    [
        ({"trainig": {}}, "Did you mean training"),
        ({"training": {"learning_rate": 1e-3}}, "rate_multiplier"),
        ({"objective": {"type": "rl", "rewards": []}}, "rewards"),
        ({"method": 3}, "method"),
    ],
)
def test_recipes_that_mean_nothing(recipe: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        recipes.check(spec(recipe=recipe, learning_rate_multiplier=2.0))


def test_a_recipe_of_no_end_is_refused() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"objective": deep} if deep else {"a": 1}
    with pytest.raises(Refused, match="too deep"):
        recipes.refuse_untrusted(deep)
    with pytest.raises(Refused, match="says it"):
        recipes.check(spec("reinforcement", {"objective": {"rewards": [EXACT]}}))


@pytest.mark.parametrize("kind, rows", [("supervised", chats), ("dpo", preferences), ("reinforcement", asked)])
def test_a_job_runs_and_says_what_it_decided(kind: str, rows: Any, tiny_base: Any, tmp_path: Any) -> None:
    """With an evaluation and a checkpoint at the end of each epoch."""
    own: dict[str, Any] = {"evaluation": {"before": False, "generate": 0, "samples": 0}, "method": {"rank": 2}}
    grader = {"type": "length", "name": "short", "max": 3, "slack": 4} if kind == "reinforcement" else None
    own |= {"objective": {"max_new_tokens": 4}} if kind == "reinforcement" else {}
    job = spec(kind, own, grader, n_epochs=2, batch_size=5)
    train, validation = rows(12)[:10], rows(12)[10:]
    given = {"train": lines(tmp_path / "a.jsonl", train), "validation": lines(tmp_path / "b.jsonl", validation)}
    recipe = recipes.make_recipe_for(job, tiny_base("llama"), given, lambda name: name, tmp_path / "run")
    run = tw.train(recipe)
    evaluated = [line["step"] for line in run.metrics if "validation" in line]
    assert evaluated == [2, 4] and (tmp_path / "run" / "checkpoints" / "step-2").is_dir()
    decided = recipes.decided(job, read_document(tmp_path / "run" / "recipe.yaml"))
    assert decided.items() >= {"n_epochs": 2, "batch_size": 5, "learning_rate_multiplier": 1.0}.items()
    assert ("beta" in decided) == (kind == "dpo") and ("compute_multiplier" in decided) == (kind == "reinforcement")


def lines(path: Any, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "module", ["recipes", "wire.openai", "wire.openai_chat", "wire.google_chat", "validation", "graders"]
)
def test_reading_requests_needs_no_torch(module: str) -> None:
    code = (
        f"import sys, tunewright.service.{module}; "
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'fastapi', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
