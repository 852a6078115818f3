"""The report: says the right thing, in whatever state the run is, and lets nothing through that it was handed."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tunewright.errors import OutputError
from tunewright.evaluation import charts, curves, formats, sections
from tunewright.evaluation.loading import snippets
from tunewright.evaluation.report import read_run, write_report
from tunewright.evaluation.scores import Metric, Scores, mean
from tunewright.evaluation.verdict import Change, Comparison, comparisons, verdict
from tunewright.methods import METHODS, LoRA
from tunewright.objectives import OBJECTIVES, Supervised

HOSTILE = "</style></script><script>alert('1')</script><img src=x onerror=alert(2)>\" onload=\"alert(3)"
SHA = "0123456789abcdef" * 4


def scores(value: float, low: float, high: float, n: int = 200, name: str = "accuracy", **more: Any) -> dict[str, Any]:
    metrics = {name: Metric(value, low, high, n)}
    metrics.setdefault("loss", Metric(1 - value, 1 - high, 1 - low, n))
    return Scores(metrics, primary=name, higher_is_better=name != "loss", **more).to_dict()


def full_run() -> dict[str, Any]:
    confusion = {"labels": ["spam", "ham"], "counts": [[90, 10], [8, 92]]}
    return {
        "name": "mail",
        "status": "finished",
        "task": "text-classification",
        "kind": "single_label",
        "base": "hub/mini",
        "method": {"type": "lora", "rank": 8, "dropout": 0.05, "targets": ["query", "value"], "rslora": False},
        "objective": {"type": "supervised"},
        "started": "2026-03-02T09:12:44+00:00",
        "finished": "2026-03-02T09:16:10+00:00",
        "error": None,
        "versions": {"python": "3.11.9", "torch": "2.13.0"},
        "machine": {"processor": "Some Processor", "threads": 2, "device": "cpu"},
        "parameters": {
            "total": 20_000_000,
            "trained": 100_000,
            "share": 0.005,
            "names": ["encoder.0…5.query: 6 of 8, 384"],
        },
        "weights": "best (step 120)",
        "saved_as": "peft",
        "notices": ["Three rows were cut."],
        "data": {
            "train": {
                "location": "train.jsonl",
                "rows": 2560,
                "sha256": SHA,
                "bad_rows": 2,
                "tokens": 1000,
                "trained_tokens": 250,
                "overlength": {"truncated": 3},
                "label_counts": {"spam": 1300, "ham": 1258},
            },
            "test": {
                "location": "test.jsonl",
                "rows": 200,
                "overlength": {},
                "label_counts": {"spam": 100, "ham": 100},
            },
        },
        "preview": [{"source": "train.jsonl:3", "pieces": [["win a prize", 0], [" spam", 1], ["<end>", 0.5]]}],
        "evaluation": {
            "test": {
                "before": scores(0.125, 0.09, 0.18),
                "after": scores(0.91, 0.862, 0.943, confusion=confusion, notes=("One row was left out.",)),
                "samples": [
                    {
                        "source": "some/where/test.jsonl:1",
                        "input": "You won",
                        "reference": "spam",
                        "before": "ham",
                        "after": "spam\n",
                    }
                ],
            },
            "shifted": {"before": scores(0.8, 0.75, 0.85), "after": scores(0.6, 0.55, 0.65)},
        },
        "timings": {"seconds": 206.4, "cpu_seconds": 388.0},
    }


def write_run(folder: Path, run: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run))
    steps: list[dict[str, Any]] = [
        {"step": step, "epoch": step / 10, "loss": 2 / step, "accuracy": 1 - 1 / step, "learning_rate": 1e-4 / step,
         "grad_norm": None if step == 5 else 1.0, "tokens": 64, "router_balance": 0.1 * step}
        for step in range(1, 21)
    ]  # fmt: skip
    steps.append({"step": 20, "validation": {"loss": 0.3, "accuracy": 0.9}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    (folder / "timings.jsonl").write_text(
        '{"step": 1, "seconds": 2.0, "memory": 2147483648}\n{"step": 2, "seconds": 4.0, "memory": 90}\n'
    )
    (folder / "recipe.yaml").write_text("task: text-classification\nbase: hub/mini\n")
    return folder


class Page(HTMLParser):
    """What a browser would make of the page: its tags with their attributes, and the text of its body."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        """White space as a browser shows it, without the joiners that keep an interval on one line."""
        return re.sub(r"\s+", " ", "".join(self.pieces)).replace("\u2060", "")

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path) -> Page:
    path = write_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def full(tmp_path: Path) -> Page:
    return page_of(write_run(tmp_path / "run", full_run()))


# ---- What the page says ----


def test_the_verdict_comes_first_with_its_figures(full: Page) -> None:
    sentence = "Accuracy on test rose from 12.5 % to 91.0 % (95 % interval 86.2\u201394.3, 200 rows)."
    reservation = "Worse: Accuracy on shifted fell from 80.0 % to 60.0 % (95 % interval 55.0\u201365.0, 200 rows)."
    assert full.text.index("Better") < full.text.index(sentence) < full.text.index(reservation)
    assert full.text.index(reservation) < full.text.index("Before and after")


@pytest.mark.parametrize(
    "shown",
    [
        "One row was left out.",
        "Three rows were cut.",
        "Training: 2.00 to 0.100, lowest 0.100 at step 20.",
        "Validation: 0.300 to 0.300, lowest 0.300 at step 20.",
        "Training: 0.0 % to 95.0 %, highest 95.0 % at step 20.",
        "Gradient norm",
        "1e-4 to 5e-6, highest 1e-4 at step 1",
        "1 more recorded value",
        "Which labels are confused",
        "equals the reference",
        "100,000 of 20,000,000 parameters were trained (0.50 %)",
        "encoder.0…5.query: 6 of 8, 384",
        "Saved as a PEFT adapter: best (step 120).",
        "250 (25.0 %)",
        "3 truncated",
        SHA[:16],
        "1,300",
        "Marked text is trained",
        "PeftModel.from_pretrained(base, ",
        "from_pretrained('hub/mini', num_labels=2)",
        "base: hub/mini",
        "2.13.0",
        "Some Processor",
        "3 min 26 s",
        "2.00 GiB",
        "2026-03-02 09:12",
    ],
)
def test_a_full_run_shows(full: Page, shown: str) -> None:
    assert shown in full.text


def test_a_row_is_named_without_the_folder_of_its_file(full: Page) -> None:
    assert "test: test.jsonl:1" in full.text and "some/where" not in full.text


def test_only_what_the_model_answered_can_equal_the_reference(full: Page) -> None:
    assert full.text.count("equals the reference") == 1


def test_rows_without_trained_text_say_so_and_long_rows_are_cut(tmp_path: Path) -> None:
    row = {"source": "train.jsonl:1", "pieces": [["a" * 1_999, 0], ["bcd", 0], ["e" * 10, 0]]}
    page = page_of(write_run(tmp_path / "run", full_run() | {"preview": [row]}))
    assert "what is trained is the answer to the row as a whole" in page.text
    assert "a" * 1_999 + "b … and 12 more characters" in page.text


def test_a_model_is_offered_for_loading_only_once_it_is_saved(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", full_run() | {"status": "running"}))
    assert "No model has been saved yet." in page.text
    assert "tw.load" not in page.text


def test_trained_tokens_are_marked(full: Page) -> None:
    assert 'win a prize<mark> spam</mark><mark class="partial" title="weight 0.500">&lt;end&gt;</mark>' in full.html


# ---- What the page may not do ----


def hostile(value: Any) -> Any:
    """The same document with every text, and every name of a set, label or setting, replaced by an attack."""
    if isinstance(value, dict):
        return {key: hostile(one) for key, one in value.items()} | ({HOSTILE: "x"} if "type" in value else {})
    if isinstance(value, list):
        return [hostile(one) for one in value]
    return (
        HOSTILE
        if isinstance(value, str) and value not in ("finished", "accuracy", "peft", "text-classification")
        else value
    )


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder, run = tmp_path / "run", hostile(full_run())
    run["evaluation"][HOSTILE] = run["evaluation"]["shifted"]
    run["data"][HOSTILE] = {HOSTILE: HOSTILE, "label_counts": {HOSTILE: 1}}
    write_run(folder, run)
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps({"step": 21, HOSTILE: 1.0, HOSTILE + "2": {"loss": 1.0}}) + "\n")
    (folder / "timings.jsonl").write_text(json.dumps({"step": 1, HOSTILE: 1.0}))
    (folder / "recipe.yaml").write_text(HOSTILE)
    page = page_of(folder)
    assert page.html.count("&lt;script&gt;") > 30
    assert not page.named("script") and not page.named("img")
    assert page.html.count("</style>") == 1
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing(full: Page) -> None:
    addresses = [
        attributes[name]
        for _, attributes in full.tags
        for name in ("src", "href", "data", "action", "srcset")
        if name in attributes
    ]
    assert set(addresses) == {"data:,", "#main"}
    assert not re.search(r"url\(|@import|https?:", full.html)
    policy = next(meta["content"] for meta in full.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_page_can_be_read_aloud(full: Page) -> None:
    """Headings go down one level at a time, tables have captions, pictures a name or are hidden, ids occur once."""
    levels = [int(tag[1]) for tag, _ in full.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in pairwise(levels))
    assert len(full.named("table")) == len(full.named("caption")) > 0
    ids = [attributes["id"] for _, attributes in full.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for picture in full.named("svg"):
        assert picture.get("aria-hidden") == "true" or picture.get("aria-labelledby") in ids


# ---- Runs in every state ----


def test_an_empty_folder_gives_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    text = page_of(tmp_path).text
    for sentence in (
        "nothing here says whether the model is better",
        "No evaluation is recorded",
        "No step is recorded yet",
        "No data set is recorded",
        "No model has been saved yet",
        "There is no recipe.yaml",
    ):
        assert sentence in text


def test_a_run_under_way_may_have_half_a_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"status": "running"}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n{"step": 3, "lo')
    text = page_of(tmp_path).text
    assert "The run is still under way at step 2." in text
    assert "Training: 2.50 to 2.50" in text


def test_a_failed_run_gives_its_reason_and_a_stopped_one_its_step(tmp_path: Path) -> None:
    failed = page_of(write_run(tmp_path / "failed", {"status": "failed", "error": "the loss is not finite"}))
    assert "The run failed at step 20: the loss is not finite" in failed.text
    stopped = page_of(write_run(tmp_path / "stopped", full_run() | {"status": "stopped"}))
    assert "The run was stopped at step 20. Accuracy on test rose" in stopped.text


@pytest.mark.parametrize("broken", ["{", "[]", "null"])
def test_a_broken_run_file_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / "run.json").write_text(broken)
    assert "run.json holds no JSON object" in page_of(tmp_path).text


def test_every_key_is_optional(tmp_path: Path) -> None:
    for key in full_run():
        without = {name: value for name, value in full_run().items() if name != key}
        page_of(write_run(tmp_path / "without", without))
        page_of(write_run(tmp_path / "null", without | {key: None}))


def test_writing_again_replaces_the_page_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_report(tmp_path)
    (tmp_path / "run.json").write_text('{"name": "second"}')
    assert "second" in page_of(tmp_path).text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run.json"]


def test_no_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no run folder"):
        write_report(tmp_path / "absent")


def test_a_page_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# ---- The verdict ----


def compared(before: dict[str, Any] | None, after: dict[str, Any] | None, name: str = "test") -> Comparison:
    return comparisons({"evaluation": {name: {"before": before, "after": after}}})[0]


def test_change_needs_intervals_apart() -> None:
    low, middle, high = scores(0.5, 0.4, 0.6), scores(0.55, 0.45, 0.65), scores(0.9, 0.8, 0.95)
    assert compared(low, high).change("accuracy") is Change.BETTER
    assert compared(high, low).change("accuracy") is Change.WORSE
    assert compared(low, middle).change("accuracy") is Change.UNCLEAR
    assert compared(None, high).change("accuracy") is Change.UNMEASURED
    assert compared(low, high).change("loss") is Change.BETTER, "a lower loss is better"


def test_a_metric_of_unknown_name_has_the_direction_that_its_scores_state() -> None:
    def distance(value: float) -> dict[str, Any]:
        return Scores({"fid": Metric(value, value - 1, value + 1, 9)}, "fid", higher_is_better=False).to_dict()

    assert compared(distance(30), distance(12)).change("fid") is Change.BETTER


def test_verdict_in_words() -> None:
    def sentence(evaluation: dict[str, Any]) -> str:
        return verdict({"status": "finished", "evaluation": evaluation}, 1).sentence.replace("\u00a0", " ")

    unclear = {"before": scores(0.88, 0.831, 0.919), "after": scores(0.91, 0.862, 0.943)}
    assert sentence({"test": unclear}) == (
        "Accuracy on test went from 88.0 % to 91.0 % (95 % intervals 83.1\u201391.9 and 86.2\u201394.3, 200 rows): "
        "cannot tell apart at this size."
    )
    likelihood = {"before": scores(2.31, 2.2, 2.4, name="loss"), "after": scores(1.02, 0.9, 1.1, n=20, name="loss")}
    assert (
        sentence({"test": likelihood}) == "Loss on test fell from 2.31 to 1.02 (95 % interval 0.90\u20131.10, 20 rows)."
    )
    assert sentence({"other": unclear, "test": likelihood}).startswith("Loss on test"), "the test set comes first"
    assert "nothing was measured before the training" in sentence({"test": {"after": scores(0.9, 0.8, 1.0)}})


def test_a_single_row_has_no_interval_and_no_verdict() -> None:
    one = {
        when: Scores({"loss": mean([value])}, "loss", False).to_dict()
        for when, value in (("before", 3.1), ("after", 2.0))
    }
    found = verdict({"status": "finished", "evaluation": {"test": one}}, 1)
    assert (found.label, found.sentence) == (
        "Cannot tell", "Loss on test went from 3.10 to 2.00 (1 row): cannot tell apart at this size."
    )  # fmt: skip
    assert formats.with_interval("loss", mean([3.1])) == "3.10"


# ---- Small parts ----


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.41234, "0.412"), (12.345, "12.3"), (1234567, "1,234,567"), (1234.5, "1,234"), (2e-5, "2e-5"), (0.0, "0"),
     (-0.5, "\u22120.500"), (1.5e12, "1.5e12"), (float("nan"), "\u2013"), (None, "\u2013"), ("text", "text"),
     (True, "True")],
)  # fmt: skip
def test_numbers(value: Any, shown: str) -> None:
    assert formats.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(4.24, "4.2 s"), (206.4, "3 min 26 s"), (7500, "2 h 5 min"), (None, "\u2013")]
)
def test_durations(seconds: Any, shown: str) -> None:
    assert formats.duration(seconds).replace("\u00a0", " ") == shown


def test_intervals_have_the_digits_of_their_value() -> None:
    assert formats.interval_of("loss", Metric(1.02, 0.9, 1.1, 9)) == "0.90\u20131.10"
    assert formats.interval_of("r2", Metric(0.5, -0.25, 0.75, 9)) == "\u22120.250 to 0.750"


def test_settings_are_not_rounded() -> None:
    chosen = {"rate": 0.00012345, "off": False, "none": [], "one_of": ["a", 2], "nested": {"a": 1}}
    assert [text for _, text in sections.settings(chosen)] == ["1.2345e-4", "no", "none", "a, 2", '{\n "a": 1\n}']


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (3e-6, 2e-4), (-5.0, 12.0), (1.0, 1e6), (0.1, 0.3)])
def test_axes_have_a_few_round_numbers(low: float, high: float) -> None:
    values = charts.multiples(low, high, charts.round_step(low, high))
    assert 2 <= len(values) <= 7
    assert all(low <= value <= high for value in values)
    assert all(float(f"{value:.2g}") == value for value in values)


def test_a_chart_leaves_gaps_and_draws_lone_points() -> None:
    chart = charts.line_chart("loss", {"training": {1: 1.0, 2: 2.0, 3: None, 4: 1.5}})
    assert chart is not None
    assert chart.lines[0].path.count("M") == 2
    assert len(chart.lines[0].dots) == 3
    lone = chart.lines[0].path.split("M")[-1]
    assert len(lone.split("L")) == 2, "a line of no length, which is drawn as a dot"
    assert charts.line_chart("loss", {"training": {1: None}}) is None


@pytest.mark.parametrize(("value", "labels"), [(0.0, ["0 %", "20 %", "40 %"]), (0.5, ["20 %", "40 %", "60 %", "80 %"])])
def test_a_constant_has_a_chart_too(value: float, labels: list[str]) -> None:
    chart = charts.line_chart("accuracy", {"training": {1: value, 2: value}})
    assert chart is not None
    assert set(labels) <= {tick.text.replace("\u00a0", " ") for tick in chart.y_ticks}


def test_a_long_line_becomes_a_mean_in_a_band_that_keeps_the_spikes() -> None:
    points: dict[int, float | None] = dict.fromkeys(range(1, 5001), 1.0)
    chart = charts.line_chart("loss", {"training": points | {2500: 50.0}})
    assert chart is not None
    line = chart.lines[0]
    assert len(line.path.split("L")) == charts.MOST_POINTS
    assert f" {charts.TOP}" in line.band or " 10.0" in line.band
    assert not line.dots


def test_a_step_that_was_repeated_after_a_resume_counts_once() -> None:
    main, _ = curves.curves([{"step": 1, "loss": 9.0}, {"step": 2, "loss": 8.0}, {"step": 2, "loss": 3.0}])
    assert main[0].lines[0].summary == "Training: 9.00 to 3.00, lowest 3.00 at step 2"


def test_a_run_shows_no_options_of_other_tasks() -> None:
    run = {"task": "text-to-image", "objective": Supervised().model_dump(), "method": LoRA().model_dump()}
    shown = {name for what, kinds in (("objective", OBJECTIVES), ("method", METHODS))
             for name, _ in sections.chosen(run, what, kinds)}  # fmt: skip
    assert {"Min snr", "Prior weight", "Rank"} <= shown
    assert not {"Label smoothing", "Class weights", "Router loss", "Experts", "Train along"} & shown
    chat = {name for name, _ in sections.chosen({**run, "task": "text-generation"}, "objective", OBJECTIVES)}
    assert "Router loss" in chat and not {"Min snr", "Noise offset", "Prior weight", "Class weights"} & chat


def test_what_a_pipeline_is_saved_as_has_its_own_name() -> None:
    assert sections.saved_as({"task": "text-to-image", "saved_as": "peft"}) == "a LoRA of diffusers"
    assert sections.saved_as({"task": "text-to-image", "saved_as": "transformers"}) == "a pipeline of diffusers"
    assert sections.saved_as({"task": "text-generation", "saved_as": "peft"}) == "a PEFT adapter"
    assert sections.saved_as({}) == ""


def test_many_labels_give_the_largest_confusions() -> None:
    labels = [f"label {n}" for n in range(20)]
    counts = [[9 if gold == predicted else 0 for predicted in range(20)] for gold in range(20)]
    counts[3][7] = 3
    found = sections.confusions([compared(None, scores(0.9, 0.8, 1, confusion={"labels": labels, "counts": counts}))])
    assert found[0].matrix == ()
    assert found[0].largest == (("label 3", "label 7", sections.Cell(3, 0.25)),)


def test_snippets_follow_what_was_saved_and_quote_what_they_are_given() -> None:
    folder = Path("my runs/it's")
    titles = {saved: [one.title for one in snippets({"task": "text-generation", "saved_as": saved}, folder)]
              for saved in ("peft", "transformers", "adapter")}  # fmt: skip
    assert titles == {
        "peft": ["Python", "Command line", "PEFT and transformers"],
        "transformers": ["Python", "Command line", "transformers"],
        "adapter": ["Python", "Command line"],
    }
    assert snippets({"task": "text-generation"}, folder)[1].code == """tunewright chat 'my runs/it'"'"'s'"""
    for snippet in snippets({"task": "text-generation", "saved_as": "peft", "base": "x'); evil('"}, folder):
        if snippet.title != "Command line":
            compile(snippet.code, snippet.title, "exec")
            assert "evil('" not in re.sub(r"\"[^\"]*\"", "", snippet.code)


def test_a_pipeline_is_loaded_by_diffusers() -> None:
    def code(saved: str, **run: Any) -> list[str]:
        given = {"task": "text-to-image", "saved_as": saved, "base": "b", **run}
        found = {one.title: one.code for one in snippets(given, Path("r"), "a wall")}
        assert list(found) == ["Python", "Command line", "diffusers"]
        compile(found["diffusers"], saved, "exec")
        assert found["Command line"] == "tunewright generate r --prompt 'a wall' --alpha 0 --alpha 1"
        return found["diffusers"].splitlines()

    assert code("peft")[2:4] == ["pipe = DiffusionPipeline.from_pretrained('b')", "pipe.load_lora_weights('r/model')"]
    assert code("transformers")[2:] == [
        "pipe = DiffusionPipeline.from_pretrained('r/model')", "pipe('a wall').images[0].save('image.png')",
    ]  # fmt: skip
    assert "pipe.load_textual_inversion('r/model/learned_embeds.safetensors')" in code("embeddings")
    two = {"names": ["text_encoder_2.rows: 1 × 2×12"]}
    assert sum("token='<x>'" in line for line in code("embeddings", parameters=two, method={"token": "<x>"})) == 2


def test_the_size_of_the_head_is_in_the_snippet() -> None:
    def code(**run: Any) -> str:
        return snippets({"task": "text-classification", "saved_as": "peft", "base": "b", **run}, Path("r"))[-1].code

    assert "num_labels=3" in code(labels=["a", "b", "c"])
    assert "num_labels=1" in code(kind="regression")
    assert "num_labels" not in code()


def test_reading_a_run_skips_what_is_no_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[]\n{"loss": 1}\n\n{"step": "x"}\nnot json\n')
    assert read_run(tmp_path).steps == [{"step": 1}]
