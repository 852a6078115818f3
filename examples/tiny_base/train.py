"""Makes the tiny base that comes with the package: tokenizer, weights from nothing, two runs, and what it can do.

    python examples/tiny_base/train.py --output FOLDER [--text FILE] [--seconds N | --conversations N]

First it reads plain text (stories and facts that are made here, and a share of FILE), then conversations, both with
full training. FOLDER/tiny is then a folder that transformers loads, in fp16, and FOLDER/measured.json says how it
answers held-out rows of each kind. By default the training takes 1,000 seconds of one processor core.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import rows
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

import tunewright as tw

HERE = Path(__file__).parent
VOCABULARY = 2000
CONTEXT = 512
DOCUMENTS = 8_000
MOST_OF_TEXT = 120_000
"""Characters of --text that are read, so that it teaches words and does not fill the model."""
BATCH = 16
HELD_OUT = 100
"""Rows of each kind that are measured, where there are so many."""
TRAINING = {"learning_rate": 2e-3, "batch": BATCH, "warmup": 0.03, "epochs": 1, "keep": "last", "precision": "fp32"}

CAN = [
    "Hello!",
    "Who are you?",
    "What is the capital of France?",
    "What colour is snow?",
    "What is the opposite of hot?",
    "What does a cow say?",
    "What is the plural of mouse?",
    "What number comes after 46?",
    "Is this good or bad: I love this red kite.",
    "How old is Lucy?",
    "Spell the word lamp.",
    "Write red kite in capital letters.",
]
CANNOT = [
    "What is 7 plus 5?",
    "Count from 3 to 8.",
    "Is grass red?",
    "Say old dog in upper case.",
    "Who wrote Hamlet?",
]
"""What the card shows, with the answers."""

TEMPLATE = """\
{%- set system = messages[0].content if messages[0].role == "system" else "" %}
{%- if system or tools %}
{{- "<|im_start|>system\\n" + system }}
{%- if tools %}
{{- ("\\n" if system else "") + "Tools:" }}
{%- for tool in tools %}
{%- set function = tool.function if tool.function is defined else tool %}
{%- set properties = (function.parameters or {}).get("properties", {}) %}
{{- " " + function.name + "(" + properties.keys() | join(", ") + ")" }}
{%- endfor %}
{%- endif %}
{{- "<|im_end|>" }}
{%- endif %}
{%- for message in messages %}
{%- if not (loop.first and message.role == "system") %}
{{- "<|im_start|>" + message.role + "\\n" + (message.content or "") }}
{%- for call in message.tool_calls or [] %}
{%- set function = call.function if call.function is defined else call %}
{%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson %}
{{- '<tool_call>{"name": "' + function.name + '", "arguments": ' + arguments + "}</tool_call>" }}
{%- endfor %}
{{- "<|im_end|>" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
"""ChatML without line breaks between turns; of a tool the model sees its name and the names of its parameters."""


def main() -> None:
    options = arguments()
    folder = Path(options.output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    read = list(texts(options.text))
    base = begin(folder / "begin", read)
    first = train(folder / "text", base, write(folder / "texts.jsonl", read))
    spent = first.info["timings"]["cpu_seconds"]
    count = options.conversations or affordable(first, options.seconds - spent)
    print(f"Read {len(read):,} texts in {spent:.0f} s; now {count:,} conversations.")
    second = train(folder / "talk", str(first.folder), write(folder / "talk.jsonl", rows.conversations(count)))
    kinds = rows.held_out(HELD_OUT)
    asked = [rows.spoken(row) for some in kinds.values() for row in some[:4]]
    tiny = finish(second, folder / "tiny", asked)
    measured = {
        "cpu_seconds": spent + second.info["timings"]["cpu_seconds"],
        "texts": len(read),
        "conversations": count,
        "parameters": second.info["parameters"]["total"],
        "kinds": measure(tiny, kinds),
    }
    (folder / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (folder / "tiny" / "README.md").write_text(card(tiny, measured), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Pre-train the tiny base.")
    parser.add_argument("--output", required=True, help="folder for the runs and the finished model")
    parser.add_argument("--text", help="a plain text file to learn words from, besides what is made here")
    parser.add_argument("--conversations", type=int, help="how many are read, in place of what --seconds allows")
    parser.add_argument("--seconds", type=float, default=1000, help="processor seconds of training, both runs together")
    return parser.parse_args()


def texts(file: str | None) -> Iterator[dict[str, str]]:
    """Documents made here, and paragraphs of the file, drawn evenly from all of it."""
    yield from rows.documents(DOCUMENTS)
    if file:
        paragraphs = [p for p in Path(file).read_text(encoding="utf-8").split("\n\n") if p.strip()]
        Random(0).shuffle(paragraphs)
        length = 0
        for paragraph in paragraphs:
            if (length := length + len(paragraph)) > MOST_OF_TEXT:
                return
            yield {"text": paragraph}


def begin(folder: Path, read: list[dict[str, str]]) -> str:
    """A tokenizer that is learned from the texts and some conversations, and random weights."""
    talk = [m for row in rows.conversations(20_000, seed=1) for m in rows.spoken(row)["messages"]]
    words = [text for message in talk for text in (message["role"], message["content"])]
    tokenizer = learn_tokenizer([*(document["text"] for document in read), *words])
    tokenizer.save_pretrained(folder)
    set_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=160, intermediate_size=448, num_hidden_layers=4, num_attention_heads=5,
        num_key_value_heads=5, max_position_embeddings=CONTEXT, tie_word_embeddings=True, **ends,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def learn_tokenizer(read: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al., https://arxiv.org/abs/1508.07909); each digit is a token, for sums."""
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        min_frequency=3,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(read, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.model_max_length = CONTEXT
    return fast


def train(output: Path, base: str, data: str) -> tw.Run:
    """One run of all weights over all rows, once."""
    shutil.rmtree(output, ignore_errors=True)
    measured = {"before": False, "generate": 0, "samples": 0}
    return tw.train(
        base=base, task="text-generation", method="full", output=str(output),
        data={"train": data, "validation": 0.002}, training=TRAINING, evaluation=measured,
    )  # fmt: skip


def affordable(first: tw.Run, seconds: float) -> int:
    """How many conversations can be read in so many seconds, at the first run's tokens a second."""
    tokenizer = first.model.processor
    lines = [json.loads(line) for line in (first.folder / "timings.jsonl").read_text().splitlines()]
    tokens = sum(line["tokens_per_second"] * line["seconds"] for line in lines)
    rate = tokens / first.info["timings"]["cpu_seconds"]
    some = list(rows.conversations(300, seed=2))
    lengths = [len(tokenizer.apply_chat_template(row["messages"], row.get("tools"))["input_ids"]) for row in some]
    return max(BATCH * 20, int(seconds * rate / (sum(lengths) / len(lengths))))


def finish(run: tw.Run, folder: Path, asked: list[dict[str, Any]]) -> str:
    """The run as a folder in fp16 that transformers loads, verified on some held-out rows."""
    shutil.rmtree(folder, ignore_errors=True)
    tw.export(run.folder, "merged", folder, precision="fp16", rows=asked)
    return str(folder)


def measure(tiny: str, kinds: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Loss and exact match on held-out rows of each kind, with intervals; printed too."""
    found = {}
    for kind, some in kinds.items():
        asked = [rows.spoken(row) for row in some]
        found[kind] = scores(tiny, asked)
        loss, exact = found[kind]["loss"], found[kind]["exact_match"]
        shares = f"{exact['value']:6.1%} [{exact['low']:.1%}, {exact['high']:.1%}]"
        print(f"{kind:12} loss {loss['value']:.3f}  exact match {shares} of {len(asked)}", flush=True)
    return found


def scores(tiny: str, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss of all rows, and exact match of the greedy answers."""
    asking = {"generate": len(asked), "max_new_tokens": 60}
    metrics = tw.evaluate(tiny, asked, evaluation=asking)["scores"]["metrics"]
    return {name: metrics[name] for name in ("loss", "exact_match")}


def card(tiny: str, measured: Mapping[str, Any]) -> str:
    """The model's card: what was measured, and what it answers."""
    model = tw.load(tiny)
    lines = [
        "| kind | exact match | loss | rows |",
        "|---|---|---:|---:|",
        *(line(kind, found) for kind, found in measured["kinds"].items()),
    ]
    return (
        (HERE / "card.md")
        .read_text(encoding="utf-8")
        .format(
            plain=measured["conversations"],
            table="\n".join(lines),
            can="\n\n".join(f"> {asked}\n>\n> **{tw.chat(model, asked, max_new_tokens=40)}**" for asked in CAN),
            cannot="\n\n".join(f"> {asked}\n>\n> {tw.chat(model, asked, max_new_tokens=40)}" for asked in CANNOT),
            **{name: f"{measured[name]:,.0f}" for name in ("cpu_seconds", "texts", "conversations", "parameters")},
        )
    )


def line(kind: str, found: Mapping[str, Any]) -> str:
    exact, loss = found["exact_match"], found["loss"]
    share = "–" if kind == "story" else f"{exact['value']:.0%} [{exact['low']:.0%}–{exact['high']:.0%}]"
    return f"| {kind} | {share} | {loss['value']:.3f} | {exact['n']} |"


def write(path: Path, lines: Any) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


if __name__ == "__main__":
    main()
