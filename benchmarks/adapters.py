"""What LoRAs cost in a batch: `python -m benchmarks.adapters`.

    [--turns 5] [--results benchmarks/results]

CPU milliseconds of one thread for a step of 1, 8 and 32 rows, over the base alone and with 8 LoRAs of rank 16 on all
linear layers, a row one of them; Llamas with random weights, one of stories260k's shape and one of 33 M; one process,
steps of both in turns, the least of all turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sections import write_section
from tunewright.service.inference.adapters import Bank
from tunewright.service.inference.stacks import Lora, Terms
from tunewright.tasks._rows import Batch, Form, form_of

LORAS, RANK, STEPS, PROMPT = 8, 16, 12, 19
ROWS = (1, 8, 32)
SHAPES = {
    "260 k": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5, "vocab_size": 512},
    "33 M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8000},
}


def with_loras(shape: dict[str, Any], place: Path) -> tuple[Form, Bank, list[Lora]]:
    torch.manual_seed(0)
    module: Any = LlamaForCausalLM(LlamaConfig(num_attention_heads=8, num_key_value_heads=4, **shape)).eval()
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    for number in range(LORAS):
        tuned = peft.get_peft_model(module, config)
        tuned.save_pretrained(str(place / str(number)))
        module = tuned.unload()
    form, bank = form_of(module), Bank(module)
    assert form.quick and bank.reads_as_one(form.quick.joints)
    form.quick.join(bank.add)
    loras = [bank.read(place / str(number)) for number in range(LORAS)]
    return form, bank, [lora for lora in loras if lora]


def step_ms(form: Form, bank: Bank, rows: list[Terms]) -> float:
    """CPU milliseconds of a step, the mean of some."""
    with torch.inference_mode():
        batch = Batch(form, 0, 512, open=True)
        last_B = batch.read([list(range(1, 1 + PROMPT))] * len(rows)).argmax(-1)
        with bank.using(bank.route(rows)):
            batch.step(last_B)
            began = time.process_time()
            for _ in range(STEPS):
                last_B = batch.step(last_B).argmax(-1)
            return (time.process_time() - began) / STEPS * 1e3


def lines(turns: int) -> Iterator[str]:
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as place:
            form, bank, loras = with_loras(shape, Path(place))
            for count in ROWS:
                ways: list[list[Terms]] = [[()] * count, [((loras[i % LORAS], 1.0),) for i in range(count)]]
                taken = [[step_ms(form, bank, rows) for rows in ways] for _ in range(turns)]
                alone, adapted = (min(each) for each in zip(*taken, strict=True))
                yield f"| {name} | {count} | {alone:.2f} | {adapted:.2f} | {alone / adapted:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=str(__doc__).partition(":")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("tunewright", "torch", "transformers", "peft"))
    today = datetime.now(UTC).date().isoformat()
    text = [
        f"`python -m benchmarks.adapters --turns {options.turns}` · {today} · {versions}\n",
        str(__doc__).split("\n\n")[2] + "\n",
        "| base | rows | alone, ms | with 8 LoRAs, ms | share of the base's speed |\n|---|---:|---:|---:|---:|",
        *lines(options.turns),
    ]
    print("\n".join(text))
    write_section(options.results / "service.md", "Adapters by the size of the base", "\n".join(text))


if __name__ == "__main__":
    main()
