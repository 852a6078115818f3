"""Rewards as a recipe names them: which model they ask and what, and what is refused before anything is trained."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tunewright as tw
from tests.runs import recipe
from tests.tiny import words
from tunewright.artifacts import sentences
from tunewright.artifacts.card import read_card
from tunewright.data.config import DataConfig
from tunewright.data.kinds import Prompt
from tunewright.data.records import load_records
from tunewright.errors import BaseModelError, DataError, MissingExtra, RecipeError, TunewrightError
from tunewright.grading import GRADER
from tunewright.rewards import critic_of, rewards_of, untold_rules
from tunewright.tasks.base import Drawn
from tunewright.tasks.text_generation import TextGeneration

SHORT = {"max_steps": 2, "learning_rate": 0.05, "batch": 4}
RULES = ["Do not lie.", "Be kind."]
ANSWERS = ["the little fox", "", "she had many apples", "four apples and Paris"]
PROMPTS = [Prompt(words(i, 3), None, {"prompt": words(i, 3), "gold": words(i, 2)}, f"rows[{i}]") for i in range(4)]
CHATS = [Prompt([{"role": "user", "content": words(i, 3)}], None, {}, f"rows[{i}]") for i in range(4)]
LENGTH = {"type": "length", "max": 4, "slack": 8}


def drawn(texts: Any = ANSWERS) -> list[Drawn]:
    return [Drawn(list(range(len(text.split()))), np.zeros(len(text.split())), True, text) for text in texts]


def scores(document: dict[str, Any], prompts: Any = PROMPTS, rows: Any = range(4)) -> dict[str, Any]:
    return dict(rewards_of([GRADER.validate_python(document)], prompts, "cpu")(list(rows), drawn()))


@pytest.fixture(scope="module")
def models(tiny_base: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Judges of all kinds, by name: runs of two steps."""
    folder = tmp_path_factory.mktemp("judges")
    pairs = [{"prompt": words(i, 3) + " ", "chosen": words(i + 1, 4), "rejected": words(i + 2, 3)} for i in range(6)]
    chats = [
        {"prompt": [{"role": "user", "content": words(i, 3)}], "chosen": words(i + 1, 4), "rejected": words(i + 2, 3)}
        for i in range(6)
    ]
    ruled = [{"said": words(i, 4), "rule": rule, "violated": ["yes", "no"][(i + j) % 2]}
             for i in range(6) for j, rule in enumerate(RULES)]  # fmt: skip
    columns = {"text": "said", "text_pair": "rule", "label": "violated"}
    reward = {"objective": {"type": "reward"}, "task": "text-classification"}
    wanted: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
        "decoder": ("llama", pairs, {"type": "lora", "rank": 4}, reward),
        "decoder, full": ("llama", pairs, "full", reward),
        "decoder of chats": ("llama", chats, "full", reward),
        "encoder": ("bert", pairs, "full", reward),
        "encoder of chats": ("bert", chats, "full", reward),
        "rules": ("bert", ruled, "full", {"task": "text-classification"}),
    }
    made = {}
    for name, (kind, rows, method, more) in wanted.items():
        data = {"train": rows, "validation": 0, **({"columns": columns} if rows is ruled else {})}
        run = tw.train(recipe(tiny_base(kind), folder / name, data=data, method=method, training=SHORT, **more))
        made[name] = str(run.folder)
    return made


@pytest.mark.parametrize("name", ["decoder", "decoder, full", "encoder", "decoder of chats", "encoder of chats"])
def test_a_reward_model_scores_prompt_and_answer(name: str, models: dict[str, str]) -> None:
    """As it does itself, fed by hand with the tokens that it was trained on."""
    prompts = CHATS if "chats" in name else PROMPTS
    found = scores({"type": "reward_model", "run": models[name]}, prompts)["reward_model"]
    model = tw.load(models[name])
    for prompt, answer, score in zip(prompts, ANSWERS, found, strict=True):
        answer = answer or "."
        if name.startswith("encoder"):
            asked = prompt.prompt if isinstance(prompt.prompt, str) else f"user: {prompt.prompt[0]['content']}"
            inputs = model.processor(asked, answer, return_tensors="pt")
        else:
            said = (
                [*prompt.prompt, {"role": "assistant", "content": answer}]
                if isinstance(prompt.prompt, list)
                else [{"prompt": prompt.prompt}]
            )
            if isinstance(prompt.prompt, list):
                text = model.processor.apply_chat_template(said, tokenize=False)
                ids = model.processor(text, add_special_tokens=False)["input_ids"]
            else:
                ids = model.processor(prompt.prompt + answer)["input_ids"] + [model.processor.eos_token_id]
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        with torch.no_grad():
            assert score == pytest.approx(model.module(**inputs).logits.item(), abs=1e-5)
    assert len({round(score, 6) for score in found}) == 4


def test_a_classifier_reads_the_answer_or_both(models: dict[str, str]) -> None:
    asked = {"answer": ANSWERS, "both": [(p.prompt, a) for p, a in zip(PROMPTS, ANSWERS, strict=True)]}
    for reads, texts in asked.items():
        document = {"type": "classifier", "run": models["rules"], "label": "yes", "input": reads}
        expected = [one["probabilities"]["yes"] for one in tw.predict(models["rules"], texts)]
        assert scores(document)["classifier"] == pytest.approx(expected, abs=1e-6)


def test_each_rule_is_asked_and_its_violations_are_reported(models: dict[str, str]) -> None:
    document = {"type": "rules", "run": models["rules"], "rules": RULES}
    found = scores(document)
    assert list(found) == ["rules", *(f"rules/{rule}" for rule in RULES)]
    for rule in RULES:
        told = tw.predict(models["rules"], [(answer, rule) for answer in ANSWERS])
        assert found[f"rules/{rule}"] == pytest.approx([one["probabilities"]["yes"] for one in told], abs=1e-6)
    assert found["rules"] == pytest.approx([-a - b for a, b in zip(*(found[f"rules/{r}"] for r in RULES), strict=True)])


def test_a_run_and_evaluate_give_the_violation_rate_of_each_rule(
    models: dict[str, str], tiny_base: Any, tmp_path: Path
) -> None:
    """With a classifier whose threshold lies between the answers; reward and rate follow from the samples."""
    rows = [{"prompt": words(i, 3) + " "} for i in range(12)]
    rewards = [{"type": "rules", "run": models["rules"], "rules": RULES, "weight": 2.0}, LENGTH]
    run = tw.train(
        recipe(
            tiny_base("llama"), tmp_path / "run",
            data={"train": rows[:4], "validation": 0, "test": {"adversarial": rows}},
            objective={"type": "rl", "rewards": rewards, "max_new_tokens": 6},
            evaluation={"before": True, "samples": 12, "generate": 0}, training={"max_steps": 2},
        )
    )  # fmt: skip
    line = next(line for line in run.metrics if "loss" in line)
    assert line["reward/rules"] == pytest.approx(-sum(line[f"rules/{rule}"] for rule in RULES), abs=1e-6)
    assert line["reward"] == pytest.approx(2 * line["reward/rules"] + line["reward/length"], abs=1e-6)
    kept = run.info["evaluation"]["adversarial"]
    for rule in RULES:
        for when in ("before", "after"):
            texts = [(sample[when], rule) for sample in kept["samples"]]
            rate = np.mean([p["probabilities"]["yes"] > 0.5 for p in tw.predict(models["rules"], texts)])
            assert kept[when]["metrics"][f"violated/{rule}"]["value"] == pytest.approx(rate)
    again = tw.evaluate(run.folder, rows)["scores"]["metrics"]
    for name, metric in again.items():
        assert metric["value"] == pytest.approx(kept["after"]["metrics"][name]["value"], abs=1e-5), name
    with pytest.raises(DataError, match="prompts without answers"):
        tw.evaluate(tiny_base("llama"), rows)


@pytest.mark.parametrize("said", [(True, False), ("yes", "no"), ("False", "TRUE"), (1, 0), (1.0, 0.0)])
def test_rows_of_a_text_a_rule_and_a_violation_are_understood_as_they_stand(said: Any) -> None:
    rows = [{"text": words(i, 4), "rule": rule, "violated": said[i % 2], "weight": 0.5}
            for i in range(2) for rule in RULES]  # fmt: skip
    found = load_records(rows, DataConfig(train="-"))
    assert found.kind == "classification"
    records: list[Any] = found.records
    assert [(r.text, r.text_pair, r.weight) for r in records] == [(r["text"], r["rule"], 0.5) for r in rows]
    first = "no" if said[0] == "False" else "yes"
    assert [r.label for r in records] == [first] * 2 + [{"no": "yes", "yes": "no"}[first]] * 2


@pytest.mark.parametrize(
    ("change", "words_of_it"),
    [({"violated": "perhaps"}, "true or false, not 'perhaps'"), ({"violated": None}, "no label"),
     ({"rule": " "}, "rule is empty"), ({"violated": 0.5}, "true or false")],
)  # fmt: skip
def test_what_is_wrong_with_a_violation(change: Any, words_of_it: str) -> None:
    good = {"text": "a", "rule": "b", "violated": True}
    with pytest.raises(DataError, match=words_of_it):
        load_records([good, {**good, **change}], DataConfig(train="-"))


def test_a_model_that_was_told_no_rule_is_refused_and_new_rules_are_noticed(
    models: dict[str, str], tiny_base: Any, tmp_path: Path
) -> None:
    """By a full model and by an adapter; also where the rules are part of a formula."""
    rows = [{"text": words(i, 4), "label": ["yes", "no"][i % 2]} for i in range(6)]
    told = [{"text": words(i, 4), "rule": "Be kind.", "violated": i % 2 == 0} for i in range(6)]
    places = {}
    for name, given in (("single", rows), ("told", told)):
        document = {"task": "text-classification", "data": {"train": given, "validation": 0}, "training": SHORT}
        run = tw.train(recipe(tiny_base("bert"), tmp_path / name, **document))
        places[name] = str(run.folder)
    rule = {"type": "rules", "run": places["single"], "rules": RULES}
    multi = {"type": "multi", "graders": {"r": rule}, "calculate_output": "r"}
    for grader in (rule, multi):
        error, begun = refusal(tiny_base("llama"), tmp_path, objective={"rewards": [grader]})
        assert "was trained on single texts" in str(error) and isinstance(error, RecipeError) and not begun
    options = {"type": "rl", "rewards": [{**rule, "run": places["told"]}], "max_new_tokens": 6}
    data = {"train": ROWS, "validation": 0}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", objective=options, data=data, training=SHORT))
    (said,) = [notice for notice in run.info["notices"] if "not trained on" in notice]
    assert "'Do not lie.'" in said and said.endswith("It knows: 'Be kind.'.")
    known = GRADER.validate_python({**rule, "run": models["rules"]})
    assert untold_rules([known]) == []


def test_only_rules_are_kept_by_name(tiny_base: Any, tmp_path: Path) -> None:
    """The second texts of other pairs are training rows, which belong in nobody's export."""
    document = {"task": "text-classification", "training": SHORT}
    named = {"text": "text", "text_pair": "text_pair", "label": "label"}
    ruled = {"text": "text", "text_pair": "rule", "label": "violated"}
    for columns, kept in ((named, None), (ruled, ["a secret"])):
        rows = [{columns["text"]: words(i, 4), columns["text_pair"]: "a secret", columns["label"]: ["yes", "no"][i % 2]}
                for i in range(6)]  # fmt: skip
        data = {"train": rows, "validation": 0}
        run = tw.train(recipe(tiny_base("bert"), tmp_path / columns["text_pair"], data=data, **document))
        card = read_card(run.folder / "model")
        assert card is not None and card.pairs == kept


def test_a_language_model_is_asked_for_a_number(tiny_base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def generate(self: Any, model: Any, prompts: Any, **options: Any) -> list[Any]:
        asked.extend(prompt.messages[-1]["content"] for prompt in prompts)
        assert (options["max_new_tokens"], options["temperature"]) == (5, 0.0)
        said = ["I give it 0.5.", "none", "9 of 10", "-3"]
        return [tw.tasks.base.Answer(text, True) for text in said[: len(prompts)]]

    monkeypatch.setattr(TextGeneration, "generate", generate)
    message = {"role": "user", "content": "Rate {{ sample.output_text }}!"}
    document = {"type": "score_model", "model": tiny_base("llama"), "input": [message],
                "sampling_params": {"max_completions_tokens": 5}}  # fmt: skip
    assert scores(document)["score_model"] == [0.5, 0.0, 1.0, 0.0]
    assert asked == [f"Rate {answer}!" for answer in ANSWERS]


@pytest.mark.skipif(importlib.util.find_spec(sentences.PACKAGE) is None, reason="the packaged encoder is absent")
def test_cosine_is_that_of_mean_pooled_embeddings() -> None:
    import transformers as hf

    document = {"type": "text_similarity", "evaluation_metric": "cosine",
                "input": "{{ sample.output_text }}", "reference": "{{ item.gold }}"}  # fmt: skip
    base = str(sentences.find_encoder("The test"))
    module, tokenizer = hf.AutoModel.from_pretrained(base).eval(), hf.AutoTokenizer.from_pretrained(base)

    def embedded(text: str) -> torch.Tensor:
        with torch.no_grad():
            return module(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [
        max(0.0, torch.cosine_similarity(embedded(a), embedded(p.item["gold"]), dim=0).item())
        for a, p in zip(ANSWERS, PROMPTS, strict=True)
    ]
    assert scores(document)["text_similarity"] == pytest.approx(expected, abs=1e-5)
    long = sentences.sentence_encoder("The test", "cpu")(["fox " * 2000, "fox"])
    assert long.shape[0] == 2 and np.isfinite(long).all()


def test_cosine_without_the_encoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "PACKAGE", "not_installed_anywhere")
    document = {"type": "text_similarity", "evaluation_metric": "cosine", "input": "a", "reference": "b"}
    with pytest.raises(MissingExtra, match=r"cosine.*tunewright\[quickstart\]"):
        scores(document)


def test_rows_of_different_sets_with_one_name_have_their_own_columns() -> None:
    """Rows given as lists are called rows[0] in each set."""
    twins = [Prompt("Say a ", None, {"gold": "a"}, "rows[0]"), Prompt("Say b ", None, {"gold": "b"}, "rows[0]")]
    document = {"type": "string_check", "input": "{{ item.gold }}", "reference": "b", "operation": "eq"}
    assert scores(document, twins, [0, 1, 1, 0])["string_check"] == [0.0, 1.0, 1.0, 0.0]


def test_a_run_scores_the_rows_of_each_set_by_their_own_columns(tiny_base: Any, tmp_path: Path) -> None:
    gold = {"type": "string_check", "input": "{{ item.gold }}", "reference": "here", "operation": "eq"}
    sets = {name: [{"prompt": words(i, 3) + " ", "gold": word} for i in range(4)]
            for name, word in (("train", "there"), ("validation", "here"))}  # fmt: skip
    options = {"type": "rl", "rewards": [gold], "max_new_tokens": 4, "samples": 2}
    run = tw.train(
        recipe(tiny_base("llama"), tmp_path / "run", objective=options, data=sets, training={"max_steps": 1})
    )
    trained, judged = run.metrics[0], run.metrics[-1]["validation"]
    assert trained["reward"] == 0 and judged["reward"] == 1


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("name", ["decoder", "decoder, full"])
def test_the_value_net_begins_as_the_reward_model(
    name: str, within: bool, models: dict[str, str], tiny_base: Any
) -> None:
    """Also where the reward model is part of a formula."""
    asked: dict[str, Any] = {"type": "reward_model", "run": models[name]}
    formula = {"type": "multi", "graders": {"r": asked}, "calculate_output": "r - 1.3"}
    graders = [GRADER.validate_python(one) for one in (LENGTH, formula if within else asked)]
    critic = critic_of(graders, TextGeneration().load(tiny_base("llama")))
    judge = tw.load(models[name])
    ids = torch.tensor([[5, 9, 30, 7, 11]])
    with torch.no_grad():
        value = critic.score(critic.base_model(input_ids=ids).last_hidden_state)[0, -1, 0]
        torch.testing.assert_close(value, judge.module(input_ids=ids).logits[0, 0], rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in critic.parameters())


@pytest.mark.parametrize("name", ["none", "encoder", "decoder"])
def test_the_value_net_begins_as_the_base_where_the_words_differ(
    name: str, models: dict[str, str], tiny_base: Any
) -> None:
    kind = "qwen3" if name == "decoder" else "llama"
    found = {"type": "reward_model", "run": models[name]} if name != "none" else LENGTH
    policy = TextGeneration().load(tiny_base(kind))
    critic = critic_of([GRADER.validate_python(found)], policy)
    assert critic.score.weight.abs().sum() == 0
    for own, base in zip(critic.base_model.parameters(), policy.module.base_model.parameters(), strict=True):
        torch.testing.assert_close(own, base)


# What is refused

FUNCTIONS = """
def nan(samples): return [float("nan")] * len(samples)
def few(samples): return [1.0] * (len(samples) + 1)
def boom(samples): return [1 / len(s.text) for s in samples]
def late(samples): return [float("inf") if s.text and s.item["bad"] else 1.0 for s in samples]
def word(samples): return ["a"] * len(samples)
"""
ROWS = [{"prompt": words(i, 3 + i % 3) + " ", "bad": i == 1} for i in range(4)]


def refusal(base: str, folder: Path, **changes: Any) -> tuple[TunewrightError, bool]:
    """The error, and whether a run was begun."""
    options = {"type": "rl", "rewards": [LENGTH], "max_new_tokens": 6, **changes.pop("objective", {})}
    data = {"train": ROWS, "validation": 0, **changes.pop("data", {})}
    with pytest.raises(TunewrightError) as raised:
        tw.train(recipe(base, folder / "run", objective=options, data=data, **changes))
    return raised.value, (folder / "run").exists()


CLASSIFIER = {"type": "classifier", "label": "yes"}
SIMILAR = {"type": "text_similarity", "evaluation_metric": "fuzzy_match", "input": "{{ sample.output_text }}"}
BAD: dict[str, tuple[dict[str, Any], type[TunewrightError], str]] = {
    "nan": ({"objective": {"rewards": ["nan"]}}, DataError, r"python must give a finite.*rows\[0\].*nan"),
    "a number too many": ({"objective": {"rewards": ["few"]}}, DataError, "returns 2 numbers for 1 sample"),
    "throws": ({"objective": {"rewards": ["boom"]}}, DataError, r"ZeroDivisionError for sample 1 \(rows\[0\]"),
    "no number": ({"objective": {"rewards": ["word"]}}, DataError, r"finite number.*rows\[0\].*'a'"),
    "no function": ({"objective": {"rewards": ["absent"]}}, DataError, "has no absent"),
    "no column": ({"objective": {"rewards": [{**SIMILAR, "reference": "{{ item.gold }}"}]}}, DataError,
                  r"rows\[0\]: there is no item.gold; its columns are prompt, bad"),
    "no class": ({"objective": {"rewards": [{**CLASSIFIER, "label": "maybe", "run": "rules"}]}}, RecipeError,
                 "knows no class maybe: it has no, yes"),
    "no run": ({"objective": {"rewards": [{**CLASSIFIER, "run": "/nowhere/at/all"}]}}, BaseModelError, "no folder"),
    "no reward model": ({"objective": {"rewards": [{"type": "reward_model", "run": "rules"}]}}, BaseModelError,
                        "is no reward model"),
    "no classifier": ({"objective": {"rewards": [{**CLASSIFIER, "run": "llama"}]}}, BaseModelError, "no classifier"),
    "no judge": ({"objective": {"rewards": [{"type": "score_model", "model": "encoder",
                 "input": [{"role": "user", "content": "?"}]}]}}, BaseModelError, "no language model"),
    "no room at all": ({"objective": {"max_new_tokens": 256}}, DataError, "leaves no room for a prompt"),
    "no room for some": ({"objective": {"max_new_tokens": 246}}, DataError,
                         r"(?s)of 4 prompts .*longer than the 10 tokens that are left.*drop or truncate_prompt.*rows"),
    "split": ({"objective": {"max_new_tokens": 246}, "data": {"overlength": "split"}}, DataError, "not for prompts"),
    "all dropped": ({"objective": {"max_new_tokens": 254}, "data": {"overlength": "drop"}}, DataError,
                    "no prompt fits"),
    "no prompts": ({"data": {"train": [{"text": "a fox"}] * 4}}, RecipeError, "learns from prompt rows"),
    "packing": ({"training": {"packing": True}}, RecipeError, "training.packing"),
    "packed preferences": ({"objective": "preference", "training": {"packing": True},
                            "data": {"train": [{"prompt": "a ", "chosen": "b", "rejected": "c"}] * 4,
                                     "validation": 0}}, RecipeError, "training.packing"),
    "one answer": ({"objective": {"samples": 1}}, RecipeError, "set samples to 2 or more"),
    "option of ppo": ({"objective": {"gae_lambda": 0.5}}, RecipeError, "gae_lambda is for ppo, not for grpo"),
    "option of grpo": ({"objective": {"algorithm": "rloo", "scale_groups": False}}, RecipeError, "is for grpo"),
    "kl_target of grpo": ({"objective": {"kl_target": 1, "kl_coefficient": 1}}, RecipeError, "not for grpo"),
    "kl_target without KL": ({"objective": {"algorithm": "ppo", "kl_target": 1, "kl_coefficient": 0}}, RecipeError,
                             "kl_target adapts"),
    "clip in one step": ({"objective": {"clip": 0.1}}, RecipeError, "clip has no effect"),
    "too many parts": ({"objective": {"parts": 4}}, RecipeError, "more than the 3 prompts of a step"),
    "prior_weight": ({"objective": {"prior_weight": 0.5}}, RecipeError, "prior_weight is for data.prior"),
    "labelling": ({"data": {"labeling": {"rules": "rules.jsonl"}}}, RecipeError, "data.labeling makes labels"),
    "patience": ({"training": {"patience": 2}}, RecipeError, "needs validation rows"),
    "another task": ({"task": "text-classification"}, TunewrightError, "."),
    "names": ({"objective": {"rewards": [LENGTH, LENGTH]}}, RecipeError, "length is there twice"),
}  # fmt: skip


def test_a_fault_of_all_sets_is_said_once(tiny_base: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a fox"}, {"prompt": "a cow"}]
    error, _ = refusal(tiny_base("llama"), tmp_path, objective={"max_new_tokens": 256}, data={"validation": rows})
    assert str(error).startswith("objective.max_new_tokens leaves no room") and str(error).count("leaves no room") == 1


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_refused_before_anything_begins(
    name: str, models: dict[str, str], tiny_base: Any, tmp_path: Path
) -> None:
    changes, kind, words_of_it = BAD[name]
    (tmp_path / "reward.py").write_text(FUNCTIONS)
    places = {**models, "llama": tiny_base("llama")}
    document = json.loads(json.dumps(changes))
    rewards = document["objective"].get("rewards", []) if isinstance(document.get("objective"), dict) else []
    for i, one in enumerate(rewards):
        if isinstance(one, str):
            rewards[i] = {"type": "python", "function": f"{tmp_path / 'reward.py'}:{one}"}
        else:
            one.update({key: places.get(one[key], one[key]) for key in ("run", "model") if key in one})
    if document.get("objective") == "preference":
        with pytest.raises(kind, match=words_of_it):
            tw.train(recipe(tiny_base("llama"), tmp_path / "run", **document))
        return
    error, begun = refusal(tiny_base("llama"), tmp_path, **document)
    assert isinstance(error, kind) and re.search(words_of_it, str(error).replace("\n", " ")), str(error)
    assert not begun


def test_ppo_needs_a_head_that_scores(tiny_base: Any, tmp_path: Path) -> None:
    error, begun = refusal(tiny_base("mamba"), tmp_path, objective={"algorithm": "ppo"}, method="full")
    assert "has no head that scores tokens" in str(error) and "grpo" in str(error) and not begun


def test_a_reward_that_fails_on_the_way_names_the_row(tiny_base: Any, tmp_path: Path) -> None:
    (tmp_path / "reward.py").write_text(FUNCTIONS)
    late = {"type": "python", "function": f"{tmp_path / 'reward.py'}:late"}
    error, begun = refusal(tiny_base("llama"), tmp_path, objective={"rewards": [late]}, training={"batch": 4})
    assert begun and "rows[1]" in str(error) and "rows[0]" not in str(error)
    assert tw.open_run(tmp_path / "run").info["status"] == "failed"


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt"])
def test_prompts_that_leave_no_room_are_dropped_or_cut(policy: str, tiny_base: Any, tmp_path: Path) -> None:
    options = {"type": "rl", "rewards": [LENGTH], "max_new_tokens": 246, "samples": 2}
    training = {"max_steps": 1, "batch": 4}
    data = {"train": ROWS, "validation": 0, "overlength": policy}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", objective=options, data=data, training=training))
    line = next(line for line in run.metrics if "loss" in line)
    assert line["rows"] == (4 if policy == "truncate_prompt" else 3)
    assert any(("truncated" if policy == "truncate_prompt" else "dropped") in n for n in run.info["notices"])


def test_the_best_weights_are_those_of_the_highest_reward_and_patience_ends_a_run(
    tiny_base: Any, tmp_path: Path
) -> None:
    options = {"type": "rl", "rewards": [LENGTH], "max_new_tokens": 8, "samples": 2}
    training = {"max_steps": 40, "evaluate_every": 1, "patience": 3, "learning_rate": 1e-6}
    data = {"train": ROWS, "validation": ROWS[:3]}
    run = tw.train(recipe(tiny_base("llama"), tmp_path / "run", objective=options, data=data, training=training))
    seen = [line["validation"] for line in run.metrics if "validation" in line]
    assert all(one["loss"] == pytest.approx(-one["reward"]) for one in seen)
    best = max(one["reward"] for one in seen)
    assert run.info["best"]["loss"] == pytest.approx(-best) and run.info["steps"] == run.info["best"]["step"] + 3 < 40
