"""SmolLM2-135M with half of its decoder's weights zeroed, by Tauten and by llm-compressor.

By the protocol of `quality.py`, no healing. Two tables: kept weights in 16 bits, and in 4 bits,
where masks and codes are decided together or one after the other.
"""

import argparse

import torch
from quality import PRUNERS, collect

CODED = ("SparseGPT of the paper", "SparseGPT", "llm-compressor SparseGPT, then GPTQ")
FLOATING = [name for name in PRUNERS if name != "llm-compressor SparseGPT, then GPTQ"]


@torch.no_grad()
def show(options: argparse.Namespace) -> None:
    wanted = [(name, 16, 0) for name in FLOATING] + [(name, 4, 64) for name in CODED]
    collect([row for row in wanted if not options.only or row[0] in options.only], options)
