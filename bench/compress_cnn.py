"""A residual network on Fashion-MNIST with 4 times fewer multiply-adds: accuracy and latency.

Needs the data of Debian's package dataset-fashion-mnist; see bench/cnn.py.

    python bench/compress_cnn.py --data fashion/usr/share/datasets/fashion-mnist

The network is trained once, for some minutes, and its weights are kept. Then half of all channels
are pruned, what is left learns to answer as the original does, without labels, and is kept beside
them; int8 comes on top. Calls are timed in turns. The limits are those of issue 5.
"""

import argparse
import copy
import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from cnn import Residual, accuracy_facts, read_images, right
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tauten
from tauten.evaluation.latency import compare_latency
from tauten.models.calibration import CalibrationBatch
from tauten.models.multiply_adds import MultiplyAdds

BATCHES = (1, 32)
LIMIT_POINTS = 1.0
LIMIT_MULTIPLY_ADDS = 4.0  # fewer by this
LIMIT_SPEED = {"pruned, healed": 2.0, "pruned, healed, int8": 3.0}
CALIBRATION_BATCHES = 8  # of 128 images


def network(width: int) -> nn.Module:
    """With 128 channels at first it takes 161 million multiply-adds an image."""
    stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks = [Residual(width, width, 1), Residual(width, 2 * width, 2)]
    blocks += [Residual(2 * width, 4 * width, 2)]
    end = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))
    return nn.Sequential(stem, nn.Sequential(*blocks), *end)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, batch: int = 128) -> None:
    """As in bench/cnn.py, in bfloat16."""
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
            x = images[rows]
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
            with torch.autocast("cpu", torch.bfloat16):
                answers = model(x)
            loss = nn.functional.cross_entropy(answers.float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def trained(options: argparse.Namespace) -> nn.Module:
    """The network with weights from a file; trained and written there if there is none."""
    model = network(options.width)
    if not options.weights.is_file():
        train(model, *read_images(options.data, "train"), options.epochs)
        safetensors.torch.save_file(model.state_dict(), options.weights)
    model.load_state_dict(safetensors.torch.load_file(options.weights))
    return model.eval()


def compressed(original: nn.Module, options: argparse.Namespace) -> dict[str, nn.Module]:
    """The models to compare, by name."""
    images, _ = read_images(options.data, "train")
    batches = list(images.split(128))
    few = batches[:CALIBRATION_BATCHES]
    prune = tauten.PruneChannels(0.5, options.by)
    pruned = tauten.compress(original, technique=prune, data=few)
    healed = healed_of(pruned, original, batches, options)
    packed = tauten.quantize(healed, technique=tauten.StaticInt8(), data=few)
    models = {"float32": original, "pruned": pruned, "pruned, healed": healed}
    return models | {"pruned, healed, int8": packed}


def healed_of(
    pruned: nn.Module, original: nn.Module, batches: list[Tensor], options: argparse.Namespace
) -> nn.Module:
    """The pruned network with weights from a file; healed and written there if there is none."""
    file = options.weights.with_suffix(".healed.safetensors")
    if not file.is_file():
        steps = options.heal_epochs * len(batches)
        distill = tauten.Distill(steps=steps, learning_rate=options.heal_rate)
        healed = tauten.compress(pruned, technique=distill, teacher=original, data=batches)
        safetensors.torch.save_file(healed.state_dict(), file)
    healed = copy.deepcopy(pruned)
    healed.load_state_dict(safetensors.torch.load_file(file))
    return healed


def add_times(
    rows: list[dict[str, Any]], models: dict[str, nn.Module], images: Tensor, rounds: int
) -> None:
    """Add to each row what its model takes for these images, with the threads set now."""
    times = compare_latency(models, images, False, rounds)
    setting = f"{len(images)}_images_{torch.get_num_threads()}_threads"
    for row in rows:
        latency = times[row["model"]]
        row[f"median_s_{setting}"] = latency.median_s
        row[f"spread_s_{setting}"] = latency.spread_s
        row[f"speed_{setting}"] = times["float32"].median_s / latency.median_s


def run(original: nn.Module, options: argparse.Namespace) -> list[dict[str, Any]]:
    models = compressed(original, options)
    images, labels = read_images(options.data, "t10k")
    base = right(original, images, labels)
    rows: list[dict[str, Any]] = []
    call = CalibrationBatch((images[:1],), {})
    whole = MultiplyAdds(original, call).total
    for name, model in models.items():
        rows.append({"model": name, **accuracy_facts(right(model, images, labels), base)})
        dense = models[name.removesuffix(", int8")]  # int8 does as many, of another kind
        rows[-1]["fewer_multiply_adds"] = whole / MultiplyAdds(dense, call).total
    for threads in options.threads:
        torch.set_num_threads(threads)
        for batch in BATCHES:
            add_times(rows, models, images[:batch], options.rounds)
    return rows


def settings_of(rows: list[dict[str, Any]]) -> list[str]:
    """The settings that calls were timed in."""
    return [key.removeprefix("speed_") for key in rows[0] if key.startswith("speed_")]


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "accuracy (95%)", "points lost", "fewer multiply-adds")
    settings = settings_of(rows)
    for setting in settings:
        table.add_column(f"ms, {setting.replace('_', ' ')}")
    for row in rows:
        interval = f"{row['accuracy']:.2%} ({row['low']:.2%} to {row['high']:.2%})"
        lost = f"{row['points_lost']:.2f} +- {row['points_margin']:.2f}"
        times = [f"{1e3 * row[f'median_s_{s}']:.2f} ({row[f'speed_{s}']:.1f}x)" for s in settings]
        table.add_row(row["model"], interval, lost, f"{row['fewer_multiply_adds']:.2f}x", *times)
    Console(width=120).print(table)


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Which limits don't hold."""
    found = []
    for row in rows:
        if row["model"] not in LIMIT_SPEED:
            continue
        if row["points_lost"] > LIMIT_POINTS:
            found.append(f"{row['model']} loses {row['points_lost']:.2f} points")
        if row["fewer_multiply_adds"] < LIMIT_MULTIPLY_ADDS:
            found.append(f"only {row['fewer_multiply_adds']:.2f}x fewer multiply-adds")
        for setting in settings_of(rows):
            if row[f"speed_{setting}"] < LIMIT_SPEED[row["model"]]:
                speed = f"{row[f'speed_{setting}']:.2f}x"
                found.append(f"{row['model']} is only {speed} faster, {setting}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    installed = Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data", type=Path, default=installed)
    parser.add_argument("--weights", type=Path, default=Path("compress_cnn.safetensors"))
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--by", choices=("layer", "importance"), default="importance")
    parser.add_argument("--heal-epochs", type=int, default=2)
    parser.add_argument("--heal-rate", type=float, default=2e-3)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads[0])
    setting = {"torch": torch.__version__, "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    setting |= {
        k: getattr(options, k)
        for k in ("width", "by", "epochs", "heal_epochs", "heal_rate", "rounds", "threads")
    }
    original = trained(options)
    with torch.no_grad():
        rows = run(original, options)
    show(rows)
    if options.out:
        options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1))
    if found := missed(rows):
        raise SystemExit("; ".join(found))


if __name__ == "__main__":
    main()
