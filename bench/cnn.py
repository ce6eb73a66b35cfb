"""A residual network trained on Fashion-MNIST, in 8 and 4 bits: accuracy, bytes and latency.

Needs the data of Debian's package dataset-fashion-mnist, installed or unpacked:

    apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist*.deb fashion
    python bench/cnn.py --data fashion/usr/share/datasets/fashion-mnist

The network is trained once, for a few minutes, and its weights are kept beside the results. Calls
are timed in turns; the limit holds for static int8, in points of accuracy below float32.
"""

import argparse
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import Tensor, nn

import tauten
from tauten.core.technique import WeightTechnique
from tauten.evaluation.latency import compare_latency

WEIGHTS = Path("bench/results/work/cnn.safetensors")
LIMIT_POINTS = 0.5
TIMED_IMAGES = 64
CALIBRATION_IMAGES = 1024
TECHNIQUES: dict[str, WeightTechnique] = {
    "int8, dynamic": tauten.Int8(),
    "int8, static mse": tauten.StaticInt8("mse"),
    "int8, static percentile": tauten.StaticInt8("percentile"),
    "int8, static minmax": tauten.StaticInt8("minmax"),
    "int8, static, not folded": tauten.StaticInt8("mse", fold=False),
    "int8, static, bias kept": tauten.StaticInt8("mse", bias_correction=False),
    "int8, static, equalized": tauten.StaticInt8("mse", equalize=True),
    "4 bits, rtn": tauten.RTN(4, 0, "none"),
    "4 bits, gptq": tauten.GPTQ(4, 0, "none"),
    "4 bits, adaround": tauten.AdaRound(4, 0, "none"),
}


class Residual(nn.Module):
    """Two convolutions with batch norms, and a skip that is a convolution where sizes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skip = nn.Sequential(skip, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(inner + self.skip(x))


def network() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(stem, nn.Sequential(*blocks), *end)


def read_images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) of mean 0 and deviation 1, and labels (n,)."""
    pixels = read_idx(folder / f"{part}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz", 8)
    return (pixels.float() / 255 - 0.286) / 0.353, labels.long()


def read_idx(file: Path, header_bytes: int) -> Tensor:
    content = bytearray(gzip.decompress(file.read_bytes())[header_bytes:])
    return torch.frombuffer(content, dtype=torch.uint8)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int = 128) -> None:
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            x = images[rows]
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
            loss = nn.functional.cross_entropy(model(x), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    model.eval()


def trained(weights: Path, folder: Path, epochs: int) -> nn.Module:
    """The network with weights from a file; trained and written there if there is none."""
    model = network()
    if not weights.is_file():
        train(model, *read_images(folder, "train"), epochs)
        weights.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(model.state_dict(), weights)
    model.load_state_dict(safetensors.torch.load_file(weights))
    return model.eval()


def right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(n,) 1 where the model finds the label."""
    found = [model(part).argmax(1) for part in images.split(500)]
    return (torch.cat(found) == labels).float()


def accuracy_facts(correct: Tensor, original: Tensor) -> dict[str, float]:
    """Accuracy with Wilson's interval, and points below the original with a paired one; 95%."""
    count = len(correct)
    interval = stats.binomtest(int(correct.sum()), count).proportion_ci(0.95, "wilson")
    lost = 100 * (original - correct)
    margin = float(stats.norm.ppf(0.975) * lost.std() / count**0.5)
    return {
        "accuracy": float(correct.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "points_lost": float(lost.mean()),
        "points_margin": margin,
    }


def run(original: nn.Module, options: argparse.Namespace) -> list[dict[str, Any]]:
    images, labels = read_images(options.data, "t10k")
    seen = read_images(options.data, "train")[0][:CALIBRATION_IMAGES]
    base = right(original, images, labels)
    file_bytes = options.weights.stat().st_size
    rows = [{"model": "float32", "bytes": file_bytes, **accuracy_facts(base, base)}]
    models = {"float32": original}
    for name, technique in TECHNIQUES.items():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            data = list(seen.split(128))
            models[name] = tauten.quantize(original, technique=technique, data=data, out=out)
            size = (out / "model.safetensors").stat().st_size
        facts = accuracy_facts(right(models[name], images, labels), base)
        rows.append({"model": name, "bytes": size, **facts})
    times = compare_latency(models, images[:TIMED_IMAGES], False, options.rounds)
    for row in rows:
        latency = times[str(row["model"])]
        row |= {"median_s": latency.median_s, "spread_s": latency.spread_s}
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda row: row["model"],
        "accuracy (95%)": lambda row: (
            f"{row['accuracy']:.2%} ({row['low']:.2%} to {row['high']:.2%})"
        ),
        "points lost": lambda row: f"{row['points_lost']:.2f} +- {row['points_margin']:.2f}",
        "bytes": lambda row: f"{row['bytes']:,}",
        f"ms for {TIMED_IMAGES}": lambda row: f"{1e3 * row['median_s']:.1f}",
    }
    table = Table(*columns)
    for row in rows:
        table.add_row(*(text(row) for text in columns.values()))
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    installed = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=installed)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    setting = {"torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    setting |= {key: getattr(options, key) for key in ("epochs", "rounds", "threads")}
    original = trained(options.weights, options.data, options.epochs)
    with torch.no_grad():
        rows = run(original, options)
    show(rows)
    if options.out:
        options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
    lost = next(row["points_lost"] for row in rows if row["model"] == "int8, static mse")
    if lost > LIMIT_POINTS:
        raise SystemExit(f"static int8 loses {lost:.2f} points, more than {LIMIT_POINTS}")


if __name__ == "__main__":
    main()
