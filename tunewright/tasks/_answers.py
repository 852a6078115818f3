"""Answers to prompts as a language model is fed them: encoded, put into batches, and kept apart where they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tunewright.data.batches import Example, pad
from tunewright.data.config import Overlength
from tunewright.data.groups import element, joined
from tunewright.data.kinds import Completion, Conversation, Prompt, Ranking, Rated
from tunewright.data.render import Renderer
from tunewright.data.rendered import Fitted, Limit, Rendered, fit, what_to_do
from tunewright.errors import DataError, counted, them
from tunewright.tasks.base import Batch, Encoded, Predictions

if TYPE_CHECKING:
    from torch import Tensor, nn


def shifted(tokens: Sequence[int], weights: Sequence[float], source: str) -> Example:
    """Position t predicts token t + 1, so the last token is never fed and the first never predicted."""
    ids = np.asarray(tokens, dtype=np.int64)
    weight = np.asarray(weights, dtype=np.float32)
    return Example({"input_ids": ids[:-1]}, ids[1:], weight[1:], source, len(ids) - 1)


# Rows


def encode_answers(renderer: Renderer, records: Sequence[Ranking | Rated], data: Any, limit: Limit) -> Encoded:
    """Each row as an element of its answers, with what is `judged` of each.

    Raises DataError that names the rows which cannot be rendered, or are too long.
    """
    found, faults = answer_tokens(renderer, records, data.on_bad_rows == "skip")
    rows = [(record, found[record.source]) for record in records if record.source in found]
    fitted, cut = fit_answers([answers for _, answers in rows], limit, data.overlength_for("preference"))
    examples = [_element(rows[i][0], answers) for i, answers in fitted]
    return Encoded(examples, limit.tokens, cut, faults)


def answer_tokens(
    renderer: Renderer, records: Sequence[Ranking | Rated], skip: bool
) -> tuple[dict[str, list[Rendered]], list[str]]:
    """The answers of each row, each with its prompt, by the row's source; and what is wrong with skipped rows."""
    faults: list[str] = []
    own = {f"{r.source} (answer {i})": r for r in records for i in range(1, len(answers_of(r)) + 1)}
    named = iter(own)
    asked = [replace(answer, source=next(named)) for record in records for answer in answers_of(record)]
    found: dict[str, list[Rendered]] = {}
    for one in renderer.render_all(asked, faults):
        found.setdefault(one.source, []).append(one)
    faults += [
        f"{source}: the chat template changes what comes before between the turns of this answer"
        for source, several in found.items()
        if len(several) > 1
    ]
    bad = {fault.split(" (answer ")[0] for fault in faults}
    good = {r.source: r for r in records if r.source not in bad}
    if faults and not (skip and good):
        raise DataError(
            f"{len(bad):,} of {counted(len(records), 'row')} cannot be rendered: mend {them(len(bad))}.", faults
        )
    tokens: dict[str, list[Rendered]] = {source: [] for source in good}
    for name, record in own.items():
        if record.source in good:
            tokens[record.source].append(found[name][0])
    return tokens, faults


def answers_of(record: Ranking | Rated) -> tuple[Completion | Conversation, ...]:
    return record.answers if isinstance(record, Ranking) else (record.answer,)


def _element(record: Ranking | Rated, answers: Sequence[Rendered]) -> Example:
    pairs = zip(answers, judged(record), strict=True)
    return element([replace(_example(one), fixed=fixed) for one, fixed in pairs], record.source)


def judged(record: Ranking | Rated) -> list[dict[str, np.ndarray]]:
    """What is known of each answer: whether it is `good`, as the best of a ranking is, and the ranking's `margin`."""
    if isinstance(record, Rated):
        return [{"good": np.array(record.good, dtype=np.float32)}]
    margin = np.array(record.margin, dtype=np.float32)
    return [{"good": np.array(i == 0, dtype=np.float32), "margin": margin} for i in range(len(record.answers))]


def _example(one: Rendered) -> Example:
    return shifted(one.tokens, one.weights, one.source)


WAYS = ("truncate", "truncate_prompt", "drop")
"""What can be done with answers that are too long."""


def fit_answers(
    rows: Sequence[list[Rendered]], limit: Limit, policy: Overlength
) -> tuple[list[tuple[int, list[Rendered]]], Fitted]:
    """Which rows fit, with their answers; and the account of those that were too long: a row stands or falls whole."""
    longest = [max(len(one.tokens) for one in row) for row in rows]
    over = [i for i, length in enumerate(longest) if length > limit.tokens]
    if over and policy == "split":
        raise DataError(
            "data.overlength: split is for plain text. For answers choose drop, truncate or truncate_prompt."
        )
    if over and policy == "fail":
        fit(
            [Rendered([0] * n, [], row[0].source.split(" (answer ")[0]) for n, row in zip(longest, rows, strict=True)],
            limit,
            policy,
            WAYS,
        )
    kept: list[tuple[int, list[Rendered]]] = []
    truncated: list[str] = []
    dropped: list[str] = []
    for i, row in enumerate(rows):
        if longest[i] <= limit.tokens:
            kept.append((i, row))
            continue
        shorter = _shortened(row, limit.tokens, policy)
        (truncated if shorter else dropped).append(row[0].source.split(" (answer ")[0])
        if shorter:
            kept.append((i, shorter))
    if not kept:
        otherwise = [] if policy == "truncate_prompt" else ["truncate_prompt"]
        raise DataError(
            f"of {counted(len(rows), 'row')} none fits into {limit}; the shortest has {min(longest)}: "
            f"{what_to_do(limit, otherwise)}."
        )
    return kept, Fitted([], truncated=truncated, dropped=dropped)


def _shortened(row: list[Rendered], limit: int, policy: Overlength) -> list[Rendered] | None:
    """The answers cut at their end, or their prompt at its beginning behind the first token; None where that fails."""
    if policy == "truncate":
        cut = [Rendered(one.tokens[:limit], one.weights[:limit], one.source) for one in row]
        return cut if all(any(one.weights) for one in cut) else None
    over = max(len(one.tokens) for one in row) - limit
    prompt = min(next(i for i, weight in enumerate(one.weights) if weight) for one in row)
    if policy != "truncate_prompt" or prompt <= over + 1:
        return None
    return [
        Rendered([one.tokens[0], *one.tokens[1 + over :]], [0.0, *one.weights[1 + over :]], one.source) for one in row
    ]


def encode_prompts(renderer: Renderer, records: Sequence[Prompt], data: Any, room: Limit) -> Encoded:
    """Each row as the tokens that are fed before an answer; all of them fit into the `room` that is left for them."""
    limit = room.tokens
    found = [Rendered(renderer.prompt(r.prompt, r.tools), [], r.source) for r in records]
    policy = data.overlength_for("prompt")
    if limit < 1:
        raised = ", or raise data.max_length" if room.can_be_raised else ""
        raise DataError(f"objective.max_new_tokens leaves no room for a prompt: lower it{raised}.")
    over = [one.source for one in found if len(one.tokens) > limit]
    if over and policy in ("split", "truncate"):
        raise DataError(f"data.overlength: {policy} is not for prompts. Choose drop or truncate_prompt.")
    if over and policy == "fail":
        lengths = [f"{one.source}: {len(one.tokens)} tokens" for one in found if len(one.tokens) > limit]
        raise DataError(
            f"{len(over):,} of {counted(len(found), 'prompt')} {'is' if len(over) == 1 else 'are'} longer than the "
            f"{limit} tokens that are left beside an answer: lower objective.max_new_tokens, or set data.overlength "
            "to drop or truncate_prompt.",
            lengths,
        )
    if policy == "truncate_prompt":
        found = [_cut_in_front(one, limit) for one in found]
    kept = [one for one in found if len(one.tokens) <= limit]
    if not kept:
        raise DataError(f"no prompt fits into {limit} tokens beside its answer: lower objective.max_new_tokens.")
    account = Fitted([], truncated=over) if policy == "truncate_prompt" else Fitted([], dropped=over)
    return Encoded([prompt_example(one.tokens, one.source) for one in kept], limit, account, [])


def _cut_in_front(prompt: Rendered, limit: int) -> Rendered:
    """The first token, which may begin every text, and of the others the last."""
    first, others = prompt.tokens[:1], prompt.tokens[1:]
    return Rendered([*first, *others[max(0, len(others) - limit + 1) :]], [], prompt.source)


def prompt_example(tokens: Sequence[int], source: str) -> Example:
    ids = np.asarray(tokens, dtype=np.int64)
    return Example({"input_ids": ids}, ids[:0], np.ones(1, dtype=np.float32), source, len(ids))


# Batches


def collate_elements(parts: Batch, examples: Sequence[Example]) -> Batch:
    """A batch of elements, from that of all their parts."""
    import torch

    numbers = [i for i, example in enumerate(examples) for _ in example.parts]
    return replace(parts, element_S=torch.tensor(numbers), sources=tuple(e.source for e in examples))


def collate_joined(examples: Sequence[Example]) -> Batch:
    """A batch in which each element is one sequence; see `data/groups.py`."""
    import torch

    rows = [joined(example) for example in examples]
    starts = np.cumsum([0, *(len(example.parts) for example in examples)])
    # what is shared belongs to no part; it has no weight, so that it may be counted to the first one
    owners = [start + np.maximum(row.branch - 1, 0) for start, row in zip(starts, rows, strict=False)]

    def padded(arrays: Sequence[np.ndarray], value: float = 0) -> Tensor:
        return torch.from_numpy(pad(arrays, value))

    branch_BT = padded([row.branch for row in rows], -1)
    parts = [part for example in examples for part in example.parts]
    whole = Batch(
        {name: padded([row.inputs[name] for row in rows]) for name in rows[0].inputs},
        target=padded([row.target for row in rows]),
        weight=padded([row.weight for row in rows]),
        mask=branch_BT >= 0,
        sequence=padded(owners),
        sources=(),
        branch=branch_BT,
        fixed={**fixed_numbers(parts), **{name: padded([row.fixed[name] for row in rows]) for name in rows[0].fixed}},
    )
    return collate_elements(whole, examples)


def fixed_numbers(parts: Sequence[Example]) -> dict[str, Tensor]:
    """What was fixed of each part as a number, [S] by name."""
    import torch

    names = [name for name, value in parts[0].fixed.items() if not value.ndim]
    return {name: torch.tensor(np.stack([part.fixed[name] for part in parts])) for name in names}


def fixed_positions(parts: Sequence[Example]) -> dict[str, Tensor]:
    """What was fixed of each position, [B, T] by name."""
    import torch

    names = [name for name, value in parts[0].fixed.items() if value.ndim]
    return {name: torch.from_numpy(pad([part.fixed[name] for part in parts], 0.0)) for name in names}


# Sharing


def branch_mask(module: nn.Module, branch_BT: Tensor) -> Tensor:
    """Who sees whom, [B, 1, T, T]: a position what stands before it in its branch and in the common beginning.

    In the form that the model's attention takes: true where seen, or what is added to the scores.
    """
    import torch

    order_T = torch.arange(branch_BT.shape[1], device=branch_BT.device)
    own_BTT = (branch_BT[:, :, None] == branch_BT[:, None, :]) | (branch_BT[:, None, :] == 0)
    seen_B1TT = (own_BTT & (order_T[:, None] >= order_T))[:, None]
    if module.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        return seen_B1TT
    return torch.zeros(seen_B1TT.shape, device=seen_B1TT.device).masked_fill(~seen_B1TT, torch.finfo(torch.float32).min)


def may_share(module: nn.Module, longest: int) -> bool:
    """Whether the model's attention takes a mask of ours: not where it is windowed, or has kernels of its own."""
    config: Any = module.config
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    return config._attn_implementation in ("sdpa", "eager") and not (window and window < longest)


# Scores


def preferences(examples: Sequence[Example], score_E: Sequence[np.ndarray]) -> Predictions:
    """The scores of each element's answers as predictions, with what was fixed of the answers at the run's start."""
    parts = [part for example in examples for part in example.parts]
    start = [part.fixed["start"] for part in parts if "start" in part.fixed]
    compared = any(len(e.parts) > 1 for e in examples)
    return Predictions(
        "preference" if compared else "rated",
        [e.source for e in examples],
        score_S=np.concatenate(score_E),
        element_S=np.repeat(np.arange(len(examples)), [len(e.parts) for e in examples]),
        length_S=np.array([part.fixed.get("length", part.trained) for part in parts], dtype=np.float64),
        start_S=np.array(start, dtype=np.float64) if start else None,
        good_S=None if compared else np.array([part.fixed["good"] > 0 for part in parts]),
    )
