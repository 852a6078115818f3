"""`rl`: learn from a reward. The policy answers prompts, and what of it scores well is made likelier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from tunewright.data.batches import Example
from tunewright.grading import Grader
from tunewright.objectives._advantages import adapted, generalized, grouped, leave_one_out, whitened
from tunewright.objectives._rollouts import answered, as_arrays, fixing, from_arrays, group, of_tokens
from tunewright.objectives.base import Learner, Objective, Scored, Term
from tunewright.tasks.base import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn

DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {"samples": 1, "passes": 4, "kl_coefficient": 0.05, "normalization": "token", "whiten": True},
    "grpo": {"samples": 8, "passes": 1, "kl_coefficient": 0.0, "normalization": "sequence", "whiten": False},
    "rloo": {"samples": 4, "passes": 1, "kl_coefficient": 0.05, "normalization": "total", "whiten": False},
    "reinforce": {"samples": 1, "passes": 1, "kl_coefficient": 0.05, "normalization": "total", "whiten": True},
}
"""What the algorithms differ in where nothing else is said."""

OPTIONS: dict[str, tuple[str, ...]] = {
    "gamma": ("ppo",),
    "gae_lambda": ("ppo",),
    "value_clip": ("ppo",),
    "value_weight": ("ppo",),
    "scale_groups": ("grpo",),
    "kl_target": ("ppo", "rloo", "reinforce"),
}
"""Which algorithms an option is for."""

BROKEN = "broken/"
ENOUGH = 8  # answers of a draw, where the batch is automatic: fewer are too few to take a mean and spread over
LONGEST_QUOTE = 300  # characters of a prompt, its last ones
SHOWN = 2  # answers that a line of metrics.jsonl quotes


class RL(Objective):
    """max E[r(x, ŷ)] - β KL(π ‖ π₀), for answers ŷ that the policy π samples itself; π₀ is what the run started from.

    | algorithm | advantage of an answer, or of a token | KL |
    |---|---|---|
    | ppo (Schulman et al., arXiv 1707.06347; InstructGPT, 2203.02155) | GAE with a value net | in each token's reward |
    | grpo (Shao et al., arXiv 2402.03300) | reward over that of its group | in the loss |
    | rloo (Ahmadian et al., arXiv 2402.14740) | reward less the mean of the others | in the reward |
    | reinforce (Williams 1992) | reward less the mean of the step | in the reward |

    The loss is the clipped surrogate -min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = π / π_old of a token; in the first
    step on new answers ρ = 1, and its gradient is that of -A log π. Rewards are added up by their weights. With
    `data.prior` a loss on rows of another kind is mixed in, weighted by `prior_weight` (InstructGPT's PPO-ptx).
    """

    reads: ClassVar[tuple[str, ...]] = ("prompt",)
    tasks: ClassVar[tuple[str, ...]] = ("text-generation",)
    rate: ClassVar[float] = 0.1
    drops_out: ClassVar[bool] = False
    type: Literal["rl"] = "rl"
    algorithm: Literal["ppo", "grpo", "rloo", "reinforce"] = Field(
        "grpo", description="Which algorithm; see the papers."
    )
    rewards: list[Grader] = Field(
        min_length=1, description="what scores answers; the sum, by their weights, is the reward"
    )
    samples: int = Field(8, ge=1, description="Answers to each prompt (ppo 1, grpo 8, rloo 4, reinforce 1).")
    evaluation_samples: int = Field(1, ge=1, description="Answers to each validation prompt, at each evaluation.")
    max_new_tokens: int = Field(128, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(
        1.0, gt=0, description="What logits are divided by, where answers are drawn and learned."
    )
    passes: int = Field(1, ge=1, description="How often answers are learned from before new ones are drawn (ppo 4).")
    parts: int = Field(1, ge=1, description="Steps that the answers of one draw are dealt out to, in each pass.")
    clip: float = Field(0.2, gt=0, description="ε: how far π / π_old may leave 1.")
    clip_above: float | None = Field(
        None, gt=0, description="ε upwards, where it differs (DAPO, arXiv 2503.14476: 0.28)."
    )
    kl_coefficient: float = Field(0.0, ge=0, description="β: the weight of KL(π ‖ π₀) (grpo 0, others 0.05).")
    kl_target: float | None = Field(
        None, gt=0, description="KL of an answer in nats that β is adapted to (arXiv 1909.08593); none: β is fixed."
    )
    normalization: Literal["sequence", "token", "total"] = Field(
        "sequence", description="The loss is the mean of answers' means, of all tokens (DAPO), or of answers' sums."
    )
    scale_groups: bool = Field(True, description="Divide by the standard deviation of the group (not in Dr. GRPO).")
    whiten: bool = Field(False, description="Centre advantages over the step, and scale them to a deviation of 1.")
    missing_end: float = Field(0.0, ge=0, description="What is taken off the reward of an answer that did not end.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount of later rewards.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of generalized advantage estimation.")
    value_clip: float | None = Field(
        None,
        gt=0,
        description="How far a value may move from that of the last draw (0.2 in InstructGPT, for normalized rewards).",
    )
    value_weight: float = Field(1.0, gt=0, description="Weight of the value net's loss, ½ (V - return)².")
    prior_weight: float = Field(1.0, ge=0, description="γ: weight of the loss on the rows of data.prior.")

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, given: Any) -> Any:
        algorithm = str(given.get("algorithm", "grpo")) if isinstance(given, dict) else ""
        return {**DEFAULTS[algorithm], **given} if algorithm in DEFAULTS else given

    @model_validator(mode="after")
    def _fits_together(self) -> RL:
        self.refuse_others(self.algorithm, OPTIONS)
        if self.algorithm in ("grpo", "rloo") and self.samples < 2:
            raise ValueError(f"{self.algorithm} compares answers to one prompt: set samples to 2 or more")
        if self.updates == 1 and (self.clip != 0.2 or self.clip_above):
            raise ValueError("clip has no effect where answers are learned from in one step: raise passes or parts")
        if self.kl_target and not self.kl_coefficient:
            raise ValueError("kl_target adapts kl_coefficient, which is 0: set it to what β begins with")
        names = [grader.name for grader in self.rewards]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rewards: {', '.join(sorted(twice))} is there twice: give each its own name")
        return self

    @property
    def needs_start(self) -> bool:
        return self.kl_coefficient > 0

    @property
    def updates(self) -> int:
        """Steps that are taken on the answers to one batch of prompts."""
        return self.passes * self.parts

    @property
    def least(self) -> int:
        """Prompts of a step. Advantages that are centred over a step with one answer are 0, or average 0."""
        return 2 if self.samples == 1 and (self.whiten or self.algorithm == "reinforce") else 1

    @property
    def enough(self) -> int:
        """Prompts whose answers can be compared with one another, and dealt out to `parts`."""
        return max(self.parts, math.ceil(ENOUGH / self.samples))

    def prepare(self, learner: Learner, examples: Sequence[Example], step: int | None) -> Sequence[Example]:
        """Answers to the prompts with all that the loss needs of them; drawn anew in every `updates`-th step."""
        prompts = [e for e in examples if not e.prior]
        if step is None:
            return self._drawn(learner, prompts, None, self.evaluation_samples)[0]
        update = step % self.updates
        if update == 0:
            found = self._learnable(learner, self._drawn(learner, prompts, step, self.samples)[0])
            learner.remember(as_arrays(found) if self.updates > 1 else {})
        else:
            found = from_arrays(learner.remembered(), [e.source for e in prompts])
        dealt, mixed = self._dealt(found, learner.seed, step), [e for e in examples if e.prior]
        if mixed:
            dealt = [fixing(e, prior=[0.0] * len(e.parts)) for e in dealt]
        return [*dealt, *(_as_prior(e, found[0]) for e in mixed)]

    def _dealt(self, examples: Sequence[Example], seed: int, step: int) -> list[Example]:
        """The share of a step: in each pass the elements are dealt out in another order."""
        if self.parts == 1:
            return list(examples)
        draw, update = divmod(step, self.updates)
        order = np.random.default_rng([seed, draw, update // self.parts]).permutation(len(examples))
        parts = min(self.parts, len(examples))  # of the few prompts that end an epoch some come again
        return [examples[i] for i in order[update % self.parts % parts :: parts]]

    # Answers and their rewards

    def measure(self, learner: Learner, prompts: Sequence[Example]) -> tuple[dict[str, np.ndarray], list[str]]:
        """Of an answer to each prompt: what it got, its KL from the start in nats, its length; and its text.

        An answer breaks a rule where that is likelier than not.
        """
        found, sampled = self._drawn(learner, prompts, None, 1)
        parts = [e.parts[0] for e in found]
        names = [f"reward/{grader.name}" for grader in self.rewards if len(self.rewards) > 1]
        values = {name: np.array([float(p.fixed[name]) for p in parts]) for name in ["reward", *names]}
        for name in (name for name in parts[0].fixed if name.startswith(BROKEN)):
            values[f"violated/{name.split('/', 2)[2]}"] = np.array([p.fixed[name] > 0.5 for p in parts])
        values["ended"] = np.array([p.fixed["ended"] > 0 for p in parts])
        if "start" in parts[0].fixed:
            now = learner.nll(found, self.temperature)
            values["kl"] = np.array([(of_tokens(p, "start") - own[0]).sum() for p, own in zip(parts, now, strict=True)])
        values["length"] = np.array([float(p.trained) for p in parts])
        return values, [answers[0].answer.text for answers in sampled]

    def _drawn(
        self, learner: Learner, prompts: Sequence[Example], step: int | None, copies: int
    ) -> tuple[list[Example], list[list[Scored]]]:
        """Answers with their rewards; with their KL from the start where that is known or needed.

        Args:
            step: none where the policy is only measured.
            copies: how often each prompt is answered.
        """
        sampled = learner.sample(
            prompts, copies=copies, max_new_tokens=self.max_new_tokens, temperature=self.temperature, step=step
        )
        found, width = [], learner.width if copies > 1 and learner.shares else None
        for prompt, answers in zip(prompts, sampled, strict=True):
            one = group([answered(prompt, a.answer.tokens) for a in answers], prompt.source, width)
            scores = {self._key(name): [a.rewards[name] for a in answers] for name in answers[0].rewards}
            ended = [float(a.answer.ended) for a in answers]
            total = [self._total(a.rewards) - self.missing_end * (not a.answer.ended) for a in answers]
            found.append(fixing(one, reward=total, ended=ended, sampler=[a.answer.nll for a in answers], **scores))
        if learner.knows_start and (step is None or self.kl_coefficient):
            found = _each(found, "start", learner.nll(found, self.temperature, start=True))
        if step is None:
            beta = learner.number("kl_coefficient", self.kl_coefficient)
            return [fixing(e, measured=[beta] * len(e.parts)) for e in found], sampled
        if self.updates > 1 or (self.kl_coefficient and self.algorithm != "grpo"):
            found = _each(found, "old", learner.nll(found, self.temperature))
        if learner.knows_start and not self.kl_coefficient:
            learner.note("kl", self._glimpse(learner, found))
        shown = zip(prompts[:SHOWN], sampled, found, strict=False)
        quoted = [_quoted(learner, prompt, answers[0].answer.text, one) for prompt, answers, one in shown]
        learner.note("samples", quoted)
        return found, sampled

    def _glimpse(self, learner: Learner, found: Sequence[Example]) -> float:
        """KL from the start where the loss has no use for it: by one answer to each prompt, which costs little."""
        first = [group(e.parts[:1], e.source) for e in found]
        start = learner.nll(first, self.temperature, start=True)
        own = [of_tokens(e.parts[0], "sampler") for e in first]
        return float(np.mean([(at_start[0] - now).sum() for at_start, now in zip(start, own, strict=True)]))

    def _key(self, name: str) -> str:
        """Under which name a reward is fixed, or how probable it is that a rule is broken (`rules/RULE`)."""
        return f"reward/{name}" if any(grader.name == name for grader in self.rewards) else f"{BROKEN}{name}"

    def _total(self, rewards: Mapping[str, float]) -> float:
        return sum(grader.weight * rewards[grader.name] for grader in self.rewards)

    def _learnable(self, learner: Learner, examples: Sequence[Example]) -> list[Example]:
        """The answers with an advantage for each token, and the share that it has of the loss."""
        parts = [part for e in examples for part in e.parts]
        learner.note("reward_std", self._spread(examples))
        beta = learner.number("kl_coefficient", self.kl_coefficient)
        known = {"start", "old"} <= parts[0].fixed.keys()
        kl = [of_tokens(part, "start") - of_tokens(part, "old") for part in parts] if known else None
        found = self._with_advantages(learner, examples, kl, beta)
        if self.kl_target:
            learner.note("kl_coefficient", beta)
        if self.kl_target and kl is not None:
            mean = float(np.mean([one.sum() for one in kl]))
            learner.set_number("kl_coefficient", adapted(beta, mean, self.kl_target))
        return [fixing(e, share=[self._share(part) for part in e.parts]) for e in found]

    def _spread(self, examples: Sequence[Example]) -> float:
        """The standard deviation of rewards that are compared: of the answers to a prompt, or of all of the step."""
        reward_PG = np.array([[float(part.fixed["reward"]) for part in e.parts] for e in examples])
        compared = reward_PG if self.algorithm in ("grpo", "rloo") else reward_PG.reshape(1, -1)
        return float(np.where(np.ptp(compared, axis=1) > 0, compared.std(axis=1), 0.0).mean())  # 0, and no rounding

    def _share(self, part: Example) -> np.ndarray:
        count = part.trained
        return np.full(count, 1 / count if self.normalization == "sequence" else 1.0)

    def _with_advantages(
        self, learner: Learner, examples: Sequence[Example], kl: Sequence[np.ndarray] | None, beta: float
    ) -> list[Example]:
        parts = [part for e in examples for part in e.parts]
        reward_S = np.array([float(part.fixed["reward"]) for part in parts])
        if self.algorithm == "ppo":
            return self._with_values(learner, examples, reward_S, kl, beta)
        if self.algorithm == "grpo":
            advantages = grouped(reward_S.reshape(len(examples), -1), self.scale_groups).ravel()
        else:
            net_S = reward_S if kl is None else reward_S - beta * np.array([one.sum() for one in kl])
            others = leave_one_out(net_S.reshape(len(examples), -1)).ravel() if self.algorithm == "rloo" else None
            advantages = net_S - net_S.mean() if others is None else others
        if self.whiten:
            advantages = np.array(whitened(list(advantages)))
        spread = iter(np.full(part.trained, a) for part, a in zip(parts, advantages, strict=True))
        return [fixing(e, advantage=[next(spread) for _ in e.parts]) for e in examples]

    def _with_values(
        self,
        learner: Learner,
        examples: Sequence[Example],
        reward_S: np.ndarray,
        kl: Sequence[np.ndarray] | None,
        beta: float,
    ) -> list[Example]:
        """GAE: the reward comes with the last token, and each token pays for its KL."""
        values = learner.values(examples)
        flat = [value for own in values for value in own]
        advantages, returns = [], []
        for i, value in enumerate(flat):
            per_token = np.zeros_like(value) if kl is None else -beta * kl[i]
            per_token[-1] += reward_S[i]
            advantage, total = generalized(per_token, value, self.gamma, self.gae_lambda)
            advantages.append(advantage)
            returns.append(total)
        gain = iter(whitened(advantages) if self.whiten else advantages)
        wanted = iter(returns)
        return [
            fixing(e, advantage=[next(gain) for _ in e.parts], value=own, wanted=[next(wanted) for _ in e.parts])
            for e, own in zip(examples, values, strict=True)
        ]

    # The loss

    def counts(self, examples: Sequence[Example]) -> dict[str, float]:
        parts = [part for e in examples for part in e.parts]
        drawn = [part for part in parts if not part.fixed.get("prior")]
        return {
            "answers": float(len(drawn)),
            "tokens": float(sum(part.trained for part in drawn)),
            "prior": float(sum(part.weight.sum() for part in parts if part.fixed.get("prior"))),
        }

    def terms(self, task: Any, module: nn.Module, batch: Batch) -> dict[str, Term]:
        fixed, picked_BT = batch.fixed, batch.weight != 0
        prior_BT = fixed["prior"][batch.sequence] * picked_BT if "prior" in fixed else None
        temperature = self.temperature if prior_BT is None else 1 + (self.temperature - 1) * (1 - prior_BT)
        found = task.nll(module, batch, temperature=temperature, entropy=True)
        if "measured" in fixed:
            return {**self._measured(batch, found.nll_BT), "entropy": Term(found.entropy_BT.sum(), "tokens")}
        drawn_BT = picked_BT.float() if prior_BT is None else picked_BT * (1 - prior_BT)
        old_BT = fixed.get("old", found.nll_BT.detach())
        ratio_BT = ((old_BT - found.nll_BT) * drawn_BT).exp()
        clipped_BT = ratio_BT.clamp(1 - self.clip, 1 + (self.clip_above or self.clip))
        advantage_BT = fixed["advantage"]
        surrogate_BT = -(ratio_BT * advantage_BT).minimum(clipped_BT * advantage_BT)
        per = "tokens" if self.normalization == "token" else "answers"
        share_BT = fixed["share"] * drawn_BT
        terms = {"policy": Term((share_BT * surrogate_BT).sum(), per, 1.0)}
        if self.algorithm == "grpo" and self.kl_coefficient:
            log_BT = (found.nll_BT - fixed["start"]) * drawn_BT
            terms["kl_loss"] = Term((share_BT * (log_BT.exp() - log_BT - 1)).sum(), per, self.kl_coefficient)
        if task.critic is not None:
            terms["value"] = Term(self._value_loss(task, batch, drawn_BT), "tokens", self.value_weight)
        if prior_BT is not None:
            terms["prior_loss"] = Term((found.nll_BT * prior_BT * batch.weight).sum(), "prior", self.prior_weight)
        outside_BT = (ratio_BT.detach() != clipped_BT.detach()) * drawn_BT
        terms["clip_fraction"] = Term(outside_BT.sum(), "tokens")
        terms["entropy"] = Term((found.entropy_BT * drawn_BT).sum(), "tokens")
        terms["sampler_gap"] = Term(((old_BT - fixed["sampler"]).abs() * drawn_BT).sum(), "tokens")
        return {**terms, **self._told(batch, drawn_BT, old_BT)}

    def _value_loss(self, task: Any, batch: Batch, drawn_BT: Tensor) -> Tensor:
        """½ max((V - R)², (clip(V, V_old ± ε) - R)²), or ½ (V - R)² where nothing is clipped; summed over tokens."""
        value_BT, old_BT, wanted_BT = task.values(batch), batch.fixed["value"], batch.fixed["wanted"]
        error_BT = (value_BT - wanted_BT).square()
        if self.value_clip:
            near_BT = old_BT + (value_BT - old_BT).clamp(-self.value_clip, self.value_clip)
            error_BT = error_BT.maximum((near_BT - wanted_BT).square())
        return 0.5 * (error_BT * drawn_BT).sum()

    def _told(self, batch: Batch, drawn_BT: Tensor, old_BT: Tensor) -> dict[str, Term]:
        """What is logged of the answers: rewards, KL from the start, lengths."""
        fixed = batch.fixed
        own_S = 1 - fixed["prior"] if "prior" in fixed else fixed["reward"] * 0 + 1
        rewards = [
            name for name in fixed if name.split("/")[0] == "reward" and (len(self.rewards) > 1 or name == "reward")
        ]
        told = {name: Term((fixed[name] * own_S).sum(), "answers") for name in rewards}
        for name in (name for name in fixed if name.startswith(BROKEN)):
            told[name.removeprefix(BROKEN)] = Term((fixed[name] * own_S).sum(), "answers")
        if "start" in fixed:
            told["kl"] = Term(((fixed["start"] - old_BT) * drawn_BT).sum(), "answers")
        told["length"] = Term(drawn_BT.sum(), "answers")
        told["ended"] = Term((fixed["ended"] * own_S).sum(), "answers")
        return told

    def _measured(self, batch: Batch, nll_BT: Tensor) -> dict[str, Term]:
        """Where the policy is only measured, the loss is what it is trained to raise, below 0."""
        told = self._told(batch, (batch.weight != 0).float(), nll_BT)
        kl = told["kl"].total if "kl" in told else 0.0
        return {"loss": Term(batch.fixed["measured"][0] * kl - told["reward"].total, "answers", 1.0), **told}


def _each(examples: Sequence[Example], name: str, values: Sequence[Sequence[np.ndarray]]) -> list[Example]:
    """The elements with these values of their parts under a name."""
    return [fixing(e, **{name: own}) for e, own in zip(examples, values, strict=True)]


def _quoted(learner: Learner, prompt: Example, answer: str, one: Example) -> dict[str, Any]:
    asked = learner.model.processor.decode(prompt.inputs["input_ids"], skip_special_tokens=True)[-LONGEST_QUOTE:]
    reward = float(one.parts[0].fixed["reward"])
    return {"prompt": prompt.source, "asked": asked, "answer": answer, "reward": reward}


def _as_prior(row: Example, like: Example) -> Example:
    """A row of data.prior as an element, with zeros for what was fixed of answers."""
    blank = {
        name: np.zeros(row.length if value.ndim else (), dtype=np.float32)
        for name, value in like.parts[0].fixed.items()
    }
    part = replace(row, prior=None, fixed={**blank, "prior": np.array(1.0, dtype=np.float32)})
    return group([part], row.source)


OBJECTIVE = RL
