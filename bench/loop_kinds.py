"""The same call on other goals and models: a latency, a classifier, a sentence encoder.

    python bench/loop_kinds.py --data fashion/usr/share/datasets/fashion-mnist

A token of SmolLM2-135M must take at most `--share` of what it took; what was made is timed again in
a fresh process, beside the original, and must be within 5% of the limit. A residual network trained
on Fashion-MNIST may lose 1% of its accuracy, all-MiniLM-L6-v2 2% of its cosine to itself: neither
comes near code for language models. The limits are those of issue 6.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cnn import read_images, trained
from encoder import encoded, minilm, sentences
from originals import original
from rescale import rescaled
from rich.console import Console
from rich.table import Table
from texts import handbook

import tauten
from tauten.evaluation.latency import compare_latency
from tauten.models.source import open_source

SLACK = 0.05  # of a latency, when it is timed again
IMAGES, SENTENCES = 4000, 2048

Row = dict[str, Any]


def timed(path: Path, model: Path) -> Row:
    """A token of an artifact beside one of its original, in this process."""
    places = {"original": model, "chosen": path}
    models = {name: open_source(str(place)).open() for name, place in places.items()}
    times = compare_latency(models, None, language_model=True)
    return {name: latency.median_s for name, latency in times.items()}


def timed_anew(path: Path, model: Path) -> Row:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--time", str(path), "--model", str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def latency(options: argparse.Namespace) -> Row:
    model = rescaled(original("SmolLM2-135M", options.folder / "models"))
    out = options.folder / "latency"
    shutil.rmtree(out, ignore_errors=True)
    limit = options.share * timed_anew(model, model)["original"]
    goal = tauten.Goal(max_drop=0.1, max_latency_s=limit)
    row = told("SmolLM2-135M, latency", tauten.optimize(model, "python-docs", goal, out=out))
    again = timed_anew(out, model)
    row |= {"limit_s": limit, "latency_s": again["chosen"], "original_s": again["original"]}
    return row | {"over": again["chosen"] / limit - 1}


def classifier(options: argparse.Namespace) -> Row:
    model = trained(options.folder / "cnn.safetensors", options.data, 1)
    images, labels = read_images(options.data, "t10k")
    batches = list(zip(images[:IMAGES].split(100), labels[:IMAGES].split(100), strict=True))
    goal = tauten.Goal(max_drop=0.01)
    return told("CNN, accuracy", tauten.optimize(model, batches, goal))


def encoder(options: argparse.Namespace) -> Row:
    source = minilm()
    found = sentences(handbook(options.folder / "texts"))
    found = found[:: len(found) // SENTENCES][:SENTENCES]
    data = encoded(found, source.tokenizer())
    return told("MiniLM, cosine", tauten.optimize(source, data, tauten.Goal(max_drop=0.02)))


def told(name: str, result: tauten.Result) -> Row:
    chosen = next(t.measurement for t in result.trials if t.recipe == result.recipe)
    assert chosen is not None and result.test is not None and result.original is not None
    row = {"case": name, "recipe": str(result.recipe), "trials": len(result.trials)}
    row |= {"original_bytes": result.original["size_bytes"], "size_bytes": chosen.size_bytes}
    row |= {"test_drop": result.test.drop.value, "test_high": result.test.drop.high}
    return row | {"certified": result.certified, "reason": result.reason}


def show(rows: list[Row]) -> None:
    table = Table("case", "trials", "MB before", "MB", "drop (bound)", "certified", "timed anew")
    for row in rows:
        drop = f"{row['test_drop']:.2%} ({row['test_high']:.2%})"
        anew = "-"
        if "over" in row:
            anew = f"{row['latency_s'] * 1e3:.2f} ms, limit {row['limit_s'] * 1e3:.2f}"
        sizes = [f"{row[key] / 1e6:.2f}" for key in ("original_bytes", "size_bytes")]
        table.add_row(row["case"], str(row["trials"]), *sizes, drop, str(row["certified"]), anew)
    Console(width=110).print(table)


CASES = {"latency": latency, "classifier": classifier, "encoder": encoder}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench/results/work/quality"))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--share", type=float, default=0.5, help="of the original's latency")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--out", type=Path, default=Path("bench/results/loop_kinds.json"))
    parser.add_argument("--time", type=Path, help="time this artifact beside --model, no more")
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    if options.time:
        print(json.dumps(timed(options.time, options.model)))
        return
    rows = []
    for name in options.cases:
        began = time.monotonic()
        row = CASES[name](options)
        rows.append(row | {"seconds": time.monotonic() - began})
    show(rows)
    held = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    named = {row["case"] for row in rows}
    rows = [row for row in held if row["case"] not in named] + rows
    setting = {"threads": torch.get_num_threads()}
    options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    if missed := [row["case"] for row in rows if row.get("over", 0) > SLACK]:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
