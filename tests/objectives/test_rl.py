"""`rl` against the papers' formulas, written out in NumPy from the model's own logits; gradients by differences."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.contracts.steps import NOWHERE, prepared
from tests.tiny import words
from tunewright.data.batches import Example
from tunewright.data.render import Renderer
from tunewright.engine.job import Job
from tunewright.engine.learner import Learner, begin
from tunewright.engine.loop import Step
from tunewright.engine.processes import Processes
from tunewright.engine.state import TrainState
from tunewright.run import make_job

REWARD = """
def score(samples):
    return [len(set(s.text)) / 10 + s.item["bonus"] for s in samples]
"""
ROWS = [{"prompt": words(i, 2 + i % 4) + " ", "bonus": 0.3 * i} for i in range(4)]
ENDS = list(range(20, 140))  # so many tokens end an answer that most answers end
ARRAY = np.ndarray


@pytest.fixture(autouse=True)
def _ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Renderer, "stop_ids", lambda self: ENDS)


@dataclass
class Scene:
    """A policy that has moved twice: since the run's start, and since its answers were drawn."""

    job: Job
    learner: Learner
    found: list[Example]
    start: Any
    old: Any
    critic: Any

    @property
    def parts(self) -> list[Example]:
        return [part for e in self.found for part in e.parts if not part.fixed.get("prior")]

    @property
    def module(self) -> Any:
        return self.job.model.module

    def temperature(self) -> float:
        return float(self.job.objective.temperature)  # type: ignore[attr-defined]

    def logp(self, module: Any, part: Example, temperature: float | None = None) -> ARRAY:
        """log π of each token of an answer, from a whole pass without padding."""
        with torch.no_grad():
            logits_TV = module(input_ids=torch.tensor(part.inputs["input_ids"])[None], use_cache=False).logits[0]
        scaled_TV = logits_TV.double() / (temperature or self.temperature())
        at_T = scaled_TV.log_softmax(-1)[torch.arange(part.length), torch.tensor(part.target)].numpy()
        return at_T[part.weight > 0]  # type: ignore[no-any-return]

    def values(self, module: Any, part: Example) -> ARRAY:
        with torch.no_grad():
            ids = torch.tensor(part.inputs["input_ids"])[None]
            value_T = module.score(module.base_model(input_ids=ids).last_hidden_state)[0, :, 0].double().numpy()
        return value_T[part.weight > 0]  # type: ignore[no-any-return]

    def reward(self, part: Example, bonus: float, missing_end: float = 0.0) -> float:
        tokens = part.target[part.weight > 0].tolist()
        ended = tokens[-1] in ENDS
        said = self.job.model.processor.decode(tokens[: len(tokens) - ended], skip_special_tokens=True)
        return len(set(said)) / 10 + bonus - (0 if ended else missing_end)

    def rewards(self, missing_end: float = 0.0) -> ARRAY:
        bonus = {f"rows[{i}]": row["bonus"] for i, row in enumerate(ROWS)}
        return np.array([self.reward(part, bonus[part.source], missing_end) for part in self.parts])


def moved(module: Any, seed: int, by: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((by * noise).to(parameter.dtype))


def scene(base: str, folder: Path, *, prior: Any = None, method: Any = "full", **objective: Any) -> Scene:
    (folder / "reward.py").write_text(REWARD)
    rewards = [{"type": "python", "function": f"{folder / 'reward.py'}:score"}]
    made = {"type": "rl", "rewards": rewards, "max_new_tokens": 8, **objective}
    data = {"prior": prior} if prior else {}
    ready = prepared(base, ROWS, method=method, objective=made, data=data, training={"batch": 4})
    job = make_job(ready, NOWHERE, Processes())
    job.model.module.double()
    if job.critic is not None:
        job.critic.double()
        moved(job.critic, 5, 0.05)
    learner = Learner(job)
    begin(job, learner)
    start = copy.deepcopy(job.model.module)
    moved(job.model.module, 1, 0.004)
    old, critic = copy.deepcopy(job.model.module), copy.deepcopy(job.critic)
    prompts = [*job.train, *job.prior]
    found = list(job.objective.prepare(learner, prompts, 0))
    moved(job.model.module, 2, 0.004)
    if job.critic is not None:
        moved(job.critic, 6, 0.05)
    return Scene(job, learner, found, start, old, critic)


def of(part: Example, name: str) -> ARRAY:
    return part.fixed[name][part.weight > 0].astype(np.float64)


def test_answers_are_learned_up_to_their_end_and_not_beyond(tiny_base: Any, tmp_path: Path) -> None:
    at = scene(tiny_base("llama"), tmp_path, samples=6, temperature=0.8)
    prompts = {e.source: e.inputs["input_ids"].tolist() for e in at.job.train}
    ended = []
    for part in at.parts:
        fed = [*part.inputs["input_ids"].tolist(), int(part.target[-1])]
        begun = prompts[part.source]
        assert fed[: len(begun)] == begun and fed[1:] == part.target.tolist()
        assert part.weight.tolist() == [0.0] * (len(begun) - 1) + [1.0] * (len(fed) - len(begun))
        answer = fed[len(begun) :]
        assert not set(answer[:-1]) & set(ENDS) and (answer[-1] in ENDS or len(answer) == 8)
        assert part.fixed["ended"] == (answer[-1] in ENDS)
        ended.append(answer[-1] in ENDS)
        np.testing.assert_allclose(-of(part, "sampler"), at.logp(at.old, part), atol=1e-5)
    assert 0 < sum(ended) < len(ended)


GROUPS: dict[str, dict[str, Any]] = {
    "grpo": {"samples": 5},
    "grpo, not scaled": {"samples": 5, "scale_groups": False, "missing_end": 0.7},
    "grpo, whitened": {"samples": 3, "whiten": True},
    "rloo": {"algorithm": "rloo", "kl_coefficient": 0.3, "missing_end": 0.7},
    "rloo, no KL": {"algorithm": "rloo", "kl_coefficient": 0},
    "reinforce": {"algorithm": "reinforce", "kl_coefficient": 0.3, "temperature": 0.7},
    "reinforce, not whitened": {"algorithm": "reinforce", "whiten": False},
}


@pytest.mark.parametrize("name", GROUPS)
def test_advantages_of_answers(name: str, tiny_base: Any, tmp_path: Path) -> None:
    options = GROUPS[name]
    at = scene(tiny_base("llama"), tmp_path, **options)
    algorithm, per = options.get("algorithm", "grpo"), len(at.parts) // 4
    assert per == {"grpo": options.get("samples"), "rloo": 4, "reinforce": 1}[algorithm]
    net = at.rewards(options.get("missing_end", 0.0))
    np.testing.assert_allclose([float(p.fixed["reward"]) for p in at.parts], net, rtol=1e-6)
    beta = options.get("kl_coefficient", 0.05)
    if algorithm != "grpo":
        net = net - beta * np.array([(at.logp(at.old, p) - at.logp(at.start, p)).sum() for p in at.parts])
    expected = []
    for group in net.reshape(4, per):
        for i, one in enumerate(group):
            others = [other for k, other in enumerate(group) if k != i]
            against = {"grpo": group.mean(), "rloo": np.mean(others or [0]), "reinforce": net.mean()}[algorithm]
            scale = group.std(ddof=1) + 1e-4 if algorithm == "grpo" and options.get("scale_groups", True) else 1
            expected.append((one - against) / scale)
    wanted = np.array(expected)
    if options.get("whiten", algorithm == "reinforce"):
        wanted = (wanted - wanted.mean()) / (wanted.std() + 1e-8)
    for part, one in zip(at.parts, wanted, strict=True):
        np.testing.assert_allclose(of(part, "advantage"), one, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("whiten", [False, True])
def test_advantages_of_tokens(whiten: bool, tiny_base: Any, tmp_path: Path) -> None:
    """PPO: the reward comes with the last token, and every token pays β (log π_old - log π₀)."""
    options: dict[str, Any] = {"algorithm": "ppo", "kl_coefficient": 0.2, "gamma": 0.9, "gae_lambda": 0.8}
    at = scene(tiny_base("llama"), tmp_path, whiten=whiten, samples=2, missing_end=0.5, **options)
    expected, returns = [], []
    for part, reward in zip(at.parts, at.rewards(0.5), strict=True):
        value = at.values(at.critic, part)
        paid = -0.2 * (at.logp(at.old, part) - at.logp(at.start, part))
        paid[-1] += reward
        delta = paid + 0.9 * np.append(value[1:], 0) - value
        steps = range(len(value))
        advantage = np.array([sum((0.9 * 0.8) ** (k - t) * delta[k] for k in steps if k >= t) for t in steps])
        expected.append(advantage)
        returns.append(advantage + value)
        np.testing.assert_allclose(of(part, "value"), value, rtol=1e-5, atol=1e-6)
    flat = np.concatenate(expected)
    for part, advantage, wanted in zip(at.parts, expected, returns, strict=True):
        gain = (advantage - flat.mean()) / (flat.std() + 1e-8) if whiten else advantage
        np.testing.assert_allclose(of(part, "advantage"), gain, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(of(part, "wanted"), wanted, rtol=1e-4, atol=1e-5)


def test_the_coefficient_adapts_to_the_kl_of_the_answers(tiny_base: Any, tmp_path: Path) -> None:
    at = scene(tiny_base("llama"), tmp_path, algorithm="rloo", kl_coefficient=0.2, kl_target=0.3)
    kl = np.mean([(at.logp(at.old, p) - at.logp(at.start, p)).sum() for p in at.parts])
    assert kl < 0.8 * 0.3
    assert at.learner.number("kl_coefficient", 0.2) == pytest.approx(0.196, rel=1e-9)


TWICE: dict[str, Any] = {"passes": 2}
LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"kl_coefficient": 0.3, **TWICE},
    "grpo, clipped on one side": {"clip": 0.004, "clip_above": 0.02, "normalization": "token", **TWICE},
    "grpo by total": {"normalization": "total", "clip": 0.01, "kl_coefficient": 0.1, "temperature": 0.6, **TWICE},
    "ppo": {"algorithm": "ppo", "clip": 0.01, "value_clip": 0.03, "value_weight": 0.3},
    "ppo by answers": {"algorithm": "ppo", "clip": 0.01, "normalization": "sequence", "samples": 3},
    "rloo": {"algorithm": "rloo", **TWICE, "clip": 0.01},
    "reinforce": {"algorithm": "reinforce", **TWICE, "temperature": 1.3},
    "ptx": {"prior": True, "prior_weight": 0.7, "temperature": 0.5, "kl_coefficient": 0.2, **TWICE},
}
PRIOR = [
    {"messages": [{"role": "user", "content": words(i, 2)},
                  {"role": "assistant", "content": words(i + 1, 3), "weight": 0.5 + i}]} for i in range(3)
]  # fmt: skip


def expected_terms(at: Scene, options: dict[str, Any]) -> dict[str, float]:
    """The loss's parts in NumPy; what was fixed is taken as it is."""
    algorithm = options.get("algorithm", "grpo")
    norm = options.get("normalization", {"grpo": "sequence", "ppo": "token"}.get(algorithm, "total"))
    below, above = options.get("clip", 0.2), options.get("clip_above") or options.get("clip", 0.2)
    policy, kl, value, clipped = [], [], [], []
    for part in at.parts:
        now, a = at.logp(at.module, part), of(part, "advantage")
        ratio = np.exp(now + of(part, "old"))
        cut = np.clip(ratio, 1 - below, 1 + above)
        policy.append(-np.minimum(ratio * a, cut * a))
        clipped += list(ratio != cut)
        if algorithm == "grpo" and options.get("kl_coefficient"):
            apart = -of(part, "start") - now  # log π₀ - log π
            kl.append(np.exp(apart) - apart - 1)
        if algorithm == "ppo":
            v, before, wanted = at.values(at.job.critic, part), of(part, "value"), of(part, "wanted")
            near = np.clip(v, before - options.get("value_clip", np.inf), before + options.get("value_clip", np.inf))
            value.append(0.5 * np.maximum((v - wanted) ** 2, (near - wanted) ** 2))

    def mean(each: list[ARRAY]) -> float:
        if norm == "token":
            return float(np.concatenate(each).mean())
        return float(np.mean([one.mean() if norm == "sequence" else one.sum() for one in each]))

    terms = {"policy": mean(policy), "clip_fraction": float(np.mean(clipped)), "loss": mean(policy)}
    if kl:
        terms |= {"kl_loss": mean(kl), "loss": terms["loss"] + options["kl_coefficient"] * mean(kl)}
    if value:
        terms["value"] = float(np.concatenate(value).mean())
        terms["loss"] += options.get("value_weight", 1.0) * terms["value"]
    if options.get("prior"):
        rows = [p for e in at.found for p in e.parts if p.fixed.get("prior")]
        weights = np.concatenate([p.weight[p.weight > 0] for p in rows])
        nll = np.concatenate([-at.logp(at.module, p, 1.0) for p in rows])
        terms["prior_loss"] = float((weights * nll).sum() / weights.sum())
        terms["loss"] += options["prior_weight"] * terms["prior_loss"]
    return terms


def taken_apart(at: Scene, examples: list[Example] | None = None) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Means and gradients of the step on these examples, at the weights as they are."""
    job, examples = at.job, examples or at.found
    job.model.module.eval()
    state = TrainState.__new__(TrainState)
    step = Step.__new__(Step)
    step.job, step.state, step.cache, step.whole, step.budget = job, state, None, False, 10**9
    parameters = {n: p for n, p in job.model.module.named_parameters() if p.requires_grad}
    if job.critic is not None:
        parameters |= {f"critic.{n}": p for n, p in job.critic.named_parameters()}
    for parameter in parameters.values():
        parameter.grad = None
    state.scaler, state.step = torch.amp.GradScaler(enabled=False), 1
    means = step._passes(examples, job.objective.counts(examples))
    return means, {n: p.grad for n, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_that_of_the_paper(name: str, tiny_base: Any, tmp_path: Path) -> None:
    options = LOSSES[name]
    given = {key: value for key, value in options.items() if key != "prior"}
    at = scene(tiny_base("llama"), tmp_path, prior=PRIOR if options.get("prior") else None, **given)
    found, expected = taken_apart(at)[0], expected_terms(at, options)
    assert expected["loss"] != 0
    if "clip" in options:
        assert 0 < expected["clip_fraction"] < 1
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-7), key  # shares of tokens are in fp32
    assert ("kl" in found) == bool(options.get("kl_coefficient", 0.05 if "algorithm" in options else 0))


@pytest.mark.parametrize("name", ["grpo by total", "ppo", "ppo by answers", "ptx"])
def test_the_gradient_is_the_slope_of_the_loss(name: str, tiny_base: Any, tmp_path: Path) -> None:
    """Along random directions of the policy's weights, and of the value net's; Llama's norms would round to fp32."""
    options = LOSSES[name]
    given = {key: value for key, value in options.items() if key != "prior"}
    at = scene(tiny_base("gpt2"), tmp_path, prior=PRIOR if options.get("prior") else None, **given)
    gradient = {n: g.clone() for n, g in taken_apart(at)[1].items()}
    nets = {"": at.module, **({"critic.": at.job.critic} if at.job.critic is not None else {})}
    for prefix, net in nets.items():
        own = dict(net.named_parameters())
        for direction, slope in _directions(own, gradient, prefix):
            ends = []
            for sign in (1, -1):
                _shift(own, direction, sign * 1e-6)
                ends.append(taken_apart(at)[0]["loss"])
                _shift(own, direction, -sign * 1e-6)
            assert abs(slope) > 1e-6
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(slope, rel=2e-4, abs=1e-7)


def _shift(own: Any, direction: Any, by: float) -> None:
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.add_(direction[name], alpha=by)


def _directions(own: Any, gradient: Any, prefix: str) -> Iterator[tuple[dict[str, torch.Tensor], float]]:
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        made = {n: torch.randn(p.shape, generator=generator, dtype=torch.float64) for n, p in own.items()}
        yield made, float(sum((gradient[prefix + n] * made[n]).sum() for n in own if prefix + n in gradient))
