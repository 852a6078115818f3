"""What every run imports, for the process that runs are forked from. Nothing here may start a thread."""

import peft  # noqa: F401
import transformers  # noqa: F401

import tunewright.launch._worker
import tunewright.tasks.text_generation  # noqa: F401
