"""Whether certificates hold: 40 runs of the loop, each on other images, against the truth.

Needs the data of Debian's package dataset-fashion-mnist; see bench/cnn.py.

    python bench/honesty.py --data fashion/usr/share/datasets/fashion-mnist

A small residual network is trained once. Each run gets 900 of the 10,000 test images and looks for
the smallest model within a drop of its accuracy. The truth is the drop on all 10,000, which stand
for the world that the 900 were drawn from. The limit is that of issue 6: certificates are true in
at least 95 of 100 cases.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from cnn import network, read_images, right, train
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import tauten

IMAGES, LIMIT = 900, 0.95


def run(
    model: nn.Module, images: Tensor, labels: Tensor, seed: int, limit: float
) -> dict[str, Any]:
    """One run on a sample, and what is true of its result."""
    rows = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    batches = [(images[part], labels[part]) for part in rows.split(100)]
    result = tauten.optimize(model, batches, tauten.Goal(max_drop=limit), seed=seed)
    assert result.model is not None and result.test is not None
    before, after = (right(m, images, labels).mean().item() for m in (model, result.model))
    measured = [t.measurement for t in result.trials if t.measurement is not None]
    chosen = next(t.measurement for t in result.trials if t.recipe == result.recipe)
    assert chosen is not None
    return {
        "certified": result.certified,
        "claimed": result.test.drop.high,
        "true_drop": 1 - after / before,
        "size_bytes": chosen.size_bytes,
        "largest_bytes": max(m.size_bytes for m in measured),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--max-drop", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = network()
    train(model, *read_images(options.data, "train"), epochs=1)
    model.eval()
    images, labels = read_images(options.data, "t10k")
    with torch.no_grad():
        rows = [
            run(model, images, labels, seed, options.max_drop)
            for seed in track(range(options.runs), "runs")
        ]
    certified = [row for row in rows if row["certified"]]
    true = [row for row in certified if row["true_drop"] <= options.max_drop]
    below = [row for row in rows if row["true_drop"] <= row["claimed"]]
    table = Table("runs", "certified", "of those true", "all bounds that hold", "bytes kept")
    kept = sum(r["size_bytes"] for r in rows) / sum(r["largest_bytes"] for r in rows)
    table.add_row(
        str(len(rows)), str(len(certified)), str(len(true)), str(len(below)), f"{kept:.1%}"
    )
    Console().print(table)
    if options.out:
        setting = {"max_drop": options.max_drop, "images": IMAGES}
        options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    if len(true) < LIMIT * len(certified):
        raise SystemExit(f"{len(true)} of {len(certified)} certificates are true")


if __name__ == "__main__":
    main()
