"""The words of a text, as measures that compare texts count them."""

from __future__ import annotations

import re


class Words:
    """Splits text into words, and East Asian text into characters. ROUGE's own splitter drops all but a-z and 0-9."""

    WORD = re.compile(r"[\u3040-\u9fff]|[^\W_\u3040-\u9fff]+")

    def tokenize(self, text: str) -> list[str]:
        return self.WORD.findall(text.lower())
