"""No telemetry: without a hub name, nothing opens a connection, even where the hub is not switched off."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BARRED = """
import json, socket, sys

def refuse(*arguments, **options):
    print("connected to", arguments[1:], file=sys.stderr)
    raise OSError("a connection was opened")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda *arguments, **options: refuse(None, *arguments)
import tunewright as tw

base, folder = sys.argv[1:]
rows = [{"prompt": f"one plus {i}", "completion": " is more"} for i in range(12)]
run = tw.train(base=base, data=rows, method=tw.LoRA(rank=2), training=tw.Training(max_steps=2), output=folder)
tw.chat(run.folder, "one plus two", max_new_tokens=3)
tw.export(run.folder, "merged", folder + "-merged")
print(json.dumps(run.info["status"]))
"""


def test_a_run_opens_no_connection(tiny_base: Callable[..., str], tmp_path: Path) -> None:
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    done = subprocess.run(
        [sys.executable, "-c", BARRED, tiny_base("llama"), str(tmp_path / "run")],
        env=surroundings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "connected to" not in done.stderr
    assert done.stdout.strip().endswith('"finished"')
