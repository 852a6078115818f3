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
    joined = "".join(f"## {title}\n{body}" for title, body in sections.items())
    path.write_text(f"{head.strip()}\n\n{joined.strip()}\n", encoding="utf-8")
