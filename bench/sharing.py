"""SmolLM2-135M with 16 shared values a row beside 4-bit uniform rounding of equal bytes.

By the protocol of `quality.py`. Books of 16 float16 values a row and codes take 4.38 bits a weight;
the scales and zeros of groups of 48 columns take 4.42. `bench/decode.py` times both.
"""

import argparse

import torch
from quality import SHARERS, collect


@torch.no_grad()
def show(options: argparse.Namespace) -> None:
    wanted = [(name, 4, 48) for name in ("RTN", *SHARERS)]
    collect([row for row in wanted if not options.only or row[0] in options.only], options)
