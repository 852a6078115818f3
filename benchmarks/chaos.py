"""Everything is killed at random, and no job may notice: workers, their runs, the server, the database, a full disk.

    python -m benchmarks.chaos [--jobs 200] [--tenants 10] [--workers 2] [--database URL] [--results DIR]

A real server and real workers, in processes of their own, tune a tiny random llama. A few specs are run undisturbed
first. Then tenants send jobs with these specs by the openai client while, every few seconds, something is killed
(SIGKILL), the database is stopped as by a power failure and started again (`pg_ctl -m immediate`; without --database a
PostgreSQL server that is thrown away), or the storage, a small file system of its own, has no room for a while. What
is killed is started again at once, as systemd would. In the end every job must have succeeded exactly once, with the
weights and the metrics of the undisturbed run of its spec, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
from sqlalchemy import func, select

from benchmarks.sections import write_section
from tests.service.postgresql import Server, server
from tunewright.service.entities import Status
from tunewright.service.errors import Unavailable
from tunewright.service.storage import LISTING, Storage
from tunewright.service.store import Store
from tunewright.service.store.tables import events, jobs

LEASE = 3.0
SPECS = ({"seed": 1, "epochs": 4}, {"seed": 2, "epochs": 4}, {"seed": 3, "epochs": 6}, {"seed": 4, "epochs": 5})
WORDS = ["fox", "apples", "river", "stone", "cloud", "lamp"]
BASE = "import sys; from pathlib import Path; from tests.tiny import make_base; make_base(Path(sys.argv[1]), 'llama')"
ROOM = 1 << 30
SECONDS_FULL = 6.0
SECONDS_DOWN = 2.0
PAUSE = (2.0, 10.0)
"""Seconds between two accidents."""
WEIGHTS = {"worker": 3, "run": 8, "server": 1, "database": 1, "disk": 1}
"""How often each kind of accident is, beside the others."""


def rows() -> bytes:
    pairs = [(a, b) for a in WORDS for b in WORDS[:2]]
    lines = [
        {"messages": [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": f"{b} {a}"}]}
        for a, b in pairs
    ]
    return "\n".join(map(json.dumps, lines)).encode()


@dataclass
class Kept:
    """A process that is started again whenever it ends, until `over`."""

    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    over: bool = False
    starts: int = 0

    def start(self) -> None:
        threading.Thread(target=self._keep, daemon=True).start()

    def _keep(self) -> None:
        with self.log.open("ab") as log:
            while not self.over:
                self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=log, stderr=log)
                self.starts += 1
                self.process.wait()
                time.sleep(0.1)

    def kill(self) -> int | None:
        """By SIGKILL. Returns its pid."""
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.kill()
        return self.process.pid

    def leave(self) -> None:
        self.over = True
        if self.process and self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)


@dataclass
class Service:
    """The service, and what can be done to it."""

    root: Path
    url: str
    store: Store
    storage: Path
    server: Kept
    workers: list[Kept]
    database: Server | None
    mounted: bool
    recovered: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in WEIGHTS})
    happened: Counter[str] = field(default_factory=Counter)
    measuring: list[threading.Thread] = field(default_factory=list)

    def held(self) -> list[Any]:
        """(id, fence, worker, number of the last event) of the jobs that workers hold."""
        last = select(func.max(events.c.n)).where(events.c.job == jobs.c.id).scalar_subquery()
        query = select(jobs.c.id, jobs.c.fence, jobs.c.worker, last.label("last")).where(
            jobs.c.status.in_([Status.RUNNING, Status.PAUSING])
        )
        with self.store.database.read() as connection:
            return list(connection.execute(query))

    # accidents: each returns what must become true again, or None where nothing happened

    def worker(self, chance: random.Random) -> Callable[[], bool] | None:
        chosen = chance.choice(self.workers)
        held = self.held()
        pid = chosen.kill()
        mine = [job for job in held if pid and f"-{pid}-" in (job.worker or "")]
        if not mine:
            return None if pid is None else lambda: True
        job, fence = mine[0].id, mine[0].fence
        return lambda: (now := self.store.jobs.look(job)).fence > fence or now.status.ended

    def run(self, chance: random.Random) -> Callable[[], bool] | None:
        """The process of a run is killed; its worker starts it again."""
        held = self.held()
        for job in chance.sample(held, len(held)):
            pid = int(job.worker.split("-")[-2])
            with suppress(psutil.NoSuchProcess):
                servers = [one for one in psutil.Process(pid).children() if "forkserver" in " ".join(one.cmdline())]
                for one in (run for forkserver in servers for run in forkserver.children()):
                    one.kill()
                    return self._heard(job.id, job.last)
        return None

    def _heard(self, job: str, last: int) -> Callable[[], bool]:
        query = select(func.max(events.c.n)).where(events.c.job == job)

        def heard() -> bool:
            with self.store.database.read() as connection:
                return bool(connection.scalar(query) > last)

        return heard

    def any_event(self) -> Callable[[], bool]:
        query = select(func.max(events.c.n))
        with self.store.database.read() as connection:
            last = connection.scalar(query)

        def heard() -> bool:
            with self.store.database.read() as connection:
                return bool(connection.scalar(query) > last)

        return heard


@contextmanager
def service(root: Path, workers: int, database: str | None) -> Iterator[Service]:
    """Inside, it runs."""
    with ExitStack() as stack:
        throwaway = None if database else stack.enter_context(server(fsync="on"))
        address = database or (throwaway.url if throwaway else "")
        storage = root / "storage"
        storage.mkdir()
        mounted = _mount(storage)
        if mounted:
            stack.callback(subprocess.run, ["umount", "-l", str(storage)], check=False)
        subprocess.run([sys.executable, "-c", BASE, str(root / "models" / "tiny")], check=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = ["--database", address, "--storage", f"file://{storage}", "--models", str(root / "models"),
                  "--lease", str(LEASE)]  # fmt: skip
        own = [sys.executable, "-m", "tunewright"]
        serving = Kept([*own, "serve", "--port", str(port), "--workers", "0", "--home", str(root / "server"), *common],
                       root / "server.log")  # fmt: skip
        working = [Kept([*own, "worker", "--home", str(root / f"worker-{i}"), *common], root / f"worker-{i}.log")
                   for i in range(workers)]  # fmt: skip
        store = Store(address)
        for one in [serving, *working]:
            one.start()
            stack.callback(one.leave)
        url = f"http://127.0.0.1:{port}"
        found = Service(root, url, store, storage, serving, working, throwaway, mounted)
        wait(lambda: answers(url), 300)
        yield found


def _mount(folder: Path) -> bool:
    """A file system in memory, so small that it can be filled. Not everybody may mount one."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tunewright-chaos", str(folder)]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


def answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=5).is_success
    return False


def wait(true: Callable[[], bool], seconds: float) -> float:
    """Until it is true; how long that took. While the database is away it is not."""
    began = time.monotonic()
    while True:
        with suppress(Unavailable):
            if true():
                return time.monotonic() - began
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.05)


# Accidents


def accident(kind: str, it: Service, chance: random.Random) -> None:
    """Let it happen, and measure until it is as if it had not: of disk and database from when they are there again."""
    recovered: Callable[[], bool] | None
    if kind == "database":
        if it.database is None:
            return
        recovered = it.any_event()
        it.database.stop()
        time.sleep(SECONDS_DOWN)
        it.database.start("on")
    elif kind == "disk":
        if not it.mounted:
            return
        _fill(it.storage)
        recovered = it.any_event()
    elif kind == "server":
        if it.server.kill() is None:
            return
        recovered = lambda: answers(it.url)  # noqa: E731
    else:
        recovered = it.worker(chance) if kind == "worker" else it.run(chance)
    if recovered is None:
        return
    it.happened[kind] += 1
    it.measuring.append(threading.Thread(target=_measure, args=(kind, it, recovered), daemon=True))
    it.measuring[-1].start()


def _measure(kind: str, it: Service, recovered: Callable[[], bool]) -> None:
    with suppress(TimeoutError):
        it.recovered[kind].append(wait(recovered, 300))


def _fill(storage: Path) -> None:
    """No room at all, for a while: what becomes free meanwhile is taken too."""
    end, ballast = time.monotonic() + SECONDS_FULL, storage / "ballast"
    with ballast.open("ab", buffering=0) as file:
        while time.monotonic() < end:
            with suppress(OSError):
                while file.write(b"\0" * (1 << 20)):
                    pass
            with suppress(OSError):
                while file.write(b"\0"):
                    pass
            time.sleep(0.1)
    ballast.unlink()


def disturb(it: Service, over: threading.Event, seed: int) -> None:
    """One accident after another; each kind comes soon at least once."""
    chance = random.Random(seed)
    first = list(WEIGHTS)
    while not over.wait(chance.uniform(*PAUSE)):
        kind = first.pop() if first else chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        try:
            accident(kind, it, chance)
        except Unavailable:
            continue


# Jobs


def send(it: Service, key: str, number: int, file: str, spec: dict[str, int]) -> str:
    """Create a job, however often the server dies meanwhile; its metadata tell it from others of its kind."""
    with openai.OpenAI(base_url=f"{it.url}/v1", api_key=key, max_retries=200, timeout=30) as client:
        hyperparameters: Any = {"n_epochs": spec["epochs"], "batch_size": 3}
        job = client.fine_tuning.jobs.create(
            model="tiny", training_file=file, seed=spec["seed"], metadata={"number": str(number)},
            method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
            extra_body={"recipe": {"evaluation": {"before": False, "samples": 0, "generate": 0}}},
        )  # fmt: skip
    return job.id


def upload(it: Service, key: str) -> str:
    with openai.OpenAI(base_url=f"{it.url}/v1", api_key=key, max_retries=200, timeout=30) as client:
        return client.files.create(file=("rows.jsonl", rows()), purpose="fine-tune").id


def left(it: Service, tenant: str, id: str) -> dict[str, str]:
    """The hashes of a job's weights and metrics, by their names."""
    job = it.store.jobs.get(tenant, id)
    assert job.status is Status.SUCCEEDED, (job.status, job.error)
    with Storage(f"file://{it.storage}").open(f"{job.run}/{LISTING}") as file:
        listed = json.loads(file.read())
    return {name: sha for name, (_, sha) in listed.items() if name.endswith(".safetensors") or name == "metrics.jsonl"}


def finished(it: Service) -> bool:
    return sum(count for status, count in it.store.jobs.counts().items() if not status.ended) == 0


def _wait_and_tell(it: Service, seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        with suppress(TimeoutError):
            wait(lambda: finished(it), 30)
            return
        with suppress(Unavailable):
            now = {str(status): count for status, count in it.store.jobs.counts().items()}
            print(now, dict(it.happened), flush=True)
        if time.monotonic() > end:
            raise TimeoutError(f"jobs have not ended within {seconds:g} s")


def succeeded(it: Service, tenant: str, id: str) -> int:
    """How often a job's events say that it has."""
    return sum(one.message == "The job has succeeded." for one in it.store.jobs.news(tenant, id, limit=100_000))


def study(it: Service, count: int, tenants: int, seed: int) -> dict[str, Any]:
    """Undisturbed runs, then all jobs with accidents; what came of it."""
    keys = {f"tenant-{i}": it.store.keys.create(f"tenant-{i}", "chaos")[1] for i in range(tenants)}
    names = list(keys)
    files = {name: upload(it, key) for name, key in keys.items()}
    began = time.monotonic()
    calm = [send(it, keys[names[0]], -1 - i, files[names[0]], spec) for i, spec in enumerate(SPECS)]
    wait(lambda: finished(it), 600)
    expected = [left(it, names[0], id) for id in calm]
    alone = (time.monotonic() - began) / len(calm)
    over = threading.Event()
    disturbing = threading.Thread(target=disturb, args=(it, over, seed))
    began = time.monotonic()
    disturbing.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            asked = [(names[i % tenants], i, SPECS[i // tenants % len(SPECS)]) for i in range(count)]
            made = list(pool.map(lambda one: send(it, keys[one[0]], one[1], files[one[0]], one[2]), asked))
        _wait_and_tell(it, 600.0 + 30 * count)
    finally:
        over.set()
        disturbing.join()
    seconds = time.monotonic() - began
    for one in it.measuring:
        one.join(300)
    known = [job for name in names for job in it.store.jobs.page(name, limit=10_000)[0] if job.id not in calm]
    models = [one for name in names for one in it.store.models.page(name)[0] if ":ckpt-step-" not in one.id]
    same = sum(left(it, tenant, id) == expected[SPECS.index(spec)]
               for id, (tenant, _, spec) in zip(made, asked, strict=True)
               if it.store.jobs.get(tenant, id).status is Status.SUCCEEDED)  # fmt: skip
    return {
        "jobs": count,
        "sent": len(set(made)),
        "known": len(known),
        "statuses": dict(Counter(str(job.status) for job in known)),
        "succeeded once": sum(succeeded(it, job.tenant, job.id) == 1 for job in known),
        "models": len(models) - len(calm),
        "identical": same,
        "claims": sum(job.fence for job in known) - count,
        "errors": [job.error for job in known if job.error],
        "accidents": dict(it.happened),
        "recovery": {kind: sorted(round(one, 2) for one in found) for kind, found in it.recovered.items()},
        "seconds": round(seconds, 1),
        "seconds of a job undisturbed": round(alone, 2),
        "disk was filled": it.mounted,
    }


def holds(found: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled or changed."""
    return all(found[name] == found["jobs"] for name in ("sent", "known", "succeeded once", "models", "identical"))


def section(found: dict[str, Any]) -> str:
    """What is written of it."""
    verdict = "Nothing was lost, nothing ran twice to completion, every model is the undisturbed one." if holds(found) \
        else "**Not all of it held.**"  # fmt: skip
    lines = [
        f"`{found['command']}` · {found['date']} · {found['versions']} · {found['database']} · {found['machine']}",
        "",
        f"{found['jobs']} jobs of {found['tenants']} tenants, {len(SPECS)} specs of 16 to 24 steps with 4 to 6 "
        f"checkpoints each, {found['workers']} workers, a lease of {LEASE:g} s; {found['seconds']:.0f} s in all, "
        f"and {sum(found['accidents'].values())} accidents. {verdict}",
        "",
        "| | jobs |",
        "|---|---:|",
        f"| sent, with an answer | {found['sent']} |",
        f"| known to the service | {found['known']} |",
        f"| succeeded exactly once, by their events | {found['succeeded once']} |",
        f"| models made | {found['models']} |",
        f"| weights and metrics identical, byte for byte, to an undisturbed run | {found['identical']} |",
        f"| claims more than two for each job, of which one is to read its files | {found['claims'] - found['jobs']} |",
        "",
        "| accident | how often | recovered after, s: median | most |",
        "|---|---:|---:|---:|",
    ]
    for kind, words in KINDS.items():
        times = found["recovery"][kind]
        shown = f"{statistics.median(times):.1f} | {max(times):.1f}" if times else "not measured | "
        lines.append(f"| {words} | {found['accidents'].get(kind, 0)} | {shown} |")
    if not found["disk was filled"]:
        lines += ["", "The disk could not be filled: no file system may be mounted here."]
    return "\n".join(lines) + "\n"


KINDS = {
    "worker": "a worker is killed: until its job is claimed again",
    "run": "a run is killed: until its job's next event",
    "server": "the server is killed: until it answers, and its models can",
    "database": f"the database is gone for {SECONDS_DOWN:g} s: until the next event, from when it is back",
    "disk": f"no room in the storage for {SECONDS_FULL:g} s: until the next event, from when there is",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--tenants", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--database", help="sqlite:///FILE or postgresql://…; it is then not restarted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
    root = Path(tempfile.mkdtemp(prefix="tw-chaos-"))
    try:
        with service(root, asked.workers, asked.database) as it:
            found = study(it, asked.jobs, asked.tenants, asked.seed)
    except BaseException:
        sys.stderr.write("".join(log.read_text(errors="replace")[-3000:] for log in root.glob("*.log")))
        raise
    finally:
        shutil.rmtree(root, ignore_errors=True)
    found |= {
        "command": f"python -m benchmarks.chaos --jobs {asked.jobs} --tenants {asked.tenants} --workers "
                   f"{asked.workers} --seed {asked.seed}",
        "tenants": asked.tenants,
        "workers": asked.workers,
        "database": (asked.database or "postgresql").partition(":")[0],
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, shared with other work",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("tunewright", "torch", "sqlalchemy")),
    }  # fmt: skip
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / "service-chaos.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_section(asked.results / "service.md", "Everything is killed at random", section(found))
    print(section(found))
    sys.exit(0 if holds(found) else 1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()
