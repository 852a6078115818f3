"""Tunewright and its peers on the same work, measured in turns. Start with `python -m benchmarks.speed`."""
