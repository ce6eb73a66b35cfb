"""The loop: what to try, what to keep, and the proof."""
