"""A hundred regular expressions over a million rows: CPU seconds and memory of `tunewright label`.

    python -m benchmarks.labeling_speed [--rows 100000,1000000] [--results benchmarks/results]

Each size is labelled once in a process of its own: rows are read from JSONL, voted on, labelled by the model of the
votes, and written as JSONL. CPU seconds are those of that whole process but for its imports; memory is the most that it
ever held. A tenth of the patterns has lookarounds or back-references, which RE2 cannot say. `re` alone searches for all
patterns in the first 20,000 rows, and its votes are compared with those of `Patterns`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATTERNS, COMPARED = 100, 20_000
CLASSES = ("abbreviation", "description", "entity", "human", "location", "number")
SYLLABLES = ("ba", "con", "der", "en", "fi", "gra", "hu", "in", "jo", "ka", "lo", "mer", "ni", "or", "pa", "qui", "ro")


def words(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return sorted({"".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(2 * count)})[:count]


def rows(count: int) -> Iterator[str]:
    """Lines of JSONL: sentences of some 87 characters; words that come early in the list are frequent."""
    chance, known = random.Random(1), words(3000, 0)
    weights = [1 / (i + 1) for i in range(len(known))]
    cumulative = [sum(weights[: i + 1]) for i in range(len(weights))]
    for i in range(count):
        said = chance.choices(known, cum_weights=cumulative, k=chance.randint(7, 16))
        accent = "é" if i % 50 == 0 else ""
        yield json.dumps({"text": " ".join(said).capitalize() + accent + "?"}, ensure_ascii=False) + "\n"


def rules() -> list[dict[str, str]]:
    """Words, alternatives, beginnings, gaps, counts and classes of characters; a tenth is for `re` alone."""
    chance, known = random.Random(2), words(3000, 0)
    shapes = (
        r"\b{a}\b", r"\b({a}|{b}|{c})\b", r"^{a}\b", r"\b{a}\b.{{0,20}}\b{b}\b", r"(?i)\b{a}(s|ed|ing)?\b",
        r"\b{a} \w+ {b}\b", r"\b[{a}]{{8,}}\b", r"{a}\?$", r"\b(?:{a}|{b})+\b", r"\b{a}\b(?! {b})",
    )  # fmt: skip
    found = []
    for i in range(PATTERNS):
        a, b, c = (chance.choice(known) for _ in range(3))
        pattern = r"\b(\w+) \1\b" if i == PATTERNS - 1 else shapes[i % len(shapes)].format(a=a, b=b, c=c)
        found.append({"name": f"rule {i}", "label": CLASSES[i % len(CLASSES)], "pattern": pattern})
    return found


def labelled(rules: str, data: str, to: str) -> dict[str, float]:
    """Label a file here, and say what that took."""
    import tunewright as tw

    tw.label  # noqa: B018  imports what it needs
    before = time.process_time()
    account = tw.label(rules, data, to)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "cpu_seconds": time.process_time() - before,
        "peak_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "rows": account["rows"],
        "coverage": account["coverage"],
    }


def compared(data: Path) -> dict[str, float]:
    """CPU seconds of `re` alone, and of `Patterns`, on the first rows; and on how many of these their votes differ."""
    from tunewright.data.labeling.patterns import Patterns

    compiled = [re.compile(rule["pattern"]) for rule in rules()]
    with data.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(COMPARED), strict=False)]
    began = time.process_time()
    alone = [[n for n, one in enumerate(compiled) if one.search(text)] for text in texts]
    middle = time.process_time()
    together = Patterns(compiled)
    found = [together.found_in(text) for text in texts]
    return {
        "re": middle - began,
        "patterns": time.process_time() - middle,
        "rows": len(texts),
        "differ": sum(one != other for one, other in zip(alone, found, strict=True)),
        "characters": sum(map(len, texts)) / len(texts),
    }


def page(measured: Sequence[Mapping[str, Any]], beside: Mapping[str, Any], sizes: str) -> Iterator[str]:
    names = ("tunewright", "google-re2")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    yield "# Labelling speed\n"
    command, date = f"`python -m benchmarks.labeling_speed --rows {sizes}`", datetime.now(UTC).date().isoformat()
    yield f"{command} · {date} · {versions}, Python {platform.python_version()} · {platform.machine()}, one process.\n"
    yield str(__doc__).split("\n\n")[2] + "\n"
    yield "| rows | CPU seconds | most memory, MB | rows with a vote, % |"
    yield "|---|---|---|---|"
    for one in measured:
        yield f"| {one['rows']:,} | {one['cpu_seconds']:.1f} | {one['peak_mb']:.0f} | {100 * one['coverage']:.1f} |"
    yield ""
    alone, both = (f"{beside[name]:.2f}" for name in ("re", "patterns"))
    yield (
        f"On {beside['rows']:,} rows of {beside['characters']:.0f} characters `re` alone searches for {alone} CPU "
        f"seconds, RE2 and `re` together for {both}; their votes differ on {beside['differ']:,} rows."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labeling_speed", description=str(__doc__).split("\n")[0]
    )
    parser.add_argument("--rows", default="100000,1000000")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(labelled(*options.child)))
        return
    measured = []
    with tempfile.TemporaryDirectory() as place:
        files = {name: Path(place) / f"{name}.jsonl" for name in ("rules", "rows", "labelled")}
        files["rules"].write_text("".join(json.dumps(rule) + "\n" for rule in rules()), encoding="utf-8")
        for count in map(int, options.rows.split(",")):
            with files["rows"].open("w", encoding="utf-8") as file:
                file.writelines(rows(count))
            files["labelled"].unlink(missing_ok=True)
            command = [sys.executable, "-m", "benchmarks.labeling_speed", "--child", *map(str, files.values())]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            measured.append(json.loads(done.stdout.splitlines()[-1]))
            print(measured[-1], flush=True)
        beside = compared(files["rows"])
    text = "\n".join(page(measured, beside, options.rows)) + "\n"
    (options.results / "labeling-speed.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
