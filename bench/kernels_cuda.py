"""The GPU part of `kernels.py`: products on packed weights beside torch's own, in one run.

    python bench/kernels.py --device cuda --out kernels_cuda.json

A contender multiplies by enough copies of its weight that each is read from memory and not from
cache; their launches are captured in a CUDA graph, so that Python isn't measured. Contenders take
turns; figures are medians for one product. Memory bandwidth is measured in its turn.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.runtime import kernels
from tauten.runtime.gpu import ops as gpu_ops

SHAPES = ((4096, 4096), (11008, 4096))
TOKENS = (1, 4, 16, 128, 1024)
OURS = ((8, 0), (8, 128), (4, 32), (4, 128), (3, 128), (2, 64), (2, 128))
READ_BYTES = 256 << 20  # of weights in a turn: several times the largest cache
BASELINE = "torch bfloat16"
Multiply = Callable[[Tensor], object]


@dataclass
class Contender:
    """One way to multiply: each call of `build` gives a product with a weight of its own."""

    name: str
    size_bytes: int
    build: Callable[[], Multiply]


def packed(rows: int, columns: int, bits: int, group_size: int, activation: str) -> Contender:
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, device="cuda")
    scale = torch.rand(rows, columns // (group_size or columns), device="cuda").half()
    name = f"tauten {bits} bits, group {group_size or 'row'}, {activation}"

    def build() -> Multiply:
        size = ((rows, columns), bits, group_size)
        weight = IntegerWeight.from_codes(*size, codes, scale.clone(), None)
        return lambda x: kernels.linear(x, weight, None, activation)

    size_bytes = scale.nbytes + rows * columns * bits // 8
    return Contender(name, size_bytes, build)


def packed_book(rows: int, columns: int, bits: int) -> Contender:
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, device="cuda")
    books = torch.randn(rows, 2**bits, device="cuda").half()

    def build() -> Multiply:
        weight = CodebookWeight.from_codes((rows, columns), bits, codes, books.clone())
        return lambda x: kernels.linear(x, weight)

    size_bytes = books.nbytes + rows * columns * bits // 8
    name = f"tauten codebook {bits} bits, float"
    return Contender(name, size_bytes, build)


def torch_float(rows: int, columns: int) -> Contender:
    def build() -> Multiply:
        weight = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
        return lambda x: torch.nn.functional.linear(x, weight)

    return Contender(BASELINE, 2 * rows * columns, build)


def torch_int4(rows: int, columns: int, group_size: int) -> Contender:
    """The kernel that torchao's int4 weights are multiplied by, called without torchao."""

    def build() -> Multiply:
        codes = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda")
        weight = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        grid = torch.rand(columns // group_size, rows, 2, device="cuda").bfloat16()
        product = torch.ops.aten._weight_int4pack_mm
        return lambda x: product(x, weight, group_size, grid)

    size_bytes = rows * columns // 2 + 4 * rows * columns // group_size
    name = f"torch int4, group {group_size}"
    return Contender(name, size_bytes, build)


def torchao_int4(rows: int, columns: int, group_size: int) -> Contender | None:
    """None where torchao isn't installed."""
    try:
        from torchao.quantization import Int4WeightOnlyConfig, quantize_
    except ImportError:
        return None
    options = {"group_size": group_size, "int4_packing_format": "tile_packed_to_4d"}
    config = Int4WeightOnlyConfig(**options)

    def build() -> Multiply:
        layer = torch.nn.Linear(columns, rows, bias=False, device="cuda", dtype=torch.bfloat16)
        quantize_(layer, config)
        return layer

    size_bytes = rows * columns // 2 + 4 * rows * columns // group_size
    name = f"torchao int4, group {group_size}"
    return Contender(name, size_bytes, build)


def read_memory() -> Contender:
    """The bandwidth that a product can at most use."""
    block = torch.ones(READ_BYTES // 4, device="cuda")
    return Contender("read memory", block.nbytes, lambda: lambda x: block.sum())


def contenders(rows: int, columns: int) -> Iterator[Contender]:
    yield read_memory()
    yield torch_float(rows, columns)
    yield torch_int4(rows, columns, 128)
    if peer := torchao_int4(rows, columns, 128):
        yield peer
    for bits, group_size in OURS:
        yield packed(rows, columns, bits, group_size, "float")
    yield packed(rows, columns, 8, 0, "int8")
    yield packed(rows, columns, 4, 128, "int8")
    for bits in (4, 3):
        yield packed_book(rows, columns, bits)


def capture(runs: list[Multiply], x: Tensor) -> torch.cuda.CUDAGraph:
    """A graph of one product with each copy; kernels are compiled before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in runs:
            run(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run(x)
    return graph


def measure(racers: list[Contender], tokens: int, columns: int, rounds: int) -> list[list[float]]:
    """Seconds of one product of each contender in each round."""
    x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    counts = [-(-READ_BYTES // racer.size_bytes) for racer in racers]
    held = [
        [racer.build() for _ in range(count)] for racer, count in zip(racers, counts, strict=True)
    ]
    graphs = [capture(runs, x) for runs in held]
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[list[float]] = [[] for _ in racers]
    for _ in range(rounds):
        for graph, runs, seconds in zip(graphs, held, times, strict=True):
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3 / len(runs))
    return times


def run(rounds: int) -> list[dict[str, Any]]:
    """Measure every shape and number of tokens."""
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here; run it where one is, or on cpu")
    if not gpu_ops.TRITON:
        raise SystemExit("--device cuda: Triton isn't installed; `pip install triton`")
    results: list[dict[str, Any]] = []
    for rows, columns in SHAPES:
        racers = list(contenders(rows, columns))
        for tokens in TOKENS:
            case = {"rows": rows, "columns": columns, "tokens": tokens}
            times = measure(racers, tokens, columns, rounds)
            for racer, seconds in zip(racers, times, strict=True):
                median = statistics.median(seconds)
                spread = {"fastest_ms": 1e3 * min(seconds), "slowest_ms": 1e3 * max(seconds)}
                speed = {"median_ms": 1e3 * median, **spread}
                rate = racer.size_bytes / median / 1e9
                results.append(case | {"contender": racer.name} | speed | {"gigabytes_per_s": rate})
    return results


def show(results: list[dict[str, Any]]) -> None:
    """One table a case."""
    console = Console(width=100)
    keys = ("rows", "columns", "tokens")
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in results):
        members = [row for row in results if tuple(row[key] for key in keys) == case]
        by_name = {row["contender"]: row for row in members}
        rows, columns, tokens = case
        table = Table(title=f"{rows} x {columns}, {tokens} tokens")
        table.add_column("contender")
        for name in ("median µs", "spread", "GB/s", "of bandwidth", f"times {BASELINE}"):
            table.add_column(name, justify="right")
        for row in members:
            share = row["gigabytes_per_s"] / by_name["read memory"]["gigabytes_per_s"]
            gain = by_name[BASELINE]["median_ms"] / row["median_ms"]
            spread = f"{1e3 * row['fastest_ms']:.1f}-{1e3 * row['slowest_ms']:.1f}"
            cells = [f"{1e3 * row['median_ms']:.1f}", spread, f"{row['gigabytes_per_s']:.0f}"]
            table.add_row(row["contender"], *cells, f"{share:.0%}", f"{gain:.1f}")
        console.print(table)
