"""Whether certificates hold: 40 runs of the loop, each on other data, against the truth.

Needs the data of Debian's package dataset-fashion-mnist; see bench/cnn.py.

    python bench/honesty.py --data fashion/usr/share/datasets/fashion-mnist

A small residual network is trained once. Each run gets 900 of the 10,000 test images and looks for
the smallest model within a drop of its accuracy. The truth is the drop on all 10,000, which stand
for the world that the 900 were drawn from. Four more cases stand in worlds that data is drawn from
anew, with truths on 20 times as much: a loss, a word error rate, the rank correlation of a
reranker, the boxes of a detector. Certificates must be true in at least 95 of 100 cases.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import metrics
import torch
from cnn import network, read_images, right, train
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import tauten

IMAGES, LIMIT = 900, 0.95
KINDS = {
    "loss": "cross entropy",
    "word error rate": "word errors",
    "rank correlation": "queries and grades",
    "detector": "boxes and targets",
}


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


def of_images(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = network()
    train(model, *read_images(options.data, "train"), epochs=1)
    model.eval()
    images, labels = read_images(options.data, "t10k")
    with torch.no_grad():
        return [
            {"case": "accuracy", **run(model, images, labels, seed, options.max_drop)}
            for seed in track(range(options.runs), "accuracy")
        ]


def of_worlds(options: argparse.Namespace, kind: str) -> list[dict[str, Any]]:
    (case,) = (case for case in metrics.CASES if case.name == KINDS[kind])
    seeds = track(range(options.runs), kind)
    return [metrics.run(case, "optimize", 1000 + seed) | {"case": kind} for seed in seeds]


def holds(row: dict[str, Any], max_drop: float) -> bool:
    """Whether what a certificate says is true."""
    return row["true"] if "true" in row else row["true_drop"] <= max_drop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--max-drop", type=float, default=0.05)
    parser.add_argument("--cases", nargs="+", default=["accuracy", *KINDS])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.getLogger("tauten").setLevel(logging.ERROR)
    table = Table("case", "runs", "certified", "of those true", "all bounds that hold")
    rows, certified, true = [], 0, 0
    for case in options.cases:
        own = of_images(options) if case == "accuracy" else of_worlds(options, case)
        proven = [row for row in own if row["certified"]]
        kept = sum(holds(row, options.max_drop) for row in proven)
        measured = [row for row in own if "claimed" in row]
        lost = [row.get("true_drop", row.get("lost")) <= row["claimed"] for row in measured]
        table.add_row(case, *map(str, (len(own), len(proven), kept, sum(lost))))
        rows, certified, true = rows + own, certified + len(proven), true + kept
    Console().print(table)
    if options.out:
        setting = {"max_drop": options.max_drop, "images": IMAGES}
        options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    if true < LIMIT * certified:
        raise SystemExit(f"{true} of {certified} certificates are true")


if __name__ == "__main__":
    main()
