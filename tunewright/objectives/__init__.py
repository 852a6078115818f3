"""One file an objective: what the loss says."""

from tunewright.objectives.base import Objective
from tunewright.objectives.preference import Preference
from tunewright.objectives.reward import Reward
from tunewright.objectives.rl import RL
from tunewright.objectives.supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    o.model_fields["type"].default: o for o in (Supervised, Preference, Reward, RL)
}

__all__ = ["OBJECTIVES", "RL", "Objective", "Preference", "Reward", "Supervised"]
