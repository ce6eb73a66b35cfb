"""Entropy-coded weights: their bytes beside the Shannon bound and zstd's, and how fast they load.

python bench/entropy.py --out entropy.json    # zstd's columns need `pip install zstandard`
"""

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kernels import cpu_name
from originals import smollm2
from torch import Tensor

import tauten
from tauten.core.technique import WeightTechnique
from tauten.formats import entropy
from tauten.formats.bits import unpack
from tauten.models.packing import packed_modules

TECHNIQUES: tuple[WeightTechnique, ...] = (
    tauten.Int8(0),
    tauten.RTN(6, 64),
    tauten.RTN(5, 64),
    tauten.RTN(4, 64),
    tauten.RTN(3, 64),
    tauten.RTN(2, 64),
    tauten.ShareKMeans(bits=4),
)
ZSTD_LEVELS = (1, 3, 19)
Coded = tuple[Tensor, tuple[int, int]]  # a packed tensor, its bits and columns


def codes_of(model: torch.nn.Module) -> list[Coded]:
    """All packed codes of a model, each tensor once."""
    weights = {id(layer.packed): layer.packed for _, layer in packed_modules(model)}
    return [
        (weight.get_buffer(name), layout)
        for weight in weights.values()
        for name, layout in weight.code_layouts().items()
    ]


def shannon_bytes(coded: Coded) -> float:
    """The least that a coder can take which knows the tensor's frequencies."""
    codes = unpack(coded[0], *coded[1]).flatten()
    share = codes.int().bincount().double() / len(codes)
    return float(torch.special.entr(share).sum()) / 0.6931471805599453 * len(codes) / 8


def zstd_bytes(coded: Coded, level: int) -> int:
    """What zstd makes of the packed bytes, a frame a tensor."""
    import zstandard

    return len(zstandard.ZstdCompressor(level).compress(coded[0].numpy().tobytes()))


def seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def row(technique: WeightTechnique, folder: Path, rounds: int) -> dict[str, Any]:
    """Sizes and speeds of all codes of a model."""
    coded = codes_of(tauten.quantize(folder, technique=technique))
    plain = sum(packed.nbytes for packed, _ in coded)
    bound = sum(map(shannon_bytes, coded))
    streams = [entropy.encode(*one) for one in coded]
    size = sum(stream.nbytes for stream in streams)
    result = {
        "technique": str(technique),
        "packed_bytes": plain,
        "bound_bytes": round(bound),
        "coded_bytes": size,
        "of_packed": size / plain,
        "over_bound": size / bound - 1,
        "encode_megabytes_per_s": plain / 1e6 / seconds(lambda: [*map(_encode, coded)], rounds),
        "decode_megabytes_per_s": plain / 1e6 / seconds(lambda: [*map(_decode, streams)], rounds),
    }
    if importlib.util.find_spec("zstandard"):
        for level in ZSTD_LEVELS:
            total = sum(zstd_bytes(one, level) for one in coded)
            result[f"zstd_{level}_over_bound"] = total / bound - 1
    return result


def _encode(coded: Coded) -> Tensor:
    return entropy.encode(*coded)


def _decode(stream: Tensor) -> Tensor:
    return entropy.decode(stream)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        smollm2(folder)
        for technique in TECHNIQUES:
            results.append(row(technique, folder, options.rounds))
            print({k: v if isinstance(v, str) else round(v, 4) for k, v in results[-1].items()})
    if options.out:
        setting = {
            "cpu": cpu_name(),
            "load": os.getloadavg()[0],
            "torch": torch.__version__,
            "threads": options.threads,
        }
        options.out.write_text(json.dumps({"setting": setting, "results": results}, indent=1))


if __name__ == "__main__":
    main()
