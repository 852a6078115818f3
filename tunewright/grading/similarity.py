"""How alike two texts are, from 0 to 1.

    fuzzy_match   1 - (insertions and deletions between the texts) / (both lengths), by characters
    bleu          BLEU of one sentence: 4-grams, smoothed exponentially, no higher n-gram than the text has
    gleu          GLEU (Wu et al. 2016, https://arxiv.org/abs/1609.08144): the smaller of precision and recall, 1- to
                  4-grams together
    rouge_1 … 5   ROUGE-N, rouge_l ROUGE-L: F (Lin 2004, https://aclanthology.org/W04-1013), without stemming
    cosine        of what an embedding model makes of the texts; below 0 counts as 0

BLEU and GLEU split as mteval-v13a does (at spaces and punctuation) and mind the case; ROUGE splits into words of any
script in lower case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from tunewright.data.words import Words

Metric = Literal[
    "cosine", "fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"
]
METRICS: tuple[str, ...] = get_args(Metric)
Embed = Callable[[Sequence[str]], Any]
"""Texts (N) → vectors (N, D), anything that NumPy takes for an array."""


def similarities(metric: Metric, texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """How alike each text is to its reference, by any metric but cosine."""
    compare = _comparison(metric)
    return [min(1.0, max(0.0, compare(*pair))) for pair in zip(texts, references, strict=True)]


def _comparison(metric: Metric) -> Callable[[str, str], float]:
    if metric == "fuzzy_match":
        from rapidfuzz.fuzz import ratio

        return lambda text, reference: ratio(text, reference) / 100
    if metric == "bleu":
        from sacrebleu.metrics import BLEU

        bleu = BLEU(effective_order=True)
        return lambda text, reference: bleu.sentence_score(text, [reference]).score / 100
    return _gleu() if metric == "gleu" else _rouge(metric)


def _gleu() -> Callable[[str, str], float]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    split = Tokenizer13a()

    def gleu(text: str, reference: str) -> float:
        found, wanted = _ngrams(split(text).split()), _ngrams(split(reference).split())
        return (found & wanted).total() / max(found.total(), wanted.total(), 1)

    return gleu


def _ngrams(tokens: Sequence[str], longest: int = 4) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[start : start + n]) for n in range(1, longest + 1) for start in range(len(tokens) - n + 1)
    )


def _rouge(metric: Metric) -> Callable[[str, str], float]:
    from rouge_score.rouge_scorer import RougeScorer

    name = metric.replace("_l", "L").replace("_", "")
    scorer = RougeScorer([name], tokenizer=Words())
    return lambda text, reference: scorer.score(reference, text)[name].fmeasure


def cosines(embed: Embed, texts: Sequence[str], references: Sequence[str]) -> list[float]:
    """The cosine of each text and its reference, 0 where it is negative or a vector is zero."""
    import numpy as np

    vectors_2ND = np.asarray(embed([*texts, *references]), dtype=np.float64).reshape(2, len(texts), -1)
    norms_2N = np.linalg.norm(vectors_2ND, axis=2)
    products_N = (vectors_2ND[0] * vectors_2ND[1]).sum(axis=1)
    cosines_N = products_N / np.maximum(norms_2N.prod(axis=0), np.finfo(np.float64).tiny)
    return [float(cosine) for cosine in np.clip(cosines_N, 0, 1)]
