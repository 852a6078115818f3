"""Terms added up over forward passes and then processes, and divided once."""

from __future__ import annotations

from collections.abc import Mapping

from tunewright.engine.processes import Processes
from tunewright.objectives.base import Term


class Sums:
    """The totals of an objective's terms, by name."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.per: dict[str, str] = {}
        self.coefficients: dict[str, float] = {}

    def add(self, terms: Mapping[str, Term]) -> None:
        for name, term in terms.items():
            self.totals[name] = self.totals.get(name, 0.0) + term.total.item()
            self.per[name] = term.per
            self.coefficients[name] = term.coefficient

    def means(self, processes: Processes, counts: Mapping[str, float]) -> dict[str, float]:
        """The terms, each divided by its count; "loss" is their sum where no term is called so."""
        divided = {name: total / counts[self.per[name]] for name, total in self.totals.items()}
        if "loss" not in divided:
            divided = {"loss": sum(self.coefficients[name] * mean for name, mean in divided.items()), **divided}
        return processes.add_numbers(divided)
