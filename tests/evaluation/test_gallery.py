"""Pictures of an image run: which rows are shown, that they are small, and that the pages hold them."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tunewright as tw
from tests.evaluation.test_report import HOSTILE, Page
from tests.evaluation.test_report import test_the_page_can_be_read_aloud as assert_it_can_be_read_aloud
from tests.runs import recipe
from tests.tiny import labelled, pictures
from tunewright.data.kinds import Completion, Labelled, LabelledImage
from tunewright.data.pictures import Picture, thumbnail
from tunewright.evaluation.gallery import PICTURES, cards, gallery
from tunewright.evaluation.report import write_report
from tunewright.tasks.base import Predictions

LABELS = ["ant", "bee"]
CONTENT = pictures(1)[0]["image"]


def records(labels: list[Any]) -> list[LabelledImage]:
    return [LabelledImage(Picture(content=CONTENT), label, f"row {i}") for i, label in enumerate(labels)]


def predictions(kind: str, output: Any, gold: Any) -> Predictions:
    return Predictions(kind, [f"row {i}" for i in range(len(output))], np.array(output, dtype=float), np.array(gold))


def assert_it_loads_nothing(page: Page) -> None:
    """Nothing but what it holds itself."""
    addresses = [str(tag[name]) for _, tag in page.tags for name in ("src", "href", "srcset", "action") if name in tag]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\(|@import|https?:", page.html) and not page.named("script")


ANTS = predictions("single_label", [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3], [0.8, 0.2]], [0, 0, 0, 0, 1])


def sources(cards: list[dict[str, Any]]) -> list[str]:
    return [card["source"] for card in cards]


def test_all_classes_are_shown_and_the_worst_mistakes_first() -> None:
    found = gallery(ANTS, records(["ant", "ant", "ant", "ant", "bee"]), LABELS, 3)
    assert sources(found["shown"]) == ["row 0", "row 4", "row 1"]
    assert sources(found["worst"]) == ["row 2", "row 4", "row 1"] and not any(c["right"] for c in found["worst"])
    worst = found["worst"][0]
    assert (worst["answer"], worst["truth"]) == ("bee", "ant")
    assert (worst["chance"], worst["chance_of_truth"]) == pytest.approx((0.8, 0.2))


def test_soft_labels_several_labels_and_numbers() -> None:
    soft = predictions("single_label", [[0.9, 0.1], [0.4, 0.6]], [[0.8, 0.2], [0.3, 0.7]])
    assert gallery(soft, records([{"ant": 0.8, "bee": 0.2}, {"ant": 0.3, "bee": 0.7}]), LABELS, 8)["worst"] == []
    several = predictions("multi_label", [[0.9, 0.1], [0.6, 0.6], [0.1, 0.9]], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert sources(gallery(several, records([["ant"]] * 3), LABELS, 8)["worst"]) == ["row 2", "row 1"]
    numbers = predictions("regression", [[1.0], [5.0], [2.0]], [[1.0], [2.0], [3.0]])
    found = gallery(numbers, records([1.0, 2.0, 3.0]), ["value"], 8)
    assert sources(found["worst"]) == ["row 1", "row 2"] and found["worst"][0]["answer"] == "5"


def test_texts_and_rows_without_a_label_have_no_pictures() -> None:
    assert gallery(ANTS, [Labelled("text", "ant", f"row {i}") for i in range(5)], LABELS, 8) == {}
    assert gallery(ANTS, records([None] * 5), LABELS, 8) == {}
    of_a_language_model = Predictions("likelihood", ["row 0"], nll_N=np.ones(1), count_N=np.ones(1))
    assert gallery(of_a_language_model, [Completion("a", "b", "row 0")], [], 8) == {}


@pytest.mark.parametrize(("size", "small"), [((900, 600), (144, 96)), ((20, 24), (20, 24))])
def test_thumbnails_are_small(size: tuple[int, int], small: tuple[int, int]) -> None:
    file = BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(file, "PNG")
    url = thumbnail(Picture(content=file.getvalue()))
    kind, content = url.split(";base64,")
    image = Image.open(BytesIO(base64.b64decode(content)))
    assert image.size == small and kind == f"data:image/{image.format.lower()}"
    assert len(url) < 20_000


@pytest.fixture(scope="module")
def runs(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> list[tw.Run]:
    """The second one learns other labels, so that it answers otherwise."""
    rows = pictures(12)
    others = [{**row, "label": rows[i - 1]["label"]} for i, row in enumerate(rows)]
    rest = {"validation": rows[:3], "test": pictures(21)[12:]}
    folder = tmp_path_factory.mktemp("runs")
    return [
        tw.train(
            recipe(
                tiny_base("resnet"), folder / name, task="image-classification", method="full",
                evaluation={"samples": 4}, data={"train": train, **rest}, training={"epochs": 6, "keep": "last"},
            )
        )
        for name, train in (("a", rows), ("b", others))
    ]  # fmt: skip


def test_a_run_keeps_its_pictures_and_the_report_shows_them(runs: list[tw.Run]) -> None:
    run = runs[1]
    kept = json.loads((run.folder / PICTURES).read_text())
    assert list(kept) == ["test"] and len(kept["test"]["shown"]) == 4 and len(kept["test"]["worst"]) <= 4
    page = Page(run.report.read_text(encoding="utf-8"))
    shown = [tag["src"] for tag in page.named("img")]
    assert shown == [card["image"] for kind in ("shown", "worst") for card in kept["test"][kind]]
    assert "test: a few rows" in page.text and kept["test"]["shown"][0]["answer"] in page.text
    assert "an image of" not in page.text.split("Rows as the model reads them")[0], "samples in words say nothing here"
    assert "Tokens" not in page.text, "an image has none"
    timings = [json.loads(line) for line in (run.folder / "timings.jsonl").read_text().splitlines()]
    metrics = [line for line in run.metrics if "loss" in line]
    for timing, line in zip(timings, metrics, strict=True):
        assert timing["rows_per_second"] == pytest.approx(line["rows"] / timing["seconds"], rel=1e-2)
    assert sum(line["rows"] for line in metrics if line["epoch"] <= 1) == run.info["data"]["train"]["rows"]
    assert "Images per second" in page.text and "Rows per second" not in page.text
    assert_it_loads_nothing(page)
    assert_it_can_be_read_aloud(page)


def test_a_run_of_texts_has_none(tiny_base: Any, tmp_path: Path) -> None:
    data = {"train": labelled(12), "validation": labelled(3)}
    document = recipe(
        tiny_base("bert"), tmp_path / "run", task="text-classification", data=data, evaluation={"samples": 4}
    )
    assert not (tw.train(document).folder / PICTURES).exists()


def test_foreign_words_and_addresses_stay_out(runs: list[tw.Run], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((runs[0].folder / "run.json").read_bytes())
    card = {**dict.fromkeys(("source", "truth", "answer"), HOSTILE), "image": "https://a.org/x.png", "right": False}
    (tmp_path / PICTURES).write_text(json.dumps({HOSTILE: {"worst": [card], "shown": [], "other": [card]}}))
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert_it_loads_nothing(page)
    assert [tag["src"] for tag in page.named("img")] == ["data:,"] and not page.named("script")


@pytest.mark.parametrize("broken", ["[]", "{", '{"test": 3}', '{"test": {"shown": [{"source": "x"}]}}'])
def test_a_broken_file_shows_nothing(broken: str, runs: list[tw.Run], tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes((runs[0].folder / "run.json").read_bytes())
    (tmp_path / PICTURES).write_text(broken)
    assert not Page(write_report(tmp_path).read_text(encoding="utf-8")).named("img")


def test_rows_that_flipped_are_shown_as_pictures(runs: list[tw.Run], tmp_path: Path) -> None:
    found = tw.compare(*(run.folder for run in runs), to=tmp_path / "page.html")
    flipped = [row for way in found["sets"]["test"]["flipped"].values() for row in way["shown"]]
    assert flipped, "the two runs must differ"
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    images = page.named("img")
    assert len(images) == len(flipped) and all(tag["src"].startswith("data:image/png") for tag in images)
    assert "an image of" not in page.text
    assert_it_loads_nothing(page)


def test_cards_of_nothing() -> None:
    assert list(cards(None)) == list(cards({})) == []
