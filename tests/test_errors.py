"""The words that messages share."""

from __future__ import annotations

import pytest

from tunewright.errors import counted, them


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 rows are"), (1, "1 row is"), (2, "2 rows are"), (1200, "1,200 rows are")]
)
def test_one_is_in_the_singular(count: int, said: str) -> None:
    assert counted(count, "row is", "rows are") == said
    assert counted(count, "row") == said.rpartition(" ")[0]
    assert them(count) == ("it" if count == 1 else "them")
