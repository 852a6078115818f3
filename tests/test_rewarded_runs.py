"""Small things that a run which learns from a reward must not get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tunewright as tw
from tests.contracts.steps import prepared
from tests.tiny import preferences, words
from tunewright.engine import checkpoint
from tunewright.errors import DataError, RecipeError
from tunewright.grading import GRADER
from tunewright.rewards import Broken

PROMPTS = [{"prompt": words(i, 3) + " "} for i in range(8)]
LENGTH = {"type": "length", "max": 3, "slack": 4}


def learned(base: str, folder: Path, **objective: Any) -> tw.Run:
    training = objective.pop("training", {})
    method = objective.pop("method", "full")
    return tw.train(
        base=base, data={"train": PROMPTS, "validation": 0}, method=method,
        objective={"type": "rl", "max_new_tokens": 6, "rewards": [LENGTH], **objective},
        training={"max_steps": 4, "batch": 4, "learning_rate": 1e-3, **training}, output=str(folder),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "chances"), [("llama", {"attention_dropout": 0.3}), ("gpt_neox", {"hidden_dropout": 0.3})]
)
def test_likelihoods_of_a_draw_are_those_of_its_first_step_whatever_the_base_drops_out(
    kind: str, chances: dict[str, float], tiny_base: Any, tmp_path: Path
) -> None:
    """Some bases drop out by themselves: ρ would not be 1 where the answers are new, and clipping would bite."""
    base = tiny_base(kind, **chances)
    run = learned(base, tmp_path / "run", algorithm="ppo", passes=2, clip=0.01)
    first = run.metrics[0]
    assert first["clip_fraction"] == 0 and first["sampler_gap"] < 1e-4
    with pytest.raises(RecipeError, match=r"method.dropout: objective rl .* Leave it out"):
        learned(base, tmp_path / "drops", method={"type": "lora", "dropout": 0.1})


@pytest.mark.parametrize("algorithm", ["reinforce", "ppo"])
def test_a_single_answer_has_nothing_to_be_compared_with(algorithm: str, tiny_base: Any, tmp_path: Path) -> None:
    """Refused before a folder is made; and a prompt that is left over at the end of an epoch joins the step before."""
    base = tiny_base("llama")
    with pytest.raises(RecipeError, match=rf"{algorithm} compares .* Set training.batch or objective.samples to 2"):
        learned(base, tmp_path / "run", algorithm=algorithm, training={"batch": 1})
    assert not (tmp_path / "run").exists()
    left = learned(base, tmp_path / "left", algorithm=algorithm, passes=1, training={"batch": 7, "max_steps": 2})
    assert [line["rows"] for line in left.metrics if "loss" in line] == [8, 8]


@pytest.mark.parametrize(
    ("prompts", "options", "batch"),
    [
        (29, {"algorithm": "ppo"}, 10), (11, {"algorithm": "ppo"}, 11), (4, {"algorithm": "ppo"}, 4),
        (400, {"algorithm": "ppo"}, 16), (29, {"algorithm": "rloo"}, 3), (40, {"algorithm": "grpo"}, 2),
        (11, {"algorithm": "grpo", "parts": 3}, 4),
    ],
)  # fmt: skip
def test_a_step_draws_enough_answers_to_compare(
    prompts: int, options: dict[str, Any], batch: int, tiny_base: Any
) -> None:
    rows = [{"prompt": words(i, 3) + " "} for i in range(prompts)]
    objective = {"type": "rl", "max_new_tokens": 6, "rewards": [LENGTH], **options}
    assert prepared(tiny_base("llama"), rows, objective=objective).recipe.training.batch == batch


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "ppo", "reinforce"])
def test_rewards_that_never_differ_are_said_to_teach_nothing(algorithm: str, tiny_base: Any, tmp_path: Path) -> None:
    same = {"type": "length", "min": 0, "max": 500, "weight": 0.1}
    more = {"samples": 3} if algorithm in ("grpo", "rloo") else {}
    runs = [learned(tiny_base("llama"), tmp_path / name, algorithm=algorithm, rewards=[reward], **more)
            for name, reward in (("same", same), ("other", {"type": "pattern", "pattern": "a"}))]  # fmt: skip
    said = [[n for n in run.info["notices"] if n.startswith("Nothing was learned from rewards")] for run in runs]
    assert [len(one) for one in said] == [1, 0]
    same, other = ([line["reward_std"] for line in run.metrics if "reward_std" in line] for run in runs)
    assert same == [0.0] * (1 if algorithm == "ppo" else 4) and any(other), "of each draw, which ppo takes four times"


def test_the_spread_is_that_of_the_answers_that_are_compared(tiny_base: Any, tmp_path: Path) -> None:
    """A reward that says the same of all answers to a prompt teaches GRPO nothing, whatever others get."""
    (tmp_path / "r.py").write_text("def r(samples):\n    return [float(len(s.prompt)) for s in samples]\n")
    by_prompt = {"type": "python", "function": f"{tmp_path / 'r.py'}:r"}
    found = [learned(tiny_base("llama"), tmp_path / one, algorithm=one, rewards=[by_prompt], **more).metrics[0]
             for one, more in (("grpo", {"samples": 2}), ("reinforce", {}))]  # fmt: skip
    assert found[0]["reward_std"] == 0 < found[1]["reward_std"]


@pytest.mark.parametrize("good", [1, 0])
def test_ratings_without_the_other_kind_are_said(good: int, tiny_base: Any, tmp_path: Path) -> None:
    rows = [{"prompt": words(i, 3), "completion": words(i + 1, 4), "label": good} for i in range(8)]
    document = {
        "base": tiny_base("llama"), "data": {"train": rows[:6], "validation": rows[6:]}, "training": {"max_steps": 1},
        "objective": {"type": "preference", "loss": "kto"},
    }  # fmt: skip
    run = tw.train(document, output=str(tmp_path / "run"))
    rating = "good" if good else "bad"
    assert any(n.startswith(f"All training answers are rated {rating}") for n in run.info["notices"])
    assert f"All answers are rated {rating}" in run.info["evaluation"]["validation"]["after"]["notes"][0]
    document["data"] = {"train": [*rows[:5], {**rows[5], "label": 1 - good}], "validation": rows[6:]}
    assert not any(
        "are rated" in notice for notice in tw.train(document, output=str(tmp_path / "both")).info["notices"]
    )


def test_what_kl_is_and_costs_is_in_each_line(tiny_base: Any, tmp_path: Path) -> None:
    """With a target the coefficient that was used; without a coefficient an estimate by some of the answers."""
    base = tiny_base("llama")
    aimed = learned(base, tmp_path / "aimed", algorithm="rloo", samples=2, kl_target=0.001, kl_coefficient=0.1)
    used = [line["kl_coefficient"] for line in aimed.metrics]
    assert used[0] == 0.1 and len(set(used)) == 4
    some = {"type": "pattern", "pattern": "a"}
    free = learned(base, tmp_path / "free", method="lora", samples=4, rewards=[some], training={"learning_rate": 0.01})
    assert free.metrics[0]["kl"] == pytest.approx(0, abs=1e-5) and abs(free.metrics[-1]["kl"]) > 1e-5


FAILING = """
calls = 0

def score(samples):
    global calls
    calls += 1
    return [float("nan") if calls > 4 else 1.0 * len(sample.text) for sample in samples]
"""


def test_a_reward_that_fails_on_the_way_keeps_the_steps_before(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILING)
    grader = {"type": "python", "name": "mine", "function": f"{tmp_path / 'mine.py'}:score"}
    with pytest.raises(DataError, match="mine"):
        learned(tiny_base("llama"), tmp_path / "run", samples=2, rewards=[grader], training={"max_steps": 9})
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 3
    (tmp_path / "mine.py").write_text(FAILING.replace("calls > 4", "calls < 0"))
    assert tw.resume(tmp_path / "run").metrics[-1]["step"] == 9


def test_each_rule_has_its_price_and_may_be_asked_of_the_whole_dialogue() -> None:
    asked: list[Any] = []

    def ask(pairs: list[Any]) -> list[dict[str, float]]:
        asked.extend(pairs)
        return [{"yes": 0.5 if rule == "a" else 0.25, "no": 0.5} for _, rule in pairs]

    from tunewright.grading import Sample

    config = GRADER.validate_python({"type": "rules", "run": "r", "rules": {"a": 2.0, "b": 4.0}, "input": "both"})
    assert Broken(ask, config)([Sample("said", {}, "asked", 1, True)]) == [-(2 * 0.5 + 4 * 0.25)]
    assert asked[0] == ("asked\nsaid", "a")


def test_the_margin_of_a_ranking_counts_for_each_place_between(tiny_base: Any, tmp_path: Path) -> None:
    rows = [{"prompt": words(i, 3), "answers": [words(i + j, 2) + f" {j}" for j in range(3)]} for i in range(6)]
    losses = []
    for margin in (0, 3):
        run = tw.train(
            base=tiny_base("bert"), data={"train": [{**row, "margin": margin} for row in rows], "validation": 0},
            objective="reward", method="full", training={"max_steps": 1, "batch": 6},
            output=str(tmp_path / str(margin)),
        )  # fmt: skip
        losses.append(run.metrics[0]["loss"])
    assert losses[1] - losses[0] > 2.5


def test_kto_holds_out_rows_of_one_prompt(tiny_base: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2} for i, row in enumerate(preferences(8))
    ]
    data = {"train": rows[:6], "validation": [rows[7]]}
    run = tw.train(
        base=tiny_base("llama"), data=data, objective={"type": "preference", "loss": "kto"},
        training={"max_steps": 1}, evaluation={"before": False}, output=str(tmp_path / "run"),
    )  # fmt: skip
    assert run.info["status"] == "finished"


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_reward_model_stands_beside_the_lengths_of_the_answers(kind: str, tiny_base: Any, tmp_path: Path) -> None:
    """Of four pairs the chosen answer is the longer one in three."""
    rows = [{"prompt": words(i, 4), "chosen": words(i, 6 if i else 1), "rejected": words(i + 1, 3)} for i in range(4)]
    run = tw.train(
        base=tiny_base(kind), data={"train": rows, "validation": 0, "test": rows}, objective="reward", method="full",
        training={"max_steps": 1}, evaluation={"before": False}, output=str(tmp_path / "run"),
    )  # fmt: skip
    assert run.info["evaluation"]["test"]["after"]["metrics"]["longer_is_better"]["value"] == 0.75


def test_validation_prompts_are_answered_as_often_as_asked(tiny_base: Any, tmp_path: Path) -> None:
    """What is trained stays the same, whatever is measured."""
    base, lines = tiny_base("llama"), []
    for count in (1, 5):
        data = {"train": PROMPTS[:6], "validation": PROMPTS[6:]}
        run = tw.train(
            base=base, data=data, method="lora", training={"max_steps": 2, "batch": 3, "learning_rate": 1e-3},
            objective={"type": "rl", "max_new_tokens": 6, "rewards": [LENGTH], "evaluation_samples": count},
            output=str(tmp_path / str(count)),
        )  # fmt: skip
        lines.append(run.metrics)
    once, often = (next(line["validation"]["length"] for line in found if "validation" in line) for found in lines)
    for length, answers in ((once, 2), (often, 10)):
        assert length * answers == pytest.approx(round(length * answers), abs=1e-4)
    assert once != often
    steps = [[line for line in found if "loss" in line] for found in lines]
    assert steps[0] == steps[1]
