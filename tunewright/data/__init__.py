"""Rows from files; rendering to tokens with a weight per token; batches."""
