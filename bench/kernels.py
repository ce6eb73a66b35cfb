"""Products on packed weights beside torch's own kernels and ONNX Runtime's, in one run.

Contenders take turns, so that each finds its weights cold, as in a model that doesn't fit in
cache, and all see the same weather. Figures are medians. Read bandwidth is measured in its turn.

    python bench/kernels.py --out kernels.json

With `--device cuda` it is the GPU's kernels, as `kernels_cuda.py` says.
"""

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import kernels_cuda
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tauten.formats.integer import IntegerWeight
from tauten.runtime import kernels, library

SHAPES = ((4096, 4096), (11008, 4096))
TOKENS = (1, 8, 128)
OURS = ((8, 0), (8, 128), (4, 32), (4, 64), (4, 128), (3, 128), (2, 64), (2, 128))


@dataclass
class Contender:
    """One way to multiply by one matrix: `run(x)` for x (tokens, in) float32."""

    name: str
    size_bytes: int
    run: Callable[[Tensor], object]


def packed(rows: int, columns: int, bits: int, group_size: int, activation: str) -> Contender:
    groups = columns // (group_size or columns)
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8)
    scale = torch.rand(rows, groups).half()
    weight = IntegerWeight.from_codes((rows, columns), bits, group_size, codes, scale, None)
    kernels.prepare(weight)
    name = f"tauten {bits} bits, group {group_size or 'row'}, {activation}"
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


def onnx_runtime(rows: int, columns: int, bits: int, group_size: int) -> Contender | None:
    """MatMulNBits at accuracy level 4 (int8 activations); None where it isn't installed."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        return None
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
    return Contender("read memory", block.nbytes, lambda x: block.sum())


def contenders(rows: int, columns: int) -> Iterator[Contender]:
    yield read_memory(128 << 20)
    yield torch_float(rows, columns, torch.float32)
    yield torch_float(rows, columns, torch.bfloat16)
    yield torch_dynamic_int8(rows, columns)
    yield torch_int4(rows, columns, 128)
    for bits, group_size in ((4, 32), (4, 128), (2, 128)):
        if peer := onnx_runtime(rows, columns, bits, group_size):
            yield peer
    for bits, group_size in OURS:
        yield packed(rows, columns, bits, group_size, "int8")
    yield packed(rows, columns, 4, 128, "float")


def measure(racers: list[Contender], tokens: int, columns: int, rounds: int) -> list[list[float]]:
    """Seconds of each contender in each round."""
    x = torch.randn(tokens, columns)
    times: list[list[float]] = [[] for _ in racers]
    for turn in range(rounds + 1):
        for racer, seconds in zip(racers, times, strict=True):
            start = time.perf_counter()
            racer.run(x)
            if turn:  # the first round warms up
                seconds.append(time.perf_counter() - start)
    return times


def run(threads: int, rounds: int) -> list[dict[str, object]]:
    torch.set_num_threads(threads)
    rows_out: list[dict[str, object]] = []
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


def show(results: list[dict[str, object]]) -> None:
    console = Console(width=100)
    keys = ("threads", "rows", "columns", "tokens")
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in results):
        members = [row for row in results if tuple(row[key] for key in keys) == case]
        times = {str(row["contender"]): float(str(row["median_ms"])) for row in members}
        threads, rows, columns, tokens = case
        table = Table(title=f"{rows} x {columns}, {tokens} tokens, {threads} threads")
        for name in ("contender", "median ms", "spread", "GB/s", "times torch float32"):
            table.add_column(name, justify="left" if name == "contender" else "right")
        for row in members:
            ratio = times["torch float32"] / times[str(row["contender"])]
            spread = f"{row['fastest_ms']:.3f}-{row['slowest_ms']:.3f}"
            cells = [f"{row['median_ms']:.3f}", spread, f"{row['gigabytes_per_s']:.1f}"]
            table.add_row(str(row["contender"]), *cells, f"{ratio:.1f}")
        console.print(table)


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
    }
    if options.device == "cuda":
        results = kernels_cuda.run(options.rounds)
        setting["gpu"] = torch.cuda.get_device_name()
        kernels_cuda.show(results)
    else:
        results = [row for threads in options.threads for row in run(threads, options.rounds)]
        show(results)
    if options.out:
        options.out.write_text(json.dumps({"setting": setting, "results": results}, indent=1))


if __name__ == "__main__":
    main()
