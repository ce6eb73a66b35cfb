"""How a 70B and a 405B model would be quantized and served on 8, 64 and 512 workers, on paper.

    python bench/scale.py      # seconds; nothing is measured

Serving uses the planner's own cost model on a profile made of shapes and of the machine below: a
decoding step of so many sequences, weights in 4 bits. Quantizing follows what `quantize(workers=)`
does: calibration data in 8 shards, sums joined on the driver, which packs each block and sends it
back. Sustained figures of the machine are assumptions, printed with the results.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tauten.models.input_sums import SHARDS
from tauten.parallel.cost_model import Division, Link, Links, call_s
from tauten.parallel.plan import Layout, layouts
from tauten.parallel.profile import Profile

WORKERS = (1, 8, 64, 512)
Row = dict[str, Any]


@dataclass(frozen=True)
class Machine:
    """A node with one GPU; sustained rates, not peaks."""

    memory_bytes: float = 80e9
    read_bytes_per_s: float = 2.4e12
    flop_per_s: float = 4e14
    float32_flop_per_s: float = 4e13
    link_bytes_per_s: float = 2e10
    link_latency_s: float = 1.5e-5
    disk_bytes_per_s: float = 3e9
    reserve: float = 0.1


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama 3 family."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 128256

    @property
    def kv_width(self) -> int:
        """Features of keys, and of values."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def block_weights(self) -> int:
        """Of one block."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """Of the model, with embedding and head."""
        return self.layers * self.block_weights + 2 * self.vocabulary * self.hidden

    @property
    def observed(self) -> tuple[int, ...]:
        """Features of the inputs whose second moments are summed, in a block."""
        return (self.hidden, self.hidden, self.hidden, self.intermediate)


MACHINE = Machine()
SHAPES = (
    Shape("70B", 8192, 28672, 80, 64, 8),
    Shape("405B", 16384, 53248, 126, 128, 8),
)
TOKENS, SEQUENCES, CONTEXT, BITS = 128 * 2048, 128, 4096, 4.5


def quantized(shape: Shape, workers: int) -> Row:
    """Calibrated 4-bit quantization, block by block."""
    m, members = MACHINE, min(workers, SHARDS)
    moments_bytes = 4 * sum(n * n for n in shape.observed)
    block_bytes = 2 * shape.block_weights
    packed_bytes = shape.block_weights * BITS / 8
    share = TOKENS / members
    load_s = block_bytes / m.disk_bytes_per_s
    forward_s = 2 * 2 * shape.block_weights * share / m.flop_per_s  # observed, then packed
    sum_s = 2 * share * sum(n * n for n in shape.observed) / m.float32_flop_per_s
    sent_bytes = (moments_bytes + packed_bytes) * (members if members > 1 else 0)
    pack_flop = sum(2 * n**3 for n in shape.observed) + shape.block_weights * shape.hidden * 2
    pack_s = pack_flop / m.float32_flop_per_s
    divided_s, fixed_s = forward_s + sum_s, load_s + pack_s + sent_bytes / m.link_bytes_per_s
    states_bytes = 2 * share * shape.hidden
    return {
        "workers_of_use": members,
        "hours": shape.layers * (divided_s + fixed_s) / 3600,
        "share_that_scales": divided_s / (divided_s + fixed_s),
        "traffic_bytes": shape.layers * sent_bytes,
        "worker_memory_bytes": block_bytes + 3 * moments_bytes + states_bytes,
        "driver_memory_bytes": block_bytes + 4 * 4 * shape.intermediate**2 + moments_bytes,
    }


def profile(shape: Shape, rows: int) -> Profile:
    """A decoding step."""
    m = MACHINE
    cache_bytes = 2 * 2 * shape.layers * shape.kv_width * CONTEXT  # of a sequence
    row_s = max(2 * shape.weights / m.flop_per_s, cache_bytes / m.read_bytes_per_s)
    state_bytes = 2 * rows * shape.hidden
    outer = 2 * shape.vocabulary * shape.hidden / shape.weights
    return Profile(
        rows=rows,
        base_s={1: shape.weights * BITS / 8 / m.read_bytes_per_s},
        row_s={1: row_s},
        blocks_share=((1 - outer) / shape.layers,) * shape.layers,
        ends_share=(0.0, outer),
        chain=None,
        state_bytes=state_bytes,
        summed_bytes={str(number): state_bytes for number in range(2 * shape.layers)},
        input_bytes=8 * rows,
        output_bytes=8 * rows,
    )


def links(tensor: int) -> Links:
    """Of nodes; an all_reduce goes round a ring."""
    m, hops = MACHINE, 2 * (tensor - 1)
    one = Link(m.link_latency_s, m.link_bytes_per_s)
    ring = one if tensor == 1 else Link(hops * one.latency_s, one.bytes_per_s * tensor / hops)
    return Links(one, ring, one)


def memory_bytes(shape: Shape, layout: Layout, rows: int) -> float:
    """Of the fullest worker: weights, and the cache of the sequences that it serves."""
    parts = layout.tensor * layout.pipeline
    cache = 2 * 2 * shape.layers * shape.kv_width * CONTEXT * -(-rows // layout.data)
    return (shape.weights * BITS / 8 + cache) / parts


def served(shape: Shape, workers: int, rows: int) -> Row | None:
    """The best layout of exactly so many workers for a step of so many sequences."""
    step, division = profile(shape, rows), Division(1.0, shape.kv_heads)
    room = MACHINE.memory_bytes * (1 - MACHINE.reserve)
    found = [
        (call_s(layout, step, links(layout.tensor), division), layout)
        for layout in layouts(workers, rows, shape.layers, shape.kv_heads, 1, "auto")
        if layout.workers == workers and memory_bytes(shape, layout, rows) <= room
    ]
    if not found:
        return None
    step_s, layout = min(found, key=lambda item: item[0])
    return {
        "layout": str(layout),
        "sequences": rows,
        "step_s": step_s,
        "tokens_per_s": rows / step_s,
        "worker_memory_bytes": memory_bytes(shape, layout, rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=folder / "scale.json")
    options = parser.parse_args()
    rows: list[Row] = []
    for shape in SHAPES:
        for workers in WORKERS:
            many = served(shape, workers, SEQUENCES)
            row = {"model": shape.name, "workers": workers, "quantized": quantized(shape, workers)}
            row |= {"served": many, "served_one_sequence": served(shape, min(workers, 64), 1)}
            rows.append(row)
    _print(rows)
    facts = {"machine": asdict(MACHINE), "calibration_tokens": TOKENS, "context": CONTEXT}
    options.out.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


def _print(rows: list[Row]) -> None:
    columns = ("model", "workers", "quantize h", "traffic TB", "worker GB", "serve: layout")
    table = Table(*columns, "tokens/s", "of ideal", "worker GB", "one sequence ms")
    first: dict[str, float] = {}
    for row in rows:
        made, many, one = row["quantized"], row["served"], row["served_one_sequence"]
        cells = [row["model"], str(row["workers"]), f"{made['hours']:.1f}"]
        cells += [f"{made['traffic_bytes'] / 1e12:.1f}", f"{made['worker_memory_bytes'] / 1e9:.0f}"]
        if many is None:
            cells += ["doesn't fit", "", "", ""]
        else:
            each = many["tokens_per_s"] / row["workers"]
            ideal = first.setdefault(row["model"], each)
            cells += [many["layout"], f"{many['tokens_per_s']:.0f}", f"{each / ideal:.0%}"]
            cells += [f"{many['worker_memory_bytes'] / 1e9:.0f}"]
        table.add_row(*cells, "" if one is None else f"{1e3 * one['step_s']:.1f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
