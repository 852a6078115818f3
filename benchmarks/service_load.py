"""The service under load: `python -m benchmarks.service_load`.

    [--rounds 2] [--database postgresql://…] [--models ../shared/models] [--results benchmarks/results]

jobs: 100 clients create, retrieve and list jobs and read their events. chat: 1, 8 and 32 clients hear streams of 64
tokens, at temperature .8, of stories260k and of a Llama of 26 M random weights, over one base and over 8 LoRAs of rank
16 that the service has trained, beside `transformers serve` on the base, as it is and with continuous batching (and
room for 131,072 tokens: by default it takes a share of all memory); fresh processes in turns. upload: 200 MB. All on a
CPU with one thread; counted are the CPU seconds of all processes of a service, those of clients not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from benchmarks.adapters import SHAPES
from benchmarks.clients import Client, chat, quantile, together
from benchmarks.sections import write_section
from benchmarks.services import ENGINE, Service, Watch, transformers_serve, tunewright

ROOT = Path(__file__).resolve().parent.parent
ADAPTERS, BASE, LARGER, LONGEST = 8, "stories", "larger", 64
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
GIRLS = ("Lily", "Mia", "Anna", "Lucy", "Sue", "Amy", "Sara", "Ella")
THINGS = ("dog", "cat", "ball", "tree", "hat", "cake", "boat", "bird", "book", "star", "cup", "bed")
TURNS = {BASE: {1: 8, 8: 8, 32: 4}, LARGER: {1: 4, 8: 8, 32: 2}}
"""How many answers each client asks for, by the base and the number of clients."""
JOB_CLIENTS, TENANTS, JOB_TURNS = 100, 10, 20
UPLOAD = 200 * 10**6
BATCHING = ("--continuous-batching", "--cb-block-size", "32", "--cb-num-blocks", "4096")
ENOUGH, SHARE = 1.5, 0.8
"""What was asked: of transformers serve's throughput, and of one base's over 8 adapters."""


# The job API


def jobs(home: Path, models: Path, database: str | None) -> dict[str, Any]:
    """Each client creates 2 jobs, retrieves 10, lists 4 times and reads events 4 times, in another order each."""
    address = database or f"sqlite:///{home / 'service.db'}"
    kinds = (["create"] * 2 + ["retrieve"] * 10 + ["list"] * 4 + ["events"] * 4) * (JOB_TURNS // 20)
    with tunewright(home, models, "--workers", "0", "--database", address) as service:
        clients = _tenants(service, address)

        def act(number: int) -> list[tuple[str, float]]:
            client, file = clients[number]
            made, took = [_create(client, file)], []
            for turn in range(JOB_TURNS):
                kind = kinds[(turn * 7 + number) % len(kinds)]
                began = time.perf_counter()
                if kind == "create":
                    made.append(_create(client, file))
                else:
                    tail = {"retrieve": f"/{made[-1]}", "list": "?limit=20", "events": f"/{made[-1]}/events"}[kind]
                    client.ask("GET", f"/v1/fine_tuning/jobs{tail}")
                took.append((kind, time.perf_counter() - began))
            return took

        before, own = service.cpu(), time.process_time()
        found, seconds = together(JOB_CLIENTS, act)
        spent, own = service.cpu() - before, time.process_time() - own
    count = len(found) + JOB_CLIENTS
    told = {kind: _latency([s for k, s in found if k == kind]) for kind in dict.fromkeys(kinds)}
    return {
        "what": "jobs",
        "database": address.split(":")[0],
        "clients": JOB_CLIENTS,
        "requests": count,
        "per_second": count / seconds,
        "cpu_ms_each": 1000 * spent / count,
        "client_cpu_ms_each": 1000 * own / count,
        "latency_ms": {"all": _latency([s for _, s in found]), **told},
    }


def _tenants(service: Service, address: str) -> list[tuple[Client, str]]:
    """Clients with a key each, evenly of several tenants, and a file of their tenant."""
    from tunewright.service.store import Store

    store, found = Store(address), []
    for tenant in range(TENANTS):
        keys = [store.keys.create(f"load-{tenant}", "load")[1] for _ in range(JOB_CLIENTS // TENANTS)]
        data = rows(tenant)
        file = Client(service.port, keys[0]).upload("rows.jsonl", [data], len(data))["id"]
        found += [(Client(service.port, key), file) for key in keys]
    store.close()
    return found


def _create(client: Client, file: str) -> str:
    body = {"model": BASE, "training_file": file, "method": {"type": "supervised"}}
    return str(client.ask("POST", "/v1/fine_tuning/jobs", body)["id"])


def _latency(seconds: Sequence[float]) -> dict[str, float]:
    return {name: 1000 * quantile(seconds, share) for name, share in (("p50", 0.5), ("p99", 0.99))}


# Chat


def make_bases(stories: Path, models: Path) -> None:
    """stories260k with a chat template, which it lacks: what was said, a line each. And one of another shape."""
    shutil.copytree(stories, models / BASE)
    (models / BASE / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    shutil.copytree(models / BASE, models / LARGER)
    set_seed(0)
    config = LlamaConfig.from_pretrained(models / BASE)
    config.update({name: size for name, size in SHAPES["33 M"].items() if name != "vocab_size"} | {"head_dim": 64})
    LlamaForCausalLM(config).save_pretrained(models / LARGER)


def rows(number: int) -> bytes:
    """Chats of which each adapter learns others, with answers that are longer than those which are asked for."""
    girl = GIRLS[number % len(GIRLS)]
    said = [f"{girl} had a {thing}. She liked the {thing} very much." for thing in THINGS]
    pairs = [(f"Tell me about {girl} and a {thing}.", " ".join(said[i:] + said[:i])) for i, thing in enumerate(THINGS)]
    chats = [
        {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in pairs
    ]
    return "\n".join(map(json.dumps, chats)).encode()


def train_adapters(service: Service, base: str) -> list[str]:
    """The names of adapters that the service has trained on a base: LoRA, 9 steps of 4 rows."""
    client, made = Client(service.port, service.key), []
    how = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 4}}}
    for number in range(ADAPTERS):
        data = rows(number)
        file = client.upload("rows.jsonl", [data], len(data))["id"]
        asked = {"model": base, "training_file": file, "seed": number, "method": how}
        made.append(client.ask("POST", "/v1/fine_tuning/jobs", asked)["id"])
    return [_ended(client, id) for id in made]


def _ended(client: Client, id: str) -> str:
    while True:
        job = client.ask("GET", f"/v1/fine_tuning/jobs/{id}")
        if job["status"] in ("failed", "cancelled"):
            raise SystemExit(f"A job was to train an adapter: {job['error']}")
        if job["fine_tuned_model"]:
            return str(job["fine_tuned_model"])
        time.sleep(0.5)


def chats(service: Service, models: Sequence[str], clients: int, answers: int) -> dict[str, Any]:
    """Tokens and CPU seconds of so many clients that chat at a time, and each ask for so many answers."""

    def act(number: int) -> list[Any]:
        client = Client(service.port, service.key)
        return [chat(client, _asked(service, models, number, turn)) for turn in range(answers)]

    before, engine = service.cpu(), service.cpu(ENGINE)
    found, seconds = together(clients, act)
    spent, engine = service.cpu() - before, service.cpu(ENGINE) - engine
    tokens = sum(one.tokens for one in found)
    told = {"clients": clients, "tokens": tokens, "per_second": tokens / seconds, "per_cpu_second": tokens / spent,
            "first_ms": _latency([one.first for one in found])}  # fmt: skip
    return {**told, **({"per_cpu_second_of_engine": tokens / engine} if engine else {})}


def _asked(service: Service, models: Sequence[str], number: int, turn: int) -> dict[str, Any]:
    girl, thing = GIRLS[number % len(GIRLS)], THINGS[(number + turn) % len(THINGS)]
    body = {
        "model": models[(number + turn) % len(models)],
        "messages": [{"role": "user", "content": f"Tell me about {girl} and her {thing}."}],
        "temperature": 0.8,
        "seed": 100 * number + turn,
        "max_tokens": LONGEST,
    }
    return {**body, "stream_options": {"include_usage": True}} if service.key else body  # the other gives it anyway


def turns(home: Path, models: Path, base: str, adapters: Sequence[str], rounds: int) -> Iterator[dict[str, Any]]:
    """A line for each system and number of clients: ours over one base and over the adapters, and the others."""
    folder = models / base
    systems: dict[str, Callable[[], AbstractContextManager[Service]]] = {
        "tunewright": lambda: tunewright(home, models, "--workers", "0", "--device", "cpu"),
        "transformers serve": lambda: transformers_serve(folder),
        "transformers serve --continuous-batching": lambda: transformers_serve(folder, *BATCHING),
    }
    for turn in range(rounds):
        for system, start in systems.items():
            with start() as service:
                over = {"one base": [base], "8 adapters": adapters} if service.key else {"one base": [str(folder)]}
                for name in dict.fromkeys(name for names in over.values() for name in names):
                    chat(Client(service.port, service.key), _asked(service, [name], 0, 0))  # loaded, and warm
                for clients, answers in TURNS[base].items():
                    for what, names in over.items():
                        found = chats(service, names, clients, answers)
                        yield {"what": "chat", "base": base, "system": system, "over": what, "turn": turn, **found}


# An upload


def upload(home: Path, models: Path) -> dict[str, Any]:
    """A file of 200 MB, made as it is sent."""
    row = rows(0) + b"\n"
    part = row * (2**20 // len(row))
    count = UPLOAD // len(part)
    with tunewright(home, models, "--workers", "0") as service:
        client = Client(service.port, service.key)
        client.upload("rows.jsonl", [row], len(row))
        with Watch(service) as watch:
            before, began = service.cpu(), time.perf_counter()
            client.upload("large.jsonl", (part for _ in range(count)), len(part) * count)
            seconds, spent = time.perf_counter() - began, service.cpu() - before
    return {"what": "upload", "bytes": len(part) * count, "seconds": seconds, "cpu_seconds": spent,
            "resident_before": watch.before, "resident_most": watch.most}  # fmt: skip


# The page


def section(lines: Sequence[dict[str, Any]], rounds: int) -> str:
    names = ("tunewright", "torch", "transformers", "peft", "fastapi", "uvicorn", "sqlalchemy")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    told = [
        f"`python -m benchmarks.service_load` · {datetime.now(UTC).date().isoformat()} · {versions} · {rounds} turns, "
        "medians.\n",
        str(__doc__).split("\n\n")[2] + "\n",
        *_of_jobs([line for line in lines if line["what"] == "jobs"]),
        "\n**Chat**. Of the engine: of the process that answers, without the one that speaks HTTP with clients.\n",
        *_of_chat([line for line in lines if line.get("base") == BASE], "stories260k"),
        *_of_chat([line for line in lines if line.get("base") == LARGER], "26 M weights"),
        *_of_upload(next(line for line in lines if line["what"] == "upload")),
    ]
    return "\n".join(told) + "\n"


def _of_jobs(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    kinds = list(lines[0]["latency_ms"])
    yield f"**Job API**, {JOB_CLIENTS} clients of {TENANTS} tenants; latency in ms, p50 / p99.\n"
    yield "| database | requests/s | CPU ms a request | " + " | ".join(kinds) + " |\n" + "|---" * (3 + len(kinds)) + "|"
    for line in lines:
        each = " | ".join(f"{line['latency_ms'][k]['p50']:.0f} / {line['latency_ms'][k]['p99']:.0f}" for k in kinds)
        yield f"| {line['database']} | {line['per_second']:.0f} | {line['cpu_ms_each']:.1f} | {each} |"


def _of_chat(lines: Sequence[dict[str, Any]], base: str) -> Iterator[str]:
    counts = list(dict.fromkeys(line["clients"] for line in lines))
    columns = ("over", "clients", "tokens/s", "tokens a CPU second", "of the engine", "first text ms, p50 / p99")
    yield f"\n| {base}: system | " + " | ".join(columns) + " |\n" + "|---" * 7 + "|"
    rates: dict[tuple[str, str, int], float] = {}
    for system, over in dict.fromkeys((line["system"], line["over"]) for line in lines):
        for clients in counts:
            own = [l for l in lines if (l["system"], l["over"], l["clients"]) == (system, over, clients)]  # noqa: E741
            rate = rates[system, over, clients] = median(line["per_cpu_second"] for line in own)
            engine = [line["per_cpu_second_of_engine"] for line in own if "per_cpu_second_of_engine" in line]
            first = " / ".join(f"{median(line['first_ms'][p] for line in own):.0f}" for p in ("p50", "p99"))
            wall = median(line["per_second"] for line in own)
            shown = f"{median(engine):.0f}" if engine else ""
            yield f"| {system} | {over} | {clients} | {wall:.0f} | {rate:.0f} | {shown} | {first} |"
    yield f"\nBy tokens a CPU second; asked was {ENOUGH} times `transformers serve`, and {SHARE} of one base.\n"
    yield "| clients | × transformers serve | × with continuous batching | 8 adapters / one base |\n|---|---|---|---|"
    for clients in counts:
        ours = rates["tunewright", "one base", clients]
        others = [rates[s, "one base", clients] for s in dict.fromkeys(l["system"] for l in lines) if s != "tunewright"]  # noqa: E741
        ratios = [*(ours / other for other in others), rates["tunewright", "8 adapters", clients] / ours]
        yield f"| {clients} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |"


def _of_upload(line: dict[str, Any]) -> Iterator[str]:
    before, grown = line["resident_before"] / 1e6, (line["resident_most"] - line["resident_before"]) / 1e6
    yield (f"\n**Upload** of {line['bytes'] / 1e6:.0f} MB: {line['seconds']:.1f} s, {line['cpu_seconds']:.1f} CPU "
           f"seconds; the server's memory grew by at most {grown:.0f} MB over {before:.0f}.")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.service_load", description=str(__doc__).partition(":")[0]
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--database", help="postgresql://…, empty: jobs are measured there too")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []

    def add(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)
        lines.append(line)

    with tempfile.TemporaryDirectory() as folder:
        place, home = Path(folder), Path(folder) / "home"
        models = place / "models"
        make_bases(options.models / "stories260k", models)
        for database in (None, options.database) if options.database else (None,):
            add(jobs(place / f"jobs-{bool(database)}", models, database))
        add(upload(place / "upload", models))
        for base in TURNS:
            with tunewright(home, models, "--device", "cpu") as service:
                adapters = train_adapters(service, base)
            for line in turns(home, models, base, adapters, options.rounds):
                add(line)
    (options.results / "service-load.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    write_section(options.results / "service.md", "Load", section(lines, options.rounds))


if __name__ == "__main__":
    main()
