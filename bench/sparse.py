"""Products on pruned and on codebook weights, activations in float, beside torch's dense ones.

python bench/sparse.py --out sparse.json
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from kernels import Contender, cpu_name, measure, show, torch_float
from torch import Tensor

from tauten.formats.codebook import CodebookWeight
from tauten.formats.packed import PackedWeight
from tauten.formats.sparse import SparseWeight
from tauten.runtime import kernels, library

ROWS, COLUMNS = 4096, 4096
TOKENS = (1, 8, 128)


def half_of_the_rows() -> Tensor:
    """A mask that keeps half of the weights, wherever they are."""
    return torch.rand(ROWS, COLUMNS) < 0.5


def two_of_four() -> Tensor:
    """A 2:4 mask."""
    order = torch.rand(ROWS, COLUMNS // 4, 4).argsort(2)
    return (order < 2).flatten(1)


def sparse_codes(mask: Tensor, bits: int, group_size: int) -> SparseWeight:
    codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), dtype=torch.uint8)
    scale = torch.rand(ROWS, COLUMNS // group_size).half()
    return SparseWeight.from_codes(mask, bits, group_size, codes, scale, None)


def codebook(bits: int, books: int) -> CodebookWeight:
    codes = torch.randint(0, 2**bits, (ROWS, COLUMNS), dtype=torch.uint8)
    book = torch.randn(books, 2**bits).half()
    return CodebookWeight.from_codes((ROWS, COLUMNS), bits, codes, book)


def ours(name: str, weight: PackedWeight) -> Contender:
    kernels.prepare(weight)
    label = f"tauten {name}, {weight.bits_per_weight:.2f} bits a weight"
    return Contender(label, weight.size_bytes, lambda x: kernels.linear(x, weight))


def contenders() -> Iterator[Contender]:
    yield torch_float(ROWS, COLUMNS, torch.float32)
    yield torch_float(ROWS, COLUMNS, torch.bfloat16)
    dense = torch.randn(ROWS, COLUMNS).bfloat16()
    yield ours("50% bfloat16", SparseWeight.from_dense(dense, half_of_the_rows()))
    yield ours("2:4 bfloat16", SparseWeight.from_dense(dense, two_of_four()))
    yield ours("50% 4 bits", sparse_codes(half_of_the_rows(), 4, 128))
    yield ours("2:4 4 bits", sparse_codes(two_of_four(), 4, 128))
    for bits in (4, 3, 2):
        yield ours(f"codebook {bits} bits", codebook(bits, 1))
        yield ours(f"codebook {bits} bits, one a row", codebook(bits, ROWS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    racers, results = list(contenders()), []
    for tokens in TOKENS:
        rounds = options.rounds if tokens < 100 else options.rounds // 4 + 1
        times = measure(racers, tokens, COLUMNS, rounds)
        for racer, seconds in zip(racers, times, strict=True):
            median = statistics.median(seconds)
            results.append(
                {
                    "threads": options.threads,
                    "rows": ROWS,
                    "columns": COLUMNS,
                    "tokens": tokens,
                    "contender": racer.name,
                    "median_ms": 1e3 * median,
                    "fastest_ms": 1e3 * min(seconds),
                    "slowest_ms": 1e3 * max(seconds),
                    "gigabytes_per_s": racer.size_bytes / median / 1e9,
                }
            )
    show(results)
    if options.out:
        native = library.load()
        setting = {
            "cpu": cpu_name(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "instruction_set": library.SETS[native.isa] if native else None,
            "seed": options.seed,
            "rounds": options.rounds,
        }
        options.out.write_text(json.dumps({"setting": setting, "results": results}, indent=1))


if __name__ == "__main__":
    main()
