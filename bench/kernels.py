"""Products on packed weights beside torch's own kernels and ONNX Runtime's, in one run.

Contenders take turns, so that each finds its weights cold, as in a model that doesn't fit in
cache, and all see the same weather. Figures are medians. Read bandwidth is measured in its turn.
One thread is timed by its own clock, which other processes' turns don't count on.
The last table holds each of our figures against what we ask of it.

    python bench/kernels.py --out kernels.json

With `--device cuda` it is the GPU's kernels, as `kernels_cuda.py` says.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernels_cuda
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tauten.formats.integer import IntegerWeight
from tauten.runtime import kernels, library

SHAPES = ((4096, 4096), (11008, 4096))
TOKENS = (1, 8, 128)
OURS = ((8, 0), (8, 32), (8, 128), (4, 32), (4, 64), (4, 128), (3, 128), (2, 64), (2, 128))
READ = "read memory"
# (tokens, bits, peer, how many times as fast we are to be at least); of `READ`, the share of it.
GOALS = (
    *((1, bits, READ, 0.8) for bits in (4, 3, 2)),
    *((1, bits, "torch float32", ratio) for bits, ratio in ((4, 7.0), (3, 10.0), (2, 14.0))),
    (1, 4, "torch int4, group 128", 2.0),
    (1, 4, "ONNX Runtime 4 bits, group {group_size}", 1.2),
    (1, 2, "ONNX Runtime 2 bits, group {group_size}", 1.5),
    (128, 4, "torch float32", 4.0),
    (128, 4, "torch dynamic int8", 1.0),
)


@dataclass
class Contender:
    """One way to multiply by one matrix: `run(x)` for x (tokens, in) float32."""

    name: str
    size_bytes: int
    run: Callable[[Tensor], object]


def packed_name(bits: int, group_size: int, activation: str = "int8") -> str:
    return f"tauten {bits} bits, group {group_size or 'row'}, {activation}"


def packed(rows: int, columns: int, bits: int, group_size: int, activation: str) -> Contender:
    groups = columns // (group_size or columns)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale = torch.rand(rows, groups).half()
    weight = IntegerWeight.from_codes((rows, columns), bits, group_size, codes, scale, None)
    kernels.prepare(weight)
    name = packed_name(bits, group_size, activation)
    return Contender(name, weight.size_bytes, lambda x: kernels.linear(x, weight, None, activation))


def torch_float(rows: int, columns: int, dtype: torch.dtype) -> Contender:
    weight = torch.randn(rows, columns).to(dtype)
    name = f"torch {str(dtype).removeprefix('torch.')}"
    return Contender(
        name, weight.nbytes, lambda x: torch.nn.functional.linear(x.to(dtype), weight).float()
    )


def torch_dynamic_int8(rows: int, columns: int) -> Contender:
    layer = torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear})
    return Contender("torch dynamic int8", rows * columns, quantized)


def torch_int4(rows: int, columns: int, group_size: int) -> Contender:
    """Its activations are bfloat16: with float32 ones it is many times slower."""
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.int32)
    weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    grid = torch.rand(columns // group_size, rows, 2).bfloat16()

    def run(x: Tensor) -> Tensor:
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        return product(x.bfloat16(), weight, group_size, grid).float()

    return Contender(f"torch int4, group {group_size}", weight.nbytes + grid.nbytes, run)


def skipped() -> dict[str, str]:
    """Peers that don't take part, and why."""
    missing = [name for name in ("onnxruntime", "onnx") if not importlib.util.find_spec(name)]
    return {"ONNX Runtime": f"{' and '.join(missing)} not installed"} if missing else {}


def onnx_runtime(rows: int, columns: int, bits: int, group_size: int) -> Contender:
    """MatMulNBits at accuracy level 4 (int8 activations)."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    groups = columns // group_size
    codes = torch.randint(0, 256, (rows, groups, group_size * bits // 8), dtype=torch.uint8)
    scale = torch.rand(rows * groups)
    options = {"K": columns, "N": rows, "bits": bits, "block_size": group_size}
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scale"], ["y"], domain="com.microsoft", accuracy_level=4,
        **options,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", rows])],
        [
            numpy_helper.from_array(codes.numpy(), "codes"),
            numpy_helper.from_array(scale.numpy(), "scale"),
        ],
    )
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=9)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise spin through the other contenders' turns.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    name = f"ONNX Runtime {bits} bits, group {group_size}"
    return Contender(
        name, codes.nbytes + scale.nbytes, lambda x: session.run(None, {"x": x.numpy()})
    )


def read_memory(size_bytes: int) -> Contender:
    """Reads memory in one stream a thread: the bandwidth that a product can at most use."""
    block = torch.ones(size_bytes // 8, dtype=torch.int64)
    if native := library.load():
        native.use_huge_pages(block)  # as our weights are
    return Contender(READ, block.nbytes, lambda x: block.sum())


def contenders(rows: int, columns: int) -> Iterator[Contender]:
    yield read_memory(128 << 20)
    yield torch_float(rows, columns, torch.float32)
    yield torch_float(rows, columns, torch.bfloat16)
    yield torch_dynamic_int8(rows, columns)
    yield torch_int4(rows, columns, 128)
    for bits, group_size in () if skipped() else ((4, 32), (4, 64), (4, 128), (2, 64), (2, 128)):
        yield onnx_runtime(rows, columns, bits, group_size)
    for bits, group_size in OURS:
        yield packed(rows, columns, bits, group_size, "int8")
    yield packed(rows, columns, 4, 128, "float")


def measure(racers: list[Contender], tokens: int, columns: int, rounds: int) -> list[list[float]]:
    """Seconds of each contender in each round."""
    x = torch.randn(tokens, columns)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: list[list[float]] = [[] for _ in racers]
    for turn in range(rounds + 1):
        for racer, seconds in zip(racers, times, strict=True):
            start = clock()
            racer.run(x)
            if turn:  # the first round warms up
                seconds.append(clock() - start)
    return times


def run(threads: int, rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(threads)
    rows_out: list[dict[str, Any]] = []
    for rows, columns in SHAPES:
        racers = list(contenders(rows, columns))
        for tokens in TOKENS:
            times = measure(racers, tokens, columns, rounds if tokens < 100 else rounds // 4 + 1)
            for racer, seconds in zip(racers, times, strict=True):
                median = statistics.median(seconds)
                rows_out.append(
                    {
                        "threads": threads,
                        "rows": rows,
                        "columns": columns,
                        "tokens": tokens,
                        "contender": racer.name,
                        "median_ms": 1e3 * median,
                        "fastest_ms": 1e3 * min(seconds),
                        "slowest_ms": 1e3 * max(seconds),
                        "gigabytes_per_s": racer.size_bytes / median / 1e9,
                    }
                )
    return rows_out


def by_case(results: list[dict[str, Any]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Title, tokens and rows by contender of each case."""
    keys = ("threads", "rows", "columns", "tokens")
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in results):
        members = [row for row in results if tuple(row[key] for key in keys) == case]
        threads, rows, columns, tokens = case
        title = f"{rows} x {columns}, {tokens} tokens, {threads} threads"
        yield title, tokens, {row["contender"]: row for row in members}


def compare(results: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each of our figures that a goal is set for, beside the goal."""
    for title, tokens, members in by_case(results):
        for goal_tokens, goal_bits, peer, at_least in GOALS:
            for bits, group_size in OURS:
                other = members.get(peer.format(group_size=group_size))
                if (tokens, bits) != (goal_tokens, goal_bits) or other is None:
                    continue
                ours = members[packed_name(bits, group_size)]
                ratio = other["median_ms"] / ours["median_ms"]
                if peer == READ:
                    ratio = ours["gigabytes_per_s"] / other["gigabytes_per_s"]
                yield {
                    "case": title,
                    "contender": ours["contender"],
                    "peer": other["contender"],
                    "ratio": ratio,
                    "at_least": at_least,
                    "met": ratio >= at_least,
                }


def show(results: list[dict[str, Any]], goals: list[dict[str, Any]]) -> None:
    console = Console(width=100)
    for title, _, members in by_case(results):
        table = Table(title=title)
        for name in ("contender", "median ms", "spread", "GB/s", "of read", "times torch float32"):
            table.add_column(name, justify="left" if name == "contender" else "right")
        for name, row in members.items():
            share = row["gigabytes_per_s"] / members[READ]["gigabytes_per_s"]
            ratio = members["torch float32"]["median_ms"] / row["median_ms"]
            spread = f"{row['fastest_ms']:.3f}-{row['slowest_ms']:.3f}"
            cells = [f"{row['median_ms']:.3f}", spread, f"{row['gigabytes_per_s']:.1f}"]
            table.add_row(name, *cells, f"{share:.0%}", f"{ratio:.1f}")
        console.print(table)
    table = Table("case", "contender", "peer", "ratio", "goal", "met")
    for goal in goals:
        names = (goal["case"], goal["contender"], goal["peer"])
        met = "yes" if goal["met"] else "no"
        table.add_row(*names, f"{goal['ratio']:.2f}", f"{goal['at_least']:.1f}", met)
    console.print(table)
    for name, reason in skipped().items():
        console.print(f"skipped {name}: {reason}")


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_grad_enabled(False)
    native = library.load()
    setting = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "instruction_set": library.SETS[native.isa] if native else None,
        "seed": options.seed,
        "rounds": options.rounds,
        "skipped": skipped(),
    }
    goals: list[Any] = []
    if options.device == "cuda":
        results = kernels_cuda.run(options.rounds)
        setting["gpu"] = torch.cuda.get_device_name()
        kernels_cuda.show(results)
    else:
        results = [row for threads in options.threads for row in run(threads, options.rounds)]
        goals = list(compare(results))
        show(results, goals)
    if options.out:
        kept = {"setting": setting, "results": results, "goals": goals}
        options.out.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
