"""`compare.html`: what it says, that it loads nothing, and that foreign text stays text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.test_contrast import LABELS, classified, read
from tests.evaluation.test_report import HOSTILE, Page
from tests.evaluation.test_report import test_the_page_can_be_read_aloud as assert_it_can_be_read_aloud
from tests.evaluation.test_report import test_the_page_loads_nothing as assert_it_loads_nothing
from tunewright.errors import OutputError
from tunewright.evaluation.charts import BOTTOM, LEFT, RIGHT, TOP, reliability_chart
from tunewright.evaluation.contrast import Both, document, sentence, where_worse
from tunewright.evaluation.contrast_page import write_comparison


def found(a: Any, b: Any, text: str = "a ticket", **more: Any) -> dict[str, Any]:
    words = dict.fromkeys(a.sources, (text, LABELS[0]))
    labels = LABELS if a.output_NC is not None else ()
    one = document(Both("test", a, b, labels, words, {text: np.arange(10)}), samples=2)
    sets = {"test": one}
    return {
        "a": "runs/a",
        "b": "runs/b",
        "sets": sets,
        "forgetting": {},
        "verdict": sentence(("runs/a", "runs/b"), sets),
        "worse": where_worse(sets),
        "notes": one["notes"],
        **more,
    }


@pytest.fixture
def tickets() -> dict[str, Any]:
    """B is better, but for one class."""
    gold = [0] * 60 + [1] * 20
    return found(classified([0] * 40 + [1] * 40, gold), classified([1] * 60 + [0] * 20, gold))


def page_of(document: dict[str, Any], folder: Path) -> Page:
    return Page(write_comparison(document, folder / "compare.html").read_text(encoding="utf-8"))


def test_the_page_says_all_that_was_found(tickets: dict[str, Any], tmp_path: Path) -> None:
    page = page_of({**tickets, "require": "better", "met": True}, tmp_path)
    for words in ("Better", tickets["verdict"], "Recall on praise of test went from", "Required: better. Met.", "Holm",
                  "Classes of test", "Slices of test", "A: calibration error", "worse with B: 20 rows, the first 2",
                  "test: better with B: 40 rows, the first 2", "equals the reference", "a ticket"):  # fmt: skip
        assert words.replace("\u00a0", " ") in page.text, words
    assert {"verdict better"} == {tag["class"] for tag in page.named("section") if "class" in tag}


def test_the_page_loads_nothing_and_can_be_read_aloud(tickets: dict[str, Any], tmp_path: Path) -> None:
    page = page_of(tickets, tmp_path)
    assert_it_loads_nothing(page)
    assert_it_can_be_read_aloud(page)
    assert [path.name for path in tmp_path.iterdir()] == ["compare.html"]


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    hostile = found(classified([1] * 20), classified([0] * 20), HOSTILE)
    page = page_of({**hostile, "a": HOSTILE, "b": HOSTILE, "verdict": HOSTILE}, tmp_path)
    assert page.html.count("&lt;script&gt;") > 5 and not page.named("script") and page.html.count("</style>") == 1


def test_texts_have_neither_classes_nor_calibration(tmp_path: Path) -> None:
    page = page_of(found(read(np.ones(12), np.ones(12)), read(np.full(12, 2.0), np.ones(12))), tmp_path)
    assert "Loss" in page.text and "Calibration" not in page.text and "Classes" not in page.text
    assert "loss 1.00" in page.text and "verdict worse" in page.html


def test_a_page_that_cannot_be_written_says_so(tickets: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        write_comparison(tickets, tmp_path / "missing" / "compare.html")


def test_the_diagram_has_its_points_where_they_belong() -> None:
    chart = reliability_chart("t", {"A": ([(1.0, 0.0), (0.5, 1.0)], "said")})
    line, diagonal = chart.lines
    assert line.dots == (((LEFT + RIGHT) / 2, TOP), (RIGHT, BOTTOM)) and line.summary == "said"
    assert diagonal.dots == ((LEFT, BOTTOM), (RIGHT, TOP)) and chart.x_name == "sure"
    assert re.fullmatch(r"M[\d.]+ [\d.]+L[\d.]+ [\d.]+", line.path)
    assert [tick.text.replace("\u00a0", " ") for tick in chart.y_ticks] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
