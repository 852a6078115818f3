"""Models that answer: a process of its own that batches what is asked of it, and those who ask it."""
