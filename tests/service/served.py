"""A whole service, as a user starts it: `tunewright serve` in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

WORDS = ["fox", "apples", "river", "stone", "cloud", "lamp"]
CHAT = [
    {"messages": [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": f"{b} {a}"}]}
    for a in WORDS
    for b in WORDS[:2]
]


def jsonl(rows: Sequence[Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


@dataclass(frozen=True)
class Served:
    """A service that runs.

    Attributes:
        url: its address, without `/v1`.
        key: the key that it printed.
        said: all that it printed.
    """

    url: str
    key: str
    said: str
    process: subprocess.Popen[str]
    home: Path

    def client(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, **options)

    def new_key(self, *arguments: str) -> str:
        """The secret of another key, made on the command line."""
        command = [sys.executable, "-m", "tunewright", "keys", "create", "a key", "--home", str(self.home), "--json"]
        found = subprocess.run([*command, *arguments], capture_output=True, check=True, text=True)
        return str(json.loads(found.stdout)["secret"])


@contextmanager
def served(home: Path, models: Sequence[str], *options: str) -> Iterator[Served]:
    """Inside, a service runs on a free port."""
    command = [sys.executable, "-m", "tunewright", "serve", "--port", "0", "--home", str(home), *options]
    for model in models:
        command += ["--models", model]
    log = (home.parent / f"{home.name}.log").open("a")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ})
    with process, log:
        assert process.stdout is not None
        said = ""
        while "chat.completions" not in said:
            line = process.stdout.readline()
            assert line, Path(log.name).read_text()
            said += line
        address = re.search(r"http://[\d.:]+", said)
        key = re.search(r"tw-[\w-]{43}", said)
        assert address
        family = psutil.Process(process.pid).children(recursive=True)
        try:
            yield Served(address[0], key[0] if key else "", said, process, home)
        finally:
            process.terminate()
            process.wait(90)
        _, left = psutil.wait_procs(family, timeout=10)
        assert not left, "the service leaves nothing behind"


def ended(client: Any, job: Any, seconds: float = 180) -> Any:
    """A job of openai's client once it has ended."""
    end = time.monotonic() + seconds
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < end, job
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job
