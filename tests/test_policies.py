"""Runs that learned from rewards or comparisons, asked again: evaluated, compared, interpolated, exported, foreseen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tunewright as tw
from tests.runs import recipe
from tests.tiny import words
from tunewright.artifacts.export import read_verification
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Completion, Ranking
from tunewright.errors import BaseModelError, DataError, RecipeError
from tunewright.tasks.text_generation import TextGeneration

PROMPTS = [{"prompt": words(i, 3) + " "} for i in range(12)]
COMPARED = [
    {"prompt": words(i, 3) + " ", "chosen": words(i + 1, 2 + i % 3), "rejected": words(i + 4, 1 + i % 4)}
    for i in range(12)
]
REWARDS = [{"type": "pattern", "pattern": "[aeiou]"}, {"type": "length", "max": 3, "slack": 6, "weight": 0.5}]
POLICY = {"type": "rl", "rewards": REWARDS, "samples": 4, "max_new_tokens": 8}
SETS = {"train": PROMPTS[:6], "validation": PROMPTS[6:]}


def learned(base: str, folder: Path, objective: Any, data: Any, **more: Any) -> tw.Run:
    training = {"max_steps": 4, "batch": 3, "learning_rate": 0.05, "epochs": 1, "keep": "last"}
    evaluation = {"before": True, "samples": 3, "generate": 0}
    chosen = {"training": training, "evaluation": evaluation, **more}
    return tw.train(recipe(base, folder, data=data, objective=objective, **chosen))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def policy(tiny_base: Any, places: Path) -> tw.Run:
    return learned(tiny_base("llama"), places / "policy", POLICY, SETS)


@pytest.fixture(scope="module")
def whole(tiny_base: Any, places: Path) -> tw.Run:
    """All its weights trained, so that its start is in its base alone."""
    return learned(tiny_base("llama"), places / "whole", POLICY, SETS, method="full")


@pytest.fixture(scope="module")
def judge(tiny_base: Any, places: Path) -> tw.Run:
    data = {"train": COMPARED[:8], "validation": COMPARED[8:]}
    return learned(tiny_base("bert"), places / "judge", "reward", data, task="text-classification")


def value(found: Any, name: str) -> float:
    return float(found["scores"]["metrics"][name]["value"])


# Evaluated


@pytest.mark.parametrize("kind", ["policy", "whole"])
def test_a_policy_is_evaluated_as_its_run_was(kind: str, request: pytest.FixtureRequest) -> None:
    """By the same random numbers; at α = 0 it is the start, whose KL from itself is 0."""
    run = request.getfixturevalue(kind)
    end, start, half = (tw.evaluate(where, PROMPTS[6:]) for where in (run, f"{run}@0", f"{run}@0.5"))
    told = run.info["evaluation"]["validation"]
    for found, when in ((end, "after"), (start, "before")):
        for name, one in told[when]["metrics"].items():
            assert value(found, name) == pytest.approx(one["value"], abs=1e-5), (when, name)
    assert value(start, "kl") == pytest.approx(0, abs=1e-5) and abs(value(end, "kl")) > 0.01
    assert value(half, "kl") not in (value(start, "kl"), value(end, "kl"))
    assert value(end, "reward") == pytest.approx(value(end, "reward/pattern") + 0.5 * value(end, "reward/length"))
    sample = end["samples"][0]
    assert sample["input"] == PROMPTS[6]["prompt"] and sample["output"] == told["samples"][0]["after"]
    assert sample["reward"] == told["samples"][0]["reward_after"]


def test_prompts_need_rewards(policy: tw.Run, tiny_base: Any) -> None:
    """A model in hand is of no run; and what says how answers are compared with references has no effect."""
    for where in (policy.model, tiny_base("llama")):
        with pytest.raises(DataError, match="measured by the rewards"):
            tw.evaluate(where, PROMPTS[6:], format="prompt")
    with pytest.raises(RecipeError, match=r"evaluation\.pattern is for rows with answers"):
        tw.evaluate(policy, PROMPTS[6:], evaluation={"pattern": "x"})


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_comparisons_are_measured_by_what_became_likelier(loss: str, tiny_base: Any, tmp_path: Path) -> None:
    """Where the loss knows a start: log π/π₀ of the better answer against that of the worse."""
    objective = {"type": "preference", "loss": loss}
    run = learned(tiny_base("llama"), tmp_path / "run", objective, {"train": COMPARED[:8], "validation": COMPARED[8:]})
    found = tw.evaluate(run, COMPARED[8:])
    assert "accuracy" in found["scores"]["metrics"]
    if loss == "simpo":
        assert "reward_accuracy" not in found["scores"]["metrics"]
        return
    rows = [
        Ranking(tuple(Completion(r["prompt"], r[k], "") for k in ("chosen", "rejected")), str(i))
        for i, r in enumerate(COMPARED[8:])
    ]
    told = []
    for alpha in (0.0, 1.0):
        model = tw.load(run, alpha=alpha)
        examples = model.task.encode(model, rows, DataConfig(train="-")).examples
        told.append(model.task.predict(model, examples).score_S)
    gain_N2 = (told[1] - told[0]).reshape(-1, 2)
    assert value(found, "reward_accuracy") == (gain_N2[:, 0] > gain_N2[:, 1]).mean()
    assert value(found, "reward_margin") == pytest.approx(-np.diff(gain_N2).mean(), abs=1e-4)
    assert "reward_accuracy" not in tw.evaluate(run.model, COMPARED[8:])["scores"]["metrics"]
    assert value(tw.evaluate(f"{run}@0", COMPARED[8:]), "reward_margin") == pytest.approx(0, abs=1e-4)


# Between start and end, and beside each other


def test_a_policy_is_interpolated(policy: tw.Run) -> None:
    found = tw.interpolate(policy, alphas="0,0.5", shifts={"more": PROMPTS[:4]})
    kl = [one["value"] for one in found["kl"]]
    assert found["metric"] == "reward" and len(kl) == 3 and kl[0] == pytest.approx(0, abs=1e-5) != kl[2]
    assert "KL from the start" in policy.report.read_text(encoding="utf-8")


def test_policies_are_compared_by_what_they_get(policy: tw.Run, whole: tw.Run, tiny_base: Any, tmp_path: Path) -> None:
    """Both answer by the same random numbers; a base is measured by the rewards of the run beside it."""
    found = tw.compare(f"{policy}@0", policy, data=PROMPTS[6:])["sets"]["test"]
    told = policy.info["evaluation"]["validation"]
    assert found["metric"] == "reward"
    for side, when in (("a", "before"), ("b", "after")):
        assert found[side]["value"] == pytest.approx(told[when]["metrics"]["reward"]["value"], abs=1e-5)
    shown = [row for way in found["flipped"].values() for row in way["shown"]]
    assert shown and all("(reward " in row["a"] and row["input"] for row in shown)
    base = tw.compare(tiny_base("llama"), whole, data=PROMPTS[6:])["sets"]["test"]
    assert base["a"]["value"] == pytest.approx(found["a"]["value"], abs=1e-5)
    other = learned(tiny_base("llama"), tmp_path / "other", {**POLICY, "rewards": REWARDS[:1]}, SETS)
    with pytest.raises(BaseModelError, match="trained by other rewards"):
        tw.compare(policy, other, data=PROMPTS[6:])


# Used


def test_a_policy_is_an_ordinary_language_model(policy: tw.Run, tmp_path: Path) -> None:
    assert isinstance(tw.chat(policy, PROMPTS[0]["prompt"], max_new_tokens=4), str)
    folder = tw.export(policy, "merged", tmp_path / "merged")
    found = read_verification(folder)
    assert found["verified"] and found["prompts"] == 4 and found["figures"]["same_text"] == 1
    assert found["rows_from"] == "the run's validation rows"


def test_a_reward_model_scores_an_answer_as_it_learned_it(judge: tw.Run) -> None:
    model = judge.model
    rows = [Ranking((Completion(r["prompt"], r["chosen"], ""),), str(i)) for i, r in enumerate(COMPARED)]
    examples = model.task.encode(model, rows, DataConfig(train="-")).examples
    wanted = model.task.predict(model, examples).score_S
    found = tw.predict(judge, [(r["prompt"], r["chosen"]) for r in COMPARED])
    assert [one["value"] for one in found] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert found[0]["text"] == (COMPARED[0]["prompt"], COMPARED[0]["chosen"])
    said = [{"role": "user", "content": "the fox"}]
    assert tw.predict(judge, [(said, "had")])[0]["value"] == tw.predict(judge, [("user: the fox", "had")])[0]["value"]
    with pytest.raises(DataError, match=r"texts\[1\] has an empty answer(.|\n)*texts\[2\] is 'fox'"):
        tw.predict(judge, [("the", "fox"), ("the", " "), "fox"])


# Foreseen


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_check_draws_a_few_answers_only(
    algorithm: str, tiny_base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, sample = [], TextGeneration.sample
    monkeypatch.setattr(TextGeneration, "sample", lambda *given: asked.append(len(given[2])) or sample(*given))
    objective = {"type": "rl", "algorithm": algorithm, "rewards": REWARDS, "max_new_tokens": 4}
    found = tw.check(
        base=tiny_base("llama"), data={"train": PROMPTS * 40, "validation": PROMPTS}, objective=objective,
        training={"max_steps": 400, "batch": 3}, output=str(tmp_path / "run"),
    )  # fmt: skip
    time = found["forecast"]["time"]
    assert found["steps"] == 400 and 0 < sum(asked) <= 3 * 3 + 8
    assert any("of answers, " in notice for notice in found["notices"])
    assert time["error"] == 0.5 and min(time["phases"][name] for name in ("training", "answers after")) > 0
    assert "".join(text for text, _ in found["preview"][0]["pieces"]).endswith(PROMPTS[0]["prompt"])


def test_options_without_effect_are_refused(tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("llama")
    for change, message in (
        ({"evaluation": {"max_new_tokens": 9}}, r"evaluation\.max_new_tokens is for rows with answers"),
        ({"objective": {**POLICY, "prior_weight": 0.5}}, r"prior_weight is for data\.prior"),
    ):
        with pytest.raises(RecipeError, match=message):
            tw.train(**{"base": base, "data": SETS, "objective": POLICY, "output": str(tmp_path / "run"), **change})
