"""What docs/rl.md says of the algorithms is what they do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tunewright.objectives.rl import DEFAULTS
from tunewright.recipe import make_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "rl.md").read_text()


def test_which_algorithms_whiten() -> None:
    for name, chosen in DEFAULTS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` "))
        assert ("whiten" in row) == chosen["whiten"], name


def test_dr_grpo() -> None:
    """Neither the spread of a group nor the length of an answer divides: each token of all answers counts alike."""
    assert "`scale_groups: false` and `normalization: total`" in PAGE
    options: dict[str, Any] = {"type": "rl", "rewards": [{"type": "length", "max": 3}], "scale_groups": False}
    shares = {}
    for form in ("sequence", "total"):
        document = {"base": "-", "data": "-", "objective": {**options, "normalization": form}}
        objective: Any = make_recipe(document).objective
        shares[form] = {float(objective._share(SimpleNamespace(trained=n))[0]) for n in (2, 8)}
    assert shares == {"sequence": {1 / 2, 1 / 8}, "total": {1.0}}
