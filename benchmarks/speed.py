"""Tunewright and its peers side by side: `python -m benchmarks.speed lora-sft [--peers trl,trainer] [--rounds 3]`.

The systems run in turns (A B C A B C …), each in a fresh process with one thread. This parent imports no torch: the
peak memory of a child would count what its parent held when it was started.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.limit import Facts
from benchmarks.report import Measured, Report
from benchmarks.systems import OWN, SYSTEMS, System
from benchmarks.workloads import WORKLOADS, Job, Workload

ROOT = Path(__file__).resolve().parent.parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}


def main(arguments: Sequence[str] | None = None) -> Report:
    """Measure, print the table, write the files."""
    chosen = _parser().parse_args(arguments)
    workload = WORKLOADS[chosen.workload]
    workload = replace(workload, steps=chosen.steps or workload.steps)
    workload = workload.shrunk() if chosen.tiny else workload
    systems = choose(workload, [name for name in chosen.peers.split(",") if name], own=not chosen.peers_only)
    work = Path(chosen.work) / f"{workload.name}-{workload.digest()}"
    job = Job(workload, work, work, Path(chosen.data), chosen.device)
    facts = prepared(job)
    rates, measured = take_turns(job, systems, chosen.rounds)
    report = Report(header(chosen, systems), workload, facts, rates, measured)
    report.show()
    for path in report.write(Path(chosen.results)):
        print(f"written: {os.path.relpath(path)}")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=str(__doc__).split("\n\n")[0])
    data = os.environ.get("TUNEWRIGHT_DATA", str(ROOT.parent / "shared" / "data"))
    add = parser.add_argument
    add("workload", choices=WORKLOADS)
    add("--peers", default="trl,trainer", help="who else: trl, trl-packed, …; '' for nobody (default: trl,trainer)")
    add("--peers-only", action="store_true", help="leave Tunewright out")
    add("--rounds", type=int, default=3, help="turns of all systems (default: 3)")
    add("--steps", type=int, help="optimizer steps (default: the workload's own)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--tiny", action="store_true", help="a toy shape, to test the machinery; its figures mean nothing")
    add("--data", default=data, help="folder of the rows (default: $TUNEWRIGHT_DATA, else ../shared/data)")
    add("--work", default=str(Path(tempfile.gettempdir()) / "tunewright-benchmarks"), help="folder for models and logs")
    add("--results", default=str(ROOT / "benchmarks" / "results"), help="folder of the report")
    return parser


def choose(workload: Workload, peers: Sequence[str], own: bool = True) -> list[System]:
    """The systems that can do the workload. Ends the program where a peer is unknown or not installed."""
    others = [s for s in SYSTEMS if s.family != OWN]
    if unknown := [name for name in peers if not any(s.answers_to(name) for s in others)]:
        known = dict.fromkeys(name for s in others for name in (s.family, s.label))
        raise SystemExit(f"unknown peers: {', '.join(unknown)}. Known: {', '.join(known)}.")
    wanted = [OWN, *peers] if own else list(peers)
    systems = [s for s in SYSTEMS if any(map(s.answers_to, wanted)) and workload.task in s.tasks]
    missing = sorted({package for s in systems for package in s.requires if _version(package) is None})
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}. Run: pip install 'tunewright[bench]'")
    if not systems:
        raise SystemExit(f"none of the systems chosen can do {workload.name}.")
    return systems


def prepared(job: Job) -> Facts:
    """Make the shared model and rows, unless an earlier call has."""
    if not job.data.is_dir():
        raise SystemExit(f"there is no data folder {job.data}: name it with --data or $TUNEWRIGHT_DATA.")
    facts = job.work / "facts.json"
    if not facts.exists():
        in_fresh_process("prepare", job)
    return Facts(**json.loads(facts.read_text(encoding="utf-8")))


def take_turns(job: Job, systems: Sequence[System], rounds: int) -> tuple[list[float], list[Measured]]:
    """The matrix rate and every system, once a round: (operations a second, what was measured)."""
    rates: list[float] = []
    measured = [Measured(system) for system in systems]
    for number in range(1, rounds + 1):
        rates.append(in_fresh_process("rate", replace(job, out=job.work / "runs" / "rate"))["flops_per_second"])
        for one in measured:
            one.rounds.append(measure(job, one.system))
            seconds = one.rounds[-1]["training_seconds"]
            print(f"round {number}/{rounds}: {one.system.label}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return rates, measured


def measure(job: Job, system: System) -> dict[str, Any]:
    """Train once and validate what was saved. Ends the program where a system took other steps than it was told."""
    job = replace(job, out=job.work / "runs" / system.label, options=dict(system.options))
    found = in_fresh_process("train", job, system.module)
    if found["steps"] != job.workload.steps and not system.packs:
        raise SystemExit(f"{system.label} took {found['steps']} steps instead of {job.workload.steps}.")
    trained = replace(job, out=Path(found.pop("model")))
    return in_fresh_process("validate", trained, keep=True) | found


def in_fresh_process(action: str, job: Job, module: str = "", keep: bool = False) -> dict[str, Any]:
    """Run `benchmarks.child` and give back what it found, with the process's peak resident bytes and CPU seconds.

    Args:
        keep: leave what lies in `job.out`, instead of beginning with an empty folder.
    """
    if job.out != job.work and not keep:
        shutil.rmtree(job.out, ignore_errors=True)
    job.out.mkdir(parents=True, exist_ok=True)
    result, log = job.out / f"{action}.json", job.out / f"{action}.log"
    command = [sys.executable, "-m", "benchmarks.child", action, job.to_json(), str(result), module]
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **ONE_THREAD, **OFFLINE}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
        raise SystemExit(f"{action} {module} failed with exit status {process.returncode}; the end of {log}:\n{tail}")
    found = json.loads(result.read_text(encoding="utf-8"))
    spent = {"peak_bytes": usage.ru_maxrss * 1024, "process_seconds": usage.ru_utime + usage.ru_stime}
    return spent | found


def header(chosen: argparse.Namespace, systems: Sequence[System]) -> dict[str, Any]:
    """How, where and with what the figures were made."""
    peers = chosen.peers or "''"
    command = f"python -m benchmarks.speed {chosen.workload} --peers {peers} --rounds {chosen.rounds}"
    command += f" --steps {chosen.steps}" if chosen.steps else ""
    command += f" --device {chosen.device}" if chosen.device != "cpu" else ""
    command += "".join(f" --{name.replace('_', '-')}" for name in ("peers_only", "tiny") if getattr(chosen, name))
    packages = {name: None for system in systems for name in ("torch", "transformers", *system.requires)}
    return {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "device": chosen.device,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of this checkout, marked where tunewright/ has changes that are in none; None outside git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "tunewright")
        return git("rev-parse", "--short", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    main()
