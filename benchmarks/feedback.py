"""What human feedback, rewards and rules do to small models: `python -m benchmarks.feedback rewards rl rules conduct`.

    [--seeds 0,1,2] [--data ../shared/data] [--models ../shared/models] [--results benchmarks/results]

rewards: on pairs of harmless dialogues, split by prompt, reward models on MiniLM and on stories260k, and DPO of
stories260k. rl: stories260k learns to write what MiniLM, tuned on SST-2, takes for negative: PPO, GRPO, RLOO, and a DPO
on answers of its own that this reward ranks. rules: GRPO for the same reward, with and without two rules of conduct.
conduct: how often the model that tells whether a story breaks these rules is right, on stories that it has not seen.
Policies learn on the same openings that they are then measured on, with other random numbers: what is measured is
whether an algorithm raises a reward, and not whether that carries over to other openings.
A line is appended as soon as it is there, so that a study that is cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.feedback_speed import NAMES, OPENINGS
from benchmarks.quality import minilm
from benchmarks.workloads import read_jsonl

ROOT = Path(__file__).resolve().parent.parent
PAIRS = {"minilm": 600, "stories260k": 600, "dpo": 600}
HELD_OUT = 400
STEPS, BATCH, COPIES, TOKENS, RATE = 40, 8, 8, 40, 3e-4
NEGATIVE = "negative"
RULES = ("The story must not mention a dog.", "The story must not mention a park.")
BROKEN = ("dog", "park")


def openings() -> list[dict[str, str]]:
    return [{"prompt": f"{opening} {name}"} for opening in OPENINGS for name in NAMES]


def harmless(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Pairs to learn from and to measure on; all pairs with one prompt are on one side."""
    rows = [row for row in read_jsonl(data / "hh_harmless" / "preferences.jsonl") if _usable(row)]
    asked = list(dict.fromkeys(json.dumps(row["prompt"]) for row in rows))
    held = set(asked[:: len(asked) // HELD_OUT])
    test = [row for row in rows if json.dumps(row["prompt"]) in held]
    return [row for row in rows if json.dumps(row["prompt"]) not in held], test[:HELD_OUT]


def _usable(row: Mapping[str, Any]) -> bool:
    answers = [row[name][-1]["content"].strip() for name in ("chosen", "rejected")]
    return all(answers) and answers[0] != answers[1]


# The studies: each yields (name, what to do for it)


def rewards(options: Any, seed: int, place: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    import tunewright as tw

    train, test = harmless(options.data)
    stories = str(options.models / "stories260k")

    def run(kind: str, base: str, objective: Any, **more: Any) -> Any:
        data = {"train": train[: PAIRS[kind]], "test": test, "validation": 0, "overlength": "truncate_prompt", **more}
        training = {"epochs": 1, "seed": seed}
        folder = str(place / f"{kind}-{seed}")
        return tw.train(base=base, data=data, method="full", objective=objective, training=training, output=folder)

    def accuracies(done: Any) -> dict[str, Any]:
        return {when: found["metrics"] for when, found in done.info["evaluation"]["test"].items() if when != "samples"}

    reward = {"type": "reward", "centring": 0.01}
    yield "reward, MiniLM", lambda: accuracies(run("minilm", minilm(), reward, max_length=128))
    yield "reward, stories260k", lambda: accuracies(run("stories260k", stories, reward))
    yield "DPO, stories260k", lambda: accuracies(run("dpo", stories, {"type": "preference", "loss": "dpo"}))


def critic(options: Any) -> str:
    """MiniLM tuned on SST-2, once for all studies."""
    import tunewright as tw

    folder = Path(tempfile.gettempdir()) / "tunewright-benchmarks" / "sst2-minilm"
    if not (folder / "model").exists():
        rows = read_jsonl(options.data / "sst2" / "train.jsonl")[:4000]
        test = read_jsonl(options.data / "sst2" / "test.jsonl")
        tw.train(
            base=minilm(), task="text-classification", data={"train": rows, "validation": 0, "test": test},
            method="full", training={"epochs": 1}, evaluation={"before": False}, output=str(folder),
        )  # fmt: skip
    return str(folder)


ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm": "ppo", "samples": COPIES, "passes": 2, "kl_coefficient": 0.02},
    "grpo": {"algorithm": "grpo", "samples": COPIES, "kl_coefficient": 0.15},
    "rloo": {"algorithm": "rloo", "samples": COPIES, "kl_coefficient": 0.02},
}


def policy(options: Any, objective: Mapping[str, Any], seed: int, folder: Path, graders: Sequence[Any]) -> Any:
    import tunewright as tw

    passes = objective.get("passes", 1)
    return tw.train(
        base=str(options.models / "stories260k"),
        data={"train": openings(), "validation": openings()[:84:2]},
        method="full",
        objective={"type": "rl", "max_new_tokens": TOKENS, "rewards": list(graders), **objective},
        training={"max_steps": STEPS * passes, "batch": BATCH, "learning_rate": RATE, "seed": seed, "keep": "last",
                  "evaluate_every": STEPS * passes},
        output=str(folder),
    )  # fmt: skip


def sentiment(run: str) -> dict[str, Any]:
    return {"type": "classifier", "name": "sentiment", "run": run, "label": NEGATIVE}


def rl(options: Any, seed: int, place: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    def learned(name: str) -> dict[str, Any]:
        run = policy(options, ALGORITHMS[name], seed, place / f"{name}-{seed}", [sentiment(critic(options))])
        return measured(run.folder, options)

    for name in ALGORITHMS:
        yield name, lambda name=name: learned(name)  # type: ignore[misc]
    yield "dpo on ranked answers", lambda: ranked(options, seed, place / f"ranked-{seed}")


def measured(folder: Path | str, options: Any, per_prompt: int = 8) -> dict[str, Any]:
    """Reward and KL of answers to all openings, of the start and of the end, with the same random numbers."""
    import numpy as np

    from tunewright.artifacts.load import load
    from tunewright.rewards import rewards_of

    start, end = load(str(options.models / "stories260k")), load(folder)
    score = rewards_of(_graders(options), _prompts(), "cpu")
    found: dict[str, Any] = {}
    for when, model in (("before", start), ("after", end)):
        drawn = answers_of(model, per_prompt, seed=1234)
        flat = [(source, answer) for source, answers in drawn.items() for answer in answers]
        values = score([int(source) for source, _ in flat], [answer for _, answer in flat])
        found[when] = {
            "reward": float(np.mean(values["sentiment"])),
            "sd": float(np.std(values["sentiment"])),
            **{f"broken/{word}": float(np.mean([word in answer.text for _, answer in flat])) for word in BROKEN},
        }
        if when == "after":
            own = np.array([answer.nll.sum() for _, answer in flat])
            found[when]["kl"] = float(np.mean(likelihoods(start, flat) - own))
    return found


def _graders(options: Any) -> list[Any]:
    from tunewright.grading import GRADER

    return [GRADER.validate_python(sentiment(critic(options)))]


def _prompts() -> list[Any]:
    from tunewright.data.kinds import Prompt

    return [Prompt(row["prompt"], None, row, str(i)) for i, row in enumerate(openings())]


def answers_of(model: Any, copies: int, seed: int) -> dict[str, list[Any]]:
    import numpy as np

    prompts = encoded(model)
    uniform = np.random.default_rng(seed).random((len(prompts) * copies, TOKENS))
    drawn = model.task.sample(model, prompts, uniform, copies, TOKENS, 1.0)
    return {prompt.source: answers for prompt, answers in zip(prompts, drawn, strict=True)}


def encoded(model: Any) -> list[Any]:
    from tunewright.data.config import DataConfig

    return list(model.task.encode(model, _prompts(), DataConfig(train="-")).examples)


def likelihoods(model: Any, flat: Sequence[tuple[str, Any]]) -> Any:
    """-log of the probability of each answer under a model."""
    import numpy as np
    import torch

    from tunewright.objectives._rollouts import answered, group

    prompts = {example.source: example for example in encoded(model)}
    rows = [group([answered(prompts[source], answer.tokens)], source) for source, answer in flat]
    found = []
    with torch.no_grad():
        for start in range(0, len(rows), 64):
            batch = model.task.collate(rows[start : start + 64])
            found.append(batch.per_sequence(model.task.nll(model.module, batch).nll_BT).numpy())
    return np.concatenate(found)


def ranked(options: Any, seed: int, folder: Path) -> dict[str, Any]:
    """DPO on the best and the worst of eight answers of the start to each opening."""
    import tunewright as tw
    from tunewright.artifacts.load import load
    from tunewright.rewards import rewards_of

    start = load(str(options.models / "stories260k"))
    score, rows = rewards_of(_graders(options), _prompts(), "cpu"), []
    for turn in range(3):
        drawn = answers_of(start, COPIES, seed=100 * seed + turn)
        for source, answers in drawn.items():
            values = score([int(source)] * len(answers), answers)["sentiment"]
            best, worst = (answers[values.index(pick(values))].text for pick in (max, min))
            if best.strip() and worst.strip() and best != worst:
                rows.append({"prompt": openings()[int(source)]["prompt"], "chosen": best, "rejected": worst})
    tw.train(
        base=str(options.models / "stories260k"), data={"train": rows, "validation": 0}, method="full",
        objective={"type": "preference", "loss": "dpo", "beta": 0.1},
        training={"epochs": 3, "batch": 8, "learning_rate": RATE / 3, "seed": seed}, evaluation={"before": False},
        output=str(folder),
    )  # fmt: skip
    return measured(folder, options)


def rules(options: Any, seed: int, place: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    def learned(penalty: float) -> dict[str, Any]:
        conduct = {"type": "rules", "run": conduct_model(options), "rules": list(RULES), "weight": penalty}
        graders = [sentiment(critic(options)), *([conduct] if penalty else [])]
        run = policy(options, ALGORITHMS["grpo"], seed, place / f"rules-{penalty}-{seed}", graders)
        return measured(run.folder, options)

    yield "without rules", lambda: learned(0.0)
    yield "with rules", lambda: learned(1.0)


def conduct_model(options: Any) -> str:
    """MiniLM that is told a rule and says whether a story breaks it, tuned on the start's own stories."""
    import tunewright as tw
    from tunewright.artifacts.load import load

    folder = Path(tempfile.gettempdir()) / "tunewright-benchmarks" / "conduct-minilm"
    if not (folder / "model").exists():
        drawn = answers_of(load(str(options.models / "stories260k")), 24, seed=7)
        texts = [answer.text for answers in drawn.values() for answer in answers]
        rows = [row for rule, word in zip(RULES, BROKEN, strict=True) for row in _violations(texts, rule, word)]
        tw.train(
            base=minilm(), task="text-classification", method="full", training={"epochs": 2},
            data=rows, output=str(folder),
        )  # fmt: skip
    return str(folder)


def conduct(options: Any, seed: int, place: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """The model of the rules on new stories of the start. Its own training does not depend on the seed."""
    for rule, word in zip(RULES, BROKEN, strict=True):
        yield rule, lambda rule=rule, word=word: told(options, rule, word, seed)  # type: ignore[misc]


def told(options: Any, rule: str, word: str, seed: int) -> dict[str, Any]:
    """How often it is right, of stories that break the rule and of those that keep it."""
    import tunewright as tw
    from tunewright.artifacts.load import load

    model = conduct_model(options)
    drawn = answers_of(load(str(options.models / "stories260k")), 8, seed=1000 + seed)
    texts = [answer.text for answers in drawn.values() for answer in answers]
    said = [one["label"] == "yes" for one in tw.predict(model, [(text, rule) for text in texts])]
    broken = [word in text for text in texts]
    right = [one == other for one, other in zip(said, broken, strict=True)]

    def share(of: bool) -> dict[str, int]:
        own = [ok for ok, other in zip(right, broken, strict=True) if other == of]
        return {"right": sum(own), "rows": len(own)}

    return {"broken": share(True), "kept": share(False)}


def _violations(texts: Sequence[str], rule: str, word: str) -> list[dict[str, Any]]:
    """The stories that break a rule, and three times as many that keep it."""
    broken, kept = ([text for text in texts if (word in text) == one] for one in (True, False))
    return [{"text": t, "rule": rule, "violated": word in t} for t in [*broken, *kept[: 3 * len(broken)]]]


STUDIES = {"rewards": rewards, "rl": rl, "rules": rules, "conduct": conduct}


# The page


def page(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = ("tunewright", "torch", "transformers")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    yield "# Feedback, rewards and rules\n"
    yield f"`python -m benchmarks.feedback` · {datetime.now(UTC).date().isoformat()} · {versions} · one thread.\n"
    yield str(__doc__).split("\n\n")[2] + "\n"
    telling = {
        "rewards": _told_of_pairs,
        "rl": _told_of_policies,
        "rules": _told_of_policies,
        "conduct": _told_of_rules,
    }
    for study, tell in telling.items():
        own = [line for line in lines if line["study"] == study]
        if own:
            yield from tell(own)
            yield ""


def _told_of_pairs(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "Accuracy on held-out pairs in percent, each seed (95 % interval of the first one over prompts).\n"
    yield "| model | seeds | before | after | of the gain over the start | its margin, nats | longer is better |"
    yield "|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(line["name"] for line in lines):
        own = [line for line in lines if line["name"] == name]
        first = own[0]["found"]["after"]
        interval = first["accuracy"]
        cells = [
            ", ".join(str(line["seed"]) for line in own),
            _each(own, "before", "accuracy"),
            _each(own, "after", "accuracy") + f" [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]",
            _each(own, "after", "reward_accuracy") if "reward_accuracy" in first else "",
            _each(own, "after", "reward_margin", 1) if "reward_margin" in first else "",
            f"{100 * first['longer_is_better']['value']:.1f}" if "longer_is_better" in first else "not measured",
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _each(lines: Sequence[Mapping[str, Any]], when: str, metric: str, factor: float = 100) -> str:
    return ", ".join(f"{factor * line['found'][when][metric]['value']:.2f}" for line in lines)


def _told_of_policies(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield f"Mean over {len(openings())} openings × 8 answers of {TOKENS} tokens, each seed.\n"
    yield (
        "| learned by | seeds | reward before (sd) | reward after | gain in sd | KL, nats | "
        + " | ".join(f"“{word}” before → after, %" for word in BROKEN)
        + " | CPU seconds |"
    )
    yield "|---|---|---|---|---|---|" + "---|" * (len(BROKEN) + 1)
    for name in dict.fromkeys(line["name"] for line in lines):
        own = [line for line in lines if line["name"] == name]
        before, after = ([line["found"][when] for line in own] for when in ("before", "after"))
        gains = [(b["reward"] - a["reward"]) / a["sd"] for a, b in zip(before, after, strict=True)]
        cells = [
            ", ".join(str(line["seed"]) for line in own),
            f"{before[0]['reward']:.3f} ({before[0]['sd']:.3f})",
            ", ".join(f"{one['reward']:.3f}" for one in after),
            f"{', '.join(f'{gain:.2f}' for gain in gains)} (mean {statistics.mean(gains):.2f})",
            ", ".join(f"{one['kl']:.1f}" for one in after),
            *(_broken(word, before, after) for word in BROKEN),
            f"{statistics.mean(line['cpu_seconds'] for line in own):.0f}",
        ]
        yield f"| {name} | {' | '.join(cells)} |"


def _told_of_rules(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "The model of the rules on stories of the start that it has not seen; a draw for each seed.\n"
    yield "| rule | seeds | broken, and told so | kept, and told so |"
    yield "|---|---|---|---|"
    for name in dict.fromkeys(line["name"] for line in lines):
        own = [line for line in lines if line["name"] == name]
        cells = [", ".join(str(line["seed"]) for line in own)]
        for kind in ("broken", "kept"):
            cells.append(", ".join(f"{one['right']} of {one['rows']}" for one in (line["found"][kind] for line in own)))
        yield f"| {name} | {' | '.join(cells)} |"


def _broken(word: str, before: Sequence[Mapping[str, float]], after: Sequence[Mapping[str, float]]) -> str:
    shares = [f"{100 * one[f'broken/{word}']:.1f}" for one in (before[0], *after)]
    return f"{shares[0]} → {', '.join(shares[1:])}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feedback", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("studies", nargs="+", choices=tuple(STUDIES))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--models", type=Path, default=ROOT.parent / "shared" / "models")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    path = options.results / "feedback.jsonl"
    done = read_jsonl(path) if path.exists() else []
    for seed in map(int, options.seeds.split(",")):
        for study in options.studies:
            with tempfile.TemporaryDirectory() as place:
                for name, found in STUDIES[study](options, seed, Path(place)):
                    if (study, name, seed) in [(line["study"], line["name"], line["seed"]) for line in done]:
                        continue
                    began = time.process_time()
                    line = {"study": study, "name": name, "seed": seed, "found": found()}
                    line["cpu_seconds"] = time.process_time() - began
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(json.dumps(line)[:300], flush=True)
                    done.append(line)
    path.with_suffix(".md").write_text("\n".join(page(done)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
