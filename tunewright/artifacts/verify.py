"""Whether an export is the model that was trained: what is compared, and how far apart the two may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tunewright.artifacts.apart.foreign import Answers


@dataclass(frozen=True)
class Limits:
    """How far an export may be from the trained model.

    Attributes:
        top1: the least share of positions with the same likeliest answer, among those where the trained model prefers
            it by more than `logits`: rounding decides nearer ties.
        logits: the largest difference of a logit, as a share of the largest logit.
        kl: the mean divergence KL(trained ‖ exported) of a position's answers, in nats.
        effect: how far the share of what tuning changed that the export has may be from 1, see `effect_of`.
        text: whether greedy decoding must give the very same tokens.
    """

    top1: float
    logits: float
    kl: float
    effect: float = 0.01
    text: bool = False


# Measured on stories260k and MiniLM with a LoRA, and on tiny random models of twelve architectures. In brackets the
# worst seen: share of the largest logit, KL. A limit is two to ten times that, so that a deeper model, whose rounding
# adds up over more layers, passes as well; halving the scale of an adapter breaks each of them.
EXACT = Limits(top1=1.0, logits=1e-4, kl=1e-6, effect=1e-3, text=True)  # (2e-6, 2e-11): the order of additions differs
LIMITS: dict[tuple[str, str], Limits] = {
    ("peft", "fp32"): EXACT,
    ("merged", "fp32"): EXACT,
    ("merged", "fp16"): Limits(top1=0.99, logits=0.01, kl=1e-4, effect=0.005),  # (.003, 8e-6): 11 bits
    ("merged", "bf16"): Limits(top1=0.98, logits=0.07, kl=5e-3),  # (.035, 5e-4): 8 bits
    ("quantized", "int8"): Limits(top1=0.97, logits=0.12, kl=0.01),  # (.062, 1e-3): a scale a row, the rest in bf16
    ("quantized", "int4"): Limits(top1=0.9, logits=0.4, kl=0.2, effect=0.2),  # not yet measured
    ("onnx", "fp32"): EXACT,
    ("diffusers", "fp32"): EXACT,
    ("kohya", "fp32"): EXACT,
    ("kohya", "fp16"): Limits(top1=0.99, logits=0.01, kl=1e-4, effect=0.005),
    ("kohya", "bf16"): Limits(top1=0.98, logits=0.07, kl=5e-3),
    ("gguf", "f16"): Limits(top1=0.99, logits=0.01, kl=1e-4, effect=0.005),  # (.003, 5e-6), in llama.cpp: 11 bits
    ("gguf", "q8_0"): Limits(top1=0.98, logits=0.08, kl=5e-3),  # (.049, 1e-3), in llama.cpp: a scale for 32 weights
}
MANY_LOGITS = 100
"""From so many logits on rounding is nearly at right angles to what tuning changed; with the few of a classifier it can
lie along it, and the effect of an adapter is shown without a limit."""
MOST_ROWS = 16
"""So many rows, and no more, make the effect of an adapter surer: see `effect_of`."""
ROUTED = 10.0
"""Rounding decides near ties of a router too, and a position that takes another expert has other logits."""


def limits_for(target: str, precision: str, routed: bool) -> Limits:
    """The limits for a target in a precision, `routed` for a mixture of experts."""
    limits = LIMITS[target, precision]
    return replace(limits, logits=ROUTED * limits.logits) if routed and limits is not EXACT else limits


@dataclass(frozen=True)
class Comparison:
    """Figures by name, the limit of each that has one, and what is beyond its limit, in words."""

    figures: dict[str, float]
    limits: dict[str, float]
    failures: list[str]


def compare(
    trained: Answers, exported: Answers, kind: str, limits: Limits, untuned: Answers | None = None
) -> Comparison:
    """Compare two models' answers to the same questions.

    Args:
        untuned: what the trained model answers with its adapter switched off, if it has one.
        kind: what a row of logits means: `single_label` (also the tokens of a language model), `multi_label` or
            `regression`, which has neither a likeliest answer nor a divergence.
    """
    if [row.shape for row in trained.logits] != [row.shape for row in exported.logits]:
        return Comparison({}, {}, ["Its logits have another shape than those of the trained model."])
    p_NC, q_NC = _stacked(trained), _stacked(exported)
    figures = {"positions": len(p_NC), "max_logit_difference": float(np.abs(p_NC - q_NC).max())}
    allowed = {"max_logit_difference": limits.logits * max(1.0, float(np.abs(p_NC).max()))}
    if kind != "regression":
        same, lead = _first(p_NC, kind) == _first(q_NC, kind), _lead(p_NC, kind)
        decided = lead > allowed["max_logit_difference"]
        agreement = {"top1_agreement": same, "top1_where_decided": same[decided] if decided.any() else np.ones(1)}
        figures |= {name: float(values.mean()) for name, values in agreement.items()}
        figures["kl"] = float(_kl(p_NC, q_NC, kind).mean())
        allowed |= {"top1_where_decided": limits.top1, "kl": limits.kl}
    if untuned is not None and (found := effect_of(p_NC, q_NC, _stacked(untuned), kind)):
        figures["effect"], noise = found
        if p_NC.shape[-1] >= MANY_LOGITS:
            allowed["effect"] = limits.effect + 3 * noise / min(len(trained.logits), MOST_ROWS) ** 0.5
    for name in ("prompt", "pixels", "labels"):
        one, other = getattr(trained, OF[name]), getattr(exported, OF[name])
        if one:
            figures[f"same_{name}"] = _share(one, other)
            allowed[f"same_{name}"] = 1.0
    if trained.texts:
        figures["same_text"] = _share(trained.texts, exported.texts)
        allowed |= {"same_text": 1.0} if limits.text else {}
    failures = [_beyond(name, figures[name], limit) for name, limit in allowed.items()]
    return Comparison(figures, allowed, [failure for failure in failures if failure])


def effect_of(p_NC: np.ndarray, q_NC: np.ndarray, untuned_NC: np.ndarray, kind: str) -> tuple[float, float] | None:
    """The share of what tuning changed that the export has, Σ (q − u)·(p − u) / Σ (p − u)², and how large the rest is.

    The rounding of an export goes any way, and hardly moves this share; an adapter whose scale is wrong by a tenth has
    about nine tenths of the effect. The rest is what the export has beside that share, in shares of what tuning
    changed: rounding, which is the same for all rows, so that more rows tell more only up to a point.
    None where tuning changed nothing.

    Args:
        p_NC, q_NC, untuned_NC: logits of the trained model, of its export, and without the adapter.
    """
    tuned_NC, seen_NC = p_NC - untuned_NC, q_NC - untuned_NC
    if kind == "single_label":  # a softmax does not see what all its logits have in common
        tuned_NC, seen_NC = (x - x.mean(-1, keepdims=True) for x in (tuned_NC, seen_NC))
    full = float((tuned_NC**2).sum())
    if not full:
        return None
    share = float((seen_NC * tuned_NC).sum() / full)
    return share, float(np.linalg.norm(seen_NC - share * tuned_NC)) / full**0.5


OF = {"prompt": "prompts", "pixels": "pixels", "labels": "labels"}
WORDS = {
    "max_logit_difference": "An output differs by {0:.3g}, at most {1:.3g} is allowed.",
    "kl": "The answers diverge by {0:.3g} nats, at most {1:.3g} are allowed.",
    "top1_where_decided": "The likeliest answer is the same at {0:.1%} of positions without near ties, not at {1:.0%}.",
    "effect": "It has {0:.1%} of what tuning changed, and may be {1:.1%} off.",
    "same_prompt": "Its tokenizer makes the trained tokens of {0:.0%} of the prompts only.",
    "same_pixels": "Its image processor makes the trained pixels of {0:.0%} of the images only.",
    "same_labels": "{0:.0%} only of its classes have the trained model's name in that place.",
    "same_text": "Greedy decoding gives the same text behind {0:.0%} of the prompts only.",
}
SHARES = ("top1_where_decided", "same_prompt", "same_pixels", "same_labels", "same_text")


def _beyond(name: str, value: float, limit: float) -> str:
    """In words, that a figure is beyond its limit; nothing if it is not. NaN is beyond every limit."""
    within = abs(value - 1) <= limit if name == "effect" else value >= limit if name in SHARES else value <= limit
    return "" if within else WORDS[name].format(value, limit)


def _stacked(answers: Answers) -> np.ndarray:
    """The logits of all positions, or of all classifier rows, [N, C]."""
    return np.concatenate([np.atleast_2d(row) for row in answers.logits]).astype(np.float64)


def _share(one: Sequence[Any], other: Sequence[Any]) -> float:
    """The share of places in which two lists have the same."""
    return sum(a == b for a, b in zip(one, other, strict=False)) / max(len(one), len(other))


def _first(logits_NC: np.ndarray, kind: str) -> np.ndarray:
    """The likeliest class [N], or for each label whether it applies [N, C]."""
    return logits_NC > 0 if kind == "multi_label" else logits_NC.argmax(-1)


def _lead(logits_NC: np.ndarray, kind: str) -> np.ndarray:
    """By how much the likeliest class leads over the next [N], or a label over its absence [N, C]."""
    if kind == "multi_label":
        return np.abs(logits_NC)
    second, first = np.partition(logits_NC, -2)[:, -2:].T
    return first - second


def _kl(p_NC: np.ndarray, q_NC: np.ndarray, kind: str) -> np.ndarray:
    """KL(p ‖ q) of each position's distribution, or of each label's own."""
    if kind == "multi_label":  # a sigmoid is a softmax over the logit and 0
        p_NC, q_NC = (np.stack([x, np.zeros_like(x)], axis=-1) for x in (p_NC, q_NC))
    log_p, log_q = _log_softmax(p_NC), _log_softmax(q_NC)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
