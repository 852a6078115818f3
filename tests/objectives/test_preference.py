"""The losses on preferences are their papers': in numpy and fp64, from each token's probability in the full logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch

from tests.contracts.steps import assert_same, begun, gradient, job_of, moved, prepared
from tests.tiny import DECODERS, OTHERS, preferences, rankings, rated, words
from tunewright.data.batches import Example
from tunewright.data.groups import element
from tunewright.engine.device import computing
from tunewright.engine.learner import Learner
from tunewright.errors import RecipeError
from tunewright.objectives.preference import Pair, Preference, orpo
from tunewright.prepare import Prepared
from tunewright.recipe import make_recipe

TEXTS = {"pairs": preferences, "rankings": rankings, "rated": rated}


def ready_with(base: str, rows: Sequence[Any], loss: str, **options: Any) -> Prepared:
    """What the rows are at the start is computed in fp64 too."""
    ready = prepared(base, rows, method="full", objective={"type": "preference", "loss": loss, **options})
    ready.model.module.double()
    return begun(ready)


def tokens_of(part: Example) -> tuple[list[int], int]:
    """The tokens of a prompt with its answer, and how many are the prompt's."""
    tokens = [int(part.inputs["input_ids"][0]), *part.target.tolist()]
    return tokens, 1 + int(np.flatnonzero(part.weight)[0])


def log_p(module: Any, tokens: Sequence[int], prompt: int) -> np.ndarray:
    """ln p of each token behind the prompt."""
    module.eval()
    with torch.no_grad():
        logits_TV = module(input_ids=torch.tensor([tokens])).logits[0].double().numpy()
    log_p_TV = logits_TV - logits_TV.max(-1, keepdims=True)
    log_p_TV -= np.log(np.exp(log_p_TV).sum(-1, keepdims=True))
    return np.array([log_p_TV[t - 1, tokens[t]] for t in range(prompt, len(tokens))])


def answers(ready: Prepared) -> list[list[np.ndarray]]:
    """For each row ln p of the tokens of each of its answers, as the model is now."""
    return [[log_p(ready.model.module, *tokens_of(part)) for part in e.parts] for e in ready.examples("train")]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def pairs_mean(now: Any, start: Any, loss: Any) -> float:
    """The mean over rankings of the mean over pairs of `loss(better, worse)`, each (ln p now, ln p at the start)."""
    per_row = [
        np.mean([loss((n[i], s[i]), (n[j], s[j])) for i, j in combinations(range(len(n)), 2)])
        for n, s in zip(now, start, strict=True)
    ]
    return float(np.mean(per_row))


def ratio(answer: Any, mean: bool = False) -> float:
    now, start = answer
    return float((now.sum() - np.float32(start.sum())) / (len(now) if mean else 1))  # a start is kept in fp32


def odds(answer: Any) -> float:
    p = np.exp(answer[0].mean())
    return float(p / (1 - p))


def simpo(beta: float, gamma: float) -> Any:
    return lambda b, w: -np.log(sigmoid(beta * (b[0].mean() - w[0].mean()) - gamma))


def dpo(beta: float, smoothing: float = 0.0, mean: bool = False) -> Any:
    def loss(better: Any, worse: Any) -> float:
        h = beta * (ratio(better, mean) - ratio(worse, mean))
        return float(-(1 - smoothing) * np.log(sigmoid(h)) - smoothing * np.log(sigmoid(-h)))

    return loss


FORMULAS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "dpo": ("dpo", {}, dpo(0.1)),
    "dpo with beta": ("dpo", {"beta": 0.7}, dpo(0.7)),
    "smoothed dpo": ("dpo", {"label_smoothing": 0.2}, dpo(0.1, smoothing=0.2)),
    "dpo per token": ("dpo", {"length_normalized": True, "beta": 2.0}, dpo(2.0, mean=True)),
    "ipo": ("ipo", {"beta": 0.3}, lambda b, w: (ratio(b) - ratio(w) - 1 / (2 * 0.3)) ** 2),
    "ipo per token": (
        "ipo",
        {"length_normalized": True},
        lambda b, w: (ratio(b, True) - ratio(w, True) - 1 / (2 * 0.1)) ** 2,
    ),
    "simpo": ("simpo", {}, simpo(2.0, 1.0)),
    "simpo with a margin": ("simpo", {"beta": 2.5, "target_margin": 0.3}, simpo(2.5, 0.3)),
    "orpo": ("orpo", {}, lambda b, w: -np.log(sigmoid(np.log(odds(b) / odds(w))))),
}


@pytest.mark.parametrize("rows", ["pairs", "rankings"])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_of_pairs_is_that_of_the_paper(name: str, rows: str, tiny_base: Any) -> None:
    loss, options, formula = FORMULAS[name]
    ready = ready_with(tiny_base("gpt2"), TEXTS[rows](9), loss, **options)
    start = answers(ready)
    now = answers(moved(ready))
    terms = gradient(ready)[0]
    expected = pairs_mean(now, start, formula)
    if loss == "orpo":
        best = [row[0] for row in now]
        nll = -sum(a.sum() for a in best) / sum(len(a) for a in best)
        assert terms["pairs"] == pytest.approx(expected, rel=1e-6)
        assert terms["nll"] == pytest.approx(nll, rel=1e-6)
        expected = nll + 0.1 * expected
    assert terms["loss"] == pytest.approx(expected, rel=1e-6)
    for key, measure in (PER_TOKEN if loss in ("orpo", "simpo") else GAINED).items():
        assert terms[key] == pytest.approx(pairs_mean(now, start, measure), rel=1e-6, abs=1e-6)


GAINED = {"reward_accuracy": lambda b, w: ratio(b) > ratio(w), "reward_margin": lambda b, w: ratio(b) - ratio(w)}
PER_TOKEN = {
    "accuracy_per_token": lambda b, w: b[0].mean() > w[0].mean(),
    "accuracy": lambda b, w: b[0].sum() > w[0].sum(),
    "margin": lambda b, w: b[0].sum() - w[0].sum(),
}
"""As the evaluation has them, whatever the loss makes of them."""


def others(ready: Prepared) -> list[tuple[list[int], int]]:
    """Each prompt with the answer of the next row that has another one, no longer than the longer of the two rows."""
    rows = [tokens_of(e.parts[0]) for e in ready.examples("train")]
    found = []
    for i, (tokens, prompt) in enumerate(rows):
        following = next(r for r in [*rows[i + 1 :], *rows[:i]] if r[0][: r[1]] != tokens[:prompt])
        joined = tokens[:prompt] + following[0][following[1] :]
        found.append((joined[: max(len(tokens), len(following[0]))], prompt))
    return found


def same_prompts(count: int) -> list[dict[str, Any]]:
    """Several rated answers to each prompt."""
    return [{**row, "prompt": words(i // 3, 4) + " "} for i, row in enumerate(rated(count))]


@pytest.mark.parametrize("rows", [rated, preferences, same_prompts])
def test_kto_is_that_of_the_paper(rows: Any, tiny_base: Any) -> None:
    """With weights moved forth and back: once z0 is positive, and once it is clamped at 0."""
    assert {_kto_is_that_of_the_paper(rows, by, tiny_base("gpt2")) for by in (0.002, -0.002)} == {True, False}


def _kto_is_that_of_the_paper(rows: Any, by: float, base: str) -> bool:
    """Returns whether z0 is positive."""
    ready = ready_with(base, rows(9), "kto", good_weight=1.5, bad_weight=0.5, beta=0.3)
    start = answers(ready)
    start_of_others = [log_p(ready.model.module, *other).sum() for other in others(ready)]
    now = answers(moved(ready, by))
    kl = np.mean([log_p(ready.model.module, *o).sum() - s for o, s in zip(others(ready), start_of_others, strict=True)])
    z0, losses = max(0.0, kl), []
    for row, now_row, start_row in zip(rows(9), now, start, strict=True):
        for i, answer in enumerate(zip(now_row, start_row, strict=True)):
            good = row.get("label", i == 0)
            h = 0.3 * (ratio(answer) - z0)
            losses.append(1.5 * (1 - sigmoid(h)) if good else 0.5 * (1 - sigmoid(-h)))
    terms = gradient(ready)[0]
    assert terms["z0"] == pytest.approx(z0, rel=1e-6)
    assert terms["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    assert gradient(ready, budget=1)[0]["z0"] == pytest.approx(z0, rel=1e-6)
    return bool(kl > 0)


@pytest.mark.parametrize("loss", ["dpo", "ipo", "kto", "orpo", "simpo"])
def test_gradients_are_finite_differences(loss: str, tiny_base: Any) -> None:
    """What is fixed before a step (likelihoods at the start, z0) is held still."""
    ready = moved(ready_with(tiny_base("gpt2"), rankings(6), loss))
    module, objective = ready.model.module, ready.recipe.objective
    assert_derived(ready, fixed(ready), lambda batch: objective.terms(ready.model.task, module, batch))


def fixed(ready: Prepared) -> Sequence[Example]:
    """The rows of a step with all that is fixed of them."""
    return ready.recipe.objective.prepare(Learner(job_of(ready)), ready.examples("train"), 0)


def assert_derived(ready: Prepared, examples: Sequence[Example], terms: Any, step: float = 1e-5) -> None:
    """The gradient along random directions is that of central differences, in fp64 and eval mode."""
    module, counts = ready.model.module.eval(), ready.recipe.objective.counts(examples)
    batch = ready.model.task.collate(examples)

    def loss() -> torch.Tensor:
        found = terms(batch)
        return sum(t.coefficient * t.total / counts[t.per] for t in found.values() if t.coefficient)

    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
        along = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True) if g is not None)
        at = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for p, d in zip(parameters, direction, strict=True):
                    p.add_(sign * step * d)
                at.append(float(loss()))
        assert abs(along) > 1e-4
        assert along == pytest.approx((at[0] - at[1]) / (2 * step), rel=1e-5)


def test_an_answer_that_is_certain_has_finite_odds() -> None:
    """ORPO's odds p / (1 - p) of a likelihood that rounds to 1."""
    mean = torch.tensor([0.0, -1e-9, -2.0], requires_grad=True)
    pair = Pair((mean, mean.flip(0)), None, (mean, mean.flip(0)))
    loss = orpo(Preference(loss="orpo"), pair)
    loss.sum().backward()
    assert loss.isfinite().all() and mean.grad is not None and mean.grad.isfinite().all()


# Shared prompts

SHARING = ("llama", "qwen2", "qwen3", "gpt2", "phi3", "gpt_neox", "mixtral", "qwen3_moe")


def apart(ready: Prepared) -> Prepared:
    """The same rows, each answer with a prompt of its own."""
    found = ready.encoded["train"]
    rows = [replace(element(e.parts, e.source), fixed=e.fixed) for e in found.examples]
    return replace(ready, encoded={"train": replace(found, examples=rows)})


ATTENTION = [(kind, which) for kind in (*DECODERS, *OTHERS) for which in ("sdpa", "eager")
             if which == "eager" or kind not in ("bloom", "mamba")]  # fmt: skip


@pytest.mark.parametrize(("kind", "attention"), ATTENTION)
def test_answers_that_share_their_prompt_count_as_those_that_do_not(kind: str, attention: str, tiny_base: Any) -> None:
    """By the model's own word: windows of 12 positions (Mistral, Gemma), ALiBi and states (Bloom, Mamba) say no."""
    rows = [
        {"prompt": words(i, 20) + " ", "answers": [words(i + n, 2 + n) for n in range(2 + i % 2)]} for i in range(5)
    ]
    ready = prepared(tiny_base(kind), rows, method="full", objective="preference")
    ready.model.module.set_attn_implementation(attention)
    ready.encoded = apart(ready).encoded
    begun(ready)
    assert all(bool(e.shared) == (kind in SHARING) for e in ready.examples("train"))
    experts = kind in ("mixtral", "qwen3_moe")  # whose kernels have no fp64; eager attention has no softmax in it
    moved(ready, dtype=torch.float32 if experts else torch.float64)
    assert_same(gradient(ready), gradient(apart(ready)), relative=1e-5 if experts or attention == "eager" else 1e-6)
    if kind in SHARING:
        shared, alone = (ready.model.task.collate(r.examples("train")) for r in (ready, apart(ready)))
        assert shared.inputs["input_ids"].numel() < 0.6 * alone.inputs["input_ids"].numel()
        assert sum(e.length for e in ready.examples("train")) < sum(e.length for e in apart(ready).examples("train"))


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_rows_within_the_window_share(kind: str, tiny_base: Any) -> None:
    rows = [{"prompt": "a fox ", "chosen": "had a", "rejected": "in"} for _ in range(2)]
    ready = ready_with(tiny_base(kind), rows, "dpo")
    assert max(part.length for part in ready.examples("train")[0].parts) <= 12 < 99
    assert all(e.shared for e in ready.examples("train"))
    moved(ready)
    assert_same(gradient(ready), gradient(apart(ready)), relative=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_sharing_in_half_precision(kind: str, attention: str, weights: torch.dtype, tiny_base: Any) -> None:
    """With autocast, and with weights that are stored so, as LoRA has them on a GPU."""
    ready = ready_with(tiny_base(kind), rankings(6), "dpo")
    ready.model.module.set_attn_implementation(attention)
    exact = gradient(ready)[0]["loss"]
    ready.model.module.to(weights)
    task, module, rows = ready.model.task, ready.model.module, ready.examples("train")
    job = job_of(apart(ready))
    job.precision = "bf16"
    assert Learner(job).shares
    with computing("bf16", torch.device("cpu")):
        terms = ready.recipe.objective.terms(task, module, task.collate(rows))
    terms["loss"].total.backward()
    assert float(terms["loss"].total) / len(rows) == pytest.approx(exact, rel=0.05)
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


# Refusals


@pytest.mark.parametrize(
    "objective, said",
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing is for dpo, not for ipo"),
        ({"loss": "dpo", "target_margin": 0.5}, "target_margin is for simpo"),
        ({"loss": "simpo", "length_normalized": True}, "length_normalized is for dpo and ipo"),
        ({"loss": "orpo", "good_weight": 2}, "good_weight is for kto"),
        ({"loss": "dpo", "beta": 0}, "beta"),
    ],
)
def test_an_option_of_another_loss_is_refused(objective: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe({"base": "-", "data": "-", "objective": {"type": "preference", **objective}})


def test_beta_is_the_papers() -> None:
    found = {
        loss: make_recipe({"base": "-", "data": "-", "objective": {"type": "preference", "loss": loss}}).objective.beta  # type: ignore[attr-defined]
        for loss in ("dpo", "ipo", "kto", "orpo", "simpo")
    }
    assert found == {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}


def test_rated_rows_are_for_kto(tiny_base: Any) -> None:
    with pytest.raises(RecipeError, match=r"dpo compares answers.*Use loss: kto"):
        ready_with(tiny_base("llama"), rated(4), "dpo")


def test_kto_needs_two_prompts(tiny_base: Any) -> None:
    rows = [{**row, "prompt": "a fox "} for row in rated(4)]
    with pytest.raises(RecipeError, match="all rows have one prompt"):
        ready_with(tiny_base("llama"), rows, "kto")
