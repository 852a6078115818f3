"""What was measured, as figures, as a table on the screen, and as a JSON and a Markdown file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.limit import Facts, training_flops
from benchmarks.systems import OWN, System
from benchmarks.workloads import Workload

COLUMNS = (
    "system", "steps", "training s", "process s", "tokens/s", "speed / best peer", "peak MB", "validation loss",
    "share of limit",
)  # fmt: skip


@dataclass
class Measured:
    """A system's rounds.

    Attributes:
        rounds: of each, training_seconds, process_seconds, step_seconds, steps, peak_bytes, validation_loss.
    """

    system: System
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def median(self, name: str) -> float:
        return float(median(one[name] for one in self.rounds))


@dataclass(frozen=True)
class Report:
    """All figures of a benchmark.

    Attributes:
        header: command, versions, date, processor, device.
        flops_per_second: the matrix rate of each round.
    """

    header: dict[str, Any]
    workload: Workload
    facts: Facts
    flops_per_second: list[float]
    measured: list[Measured]

    @property
    def flops(self) -> float:
        return training_flops(self.facts, self.workload.rank)

    @property
    def limit_seconds(self) -> float:
        """The least seconds that the rows could take: the model's operations at the measured matrix rate."""
        return self.flops / median(self.flops_per_second)

    def systems(self) -> list[dict[str, Any]]:
        """A line a system, in the order of measuring. Seconds, tokens a second and bytes are medians of the rounds."""
        speeds = {one.system.label: self.facts.tokens / one.median("training_seconds") for one in self.measured}
        peers = [speeds[one.system.label] for one in self.measured if one.system.family != OWN]
        return [
            {
                "system": one.system.label,
                "note": one.system.note,
                "steps": one.rounds[0]["steps"],
                "training_seconds": one.median("training_seconds"),
                "process_seconds": one.median("process_seconds"),
                "tokens_per_second": speeds[one.system.label],
                "speed_over_best_peer": speeds[one.system.label] / max(peers) if peers else None,
                "peak_bytes": int(one.median("peak_bytes")),
                "validation_loss": one.median("validation_loss"),
                "share_of_limit": self.limit_seconds / one.median("training_seconds"),
                "rounds": one.rounds,
            }
            for one in self.measured
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.header,
            "workload": asdict(self.workload),
            "facts": asdict(self.facts),
            "limit": {
                "flops": self.flops,
                "flops_per_second": self.flops_per_second,
                "seconds": self.limit_seconds,
                "tokens_per_second": self.facts.tokens / self.limit_seconds,
            },
            "systems": self.systems(),
        }

    def cells(self) -> list[list[str]]:
        """The table's rows, in the order of `COLUMNS`."""
        return [
            [
                one["system"],
                str(one["steps"]),
                f"{one['training_seconds']:.1f}{self._spread(one['rounds'])}",
                f"{one['process_seconds']:.1f}",
                f"{one['tokens_per_second']:.0f}",
                f"{one['speed_over_best_peer']:.2f}" if one["speed_over_best_peer"] else "",
                f"{one['peak_bytes'] / 1e6:.0f}",
                f"{one['validation_loss']:.4f}",
                f"{one['share_of_limit']:.1%}",
            ]
            for one in self.systems()
        ]

    @staticmethod
    def _spread(rounds: Sequence[dict[str, Any]]) -> str:
        seconds = [one["training_seconds"] for one in rounds]
        return f" ({min(seconds):.1f}–{max(seconds):.1f})" if len(seconds) > 1 else ""

    def about(self) -> list[str]:
        """What the figures mean, a paragraph each."""
        return [self._about_work(), self._about_columns(), self._about_limit()]

    def _about_work(self) -> str:
        facts, workload = self.facts, self.workload
        before = f" Validation loss before training: {facts.loss_before:.4f}." if facts.loss_before else ""
        return (
            f"Work: {workload.about}. {facts.parameters / 1e6:.1f} M parameters; {facts.rows} rows of {facts.shortest} "
            f"to {facts.longest} tokens, {facts.tokens:,} in all, each trained on once; batch {workload.batch}, AdamW, "
            f"constant learning rate {workload.learning_rate:g}, gradients clipped at 1.{before}"
        )

    def _about_columns(self) -> str:
        on_cpu = self.header["device"] == "cpu"
        return (
            f"Training s: {'CPU seconds' if on_cpu else 'seconds'} from the first forward pass to the end of the last "
            "optimizer step, by one stopwatch for all; median of the rounds (least to most). Every system ran in turn, "
            "in a fresh process with one thread. Process s: CPU seconds of that whole process, with imports, loading, "
            "tokenizing and saving. Tokens/s: real tokens of the rows, without padding, over training s. Peak MB: of "
            f"the whole process{'' if on_cpu else ', on the GPU'}. Validation loss: of the saved model on "
            f"{self.workload.validation_rows} held-out rows, by one function for all."
        )

    def _about_limit(self) -> str:
        flops, limit, rate = self.flops, self.limit_seconds, median(self.flops_per_second)
        return (
            f"Limit: {flops / 1e12:.2f} TFLOP of forward and backward (with LoRA, a frozen weight 2 + 2 operations a "
            "position and an adapter's 6; in full, 6; attention at unmasked pairs; the head where there is a loss; no "
            f"padding, nothing twice) at {rate / 1e9:.1f} GFLOP/s, the rate of the model's own matrix products in the "
            f"same run: {limit:.1f} s, {self.facts.tokens / limit:.0f} tokens/s."
        )

    def to_markdown(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.header["versions"].items())
        lines = [
            f"# {self.workload.name}",
            "",
            f"`{self.header['command']}`",
            "",
            f"{self.header['date']}, {self.header['processor']}, {self.header['device']}; {versions}; "
            f"commit {self.header['commit'] or 'unknown'}.",
            "",
            *(f"{sentence}\n" for sentence in self.about()),
            "| " + " | ".join(COLUMNS) + " |",
            "|---" + "|---:" * (len(COLUMNS) - 1) + "|",
            *("| " + " | ".join(cells) + " |" for cells in self.cells()),
            "",
            *(f"- {one['system']}: {one['note']}." for one in self.systems()),
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write NAME.json and NAME.md, NAME being workload and device."""
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{self.workload.name}-{self.header['device']}"
        document, page = folder / f"{stem}.json", folder / f"{stem}.md"
        document.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        page.write_text(self.to_markdown(), encoding="utf-8")
        return [document, page]

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{self.workload.name}, {self.header['device']}")
        for i, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if i else "left", min_width=0 if i else 16)
        for cells in self.cells():
            table.add_row(*cells)
        console = Console()
        console.width = max(console.width, 120)  # a log file has no width of its own
        console.print(table)
        for sentence in self.about():
            print(sentence)
