"""Objectives × tasks: neither the cut into forward passes, nor packing, nor padding changes loss or gradient."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from tests.contracts.steps import assert_same, gradient, likelihood, moved, prepared
from tests.contracts.test_methods import KINDS_OF
from tests.tiny import (
    DECODERS,
    asked,
    captioned,
    chats,
    completions,
    labelled,
    pictures,
    preferences,
    rankings,
    rated,
    rows_for,
    words,
)
from tests.tiny import objective as configured
from tunewright.data.kinds import KINDS
from tunewright.errors import RecipeError, TunewrightError
from tunewright.objectives import OBJECTIVES
from tunewright.tasks import MODULES, task_class

BASES = {
    "text-generation": "llama",
    "text-classification": "bert",
    "image-classification": "vit",
    "text-to-image": "sdxl",
}
FULL = {"type": "full"}
OF_KIND: dict[str, tuple[Callable[[int], list[dict[str, Any]]], str]] = {
    "chat": (chats, "llama"),
    "prompt_completion": (completions, "llama"),
    "text": (lambda count: [{"text": words(i, 9)} for i in range(count)], "llama"),
    "classification": (labelled, "bert"),
    "image": (pictures, "vit"),
    "captioned_image": (captioned, "sdxl"),
    "preference": (preferences, "llama"),
    "rated": (rated, "llama"),
    "prompt": (asked, "llama"),
}


def weighted_chats() -> list[dict[str, Any]]:
    """Answers that count differently, and conversations of several turns."""
    rows = chats()
    for i, row in enumerate(rows):
        row["messages"][1]["weight"] = (0.25, 1.0, 3.0)[i % 3]
        row["messages"] += [
            {"role": "user", "content": words(i + 5, 2)},
            {"role": "assistant", "content": words(i + 2, 4), "weight": 0 if i % 2 else 1},
        ]
    return rows


def weighted_rows() -> list[dict[str, Any]]:
    return [{**row, "weight": 0.5 + i % 3} for i, row in enumerate(labelled())]


def soft() -> list[dict[str, Any]]:
    return [
        {**row, "label": {"a": 0.7, "b": 0.3} if i % 2 else {"a": 0.1, "b": 0.9}} for i, row in enumerate(labelled())
    ]


def several() -> list[dict[str, Any]]:
    return [{**row, "label": [["a"], ["a", "b"], ["c"], []][i % 4]} for i, row in enumerate(labelled())]


def numbers() -> list[dict[str, Any]]:
    return [{**row, "label": i / 5 - 1} for i, row in enumerate(labelled())]


def images_of_several_sizes() -> list[dict[str, Any]]:
    return [{**row, "image": Image.open(BytesIO(row["image"])).resize((16 + 8 * (i % 3), 20)), "weight": 0.5 + i % 3}
            for i, row in enumerate(captioned())]  # fmt: skip


SPECIAL_CASES: dict[str, dict[str, Any]] = {
    "token weights": {"base": "llama", "rows": weighted_chats()},
    "label smoothing of tokens": {"base": "gpt2", "rows": completions(), "objective": {"label_smoothing": 0.1}},
    "logits that are soft-capped": {"base": "gemma3", "rows": completions()},
    "router loss": {"base": "mixtral", "rows": completions(), "objective": {"router_loss": 0.5}},
    "row weights": {"base": "bert", "rows": weighted_rows()},
    "class weights": {"base": "distilbert", "rows": labelled(17), "objective": {"class_weights": {"class 1": 5.0}}},
    "balanced class weights": {"base": "roberta", "rows": labelled(17), "objective": {"class_weights": "balanced"}},
    "soft labels": {"base": "bert", "rows": soft()},
    "soft class weights": {"base": "bert", "rows": soft(), "objective": {"class_weights": "balanced"}},
    "several labels": {"base": "bert", "rows": several(), "objective": {"label_smoothing": 0.1}},
    "regression": {"base": "roberta", "rows": numbers()},
    "label smoothing": {"base": "bert", "rows": labelled(), "objective": {"label_smoothing": 0.2}},
    "min-SNR and images of several sizes": {
        "base": "sd2",
        "rows": images_of_several_sizes(),
        "objective": {"min_snr": 5.0, "noise_offset": 0.1},
    },
    "a decoder that classifies": {"base": "llama", "rows": labelled()},
    **{
        f"{loss} of {name}": {
            "base": base, "rows": rows, "objective": {"type": "preference", "loss": loss, **more}, "moves": True
        }
        for loss, name, base, rows, more in (
            ("dpo", "pairs", "llama", preferences(), {"label_smoothing": 0.2}),
            ("dpo", "rankings per token", "gpt2", rankings(), {"length_normalized": True}),
            ("dpo", "pairs that cannot share", "mamba", preferences(), {}),
            ("ipo", "rankings", "qwen3", rankings(), {}),
            ("kto", "rated answers", "llama", rated(), {"good_weight": 1.5}),
            ("kto", "rankings", "gemma3", rankings(), {"bad_weight": 0.5}),
            ("orpo", "pairs", "phi3", preferences(), {}),
            ("orpo", "rankings", "llama", rankings(), {}),
            ("simpo", "rankings", "gpt_neox", rankings(), {}),
        )
    },
    "rewards of an encoder": {
        "base": "bert",
        "rows": rankings(),
        "objective": {"type": "reward", "margin": 0.3, "centring": 0.1},
        "moves": True,
    },
    "rewards of a decoder": {"base": "llama", "rows": preferences(margins=True), "objective": "reward", "moves": True},
}  # fmt: skip


PAIRS = [(name, task) for name, objective in OBJECTIVES.items() for task in objective.tasks or MODULES]


@pytest.mark.parametrize(("objective", "task"), PAIRS)
def test_forward_passes_of_any_size_give_the_same_step(objective: str, task: str, tiny_base: Any) -> None:
    ready = prepared(
        tiny_base(BASES[task]), rows_for(task, objective=objective), method=FULL, objective=configured(objective)
    )
    if objective != "supervised":
        moved(ready)
    assert_same(gradient(ready), gradient(ready, budget=20))


@pytest.mark.parametrize(("objective", "task"), [(o, t) for o in OBJECTIVES for t in MODULES if (o, t) not in PAIRS])
def test_another_task_is_refused(objective: str, task: str, tiny_base: Any) -> None:
    with pytest.raises(RecipeError, match=f"objective: {objective} is for {OBJECTIVES[objective].tasks[0]}, not"):
        prepared(
            tiny_base(BASES[task]), rows_for(task, objective=objective), objective=configured(objective), task=task
        )


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS.values())
def test_rows_that_an_objective_cannot_learn_from_are_refused_with_the_one_that_can(
    objective: str, kind: str, tiny_base: Any
) -> None:
    """Whoever wants prompts takes them from any row that has one; of conversations one that ends with a question."""
    prompting = OBJECTIVES[objective].reads == ("prompt",)
    if kind in OBJECTIVES[objective].reads or (prompting and "prompt" in OF_KIND[kind][0](1)[0]):
        return
    others = [name for name, one in OBJECTIVES.items() if kind in one.reads]
    rows, base = OF_KIND[kind]
    told = {"rated": "rated", "prompt": "prompt"}  # rows that are read so only where they are wanted
    with pytest.raises(TunewrightError, match=f"Set objective: {' or '.join(others)}|ends with an answer"):
        prepared(tiny_base(base), rows(6), objective=configured(objective), data={"format": told.get(kind, "auto")})


@pytest.mark.parametrize("case", SPECIAL_CASES.values(), ids=SPECIAL_CASES)
def test_forward_passes_of_any_size_give_the_same_step_in_special_cases(case: dict[str, Any], tiny_base: Any) -> None:
    ready = prepared(tiny_base(case["base"]), case["rows"], method=FULL, objective=case.get("objective", {}))
    if case.get("moves"):
        moved(ready)
    whole = gradient(ready)
    assert_same(whole, gradient(ready, budget=20))
    assert_same(whole, gradient(ready, budget=1))  # each row alone


@pytest.mark.parametrize("kind", DECODERS)
def test_packing_gives_the_same_step(kind: str, tiny_base: Any) -> None:
    ready = prepared(tiny_base(kind), completions(), method=FULL)
    plain = gradient(ready)
    assert_same(plain, gradient(ready, packing=True), relative=2e-6)
    assert_same(plain, gradient(ready, packing=True, budget=30), relative=2e-6)


def test_packing_gives_the_same_router_loss(tiny_base: Any) -> None:
    ready = prepared(tiny_base("mixtral"), completions(), method=FULL, objective={"router_loss": 0.5})
    assert_same(gradient(ready), gradient(ready, packing=True), relative=2e-6)


def test_the_router_loss_is_that_of_the_paper(tiny_base: Any) -> None:
    """One row, so that the batch means of the paper and the means per row are the same."""
    ready = prepared(tiny_base("mixtral"), completions(3), objective={"router_loss": 1.0})
    module, example = ready.model.module.eval(), ready.examples("train")[2]
    batch = ready.model.task.collate([example])
    seen: list[torch.Tensor] = []
    weights = [m.weight for n, m in module.named_modules() if n.endswith("mlp.gate")]
    hooks = [
        m.register_forward_pre_hook(lambda _, given: seen.append(given[0].reshape(-1, 32)))
        for n, m in module.named_modules()
        if n.endswith("mlp.gate")
    ]
    with torch.no_grad():
        found = ready.model.task.nll(module, batch, router=True).router
    for hook in hooks:
        hook.remove()
    losses = []
    for hidden_TH, weight_EH in zip(seen, weights, strict=True):
        p_TE = (hidden_TH @ weight_EH.T).softmax(-1)
        f_E = torch.zeros_like(p_TE).scatter(-1, p_TE.topk(2, -1).indices, 1.0).mean(0)
        losses.append(4 * (f_E * p_TE.mean(0)).sum())
    assert found is not None
    torch.testing.assert_close(found, torch.stack(losses).mean())


@pytest.mark.parametrize("kind", DECODERS)
def test_logits_at_weighted_positions_are_those_of_all_positions(kind: str, tiny_base: Any) -> None:
    ready = prepared(tiny_base(kind), completions(), method=FULL)
    module, task = ready.model.module.eval(), ready.model.task
    batch = task.collate(ready.examples("train"))
    fast_BT = task.nll(module, batch).nll_BT
    logits_BTV = module(**batch.inputs, attention_mask=batch.mask.long(), use_cache=False).logits.float()
    slow_BT = torch.nn.functional.cross_entropy(logits_BTV.transpose(1, 2), batch.target, reduction="none")
    slow_BT = slow_BT.masked_fill(batch.weight == 0, 0.0)
    torch.testing.assert_close(fast_BT, slow_BT, rtol=2e-6, atol=2e-6)
    parameters = list(module.parameters())
    fast, slow = (
        torch.autograd.grad((nll_BT * batch.weight).sum(), parameters, allow_unused=True)
        for nll_BT in (fast_BT, slow_BT)
    )
    for a, b in zip(fast, slow, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()) + 1e-7)


@pytest.mark.parametrize(("task", "kind"), [(task, kind) for task, kinds in KINDS_OF.items() for kind in kinds])
def test_a_row_counts_the_same_alone_and_padded(task: str, kind: str, tiny_base: Any) -> None:
    ready = prepared(tiny_base(kind), rows_for(task), task=task, method=FULL)
    rows = range(len(ready.examples("train")))
    together = likelihood(ready, rows)
    alone = torch.cat([likelihood(ready, [row]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=5e-6, atol=5e-6)


def test_every_task_says_what_rows_it_reads_and_has_a_base_here() -> None:
    assert MODULES.keys() == BASES.keys(), "give the new task a tiny base and rows"
    assert all(task_class(name).data_kinds for name in MODULES)
