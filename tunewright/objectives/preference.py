"""`preference`: learn which of several answers is better, straight from comparisons, without a reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from tunewright.data.batches import Example
from tunewright.data.groups import element, ends_of, sharing
from tunewright.errors import RecipeError
from tunewright.objectives._pairs import pairs
from tunewright.objectives._rollouts import fixing
from tunewright.objectives.base import Learner, Objective, Sets, Term
from tunewright.tasks.base import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

BETAS = {"dpo": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
"""Those of the papers' experiments."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "label_smoothing": ("dpo",),
    "length_normalized": ("dpo", "ipo"),
    "target_margin": ("simpo",),
    "good_weight": ("kto",),
    "bad_weight": ("kto",),
}
"""Which losses an option is for."""

REFERENCED = ("dpo", "ipo", "kto")
"""The losses that compare with the model that the run started from."""


class Preference(Objective):
    """Answers ŷ to a prompt x, better and worse; π is the model, π₀ the one that the run started from.

    | loss | of | rows |
    |---|---|---|
    | dpo | Rafailov et al., arXiv 2305.18290, equation 7; smoothed: Mitchell 2023, cDPO | pairs |
    | ipo | Azar et al., arXiv 2310.12036, equation 17 | pairs |
    | kto | Ethayarajh et al., arXiv 2402.01306, equation 8 | good and bad answers, or pairs |
    | orpo | Hong et al., arXiv 2403.07691, equations 6 and 7 | pairs |
    | simpo | Meng et al., arXiv 2405.14734, equation 6 | pairs |

    A ranking counts as the mean of its pairs. Likelihoods under π₀ are computed once for each row, before training.
    """

    reads: ClassVar[tuple[str, ...]] = ("preference", "rated")
    tasks: ClassVar[tuple[str, ...]] = ("text-generation",)
    rate: ClassVar[float] = 0.1
    drops_out: ClassVar[bool] = False
    type: Literal["preference"] = "preference"
    loss: Literal["dpo", "ipo", "kto", "orpo", "simpo"] = Field("dpo", description="Which loss; see the papers.")
    beta: float = Field(
        0.1,
        gt=0,
        description="How close to the start dpo, ipo and kto stay; the weight of orpo's pairs; simpo's scale (2).",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Chance that a pair is the wrong way round (cDPO).")
    length_normalized: bool = Field(False, description="Take the likelihood of an answer per token.")
    target_margin: float = Field(1.0, ge=0, description="γ of simpo: by how much the better answer is to lead.")
    good_weight: float = Field(1.0, ge=0, description="λ_D of kto: weight of good answers.")
    bad_weight: float = Field(1.0, ge=0, description="λ_U of kto: weight of bad answers.")

    @model_validator(mode="before")
    @classmethod
    def _own_beta(cls, given: Any) -> Any:
        loss = str(given.get("loss", "dpo")) if isinstance(given, dict) else ""
        return {"beta": BETAS[loss], **given} if loss in BETAS else given

    @model_validator(mode="after")
    def _no_idle_option(self) -> Preference:
        self.refuse_others(self.loss, OPTIONS)
        return self

    def begin(self, learner: Learner, sets: Sets) -> Sets:
        """Prompts shared where the model allows it, and the likelihoods under π₀; for kto also another row's answer."""
        rows = sets["train"]
        if self.loss != "kto" and any(len(e.parts) < 2 for found in sets.values() for e in found):
            raise RecipeError(
                f"objective.loss: {self.loss} compares answers, and these rows hold one each. Use loss: kto."
            )
        if self.loss == "kto":
            sets = {name: mismatched(found, rows) for name, found in sets.items()}
        if all(len(e.parts) > 1 for e in rows) and learner.shares:
            sets = {name: [sharing(e, learner.width) for e in found] for name, found in sets.items()}
        if self.loss in REFERENCED:
            sets = {name: with_start(learner, found) for name, found in sets.items()}
        return sets

    def prepare(self, learner: Learner, examples: Sequence[Example], step: int | None) -> Sequence[Example]:
        """kto's z₀, of the whole step: KL(π ‖ π₀) estimated by answers that belong to other prompts, at least 0."""
        if self.loss != "kto":
            return examples
        others = [others_of(e) for e in examples]
        start = np.array([float(e.fixed["other_start"]) for e in examples])
        z0 = max(0.0, float((learner.answer_scores(others) - start).mean()))
        return [fixing(e, z0=[z0] * len(e.parts)) for e in examples]

    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        return {
            "rankings": float(len(examples)),
            "answers": float(sum(len(e.parts) for e in examples)),
            "tokens": float(sum(e.parts[0].trained for e in examples)),
        }

    def terms(self, task: Task, module: nn.Module, batch: Batch) -> dict[str, Term]:
        answers = self._answers(batch, task.nll(module, batch).nll_BT)
        if self.loss == "kto":
            return self._kto(answers, batch)
        better, worse, share_P = pairs(answers.element)
        pair = Pair(
            (answers.logp[better], answers.logp[worse]),
            None if answers.start is None else (answers.start[better], answers.start[worse]),
            (answers.mean[better], answers.mean[worse]),
        )
        loss_P = LOSSES[self.loss](self, pair)
        terms = {
            "loss" if self.loss != "orpo" else "pairs": Term(
                (share_P * loss_P).sum(), "rankings", self.beta if self.loss == "orpo" else 1.0
            ),
            **{name: Term((share_P * of_P).sum(), "rankings") for name, of_P in _measured(answers, better, worse)},
        }
        if self.loss == "orpo":
            first_S = answers.element.diff(prepend=answers.element[:1] - 1) != 0
            terms["nll"] = Term(-(answers.total * first_S).sum(), "tokens", 1.0)
        return terms

    def _answers(self, batch: Batch, nll_BT: Tensor) -> Answers:
        assert batch.element_S is not None
        total_S, start_S = -batch.per_sequence(nll_BT), batch.fixed.get("start")
        length_S = batch.per_sequence((batch.weight != 0).to(nll_BT))
        mean_S = total_S / length_S
        gain_S = None if start_S is None else (total_S - start_S).detach()
        if self.length_normalized and start_S is not None:
            return Answers(mean_S, start_S / length_S, mean_S, total_S, gain_S, batch.element_S)
        return Answers(total_S, start_S, mean_S, total_S, gain_S, batch.element_S)

    def _kto(self, answers: Answers, batch: Batch) -> dict[str, Term]:
        assert answers.start is not None
        ratio_S, z0_S, good_S = answers.logp - answers.start, batch.fixed["z0"], batch.fixed["good"] > 0
        loss_S = kto(self, ratio_S, z0_S, good_S)
        reward_S = self.beta * ratio_S.detach()
        return {
            "loss": Term(loss_S.sum(), "answers", 1.0),
            "accuracy": Term(((ratio_S > z0_S) == good_S).float().sum(), "answers"),
            "z0": Term(z0_S.sum(), "answers"),
            "implicit_reward": Term(reward_S.sum(), "answers"),
        }


class Answers(NamedTuple):
    """Of S answers: log π (per token, if so wanted), log π₀, log π per token, log π, log π/π₀, the element of each."""

    logp: Tensor
    start: Tensor | None
    mean: Tensor
    total: Tensor
    gain: Tensor | None
    element: Tensor


class Pair(NamedTuple):
    """Of P pairs, (better, worse) each: log π, log π₀ and log π per token."""

    logp: tuple[Tensor, Tensor]
    start: tuple[Tensor, Tensor] | None
    mean: tuple[Tensor, Tensor]


def _measured(answers: Answers, better: Tensor, worse: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What a step says of its pairs, each [P], by the names and in the units of `judged.preference`."""
    if answers.gain is not None:
        gap_P = answers.gain[better] - answers.gain[worse]
        yield "reward_accuracy", _right(gap_P)
        yield "reward_margin", gap_P
        return
    gap_P = (answers.total[better] - answers.total[worse]).detach()
    yield "accuracy_per_token", _right((answers.mean[better] - answers.mean[worse]).detach())
    yield "accuracy", _right(gap_P)
    yield "margin", gap_P


def _right(gap_P: Tensor) -> Tensor:
    """A tie is half right."""
    return (gap_P > 0).to(gap_P) + 0.5 * (gap_P == 0).to(gap_P)


# The losses, each [P], with β, γ and ε of the objective `o`


def dpo(o: Preference, pair: Pair) -> Tensor:
    """-(1 - ε) log σ(h) - ε log σ(-h), h = β (log π/π₀ (better) - log π/π₀ (worse))."""
    import torch.nn.functional as F  # noqa: N812

    h_P = o.beta * _log_ratios(pair)
    return -(1 - o.label_smoothing) * F.logsigmoid(h_P) - o.label_smoothing * F.logsigmoid(-h_P)


def ipo(o: Preference, pair: Pair) -> Tensor:
    """(log π/π₀ (better) - log π/π₀ (worse) - 1 / 2β)²."""
    return (_log_ratios(pair) - 1 / (2 * o.beta)).square()


def orpo(o: Preference, pair: Pair) -> Tensor:
    """-log σ(log odds(better) - log odds(worse)), odds = p / (1 - p) of the likelihood p per token."""
    import torch.nn.functional as F  # noqa: N812

    certain = 1e-6  # nats per token: the odds of a likelihood that rounds to 1 have no end
    better_P, worse_P = (mean_P - (-mean_P.clamp_max(-certain).expm1()).log() for mean_P in pair.mean)
    return -F.logsigmoid(better_P - worse_P)


def simpo(o: Preference, pair: Pair) -> Tensor:
    """-log σ(β (log π (better) - log π (worse)) - γ), log π per token."""
    import torch.nn.functional as F  # noqa: N812

    return -F.logsigmoid(o.beta * (pair.mean[0] - pair.mean[1]) - o.target_margin)


def kto(o: Preference, ratio_S: Tensor, z0_S: Tensor, good_S: Tensor) -> Tensor:
    """λ_D (1 - σ(β (r - z₀))) of good answers, λ_U (1 - σ(β (z₀ - r))) of bad ones, r = log π/π₀."""
    good_loss_S = o.good_weight * (1 - (o.beta * (ratio_S - z0_S)).sigmoid())
    bad_loss_S = o.bad_weight * (1 - (o.beta * (z0_S - ratio_S)).sigmoid())
    return good_loss_S.where(good_S, bad_loss_S)


def _log_ratios(pair: Pair) -> Tensor:
    assert pair.start is not None
    return (pair.logp[0] - pair.start[0]) - (pair.logp[1] - pair.start[1])


LOSSES = {"dpo": dpo, "ipo": ipo, "orpo": orpo, "simpo": simpo}


# What is fixed before training


def with_start(learner: Learner, examples: Sequence[Example]) -> list[Example]:
    """The elements with `start`, the log-likelihood of each part as the model is now."""
    if not examples:
        return []
    start_S = learner.answer_scores(examples, start=True).astype(np.float32)
    found = [fixing(e, start=list(own)) for e, own in zip(examples, np.split(start_S, ends_of(examples)), strict=True)]
    if "other" not in examples[0].fixed:
        return found
    other_E = learner.answer_scores([others_of(e) for e in examples], start=True)
    return [replace(e, fixed={**e.fixed, "other_start": np.array(one)}) for e, one in zip(found, other_E, strict=True)]


def mismatched(examples: Sequence[Example], train: Sequence[Example]) -> list[Example]:
    """The elements, each with the answer of the next one that has another prompt under `other`.

    Where all of a set have one prompt, as in a small one that was held out, it is an answer of a training row.
    Raises RecipeError where these have the same prompt.
    """
    others = list(examples) if len({_asked(e) for e in examples}) > 1 else [*examples, *train]
    prompts = [_asked(e) for e in others]
    if examples and len(set(prompts)) == 1:
        raise RecipeError("objective.loss: kto needs answers to other prompts too, and all rows have one prompt.")
    following = list(range(1, len(others) + 1))
    for i in reversed(range(2 * len(others))):  # twice round, as what follows the last rows are the first
        here, after = i % len(others), (i + 1) % len(others)
        following[here] = after if prompts[here] != prompts[after] else following[after] % len(others)
    found = []
    for e, other in zip(examples, (others[i] for i in following), strict=False):
        room = max(e.parts[0].length, other.parts[0].length) + 1 - _prompt(e.parts[0])
        found.append(replace(e, fixed={**e.fixed, "other": _answer(other.parts[0])[:room]}))
    return found


def _asked(example: Example) -> bytes:
    """The tokens of the prompt."""
    first = example.parts[0]
    return first.inputs["input_ids"][: _prompt(first)].tobytes()


def others_of(example: Example) -> Example:
    """The prompt of an element with another row's answer, cut to the length of the longer of the two rows."""
    first, other = example.parts[0], example.fixed["other"]
    prompt = _prompt(first)
    ids = np.concatenate([first.inputs["input_ids"][:prompt], other])
    weight = np.concatenate([np.zeros(prompt - 1, dtype=np.float32), np.ones(len(other), dtype=np.float32)])
    return element([Example({"input_ids": ids[:-1]}, ids[1:], weight, example.source, len(ids) - 1)], example.source)


def _prompt(part: Example) -> int:
    """How many tokens stand before the answer; position t predicts token t + 1."""
    return int(np.flatnonzero(part.weight)[0]) + 1


def _answer(part: Example) -> np.ndarray:
    return part.target[_prompt(part) - 1 :]


OBJECTIVE = Preference
