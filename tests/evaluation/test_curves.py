"""What the report shows of a run that learned from answers: reward against KL, what was drawn, what it is above."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tunewright.evaluation import charts
from tunewright.evaluation.curves import curves, drawn_answers
from tunewright.evaluation.report import write_report
from tunewright.evaluation.verdict import Change, comparisons


def line(step: int, reward: float, kl: float | None, **more: Any) -> dict[str, Any]:
    far = {} if kl is None else {"kl": kl}
    sample = {"prompt": f"rows.jsonl:{step}", "asked": f"Ask {step}", "answer": f"<b>say {step}</b>", "reward": reward}
    return {"step": step, "loss": 0.0, "reward": reward, "reward/dog": reward / 2, **far, "length": 9.0,
            "samples": [sample], **more}  # fmt: skip


STEPS = [line(i, 0.1 * i, 0.5 * i**2) for i in range(1, 6)]


def test_reward_stands_over_kl_a_point_a_step() -> None:
    main, more = curves([*STEPS, {"step": 5, "validation": {"reward": 0.4, "kl": 10.0}}])
    chart = main[0]
    assert [each.title for each in main] == [
        "Reward against KL", "Reward", "Reward: dog", "KL from the start", "Length, tokens"
    ]  # fmt: skip
    assert [each.title for each in more] == ["Loss"]
    training, validation = chart.lines
    assert len(training.dots) == 5 and not training.path and len(validation.dots) == 1
    # both axes begin at 0 and end on round numbers: 15 nats, and half a reward
    width, height = charts.RIGHT - charts.LEFT, charts.BOTTOM - charts.TOP
    for (x, y), step in zip(training.dots, range(1, 6), strict=True):
        assert x == pytest.approx(charts.LEFT + width * 0.5 * step**2 / 15, abs=0.1)
        assert y == pytest.approx(charts.BOTTOM - height * 0.1 * step / 0.5, abs=0.1)
    assert training.summary == "Training: reward 0.100 at a KL of 0.500 nats, in the end 0.500 at 12.5"


def test_without_kl_there_is_no_frontier_and_many_steps_share_points() -> None:
    main, _ = curves([line(i, 0.1 * i, None) for i in range(1, 4)])
    assert [each.title for each in main] == ["Reward", "Reward: dog", "Length, tokens"]
    (chart, *_), _ = curves([line(i, i / 1000, i / 100) for i in range(1, 1001)])
    dots = chart.lines[0].dots
    assert len(dots) == charts.MOST_DOTS and list(dots) == sorted(dots, key=lambda dot: dot[0])


def test_answers_are_quoted_from_the_first_step_to_the_last() -> None:
    found = drawn_answers([line(i, i / 100, 0.0) for i in range(1, 101)])
    assert len(found) == 12 and (found[0].step, found[-1].step) == (1, 100)
    assert (found[-1].prompt, found[-1].answer, found[-1].reward) == ("Ask 100", "<b>say 100</b>", "1.00")
    long = drawn_answers([line(1, 1.0, 0.0, samples=[{"prompt": "a/b.jsonl:3", "answer": "x" * 500, "reward": None}])])
    assert long[0].prompt == "b.jsonl:3" and long[0].answer.endswith("x … and 100 more characters")
    assert drawn_answers([{"step": 1, "samples": 3}, {"step": 2, "samples": ["?"]}, {"step": 3}]) == []


def test_a_constant_but_for_rounding_has_an_axis_with_few_digits() -> None:
    chart = charts.line_chart("reward", {"training": {1: 0.6000000238418579, 2: 0.6}, "validation": {2: 0.6}})
    assert chart and max(len(tick.text) for tick in chart.y_ticks) <= 4


def measured(**values: float) -> dict[str, Any]:
    metrics = {name: {"value": v, "low": v - 0.01, "high": v + 0.01, "n": 50} for name, v in values.items()}
    return {"metrics": metrics, "primary": next(iter(values)), "higher_is_better": True}


def test_an_accuracy_of_comparisons_stands_over_what_the_lengths_tell() -> None:
    before, after = measured(accuracy=0.5, longer_is_better=0.6), measured(accuracy=0.8, longer_is_better=0.6)
    sets = comparisons({"evaluation": {"test": {"before": before, "after": after}}})
    steps = [{"step": i, "loss": 0.5, "accuracy": 0.7, "margin": 0.1} for i in (1, 2)]
    main, _ = curves(steps, sets)
    accuracy = next(chart for chart in main if chart.title == "Accuracy")
    assert [each.label for each in accuracy.lines] == ["training", "the longer answer, on test"]
    assert accuracy.lines[1].summary.startswith("The longer answer, on test: ")
    start, end = re.findall(r"([\d.]+) ([\d.]+)", accuracy.lines[1].path)
    assert start[1] == end[1] and (float(start[0]), float(end[0])) == (charts.LEFT, charts.RIGHT)
    assert "Margin" in [chart.title for chart in main]
    assert all(len(chart.lines) == 1 for chart in curves(steps)[0])
    gained = [{"step": i, "loss": 0.5, "reward_accuracy": 0.7, "reward_margin": 0.1} for i in (1, 2)]
    main, _ = curves(gained, sets)
    assert [chart.title for chart in main] == ["Loss", "Reward accuracy", "Reward margin"] and len(main[1].lines) == 2


def test_how_far_a_policy_went_is_neither_better_nor_worse() -> None:
    before = measured(reward=0.1, kl=0.0, length=9.0, ended=0.9)
    after = measured(reward=0.5, kl=7.0, length=4.0, ended=0.9)
    (one,) = comparisons({"evaluation": {"test": {"before": before, "after": after}}})
    found = [one.change(name) for name in ("reward", "kl", "length", "ended")]
    assert found == [Change.BETTER, Change.HIGHER, Change.LOWER, Change.UNCLEAR]


def test_the_page_shows_answers_as_text(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in STEPS), encoding="utf-8")
    sample = {"source": "v.jsonl:1", "input": "Ask", "reference": None, "before": "no", "reward_before": 0.25,
              "after": "yes", "reward_after": 1.0}  # fmt: skip
    told = {"before": measured(reward=0.1), "after": measured(reward=0.5), "samples": [sample]}
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", "evaluation": {"validation": told}}))
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Answers as the training went on" in page and "&lt;b&gt;say 5&lt;/b&gt;" in page and "<b>say" not in page
    assert '<div class="after"><dt>After, reward 1.00</dt>' in page and "Before, reward 0.250" in page
