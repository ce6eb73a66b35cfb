"""Quantizers of other projects beside Tauten's, each run in a process of its own."""
