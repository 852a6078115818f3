"""The one loop and what it stands on: optimizer, schedule, checkpoints, precision, processes."""
