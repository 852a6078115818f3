"""A Markdown file with one section for each benchmark, of which each writes its own."""

from __future__ import annotations

import re
from pathlib import Path

TITLE = "# The service under load and under attack\n"


def write_section(path: Path, name: str, text: str) -> None:
    """Put a section in the place of the one of this name, or behind the others."""
    document = path.read_text(encoding="utf-8") if path.exists() else TITLE
    head, *others = re.split(r"^## ", document, flags=re.MULTILINE)
    sections = dict(one.split("\n", 1) for one in others)
    sections[name] = f"\n{text.strip()}\n\n"
    path.write_text(head.strip() + "\n\n" + "".join(f"## {n}\n{t}" for n, t in sections.items()).strip() + "\n", "utf-8")
