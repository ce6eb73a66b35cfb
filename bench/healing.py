"""SmolLM2-135M with a quarter fewer layers, before and after 15 minutes of distillation.

Layers go by what `PruneDepth` measures on the calibration tokens of `quality.py`; what is left
learns on other parts of Brown to predict as the original does, on all cores. Perplexity and
divergence are judged on the handbook. Tokens a second are those of `generate`, in float32 and then
with weights in 4 bits, original and healed in turns. The limits are those of issue 5.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from judge import Judge
from originals import original
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from texts import tokens
from torch import nn

import tauten
from tauten.evaluation.latency import compare_latency

MINUTES = 15
LEARNING_RATE = 3e-4
MOST_OF_INCREASE, LEAST_SPEED = 0.5, 1.25
BATCH = 4  # windows

Row = dict[str, Any]


def show(options: argparse.Namespace) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else run(options)
    options.out.write_text(json.dumps({"minutes": MINUTES, "rows": rows}, indent=1) + "\n")
    table = Table("model", "layers", "perplexity", "KL mean", "tokens/s", "in 4 bits")
    for row in rows:
        figures = [f"{row[key]:.3f}" for key in ("perplexity", "kl_mean")]
        speeds = [f"{row[key]:.1f}" for key in ("tokens_per_s", "tokens_per_s_4_bits")]
        table.add_row(row["model"], str(row["layers"]), *figures, *speeds)
    Console(width=100).print(table)
    if text := missed(rows):
        raise SystemExit(f"missed: {text}")


def run(options: argparse.Namespace) -> list[Row]:
    folder = original("SmolLM2-135M", options.folder / "models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    windows = load_file(tokens(options.folder / "texts", tokenizer))
    made = options.folder / "healing"
    few, many = (
        [{"input_ids": part} for part in windows[name].split(BATCH)]
        for name in ("calibration", "training")
    )
    if not (made / "pruned").exists():
        tauten.compress(folder, technique=tauten.PruneDepth(0.25), data=few, out=made / "pruned")
    if not (made / "healed").exists():
        distill = tauten.Distill(max_time_s=60 * MINUTES, learning_rate=LEARNING_RATE)
        student, out = made / "pruned", made / "healed"
        tauten.compress(student, technique=distill, teacher=folder, data=many, out=out)
    judge = Judge(folder, windows["evaluation"])
    places = {"original": folder, "pruned": made / "pruned", "healed": made / "healed"}
    models = {name: opened(place) for name, place in places.items()}
    times = speeds(models)
    return [row(name, model, judge) | times[name] for name, model in models.items()]


def opened(place: Path) -> Any:
    """A folder by plain transformers: what `PruneDepth` leaves is a checkpoint like any other."""
    return transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()


def row(name: str, model: Any, judge: Judge) -> Row:
    with torch.no_grad():
        facts = judge.judge(model)
    return {"model": name, "layers": model.config.num_hidden_layers, **facts}


def speeds(models: dict[str, nn.Module]) -> dict[str, dict[str, float]]:
    """Tokens a second of each model, plain and packed."""
    packed = {
        name: tauten.quantize(model, technique=tauten.RTN(4, 64, activation="int8"))
        for name, model in models.items()
    }
    plain_times, packed_times = (compare_latency(m, None, True) for m in (models, packed))
    return {
        name: {
            "tokens_per_s": 1 / plain_times[name].median_s,
            "tokens_per_s_4_bits": 1 / packed_times[name].median_s,
        }
        for name in models
    }


def missed(rows: list[Row]) -> str:
    """Which limits aren't met."""
    whole, pruned, healed = rows
    increase = pruned["perplexity"] - whole["perplexity"]
    share = (healed["perplexity"] - whole["perplexity"]) / increase
    speed = healed["tokens_per_s"] / whole["tokens_per_s"]
    found = [f"{share:.2f} of the increase is left"] if share > MOST_OF_INCREASE else []
    found += [f"{speed:.2f} times the tokens a second"] if speed < LEAST_SPEED else []
    return "; ".join(found)
