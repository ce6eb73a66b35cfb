"""Packed convolutions beside torch's own in float32, on the shapes of ResNets and MobileNets.

Contenders take turns in one run; the table shows the fastest turn of each, the JSON medians too.
"dense each call" is a packed weight that is dequantized at each call and convolved by torch.

    python bench/convolutions.py --out convolutions.json
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tauten.core.technique import WeightTechnique
from tauten.models.packing import packed_layer
from tauten.quantization import RTN, Int8
from tauten.runtime import library, reference

LAYERS = {  # in, out, kernel, size, stride, groups
    "3x3 64": (64, 64, 3, 56, 1, 1),
    "3x3 128": (128, 128, 3, 28, 1, 1),
    "3x3 256": (256, 256, 3, 14, 1, 1),
    "3x3 512": (512, 512, 3, 7, 1, 1),
    "3x3 stride 2": (128, 256, 3, 28, 2, 1),
    "7x7 stem": (3, 64, 7, 224, 2, 1),
    "1x1 256-64": (256, 64, 1, 56, 1, 1),
    "1x1 1024-256": (1024, 256, 1, 14, 1, 1),
    "1x1 512-2048": (512, 2048, 1, 7, 1, 1),
    "mobile 1x1 96-24": (96, 24, 1, 56, 1, 1),
    "mobile 1x1 64-384": (64, 384, 1, 14, 1, 1),
    "mobile depthwise": (384, 384, 3, 14, 1, 384),
}


def contenders(layer: nn.Conv2d) -> dict[str, Callable[[Tensor], Tensor]]:
    """Ways to compute a layer; the first one is the baseline."""

    def packed(technique: WeightTechnique, activation: str) -> nn.Module:
        return packed_layer(layer, technique.encode(layer.weight), activation)

    four = packed(RTN(4, 64, "none"), "float")
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "torch float32": layer,
        "dense each call": lambda x: reference.conv(
            x, four.packed, four.bias, "float", four.settings
        ),
        "4 bits, float": four,
    }
    if layer.groups == 1:
        made["4 bits, int8"] = packed(RTN(4, 64, "none"), "int8")
        made["8 bits, int8"] = packed(Int8(), "int8")
    return made


def measure(batch: int, rounds: int) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for name, (inputs, outputs, kernel, size, stride, groups) in LAYERS.items():
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        x = torch.randn(batch, inputs, size, size)
        racers = contenders(layer)
        times: dict[str, list[float]] = {racer: [] for racer in racers}
        for turn in range(rounds + 1):
            for racer, run in racers.items():
                start = time.perf_counter()
                run(x)
                if turn:  # the first round warms up
                    times[racer].append(time.perf_counter() - start)
        for racer, seconds in times.items():
            figures = {"median_ms": statistics.median(seconds), "fastest_ms": min(seconds)}
            milliseconds = {key: 1e3 * value for key, value in figures.items()}
            results.append({"layer": name, "batch": batch, "contender": racer, **milliseconds})
    return results


def show(results: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(str(row["contender"]) for row in results))
    table = Table(title="fastest ms (times torch float32)")
    for name in ("layer", "batch", *names):
        table.add_column(name)
    for key in dict.fromkeys((row["layer"], row["batch"]) for row in results):
        members = [row for row in results if (row["layer"], row["batch"]) == key]
        times = {row["contender"]: float(str(row["fastest_ms"])) for row in members}
        cells = [
            f"{times[n]:.2f} ({times[names[0]] / times[n]:.2f})" if n in times else "-"
            for n in names
        ]
        table.add_row(str(key[0]), str(key[1]), *cells)
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    native = library.load()
    setting = {
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "instruction_set": library.SETS[native.isa] if native else None,
        **{key: getattr(options, key) for key in ("threads", "rounds", "seed")},
    }
    results = [row for batch in (1, 8) for row in measure(batch, options.rounds)]
    show(results)
    if options.out:
        options.out.write_text(json.dumps({"setting": setting, "results": results}, indent=1))


if __name__ == "__main__":
    main()
