"""What a run will cost, from a few of its own steps: time, memory, disk, and what to change where it does not fit."""
