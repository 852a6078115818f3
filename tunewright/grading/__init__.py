"""Rewards: numbers for what a policy answers. Models that they ask are passed in; nothing here loads one."""

from tunewright.grading.base import Reward, Sample, checked
from tunewright.grading.config import GRADER, GRADERS, Grader, GraderBase, Length, Models, Rules, check_items

__all__ = [
    "GRADER",
    "GRADERS",
    "Grader",
    "GraderBase",
    "Length",
    "Models",
    "Reward",
    "Rules",
    "Sample",
    "check_items",
    "checked",
]
