"""What a user of `objective: rl` sees in a terminal of 80 columns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Invoke, run_command, write_jsonl
from tunewright.cli._console import out
from tunewright.cli._progress import pace, validation
from tunewright.cli._scores import before_after
from tunewright.evaluation.scores import Metric, Scores

REWARDS = [{"type": "pattern", "pattern": "[aeiou]"}, {"type": "length", "max": 3, "slack": 6, "weight": 0.5}]
OBJECTIVE = json.dumps({"type": "rl", "rewards": REWARDS, "samples": 2, "max_new_tokens": 6})
KEYS = [f"objective={OBJECTIVE}", "training.max_steps=2", "training.batch=3", "data.validation=0.5"]
PROMPTS = [{"prompt": f"After {i} comes"} for i in range(12)]


@pytest.fixture(scope="session")
def rows_to_ask(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", PROMPTS)


@pytest.fixture(scope="session")
def policy(decoder: str, rows_to_ask: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that learned from rewards. Commands must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "policy"
    done = run_command("train", "--base", decoder, "--data", rows_to_ask, "--output", folder, *KEYS)
    assert done.exit_code == 0, done.output
    return folder


def narrow(text: str) -> bool:
    """Whether nothing but sentences, which the terminal wraps, is wider than 80 columns."""
    return all(
        len(line) <= 80
        for line in text.splitlines()
        if not line.startswith(("Note:", "Run ", "Report ", "Picture ", "Chosen: "))
    )


def test_training_says_what_answers_get(decoder: str, rows_to_ask: Path, invoke: Invoke, tmp_path: Path) -> None:
    done = invoke("train", "--base", decoder, "--data", rows_to_ask, "--output", tmp_path / "run", *KEYS)
    assert done.exit_code == 0, done.output
    steps = [line for line in done.stderr.splitlines() if line.startswith("Step")]
    assert len(steps) == 2 and all("reward " in line and "length " in line for line in steps)
    assert not any("loss" in line for line in done.stderr.splitlines())
    assert (
        "Reward:" in done.stdout and "KL from" in done.stdout and "Prompt " in done.stdout and "After " in done.stdout
    )
    assert narrow(done.stdout) and narrow("\n".join(steps))


NAMED = {"reward": "Reward", "reward/politeness and warmth": "x", "violated/Give no medical advice.": "y", "kl": "KL"}


def test_words_stay_whole_in_a_table_of_named_rewards(capsys: pytest.CaptureFixture[str]) -> None:
    """Intervals go below their values where a line has no room for both."""

    def measured(by: float) -> dict[str, object]:
        return Scores(
            {name: Metric(-0.12 * by, -0.345 * by, -0.0123 * by, 64) for name in NAMED}, "reward", True
        ).to_dict()

    out().print(before_after({"evaluation": {"validation": {"before": measured(1.0), "after": measured(0.9)}}}))
    said = capsys.readouterr().out
    words = {word for line in said.splitlines() for word in line.split()}
    assert {"Change", "Cannot", "tell", "politeness", "medical", "advice.", "[−0.345"} <= words and narrow(said)
    few = {"evaluation": {"test": {"before": Scores({"reward": Metric(1, 0, 2, 64)}, "reward", True).to_dict()}}}
    out().print(before_after(few))
    assert "1.00 [0.00–2.00]" in capsys.readouterr().out


def test_rewards_that_never_differ_are_said(decoder: str, rows_to_ask: Path, invoke: Invoke, tmp_path: Path) -> None:
    objective = {**json.loads(OBJECTIVE), "rewards": [{"type": "length", "max": 500}]}
    asked = ["--base", decoder, "--data", rows_to_ask, "--output", tmp_path / "run", *KEYS[1:]]
    done = invoke("train", *asked, f"objective={json.dumps(objective)}")
    assert done.exit_code == 0, done.output
    assert "reward 1.00 (all alike)" in done.stderr and "Note: Nothing was learned from rewards" in done.stderr


def test_a_long_line_of_progress_fits() -> None:
    line = {"loss": 0.0, "reward": -0.123456, "kl": 12.3456, "length": 123.5, "tokens_per_second": 1.0, "eta": 9000.0}
    said = pace(line, "tokens")
    assert said.replace("\xa0", " ") == "reward −0.123  KL 12.3  length 124  ETA 2 h 30 min"
    assert len(f"Step 1200/2400  epoch 10.00  {said}") <= 80
    told = validation({"step": 5, "validation": {"loss": 0.1, "reward": 0.5, "reward/a": 0.5, "entropy": 1.0}}, 1.0)
    assert told == "Validation after step 5 (epoch 1.00): reward 0.500"


def test_evaluate_shows_answers_and_what_they_got(policy: Path, rows_to_ask: Path, invoke: Invoke) -> None:
    done = invoke("evaluate", f"{policy}@0.5", "--data", rows_to_ask, "--samples", 2)
    assert done.exit_code == 0, done.output
    assert "Reward: pattern" in done.stdout and "KL from the start" in done.stdout and narrow(done.stdout)
    titles = next(line for line in done.stdout.splitlines() if line.startswith("Prompt"))
    assert titles.split() == ["Prompt", "Answer", "Reward"]
    found = json.loads(invoke("evaluate", policy, "--data", rows_to_ask, "--json").stdout)
    assert found["scores"]["primary"] == "reward" and found["rows"] == len(PROMPTS)


def test_check_shows_prompts_and_what_it_foresees(decoder: str, rows_to_ask: Path, invoke: Invoke) -> None:
    done = invoke("check", "--base", decoder, "--data", rows_to_ask, *KEYS, "training.max_steps=50")
    assert done.exit_code == 0, done.output
    assert "± 50 % for 50 steps" in done.stdout.replace("\xa0", " ") and " of answers, " in done.stdout
    assert "After 0 comes" in done.stdout and "⟦" not in done.stdout


def test_interpolate_shows_the_kl(policy: Path, invoke: Invoke) -> None:
    done = invoke("interpolate", policy, "--alphas", "0,0.5")
    assert done.exit_code == 0, done.output
    titles = done.stdout.splitlines()[0]
    assert titles.split() == ["α", "validation", "KL", "from", "the", "start"] and narrow(done.stdout)


@pytest.mark.parametrize("kind", ["completer", "talker"])
def test_a_run_without_rewards_refuses_prompts(
    kind: str, rows_to_ask: Path, invoke: Invoke, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    done = invoke("evaluate", run, "--data", rows_to_ask, "--format", "prompt")
    assert done.exit_code == 2 and "Name a run of objective: rl" in done.stderr
