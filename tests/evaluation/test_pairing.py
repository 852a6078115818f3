"""Before and after by row: few rows are never too sure, and what is hard for both cancels out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tunewright.errors import OutputError
from tunewright.evaluation import judged, metrics
from tunewright.evaluation.paired import mcnemar
from tunewright.evaluation.pairing import changes, keep, kept
from tunewright.evaluation.scores import Scores, bootstrap, mean, members, scored, share_of
from tunewright.evaluation.verdict import Change, comparisons, verdict


def paired(before: Scores, after: Scores, folder: Path) -> dict[str, Any]:
    """A run's evaluation of one set, as run.json has it, through the file that is kept beside."""
    keep({"test": before}, folder / "before.safetensors")
    told = changes(before.to_dict()["metrics"], kept(folder / "before.safetensors")["test"], after)
    return json.loads(json.dumps({"before": before.to_dict(), "after": after.to_dict(), "changes": told}))


def change(found: dict[str, Any], metric: str) -> Change:
    return comparisons({"evaluation": {"test": found}})[0].change(metric)


def pairs(right: int, wrong: int, **more: Any) -> Scores:
    """A model that has so many pairs right, and so many wrong."""
    score = np.array([[1.0, 0.0]] * right + [[0.0, 1.0]] * wrong).ravel()
    return judged.preference(score, np.repeat(np.arange(right + wrong), 2), np.ones(len(score)), **more)


@pytest.mark.parametrize("rows, word", [(3, Change.UNCLEAR), (5, Change.UNCLEAR), (6, Change.BETTER)])
def test_so_many_rows_that_all_became_right(rows: int, word: Change, tmp_path: Path) -> None:
    found = paired(pairs(0, rows), pairs(rows, 0), tmp_path)
    assert change(found, "accuracy") is word
    assert verdict({"status": "finished", "evaluation": {"test": found}}, 3).label == word.value
    assert found["changes"]["accuracy"]["p"] == pytest.approx(2 * 0.5**rows)
    alone = {key: found[key] for key in ("before", "after")}  # as a run of an earlier version
    assert change(alone, "accuracy") is word


def test_few_of_many_rows_that_flipped_are_not_enough(tmp_path: Path) -> None:
    """Of 100 rows 5 became right: the resamples alone would be sure."""
    found = paired(pairs(50, 50), pairs(55, 45), tmp_path)["changes"]["accuracy"]
    assert found["low"] > 0 and found["p"] == pytest.approx(2 * 0.5**5)
    hits = [np.arange(100) < n for n in (50, 55)]
    assert found["p"] == pytest.approx(mcnemar(hits[1], hits[0]))


def test_a_small_change_of_every_row_shows(tmp_path: Path) -> None:
    """Two intervals overlap where rows are of all kinds; by row each became a little better."""
    nll = np.random.default_rng(0).gamma(2.0, 2.0, 60)
    before, after = (metrics.likelihood(nll * by * 9, np.full(60, 9.0)) for by in (1.0, 0.98))
    assert before.answer.overlaps(after.answer)
    found = paired(before, after, tmp_path)
    assert change(found, "loss") is Change.BETTER and change(found, "perplexity") is Change.BETTER
    assert found["changes"]["loss"]["value"] == pytest.approx(after.answer.value - before.answer.value)
    assert change(paired(before, before, tmp_path), "loss") is Change.UNCLEAR


def test_rows_that_share_a_prompt_count_as_one(tmp_path: Path) -> None:
    """Four prompts of 30 pairs: whatever happens, four prompts cannot tell."""
    prompts = np.repeat(np.arange(4), 30)
    found = paired(pairs(0, 120, group_N=prompts), pairs(120, 0, group_N=prompts), tmp_path)
    assert change(found, "accuracy") is Change.UNCLEAR and found["changes"]["accuracy"]["p"] == 2 * 0.5**4
    assert "120 rows share 4 prompts" in found["after"]["notes"][0]
    assert change(paired(pairs(0, 120), pairs(120, 0), tmp_path), "accuracy") is Change.BETTER


def test_other_rows_are_not_paired(tmp_path: Path) -> None:
    assert paired(pairs(3, 3), pairs(3, 4), tmp_path)["changes"] == {}


def test_one_row_has_no_interval(tmp_path: Path) -> None:
    one, two = (scored({"reward": mean([value])}, "reward") for value in (0.0, 5.0))
    found = paired(one, two, tmp_path)
    assert found["changes"]["reward"]["low"] is None and change(found, "reward") is Change.UNCLEAR


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        keep({"test": pairs(1, 1)}, tmp_path / "none" / "before.safetensors")
    assert kept(tmp_path / "none") == {}


def test_sets_and_metrics_of_any_name_come_back(tmp_path: Path) -> None:
    """Such as those of rules, which are free text."""
    rule, path = "violated/no a|b, units", tmp_path / "before.safetensors"
    keep({"test|1": scored({rule: mean([1.0, 2.0])}, rule), "é": scored({"loss": mean([3.0])}, "loss")}, path)
    found = kept(path)
    assert {name: list(metrics) for name, metrics in found.items()} == {"test|1": [rule], "é": ["loss"]}
    each = found["test|1"][rule].each
    assert each is not None and each.tolist() == [1.0, 2.0]


# Intervals


def test_plain_pairs_have_wilsons_interval() -> None:
    found = pairs(48, 0).answer
    assert (found.low, found.high) == (share_of(48, 48).low, 1.0) and 0.92 < found.low < 0.93
    ties = judged.preference(np.zeros(20), np.repeat(np.arange(10), 2), np.ones(20)).answer
    assert ties == share_of(5, 10)


def test_rankings_have_the_bootstraps() -> None:
    element, score = np.repeat(np.arange(8), 3), np.random.default_rng(1).normal(size=24)
    assert judged.preference(score, element, np.ones(24)).answer == mean(judged.right_by_prompt(score, element))


def test_groups_are_drawn_whole() -> None:
    """As many numbers that are alike in each group say as much as one of each."""
    value_G = np.random.default_rng(2).normal(size=12)
    group_N = np.random.default_rng(3).permutation(np.repeat(np.arange(12), 5))
    alike, alone = mean(value_G[group_N], group_N), mean(value_G)
    assert (alike.value, alike.low, alike.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert (alike.n, alone.n) == (60, 12)
    assert [set(group_N[rows]) for rows in members(group_N)] == [{g} for g in range(12)]
    assert not mean([1.0, 2.0], np.zeros(2)).has_interval


def test_unequal_groups_weigh_by_their_rows() -> None:
    group_N, values = np.array([0, 1, 1, 1]), np.array([4.0, 0.0, 0.0, 0.0])
    found = bootstrap(lambda rows: float(values[rows].mean()), 4, group_N)
    assert found.value == 1.0 and (found.low, found.high) == (0.0, 4.0)


def test_rated_answers_of_one_prompt_are_drawn_together() -> None:
    random = np.random.default_rng(4)
    score, good = random.normal(size=80), random.random(80) > 0.5
    alone = judged.rated(score, good, np.ones(80)).answer
    shared = judged.rated(np.tile(score[:10], 8), np.tile(good[:10], 8), np.ones(80), group_N=np.tile(np.arange(10), 8))
    assert shared.answer.high - shared.answer.low > 1.5 * (alone.high - alone.low)
