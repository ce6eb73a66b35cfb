"""Compile what `launch` would run on GPUs that aren't here: `python compile_products.py 80 90`."""

import os
import sys
import tempfile
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from tauten.formats.bits import packed_bytes
from tauten.runtime.gpu import launch, products

BYTES_SHARED = 99 << 10  # what a program can have on the smallest GPUs since compute capability 8
ROWS, COLUMNS = 256, 1024


class AbsentDriver:
    """What Triton asks of a GPU to compile for it."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # a number of its own: Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled:
    """In the place of a kernel: compiles where that would run."""

    def __init__(self, kernel: Any):
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def compile_for(*arguments: Any, **options: Any) -> None:
            compiled = self.kernel.warmup(*arguments, grid=grid, **options)
            assert compiled.asm["cubin"], "ptxas ran"
            assert compiled.metadata.shared <= BYTES_SHARED, compiled.metadata.shared

        return compile_for


def integer(tokens: int, bits: int, size: int, zero_kind: str, dtype: str, int8: bool) -> None:
    cells = (ROWS, COLUMNS // (size or COLUMNS))
    codes = torch.zeros(ROWS, packed_bytes(COLUMNS, bits), dtype=torch.uint8)
    scale, zero = torch.zeros(cells, dtype=torch.float16), None
    if zero_kind == "integer":
        zero = torch.zeros(packed_bytes(cells[0] * cells[1], bits), dtype=torch.uint8)
    elif zero_kind == "float":
        zero = torch.zeros_like(scale)
    x = torch.zeros(tokens, COLUMNS, dtype=getattr(torch, dtype))
    launch.integer_linear(x, codes, scale, zero, x[0, :ROWS], bits, size, ROWS, int8)


def codebook(tokens: int, bits: int, books: int, dtype: str, int8: bool) -> None:
    codes = torch.zeros(ROWS, packed_bytes(COLUMNS, bits), dtype=torch.uint8)
    table, step = torch.zeros(books, 2**bits, dtype=torch.float16), None
    if int8:
        table, step = table.to(torch.int8), torch.ones(books, 1)
    x = torch.zeros(tokens, COLUMNS, dtype=getattr(torch, dtype))
    launch.codebook_linear(x, codes, table, step, None, bits, ROWS)


def compile_cases(capability: int) -> None:
    """A case of every branch, spread over two GPUs."""
    first = capability == 80
    integer(1 if first else 16, 4, 128, "none", "bfloat16", False)
    integer(128 if first else 4, 3, 32, "integer", "bfloat16", False)
    integer(16 if first else 128, 8, 0, "float" if first else "none", "float32", not first)
    codebook(1 if first else 128, 4, ROWS, "float16", not first)


if __name__ == "__main__":
    for name in ("multiply_few", "multiply_many", "quantize_tokens"):
        setattr(products, name, Compiled(getattr(products, name)))
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        for capability in map(int, sys.argv[1:]):
            driver.set_active(AbsentDriver(capability))
            compile_cases(capability)
