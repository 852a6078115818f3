"""The fine-tuning API that people already use, on your own machine."""
