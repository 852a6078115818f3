"""What an objective keeps from one step to the next, as a part of the run's checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Memory:
    """Arrays (answers that are learned from in several steps) and numbers (a coefficient that adapts), by name."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
