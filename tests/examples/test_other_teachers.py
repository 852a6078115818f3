"""The examples of labelling rules and of KTO: what the page says of them is so, and they train as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import tunewright as tw
from tunewright.recipe import read_recipe

ROOT = Path(__file__).parents[2]
QUICK = {"max_steps": 2, "batch": 4, "learning_rate": 1e-3}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples name their files from here."""
    monkeypatch.chdir(ROOT)


def test_the_rules_are_worth_what_the_page_says() -> None:
    told = tw.label("examples/labeling/rules.jsonl", "examples/support_tickets/train.jsonl")
    assert told["rows"] == 656 and len(told["labels"]) == 8 and not told["failed"]
    coverage, right = told["coverage"], told["accuracy"]["value"]
    figures = f"{coverage:.1%} of the tickets, and their labels are right for {right:.1%}".replace("%", " %")
    assert figures in (ROOT / "docs/labeling.md").read_text().replace("\n", " ")


def test_rules_and_then_a_few_clean_rows(tiny_base: Any, tmp_path: Path) -> None:
    document = yaml.safe_load(Path("examples/labeling/recipe.yaml").read_text())
    tw.train({**document, "base": tiny_base("bert"), "training": QUICK, "output": str(tmp_path / "run")})
    infos = {name: tw.open_run(tmp_path / "run" / name).info for name in ("weak", "clean_only", "clean")}
    assert infos["clean"]["data"]["train"]["label_counts"] == dict.fromkeys(infos["weak"]["labels"], 3)
    assert all(set(info["evaluation"]) == {"test"} for info in infos.values())
    assert infos["clean"]["recipe"]["base"] == str(tmp_path / "run" / "weak")


def test_kto(tiny_base: Any, tmp_path: Path) -> None:
    base = tiny_base("llama", max_position_embeddings=1024)
    quick = [f"base={base}", "training.max_steps=2", "training.batch=4", f"output={tmp_path / 'run'}"]
    recipe = read_recipe("examples/recipes/kto.yaml", quick)
    assert recipe.objective.loss == "kto"  # type: ignore[attr-defined]
    run = tw.train(recipe)
    steps = [line for line in run.metrics if "loss" in line]
    assert len(steps) == 2 and all({"z0", "implicit_reward"} <= line.keys() for line in steps)
