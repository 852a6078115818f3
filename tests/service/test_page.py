"""The page, in a real browser, against the real service.

Only the models that answer are a stand-in, which says what it was asked.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import chats, make_base
from tunewright.service.bringing import Bringing
from tunewright.service.entities import Job, JobSpec, Note, Status
from tunewright.service.inference.protocol import Classify, Draw, Embed, Embedded, Generate, Piece, Usage
from tunewright.service.settings import Settings
from tunewright.service.storage import Storage
from tunewright.service.store import Result, Store
from tunewright.service.wire import openai
from tunewright.service.wire.openai_chat import event

CHROMIUM = Path("/usr/bin/chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
TENANT = "acme"
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63a8a9a901000304018165d4b1a50000000049454e44ae426082"
)


class Echo:
    """Answers with the name of the model that was asked, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def generate(self, asked: Generate) -> AsyncIterator[Piece | Usage]:
        self.asked.append(asked)
        for word in ("This ", "is ", asked.model.shown):
            await asyncio.sleep(0.01)
            yield Piece(0, word)
        yield Piece(0, ".", finish="stop")
        yield Usage(3, 4)

    async def embed(self, asked: Embed) -> Embedded:
        raise NotImplementedError

    async def classify(self, asked: Classify) -> list[dict[str, Any]]:
        self.asked.append(asked)
        kind = asked.model.alpha if asked.model.name else 0.0
        shares = {"praise": 0.4 + kind / 2, "complaint": 0.6 - kind / 2}
        return [{"label": max(shares, key=lambda name: shares[name]), "probabilities": shares}]

    async def images(self, asked: Draw) -> list[bytes]:
        self.asked.append(asked)
        return [PIXEL] * asked.n

    async def check(self, model: Any) -> None: ...

    async def loaded(self) -> list[Any]:
        return []

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...


@dataclass
class Service:
    """A service that runs, and what is behind it."""

    address: str
    parts: Bringing
    engine: Echo
    settings: Settings
    key: str

    @property
    def store(self) -> Store:
        return self.parts.store

    def file(self, name: str = "rows.jsonl", content: bytes = b'{"messages": []}\n') -> str:
        place = self.store.places.reserve("files")
        size, digest = self.parts.storage.put(place, [content])
        return self.store.files.add(TENANT, name, "fine-tune", size, digest, place).id

    def running(self, suffix: str, **spec: Any) -> Job:
        """A job that a worker of this test's has claimed."""
        made = self.store.jobs.create(TENANT, JobSpec(model="tiny", training_file=self.file(), suffix=suffix, **spec))
        while True:
            claimed = self.store.jobs.claim_validation("w", 60)
            assert claimed is not None
            self.store.jobs.move(claimed.id, Status.QUEUED, by=claimed.fence)
            claimed = self.store.jobs.claim("w", 60)
            assert claimed is not None
            if claimed.id == made.id:
                return claimed

    def checkpoints(self, job: Job, *steps: int) -> list[str]:
        """Their names."""
        metrics = {"train_loss": 1.5}
        for step in steps:
            place = self.store.places.reserve("checkpoints")
            told = {"base": "tiny", "task": "text-generation", "place": place, "metrics": metrics}
            self.store.jobs.add_checkpoint(job.id, job.fence, step=step, **told)
        return [one.model for one in self.store.jobs.checkpoints(TENANT, job.id, limit=100)[0]][::-1]

    def names(self) -> set[str]:
        return {one.id for one in self.store.models.page(TENANT)[0]}

    def finish(self, job: Job, task: str = "text-generation") -> Job:
        run = self.store.places.reserve("models")
        self.parts.storage.put(f"{run}/report.html", [REPORT])
        place = self.store.places.reserve("files")
        size, digest = self.parts.storage.put(place, [b"c3RlcCx0cmFpbl9sb3NzCjEsMi41Cg=="])
        result = Result(place, size, digest)
        return self.store.jobs.finish(job.id, job.fence, base="tiny", task=task, run=run, result=result)


REPORT = (
    b"<!doctype html><html lang=en><head><title>r</title><style>h1{color:rgb(1,2,3)}</style></head>"
    b"<body><h1>Better</h1><p style='color:rgb(4,5,6)'>x</p><script>document.title='hacked'</script></body></html>"
)


def metrics(steps: int, total: int, **further: Callable[[int], float]) -> list[Note]:
    notes = []
    for step in range(1, steps + 1):
        data = {"step": step, "total_steps": total, "train_loss": 3 * 0.94**step + 0.2 * (step % 3)}
        data |= {name: of(step) for name, of in further.items()}
        if step % 5 == 0:
            data |= {"valid_loss": 3.1 * 0.95**step, "valid_mean_token_accuracy": 1 - 0.9**step}
        notes.append(Note(f"Step {step}/{total}", "info", "metrics", data))
    return notes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    import uvicorn

    from tunewright.service.app import make_app
    from tunewright.service.serve import listening

    home = tmp_path_factory.mktemp("service")
    settings = Settings(home=home, models=(make_base(home / "tiny", "llama"),))
    (home / "storage").mkdir()
    parts = Bringing(
        Store(settings.database_url), Storage(settings.storage_url), {"tiny": home / "tiny"}, settings.cache
    )
    # what is asked of models does not get as far as their weights
    parts.run = lambda model: home  # type: ignore[method-assign]
    engine = Echo()
    listener = listening("127.0.0.1", 0)
    app = make_app(parts, engine, settings)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    _, key = parts.store.keys.create(TENANT, "test")
    yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", parts, engine, settings, key)
    server.should_exit = True
    thread.join(10)
    parts.store.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, service: Service, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A page that is signed in. An error of a script fails the test, and so does what the policy forbids."""
    options = {"viewport": {"width": 1200, "height": 900}, **getattr(request, "param", {})}
    context = browser.new_context(**options)
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda said: "Content Security Policy" in said.text and errors.append(said.text))
    opened.errors = errors
    sign_in(opened, service)
    yield opened
    context.close()
    assert not errors


def sign_in(page: Any, service: Service, key: str = "") -> None:
    page.goto(service.address)
    page.get_by_label("API key").fill(key or service.key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("heading", name="Jobs").wait_for()


@pytest.fixture
def shoot(page: Any, tmp_path: Path) -> Callable[[str], None]:
    folder = Path(os.environ.get("TUNEWRIGHT_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: page.screenshot(path=folder / f"{name}.png", full_page=True)


GO = """place => new Promise((done) => {
  addEventListener("hashchange", done, { once: true });
  if (location.hash === place) dispatchEvent(new Event("hashchange"));
  location.hash = place;
})"""


def go(page: Any, place: str) -> None:
    page.evaluate(GO, f"#/{place}")
    page.locator("main:not([aria-busy]) h1").wait_for()


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" if not isinstance(row, str) else row for row in rows))
    return path


def test_a_wrong_key_is_told_as_the_server_says_it(browser: Any, service: Service) -> None:
    page = browser.new_page()
    page.goto(service.address)
    page.get_by_label("API key").fill("tw-wrong")
    page.get_by_role("button", name="Sign in").click()
    assert "This key is not known, or was revoked." in page.get_by_role("alert").filter(has_text="key").inner_text()
    assert page.evaluate("document.activeElement.id") == page.get_by_label("API key").get_attribute("id")
    page.get_by_label("API key").fill(service.key)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Jobs").wait_for()
    page.reload()
    page.get_by_role("heading", name="Jobs").wait_for()
    assert service.key not in page.url and page.evaluate("localStorage.length") == 0
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
    page.close()


def test_a_job_from_a_file_to_a_model(page: Any, service: Service, tmp_path: Path, shoot: Any) -> None:
    """Uploaded, checked, started, followed to its end; a real worker trains a tiny model."""
    from tunewright.service.worker import Worker

    rows = write(tmp_path / "greetings.jsonl", chats(16))
    page.get_by_role("link", name="New job").first.click()
    page.locator("input[type=file]").first.set_input_files(rows)
    page.get_by_text("16 rows.").wait_for()
    page.get_by_text("The server has read the file").wait_for()
    assert page.locator(".sample mark").first.inner_text() == chats(1)[0]["messages"][1]["content"]
    page.get_by_label("Suffix").fill("greeter")
    page.get_by_text("Hyperparameters, seed").click()
    page.get_by_label("Epochs").fill("2")
    shoot("create")
    page.get_by_role("button", name="Start the job").click()
    page.get_by_role("heading", name="greeter").wait_for()
    worker = Worker(service.parts, service.settings.scratch)
    thread = threading.Thread(target=worker.work, daemon=True)
    thread.start()
    try:
        page.get_by_role("heading", name="Your model").wait_for(timeout=180_000)
    finally:
        worker.leaving.set()
        thread.join(60)
    page.get_by_role("heading", name="Loss").wait_for()
    page.locator(".status.succeeded").wait_for()
    shoot("succeeded")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the results").click()
    assert download.value.path().read_text().startswith("step,train_loss")
    assert page.locator("code", has_text="ft:tiny:acme:greeter:").count()


def test_bad_lines_are_named_before_anything_starts(page: Any, service: Service, tmp_path: Path, shoot: Any) -> None:
    rows = write(tmp_path / "bad.jsonl", [*chats(2), "{not json}\n", {"messages": [{"role": "user", "content": "x"}]}])
    go(page, "new")
    page.locator("input[type=file]").first.set_input_files(rows)
    found = page.get_by_role("region", name="Check of the data")
    found.get_by_text("2 of 4 rows cannot be read.").wait_for()
    for said in ("Line 3: it is no JSON", "Line 4: no assistant message"):
        found.get_by_text(said).first.wait_for()
    found.get_by_text("2 of 4 rows cannot be used").wait_for()
    before = len(service.store.jobs.page(TENANT, limit=100)[0])
    page.get_by_role("button", name="Start the job").click()
    page.get_by_text("Mend what the check names first.").wait_for()
    assert len(service.store.jobs.page(TENANT, limit=100)[0]) == before
    page.get_by_label("From better and worse answers").check()
    found.get_by_text("4 of 4 rows cannot be read.").wait_for()
    shoot("bad-lines")


def test_what_only_the_server_can_read_is_not_called_readable(page: Any, service: Service, tmp_path: Path) -> None:
    go(page, "new")
    page.locator("input[type=file]").first.set_input_files(
        write(tmp_path / "page.html", ["<html>\n", "<p>no rows</p>\n"])
    )
    page.get_by_text("The server decides how rows").wait_for()
    page.get_by_text("The server refuses a job with this").wait_for()
    assert not page.get_by_text("Each can be read").count()


def test_files_of_one_name_can_be_told_apart(page: Any, service: Service) -> None:
    """By when they came; and a job says by name what it learned from."""
    job = service.finish(service.running("named"))
    go(page, "new")
    options = page.get_by_label("Or one that is here already").first.locator("option").all_inner_texts()
    assert [one for one in options if one.startswith("rows.jsonl (17 B, ") and ":" in one]
    go(page, f"jobs/{job.id}")
    cell = page.get_by_role("row", name="Training file").get_by_role("cell")
    cell.get_by_text("rows.jsonl").wait_for()
    assert job.spec.training_file in cell.inner_text()


def test_a_job_is_followed_live_over_a_broken_connection(page: Any, service: Service, shoot: Any) -> None:
    job = service.running("live")
    service.store.jobs.progress(job.id, job.fence, events=["The training has begun.", *metrics(20, 40)])
    told = b"".join(event(openai.event(one)) for one in service.store.jobs.news(TENANT, job.id))
    page.route("**/events?stream=true", lambda route: route.fulfill(content_type="text/event-stream", body=told))
    go(page, f"jobs/{job.id}")
    page.get_by_text("Step 20 of 40").wait_for()
    for name in ("Loss", "Accuracy"):
        page.get_by_role("heading", name=name, exact=True).wait_for()
    page.get_by_text("The connection was lost.").wait_for()
    page.unroute("**/events?stream=true")
    service.store.jobs.progress(job.id, job.fence, events=metrics(30, 40)[20:])
    page.get_by_text("Step 30 of 40").wait_for(timeout=20_000)
    page.get_by_text("The connection was lost.").wait_for(state="hidden")
    assert page.locator(".events .metrics").count() == 30
    shoot("live")
    page.get_by_role("button", name="Pause").click()
    page.locator(".headline .status.pausing, .facts .status.pausing").first.wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    page.locator(".facts .status.cancelled").wait_for()
    assert service.store.jobs.get(TENANT, job.id).status == "cancelled"


def test_rewards_have_curves_of_their_own(page: Any, service: Service, shoot: Any) -> None:
    grader = {"type": "string_check", "operation": "eq", "input": "{{sample.output_text}}", "reference": "a"}
    job = service.running("rewarded", method={"type": "reinforcement", "grader": {"name": "exact", **grader}})
    told = metrics(20, 40, train_mean_reward=lambda step: step / 20, train_mean_kl=lambda step: step / 1000)
    service.store.jobs.progress(job.id, job.fence, events=told)
    go(page, f"jobs/{job.id}")
    for name in ("Reward", "KL to the base"):
        page.get_by_role("heading", name=name, exact=True).wait_for()
    assert "from 0.05 to 1 at step 20" in page.locator(".chart", has_text="Reward").locator(".summary").inner_text()
    service.store.jobs.fail(job.id, job.fence, "invalid_training_file", "Line 7 has no answer.", "training_file")
    page.get_by_role("paragraph").get_by_text("Line 7 has no answer.").wait_for()
    assert "Mend the lines that are named" in page.locator(".notice.worse").inner_text()
    shoot("failed")


def test_the_report_runs_no_script_and_has_its_style(page: Any, service: Service, shoot: Any) -> None:
    job = service.running("reported")
    service.finish(job)
    go(page, f"jobs/{job.id}")
    page.get_by_role("button", name="Show the report").click()
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="Better").wait_for()
    color = "node => getComputedStyle(node).color"
    assert report.locator("h1").evaluate(color) == "rgb(1, 2, 3)"
    assert report.locator("p").evaluate(color) == "rgb(4, 5, 6)"
    assert report.locator("h1").evaluate("() => document.title") == "r"
    shoot("report")


def test_alpha_changes_what_is_asked(page: Any, service: Service, shoot: Any) -> None:
    name = service.finish(service.running("poet")).fine_tuned_model
    go(page, f"playground?model={name}")
    page.get_by_label("Message", exact=True).fill("Who are you?")
    page.get_by_text("System message, temperature, length").click()
    page.get_by_label("System message").fill("Be brief.")
    service.engine.asked.clear()
    page.get_by_role("button", name="Send").click()
    page.locator(".side.tuned .answer", has_text=f"This is {name}.").wait_for()
    page.locator(".side.base .answer", has_text="This is tiny.").wait_for()
    assert {one.model.shown for one in service.engine.asked} == {"tiny", name}
    assert [one["role"] for one in service.engine.asked[0].messages] == ["system", "user"]
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    page.locator(".side.tuned .answer", has_text=f"This is {name}@0.6.").wait_for()
    assert service.engine.asked[-1].model.alpha == 0.6 and slider.get_attribute("aria-valuetext") == "0.60"
    shoot("playground")


def test_one_question_has_one_seed(page: Any, service: Service) -> None:
    """Base, tuned model, and every α are asked the same: what differs is the tuning, not the dice."""
    name = service.finish(service.running("dice")).fine_tuned_model
    go(page, f"playground?model={name}")
    message = page.get_by_label("Message", exact=True)
    message.fill("Who are you?")
    service.engine.asked.clear()
    page.get_by_role("button", name="Send").click()
    page.locator(".side.tuned .answer", has_text=f"This is {name}.").wait_for()
    message.fill("This is not sent.")
    page.get_by_role("slider").press("Home")
    page.locator(".side.tuned .answer", has_text=f"This is {name}@0.").wait_for()
    first = service.engine.asked[:]
    assert len(first) == 3 and first[0].sampling.seed is not None
    assert len({(one.sampling.seed, one.messages[-1]["content"]) for one in first}) == 1
    page.get_by_role("button", name="Send").click()
    page.locator(".side.base .answer", has_text="This is tiny.").wait_for()
    page.wait_for_function("document.querySelectorAll('.answer:not(.waiting)').length === 2")
    again = service.engine.asked[3:]
    assert len({one.sampling.seed for one in again}) == 1 and again[0].sampling.seed != first[0].sampling.seed


def test_a_message_stays_when_another_model_is_chosen(page: Any, service: Service) -> None:
    one, other = (service.finish(service.running(name)).fine_tuned_model for name in ("one", "other"))
    go(page, f"playground?model={one}")
    page.get_by_label("Message", exact=True).fill("Who are you?")
    page.get_by_label("Model").select_option(other)
    assert page.get_by_label("Message", exact=True).input_value() == "Who are you?"
    page.get_by_role("button", name="Send").click()
    page.locator(".side.tuned .answer", has_text=f"This is {other}.").wait_for()


def test_a_key_that_may_only_ask_has_the_playground(browser: Any, service: Service) -> None:
    name = service.finish(service.running("asked")).fine_tuned_model
    _, key = service.store.keys.create(TENANT, "asks", scopes=("inference",))
    page = browser.new_page()
    sign_in(page, service, key)
    page.get_by_text("it lacks the scope jobs").wait_for()
    page.get_by_role("main").get_by_role("link", name="Playground").click()
    page.get_by_text("This key may not list models").wait_for()
    assert page.get_by_role("button", name="Send").is_hidden()
    page.get_by_label("Model").fill(f"{name}@0.3")
    page.get_by_label("Message", exact=True).fill("Who are you?")
    page.get_by_role("button", name="Send").click()
    page.locator(".side.tuned .answer", has_text=f"This is {name}@0.3.").wait_for()
    page.locator(".side.base .answer", has_text="This is tiny.").wait_for()
    page.close()


def test_a_key_that_may_not_list_models_starts_jobs(browser: Any, service: Service) -> None:
    _, key = service.store.keys.create(TENANT, "trains", scopes=("files", "jobs"))
    page = browser.new_page()
    sign_in(page, service, key)
    file = service.file(content="".join(f"{json.dumps(row)}\n" for row in chats(12)).encode())
    go(page, f"new?file={file}")
    page.get_by_label("Base").fill("tiny")
    page.get_by_label("Suffix").focus()
    page.get_by_text("The server has read the file").wait_for()
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/#/jobs/ftjob-*")
    assert service.store.jobs.get(TENANT, page.url.rpartition("/")[2]).spec.model == "tiny"
    page.close()


def test_classifiers_and_image_models_answer_in_their_way(page: Any, service: Service, shoot: Any) -> None:
    name = service.finish(service.running("mood"), "text-classification").fine_tuned_model
    go(page, f"playground?model={name}")
    page.get_by_label("Text", exact=True).fill("Lovely.")
    page.get_by_role("button", name="Classify").click()
    page.locator(".side.tuned .bar.first", has_text="praise").wait_for()
    page.locator(".side.base .bar.first", has_text="complaint").wait_for()
    shoot("classify")
    drawer = service.finish(service.running("brush"), "text-to-image").fine_tuned_model
    page.get_by_label("Model").select_option(name)
    go(page, f"playground?model={drawer}")
    page.get_by_label("Prompt").fill("a red square")
    page.get_by_role("button", name="Draw").click()
    page.get_by_role("img", name="a red square").nth(1).wait_for()
    assert {one.prompt for one in service.engine.asked[-2:]} == {"a red square"}


def test_a_grader_is_part_of_a_job(page: Any, service: Service, tmp_path: Path, shoot: Any) -> None:
    rows = [{"messages": [{"role": "user", "content": f"What is {i} + 1?"}], "answer": str(i + 1)} for i in range(12)]
    go(page, "new")
    page.get_by_label("From a grader").check()
    page.locator("input[type=file]").first.set_input_files(write(tmp_path / "asked.jsonl", rows))
    page.get_by_text("item.answer", exact=True).first.wait_for()
    page.get_by_text("The server has read the file").wait_for()
    page.get_by_text("Try it on an answer").click()
    page.get_by_role("button", name="Grade it").click()
    page.get_by_text("The grader works. This answer gets 1.").wait_for()
    grader = page.get_by_label("The grader, as JSON")
    grader.fill("{oops")
    page.get_by_role("button", name="Start the job").click()
    page.get_by_text("The grader is no JSON").wait_for()
    assert grader.get_attribute("aria-invalid") == "true"
    page.get_by_label("Begin with an example").select_option("The answer is near the reference")
    page.get_by_text("Hyperparameters, seed").click()
    page.get_by_label("Answers ×").fill("0.5")
    shoot("reinforcement")
    page.get_by_role("button", name="Start the job").click()
    page.wait_for_url("**/#/jobs/ftjob-*")
    made = service.store.jobs.get(TENANT, page.url.rpartition("/")[2]).spec.method
    assert made.type == "reinforcement" and made.hyperparameters.compute_multiplier == 0.5
    assert made.grader and made.grader["evaluation_metric"] == "fuzzy_match"


def test_keys_are_made_shown_once_and_revoked(page: Any, service: Service, shoot: Any) -> None:
    go(page, "keys")
    page.get_by_label("Name").fill("laptop")
    page.get_by_label("manage keys").uncheck()
    page.get_by_role("button", name="Make the key").click()
    secret = page.locator(".secret").inner_text()
    made = service.store.keys.by_secret(secret)
    assert made and made.name == "laptop" and "keys" not in made.scopes
    shoot("keys")
    page.get_by_role("button", name="Revoke laptop").click()
    page.get_by_role("button", name="Revoke the key").click()
    page.locator("li", has_text="laptop").get_by_text("Revoked").wait_for()
    assert service.store.keys.by_secret(secret) is None
    page.reload()
    page.get_by_role("heading", name="New key").wait_for()
    assert secret not in page.content()


DROP = """zone => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File(["{}"], "mine.jsonl"));
  zone.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
}"""


def test_files_and_models_are_listed_and_deleted(page: Any, service: Service) -> None:
    go(page, "files")
    page.locator(".drop").evaluate(DROP)
    page.get_by_role("button", name="Delete mine.jsonl").click()
    page.get_by_role("button", name="Delete the file").click()
    page.get_by_role("button", name="Delete mine.jsonl").wait_for(state="detached")
    name = service.finish(service.running("gone")).fine_tuned_model
    go(page, "models")
    page.get_by_role("button", name=f"Delete {name}").click()
    page.get_by_role("button", name="Keep it").click()
    page.get_by_role("button", name=f"Delete {name}").click()
    page.get_by_role("button", name="Delete the model").click()
    page.get_by_role("button", name=f"Delete {name}").wait_for(state="detached")


def test_checkpoints_are_folded_under_their_model(page: Any, service: Service, shoot: Any) -> None:
    job = service.running("many")
    names = service.checkpoints(job, *range(5, 105, 5))
    model = service.finish(job).fine_tuned_model
    go(page, "models")
    row = page.locator("main section > ul > li", has_text=model)
    assert row.locator("li").count() == 0
    row.locator("summary", has_text="20 checkpoints").click()
    assert row.locator("li .title").all_inner_texts() == [f"Step {step}" for step in range(100, 0, -5)]
    shoot("models-open")
    row.get_by_role("link", name=f"Try {names[7]}").click()
    chosen = page.get_by_label("Checkpoint")
    assert chosen.input_value() == names[7]
    assert not [one for one in page.get_by_label("Model").locator("option").all_inner_texts() if "step" in one]
    assert chosen.locator("option").all_inner_texts()[:2] == ["the model at the end", "step 100"]
    chosen.select_option(label="step 15")
    page.get_by_label("Message", exact=True).fill("Who?")
    page.get_by_role("button", name="Send").click()
    page.locator(".side.tuned .answer", has_text=f"This is {names[2]}.").wait_for()
    page.get_by_label("Model").select_option("tiny")
    assert chosen.is_hidden()
    go(page, f"new?model={names[3]}")
    assert page.get_by_label("Base").input_value() == model and chosen.input_value() == names[3]
    go(page, f"jobs/{job.id}")
    page.locator("summary", has_text="20 checkpoints").wait_for()
    assert not page.get_by_text("Step 100", exact=True).is_visible()


def test_a_model_goes_alone_or_with_its_checkpoints(page: Any, service: Service) -> None:
    kept, gone = service.running("kept"), service.running("gone-whole")
    left = service.checkpoints(kept, 5, 10)
    doomed = service.checkpoints(gone, 5, 10, 15)
    model, whole = service.finish(kept).fine_tuned_model, service.finish(gone).fine_tuned_model
    assert {*left, *doomed, model, whole} <= service.names()
    go(page, "models")
    page.get_by_role("button", name=f"Delete {whole}").click()
    assert page.evaluate("document.activeElement.textContent") == "Keep it"
    page.get_by_role("button", name="Delete it with its 3 checkpoints").click()
    page.locator("li", has_text=whole).wait_for(state="detached")
    assert not service.names() & {*doomed, whole}
    page.get_by_role("button", name=f"Delete {model}").click()
    page.get_by_role("button", name="Delete the model").click()
    row = page.locator("main section > ul > li", has_text=model)
    row.get_by_text("only checkpoints are there").wait_for()
    assert service.names() & {*left, model} == {*left}
    row.locator("summary").click()
    row.get_by_role("button", name=f"Delete {left[0]}", exact=True).click()
    page.get_by_role("button", name="Delete the checkpoint").click()
    row.locator("summary", has_text="1 checkpoint").wait_for()
    row.get_by_role("button", name=f"Delete all {model}").click()
    page.get_by_role("button", name="Delete 1 checkpoint").click()
    row.wait_for(state="detached")
    assert not service.names() & {*left}


def test_what_jobs_made_does_not_bury_what_was_uploaded(page: Any, service: Service) -> None:
    service.finish(service.running("results"))
    go(page, "files")
    assert not page.get_by_role("list", name="Files", exact=True).get_by_text("fine-tune-results").count()
    results = page.get_by_role("list", name="Files that jobs made")
    assert results.is_hidden()
    page.get_by_text("Files that jobs made").click()
    results.get_by_text("fine-tune-results").first.wait_for()


COPIED = """() => {
  Object.defineProperty(Navigator.prototype, "clipboard", { value: undefined });
  addEventListener("copy", () => (window.copied = getSelection().toString() || document.activeElement.value));
}"""


def test_names_are_copied_without_the_clipboard_of_secure_pages(page: Any, service: Service) -> None:
    """Which is not there where the page comes over plain HTTP from another machine."""
    name = service.finish(service.running("copied")).fine_tuned_model
    go(page, "models")
    page.evaluate(COPIED)
    page.get_by_role("button", name=f"Copy name {name}").click()
    page.get_by_text("Copied", exact=True).first.wait_for()
    assert page.evaluate("window.copied") == name


PLACES = ("jobs", "jobs/ID", "new", "playground", "models", "files", "keys")


@pytest.fixture
def places(service: Service) -> list[str]:
    job = service.running("a-rather-long-suffix-for-a-narrow-screen-of-a-phone")
    service.store.jobs.progress(job.id, job.fence, events=["The training has begun.", *metrics(30, 40)])
    service.finish(job)
    return [place.replace("ID", job.id) for place in PLACES]


@pytest.mark.parametrize("page", [{"viewport": {"width": 360, "height": 740}}], indirect=True, ids=["phone"])
def test_a_phone_has_nothing_to_scroll_sideways(page: Any, service: Service, places: list[str], shoot: Any) -> None:
    for place in places:
        go(page, place)
        page.wait_for_timeout(200)
        shoot(f"phone-{place.split('/')[0]}{'-one' if '/' in place else ''}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360, place


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": width, "height": 800}} for width in (390, 360)], indirect=True, ids=[390, 360]
)
def test_a_phone_has_its_sections_in_one_line(page: Any, service: Service) -> None:
    tops = page.locator("nav a").evaluate_all("all => all.map((one) => one.getBoundingClientRect().top)")
    assert len(tops) == 6 and len(set(tops)) == 1


RING = """input => {
  input.focus();
  const { outlineOffset, outlineWidth } = getComputedStyle(input);
  const wide = parseFloat(outlineOffset) + parseFloat(outlineWidth), own = input.getBoundingClientRect();
  const edges = (one) => document.querySelector(one).getBoundingClientRect();
  return [own.top - wide - edges(".alpha label").bottom, edges(".alpha .ends").top - own.bottom - wide];
}"""


def test_the_ring_of_the_slider_keeps_off_its_labels(page: Any, service: Service) -> None:
    go(page, f"playground?model={service.finish(service.running('ring')).fine_tuned_model}")
    assert all(room >= 3 for room in page.get_by_role("slider").evaluate(RING))


CONTROLS = {"button", "checkbox", "combobox", "dialog", "image", "link", "progressbar", "radio", "slider", "textbox"}


def nameless(page: Any) -> list[Any]:
    """Controls and pictures of which a screen reader could say only what they are."""
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    known = [node for node in tree if not node["ignored"] and node["role"]["value"] in CONTROLS]
    assert known
    return [node for node in known if not node.get("name", {}).get("value", "").strip()]


HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3")].filter((node) => node.checkVisibility())
  .map((node) => Number(node.tagName[1]))"""


def test_every_control_has_a_name(page: Any, service: Service, places: list[str]) -> None:
    for place in places:
        go(page, place)
        for closed in page.locator("details:not([open]) > summary").all():
            if closed.is_visible():
                closed.click()
        assert nameless(page) == [], place
        levels = page.evaluate(HEADINGS)
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels)), (place, levels)
        assert page.locator("main").count() == page.locator("nav:visible").count() == 1


def test_the_keyboard_is_enough(page: Any, service: Service) -> None:
    go(page, "models")
    page.get_by_role("link", name="Files", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Files", exact=True).wait_for()
    assert page.title().startswith("Files")
    page.reload()
    page.get_by_role("heading", name="Files", exact=True).wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


# every text that is seen, with its color and what lies behind it
TEXTS = """() => {
  const shown = [];
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 0.99) return color;
    }
    return [255, 255, 255, 1];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const text = walker.currentNode.textContent.trim();
    if (!text || !node.checkVisibility() || node.closest(".sr, .skip, option, [disabled]")) continue;
    const style = getComputedStyle(node);
    shown.push([text, rgba(node instanceof SVGElement ? style.fill : style.color), behind(node)]);
  }
  return shown;
}"""


def luminance(color: list[float]) -> float:
    """Relative luminance, https://www.w3.org/TR/WCAG21/#dfn-relative-luminance"""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    "page", [{"color_scheme": one} for one in ("dark", "light")], indirect=True, ids=["dark", "light"]
)
def test_text_can_be_read(page: Any, service: Service, places: list[str], shoot: Any) -> None:
    scheme = "dark" if page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") else "light"
    for place in places:
        go(page, place)
        page.wait_for_timeout(200)
        shoot(f"{scheme}-{place.split('/')[0]}{'-one' if '/' in place else ''}")
        for text, color, behind in page.evaluate(TEXTS):
            assert contrast(color, behind) >= 4.5, (place, text, color, behind)


def test_what_a_server_says_never_becomes_markup(page: Any, service: Service) -> None:
    job = service.running("<img src=x onerror=alert(1)>"[:64])
    service.store.jobs.progress(job.id, job.fence, events=["<b id=injected>bold</b>"])
    go(page, f"jobs/{job.id}")
    page.get_by_text("<b id=injected>bold</b>").last.wait_for()
    assert page.locator("#injected").count() == 0


def test_the_page_is_served_with_a_strict_policy(service: Service) -> None:
    import httpx

    answer = httpx.get(service.address)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "unsafe" not in policy
    frame = httpx.get(f"{service.address}/page/report.html").headers
    assert "default-src 'none'; style-src 'unsafe-inline'" in frame["content-security-policy"]
    assert "script" not in frame["content-security-policy"] and frame["x-frame-options"] == "SAMEORIGIN"
    for name in ("app.js", "look.css", "mark.svg"):
        assert httpx.get(f"{service.address}/page/{name}").status_code == 200
    for name in ("..%2Fapp.py", "__init__.py", "nothing.js"):
        assert httpx.get(f"{service.address}/page/{name}").status_code == 404
