"""The perplexity that Tauten measures of an original, beside a plain loop in transformers.

    python bench/original_figures.py MODEL.gguf ... --data TEXTS.jsonl

The loop calls the model on one window at a time, without padding, and begins each as the model's
own tokenizer begins a text. The figures are to differ by less than 1%.
"""

import argparse
import math
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from tauten.data.reading import UserData
from tauten.evaluation.task import make_task
from tauten.faces import evaluate_facts


def plain_figure(file: Path, windows: list[list[int]]) -> float:
    """exp of the mean loss of the tokens after each window's first."""
    where = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
    folder = file.parent if where else file
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, **where
    ).eval()
    total = count = 0.0
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor([window])
            total += float(model(input_ids=ids, labels=ids).loss) * (len(window) - 1)
            count += len(window) - 1
    return math.exp(total / count)


def windows_of(name: str, data: str, max_tokens: int) -> list[list[int]]:
    """The windows of the test split, checked to begin as the tokenizer begins a text."""
    source, texts = UserData(data).opened(name)
    tokenizer = source.tokenizer()
    task = make_task(source, source.skeleton(), texts, max_tokens=max_tokens, tunes=False)
    found = [
        ids[:length].tolist()
        for batch in task.splits.test
        for ids, length in zip(batch.ids, batch.lengths, strict=True)
    ]
    head = tokenizer("a").input_ids[: -len(tokenizer("a", add_special_tokens=False).input_ids)]
    assert all(window[: len(head)] == head for window in found)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--max-tokens", type=int, default=4096)
    options = parser.parse_args()
    table = Table("model", "windows", "Tauten", "transformers", "difference")
    for name in options.models:
        given = UserData(options.data)
        ours = evaluate_facts(name, None, given, None, options.max_tokens, 0)["value"]
        windows = windows_of(name, options.data, options.max_tokens)
        plain = plain_figure(Path(name), windows)
        figures = f"{ours:.3f}", f"{plain:.3f}", f"{ours / plain - 1:+.3%}"
        table.add_row(Path(name).name, str(len(windows)), *figures)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
